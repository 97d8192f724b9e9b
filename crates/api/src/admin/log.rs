//! The audit log as operators get it: what is signed of it, its leaves, and proofs.

use countersign_identity::{Incarnation, Revision, Sha256};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A log: what is signed of it, and by which key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogResponse {
    /// Of which incarnation.
    pub incarnation: Incarnation,
    /// The earlier incarnations whose logs are kept.
    pub past: Vec<Incarnation>,
    /// How many events the head row counts; absent for a log that is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<u64>,
    /// The latest revision that its events may be of; absent for a log that is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub revision: Option<Revision>,
    /// The public key of the log, `NAME+ID+KEY`; absent when it is sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The signed checkpoints that are kept, the newest first.
    pub checkpoints: Vec<String>,
}

/// Leaves of a log, as they are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeavesResponse {
    /// The leaves, in the order of their indexes.
    pub leaves: Vec<LeafView>,
}

/// One leaf, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LeafView {
    /// Its index.
    pub index: u64,
    /// The canonical JSON that is hashed.
    pub leaf: String,
    /// The hash that is stored with it.
    #[schema(value_type = String)]
    pub hash: Sha256,
    /// The details in canonical JSON, unless they were trimmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<String>,
    /// The salt with which the leaf binds the details, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
}

/// Hashes of the tree, as they are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TileHashesResponse {
    /// The hashes of full tiles, in the order of their places.
    pub hashes: Vec<TileHashView>,
}

/// The hash of a full tile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TileHashView {
    /// In the tiles of which level it stands.
    pub level: u8,
    /// Its place there.
    pub position: u64,
    /// The hash.
    #[schema(value_type = String)]
    pub hash: Sha256,
}

/// Proof that an event is in a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProofResponse {
    /// Of which incarnation's log.
    pub incarnation: Incarnation,
    /// The event's index.
    pub index: u64,
    /// How large the log is that was signed.
    pub size: u64,
    /// The public key with which the proof verifies, `NAME+ID+KEY`.
    pub key: String,
    /// The proof, in the form of C2SP tlog-proof; it carries the leaf.
    pub bundle: String,
}
