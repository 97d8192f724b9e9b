//! The inventory: what services are declared, against what is seen.

use countersign_identity::{Name, Revision, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is declared, and in what it differs from what is seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InventoryResponse {
    /// Of which revision.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// Since when flows were looked at.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// The services.
    pub services: Vec<ServiceView>,
    /// In what they differ from what is seen.
    pub findings: Vec<Finding>,
}

/// A declared service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// Its name.
    #[schema(value_type = String)]
    pub service: Name,
    /// Whose it is.
    #[schema(value_type = String)]
    pub workload: Name,
    /// `http` or `tcp`.
    pub protocol: String,
    /// Where it is dialled; nowhere when it has no door.
    pub addresses: Vec<String>,
    /// `required` or `none`.
    pub mutual_tls: String,
    /// Its TLS profile.
    pub tls_profile: String,
    /// The strictest classification of its data sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<String>,
    /// Whether an enforcement point of its workload is live.
    pub served: bool,
    /// When it was last asked for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last_seen: Option<Timestamp>,
    /// What it does.
    pub operations: Vec<OperationView>,
}

/// A declared operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationView {
    /// Its name.
    #[schema(value_type = String)]
    pub operation: Name,
    /// Its method and path.
    pub what: String,
    /// The data sets that it touches.
    #[schema(value_type = Vec<String>)]
    pub data_sets: Vec<Name>,
    /// When it was last asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last_seen: Option<Timestamp>,
}

/// What kind of difference it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FindingKind {
    /// It is asked for, and nobody has declared it.
    Undeclared,
    /// It is declared, and nobody serves it.
    Unserved,
    /// It is spoken to in plain text, and should not be.
    Plain,
}

impl FindingKind {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Undeclared => "undeclared",
            Self::Unserved => "unserved",
            Self::Plain => "plain",
        }
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What kind of difference it is.
    pub kind: FindingKind,
    /// The service.
    #[schema(value_type = String)]
    pub service: Name,
    /// What was found, and what would change it, in a sentence.
    pub what: String,
    /// Who asked, where somebody did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// How often.
    #[serde(default)]
    pub count: u64,
    /// When last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last_seen: Option<Timestamp>,
}
