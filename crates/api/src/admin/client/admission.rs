//! How a client lets nodes and browsers in, and removes a node.

use countersign_identity::NodeId;
use http::Method;

use super::{AdminClient, AdminError};
use crate::admin::{ConsoleLinkResponse, CreateTokenRequest, CreateTokenResponse};

impl AdminClient {
    /// Makes a join token.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn create_token(
        &self,
        request: &CreateTokenRequest,
    ) -> Result<CreateTokenResponse, AdminError> {
        self.post("/v1/join-tokens", request).await
    }

    /// Makes a link to the console, which lets one browser in, once.
    ///
    /// # Errors
    /// When the server cannot be asked, or has no console.
    pub async fn console_link(&self) -> Result<ConsoleLinkResponse, AdminError> {
        self.post("/v1/console-links", &()).await
    }

    /// Removes a node, which can never renew again.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn remove_node(&self, node: NodeId) -> Result<(), AdminError> {
        self.ask(Method::DELETE, &format!("/v1/nodes/{node}"), None).await.map(drop)
    }
}
