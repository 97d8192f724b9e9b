//! What a client asks of the authorities, and which steps it has them take.

use bytes::Bytes;
use http::Method;

use super::{AdminClient, AdminError};
use crate::admin::{
    ApproveRequest, AuthoritiesResponse, CeremonyRequest, ImportRequest, ImportResponse,
    RecoverRequest, RecoverResponse, RequestView, RevisionResponse, RotateRequest, Step,
    StepRequest,
};

impl AdminClient {
    /// Every authority, and what is under way.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn authorities(&self) -> Result<AuthoritiesResponse, AdminError> {
        self.get("/v1/authorities").await
    }

    /// The trust bundle, as SPIFFE writes it.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn bundle(&self) -> Result<Bytes, AdminError> {
        self.ask(Method::GET, "/v1/bundle", None).await
    }

    /// The last walk that came to its end, signed by the active root, as it came.
    ///
    /// # Errors
    /// When the server cannot be asked, or none has come to its end yet.
    pub async fn report(&self) -> Result<Bytes, AdminError> {
        self.ask(Method::GET, "/v1/authorities/report", None).await
    }

    /// Takes one step of the roots' walk.
    ///
    /// # Errors
    /// When the server cannot be asked, or the step's gate is not open.
    pub async fn walk(
        &self,
        step: Step,
        request: &StepRequest,
    ) -> Result<RevisionResponse, AdminError> {
        self.post(&format!("/v1/authorities/{step}"), request).await
    }

    /// Says that a new root may sign.
    ///
    /// # Errors
    /// When the server cannot be asked, or the word is not this operator's to give.
    pub async fn approve(&self, request: &ApproveRequest) -> Result<RevisionResponse, AdminError> {
        self.post("/v1/authorities/approve", request).await
    }

    /// The request that an authority outside is to sign: the one that waits, or a new one.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn request_issuer(
        &self,
        request: &CeremonyRequest,
    ) -> Result<RequestView, AdminError> {
        self.post("/v1/authorities/request", request).await
    }

    /// Brings what an authority outside has signed.
    ///
    /// # Errors
    /// When the server cannot be asked, or what is brought cannot be taken.
    pub async fn import_issuer(
        &self,
        request: &ImportRequest,
    ) -> Result<ImportResponse, AdminError> {
        self.post("/v1/authorities/import", request).await
    }

    /// Orders the rotation of the root, step after step.
    ///
    /// # Errors
    /// When the server cannot be asked, or another walk is under way.
    pub async fn rotate_root(
        &self,
        request: &RotateRequest,
    ) -> Result<RevisionResponse, AdminError> {
        self.post("/v1/rotations/root", request).await
    }

    /// Puts a new issuer in the place of the one that signs now.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn rotate_issuer(
        &self,
        request: &RotateRequest,
    ) -> Result<RevisionResponse, AdminError> {
        self.post("/v1/rotations/issuer", request).await
    }

    /// Recovers from an authority's leaked key, or says what that comes to.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn recover(&self, request: &RecoverRequest) -> Result<RecoverResponse, AdminError> {
        self.post("/v1/recoveries", request).await
    }
}
