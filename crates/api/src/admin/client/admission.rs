//! How a client lets nodes and browsers in, and removes a node.

use countersign_identity::NodeId;
use http::Method;

use super::{AdminClient, AdminError, understand};
use crate::admin::{
    ConsoleLinkResponse, CreateTokenRequest, CreateTokenResponse, RevisionResponse,
};

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

    /// Removes a node, which can never renew again. Says why the journal does not have the rule that goes with it, where
    /// one is kept and should.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn remove_node(&self, node: NodeId) -> Result<Option<String>, AdminError> {
        let path = format!("/v1/nodes/{node}");
        let answer = self.ask(Method::DELETE, &path, None).await?;
        // A server says nothing more when there is nothing more to say.
        if answer.is_empty() {
            return Ok(None);
        }
        Ok(understand::<RevisionResponse>(&path, &answer)?.not_in_journal)
    }
}
