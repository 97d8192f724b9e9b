//! What a client asks of reviews of policies.

use countersign_identity::Name;

use super::{AdminClient, AdminError};
use crate::admin::{
    ReviewReport, ReviewView, ReviewsResponse, SignReviewRequest, StartReviewRequest,
};

impl AdminClient {
    /// The reviews of policies.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn reviews(&self) -> Result<ReviewsResponse, AdminError> {
        self.get("/v1/reviews").await
    }

    /// Opens a review of policies.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn start_review(
        &self,
        request: &StartReviewRequest,
    ) -> Result<ReviewView, AdminError> {
        self.post("/v1/reviews", request).await
    }

    /// What a review finds: who could, who did, and what would be enough.
    ///
    /// # Errors
    /// When the server cannot be asked, or there is no such review.
    pub async fn review(&self, id: &Name) -> Result<ReviewReport, AdminError> {
        self.get(&format!("/v1/reviews/{id}")).await
    }

    /// Signs a review.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn sign_review(
        &self,
        id: &Name,
        request: &SignReviewRequest,
    ) -> Result<ReviewView, AdminError> {
        self.post(&format!("/v1/reviews/{id}/signature"), request).await
    }
}
