//! Revocation lists, as operators get them.

use countersign_identity::{KeyId, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One revocation list of one authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CrlResponse {
    /// Whose certificates it tells of.
    #[schema(value_type = String)]
    pub issuer: KeyId,
    /// Its number, in hexadecimal digits.
    pub number: String,
    /// The list on which it builds, when it tells changes only; `0`: on any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Which part it is, `COUNT-INDEX`, when it is not the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    /// Since when it is true.
    #[schema(value_type = String)]
    pub this_update: Timestamp,
    /// When the next comes at the latest.
    #[schema(value_type = String)]
    pub next_update: Timestamp,
    /// How many certificates it lists.
    pub count: u64,
    /// Every authority that has lists.
    #[schema(value_type = Vec<String>)]
    pub issuers: Vec<KeyId>,
    /// The list in DER, in base64.
    pub der: String,
}
