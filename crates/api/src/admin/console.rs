//! The way into the console.

use std::fmt;

use countersign_identity::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A link to the console. It is shown this once, and works once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConsoleLinkResponse {
    /// Where to go. What stands behind the `#` is the secret.
    pub url: String,
    /// Until when it may be used.
    #[schema(value_type = String)]
    pub expires: Timestamp,
    /// The root that a browser has to trust, PEM.
    pub root: String,
}

impl fmt::Debug for ConsoleLinkResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleLinkResponse")
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}
