//! What a client asks of what is declared, and how it has that changed.

use countersign_identity::{Name, Revision};
use http::Method;

use super::{AdminClient, AdminError, understand};
use crate::admin::{
    ApplyRequest, ApplyResponse, ExplainRequest, ExplainResponse, HistoryResponse, PlanResponse,
    ResourcesResponse, RollbackRequest,
};
use crate::resource::Kind;

impl AdminClient {
    /// The resources in force.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn resources(&self) -> Result<ResourcesResponse, AdminError> {
        self.get("/v1/resources").await
    }

    /// Makes a set of resources the desired state.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses; nothing is half-applied.
    pub async fn apply(&self, request: &ApplyRequest) -> Result<ApplyResponse, AdminError> {
        self.post("/v1/apply", request).await
    }

    /// What policies say about a question.
    ///
    /// # Errors
    /// When the server cannot be asked, or the question names nothing that is declared.
    pub async fn explain(&self, request: &ExplainRequest) -> Result<ExplainResponse, AdminError> {
        self.post("/v1/explain", request).await
    }

    /// What a set of resources would change, and whom that would hit.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn plan(&self, request: &ApplyRequest) -> Result<PlanResponse, AdminError> {
        self.post("/v1/plan", request).await
    }

    /// Approves a plan: exactly this one, of manifests for the revision that it names.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn approve_plan(&self, request: &ApplyRequest) -> Result<PlanResponse, AdminError> {
        self.post("/v1/plans/approve", request).await
    }

    /// What has changed, newest first, before a revision.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn history(
        &self,
        limit: usize,
        before: Option<Revision>,
        all: bool,
    ) -> Result<HistoryResponse, AdminError> {
        let before = before.map(|before| format!("&before={before}")).unwrap_or_default();
        self.get(&format!("/v1/history?limit={limit}&all={all}{before}")).await
    }

    /// What was declared at a revision.
    ///
    /// # Errors
    /// When the server cannot be asked, or the revision is no longer kept.
    pub async fn resources_at(&self, at: Revision) -> Result<ResourcesResponse, AdminError> {
        self.get(&format!("/v1/resources?revision={at}")).await
    }

    /// Goes back to what was declared at a revision, as a new one.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn rollback(&self, request: &RollbackRequest) -> Result<ApplyResponse, AdminError> {
        self.post("/v1/rollback", request).await
    }

    /// Removes a resource.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn remove_resource(
        &self,
        kind: Kind,
        name: &Name,
    ) -> Result<ApplyResponse, AdminError> {
        let path = format!("/v1/resources/{kind}/{name}");
        let answer = self.ask(Method::DELETE, &path, None).await?;
        understand(&path, &answer)
    }
}
