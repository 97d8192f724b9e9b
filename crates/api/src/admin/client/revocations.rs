//! How a client takes credentials out of service, and what it asks of who enforces that.

use std::time::Duration;

use countersign_identity::{KeyId, Revision};

use super::{AdminClient, AdminError};
use crate::admin::{
    Convergence, CrlResponse, ResumeRequest, RevisionResponse, RevocationsResponse, RevokeRequest,
    RevokeResponse, SuspendRequest,
};

impl AdminClient {
    /// Takes credentials out of service.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses; nothing is half-done.
    pub async fn revoke(&self, request: &RevokeRequest) -> Result<RevokeResponse, AdminError> {
        self.post("/v1/revocations", request).await
    }

    /// What is out of service.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn revocations(&self) -> Result<RevocationsResponse, AdminError> {
        self.get("/v1/revocations").await
    }

    /// Stops what would be issued.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn suspend(&self, request: &SuspendRequest) -> Result<RevisionResponse, AdminError> {
        self.post("/v1/suspensions", request).await
    }

    /// Lifts a suspension.
    ///
    /// # Errors
    /// When the server cannot be asked, or there is no such suspension.
    pub async fn resume(&self, request: &ResumeRequest) -> Result<RevisionResponse, AdminError> {
        self.post("/v1/resume", request).await
    }

    /// Ends the time after the beginning of an incarnation in which nothing is issued.
    ///
    /// # Errors
    /// When the server cannot be asked, or issuing is not held off.
    pub async fn resume_issuing(&self) -> Result<RevisionResponse, AdminError> {
        self.post("/v1/resume-issuing", &serde_json::json!({})).await
    }

    /// Takes the server's present time for right although the log has entries of a later one, and issues again.
    ///
    /// # Errors
    /// When the server cannot be asked, or its clock is not behind the log.
    pub async fn accept_clock(&self) -> Result<RevisionResponse, AdminError> {
        self.post("/v1/accept-clock", &serde_json::json!({})).await
    }

    /// Who enforces a revision, or the newest; waits for at most so long until all do and nothing is to be issued anew.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn convergence(
        &self,
        revision: Option<Revision>,
        wait: Duration,
    ) -> Result<Convergence, AdminError> {
        let wait = wait.as_millis();
        let revision = revision.map(|revision| format!("&revision={revision}")).unwrap_or_default();
        self.get(&format!("/v1/convergence?wait={wait}{revision}")).await
    }

    /// A revocation list: the whole one, what changed, or a part; of the issuer that signs now when none is named.
    ///
    /// # Errors
    /// When the server cannot be asked, or has no such list.
    pub async fn crl(
        &self,
        issuer: Option<KeyId>,
        part: Option<&str>,
    ) -> Result<CrlResponse, AdminError> {
        let issuer = issuer.map(|issuer| format!("&issuer={issuer}")).unwrap_or_default();
        let part = part.unwrap_or("whole");
        self.get(&format!("/v1/crl?part={part}{issuer}")).await
    }

    /// Begins a trial, named by its revision: agents show canaries at the doors of their enforcement points.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn try_out(&self) -> Result<RevisionResponse, AdminError> {
        self.post("/v1/trials", &serde_json::json!({})).await
    }

    /// As [`convergence`](Self::convergence), with what a trial has shown; waits for that as well.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn tried_out(
        &self,
        revision: Revision,
        trial: Revision,
        wait: Duration,
    ) -> Result<Convergence, AdminError> {
        let wait = wait.as_millis();
        self.get(&format!("/v1/convergence?wait={wait}&revision={revision}&trial={trial}")).await
    }
}
