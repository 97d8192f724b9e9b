//! What a client asks of who is alive, and of what was seen.

use std::time::Duration;

use countersign_identity::NodeId;
use http::Method;

use super::{AdminClient, AdminError, not_understood};
use crate::admin::{
    FlowsResponse, HandshakeFilter, HandshakeHistory, HandshakesResponse, InventoryResponse,
    NodesResponse, Status,
};

impl AdminClient {
    /// Whether the server is ready; when it is not, the refusal says why.
    ///
    /// # Errors
    /// When it is not.
    pub async fn ready(&self) -> Result<(), AdminError> {
        self.ask(Method::GET, "/ready", None).await.map(drop)
    }

    /// Who is alive.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn status(&self) -> Result<Status, AdminError> {
        self.get("/v1/status").await
    }

    /// The latest handshakes, newest first; only those after this index.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn handshakes(
        &self,
        limit: usize,
        after: Option<u64>,
    ) -> Result<HandshakesResponse, AdminError> {
        let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
        self.get(&format!("/v1/handshakes?limit={limit}{after}")).await
    }

    /// Stored handshakes that fit, newest first, but for so many of the newest.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn handshake_history(
        &self,
        filter: &HandshakeFilter,
        limit: usize,
        skip: usize,
    ) -> Result<HandshakeHistory, AdminError> {
        let path = "/v1/handshakes/history";
        let filter = serde_urlencoded::to_string(filter)
            .map_err(|bad| not_understood(path, bad.to_string()))?;
        self.get(&format!("{path}?{filter}&limit={limit}&skip={skip}")).await
    }

    /// A page of the registered nodes.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn nodes(&self, after: Option<NodeId>) -> Result<NodesResponse, AdminError> {
        let after = after.map(|after| format!("?after={after}")).unwrap_or_default();
        self.get(&format!("/v1/nodes{after}")).await
    }

    /// Who has talked to whom within this time.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn flows(&self, since: Option<Duration>) -> Result<FlowsResponse, AdminError> {
        let since = since.map(|since| format!("?since={}", since.as_secs())).unwrap_or_default();
        self.get(&format!("/v1/flows{since}")).await
    }

    /// What is declared, and in what it differs from what was seen within this time.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn inventory(&self, since: Duration) -> Result<InventoryResponse, AdminError> {
        self.get(&format!("/v1/inventory?since={}", since.as_secs())).await
    }
}
