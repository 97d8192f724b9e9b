//! What policies come to, as operators ask.

use std::net::IpAddr;

use countersign_identity::{Mode, Name, Revision, Sha256, SpiffeId, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::difference::FieldChange;
use super::requests::Action;
use crate::resource::Kind;

/// May this one do that there?
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExplainRequest {
    /// Who asks: the name of a workload or of its service, or a SPIFFE ID.
    pub from: String,
    /// Who is asked: the name of a service or of its workload, or a SPIFFE ID.
    pub to: String,
    /// The method of the request, or `publish` or `subscribe`; absent: whether a connection may be opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The path of the request, or the topic, with a method only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// When it is asked for; absent: now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub time: Option<Timestamp>,
    /// The address that the caller comes from; absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
}

/// Yes or no.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It is permitted.
    Allow,
    /// It is not.
    Deny,
}

impl Answer {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// What would be decided, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExplainResponse {
    /// Whether policies permit it.
    pub decision: Answer,
    /// Whether that is done (`enforce`), or only told (`observe`).
    #[schema(value_type = String)]
    pub mode: Mode,
    /// The policies that permit or forbid it; none where it is denied for want of one.
    pub policies: Vec<String>,
    /// The state that was asked; absent when it was a folder of manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub revision: Option<Revision>,
    /// Who asks, as policies name it.
    pub source: String,
    /// The service that is asked.
    #[schema(value_type = String)]
    pub service: Name,
    /// The operation that it is, if one is declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub operation: Option<Name>,
    /// The path in the form that is decided on and sent on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Why, in a sentence.
    pub why: String,
    /// What would allow it, if it is denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// What was assumed of the context, in sentences: as far as policies that could bear on it read that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assumed: Vec<String>,
}

/// Things alike that were asked for, counted together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FlowView {
    /// Who asked: the name of a workload, or the SPIFFE ID that no manifest names.
    pub source: String,
    /// The SPIFFE ID.
    #[schema(value_type = String)]
    pub source_id: SpiffeId,
    /// Whose door it was.
    #[schema(value_type = String)]
    pub service: Name,
    /// The operation; absent for a connection, and for a path that no operation declares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub operation: Option<Name>,
    /// The method; absent for a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The operation's path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whether policies permitted it.
    pub decision: Answer,
    /// Whether that was done (`enforce`), or only told (`observe`).
    #[schema(value_type = String)]
    pub mode: Mode,
    /// The policies that it rested on.
    pub policies: Vec<String>,
    /// When the first was seen.
    #[schema(value_type = String)]
    pub first_seen: Timestamp,
    /// When the last was seen.
    #[schema(value_type = String)]
    pub last_seen: Timestamp,
    /// How many, since the first.
    pub count: u64,
}

impl FlowView {
    /// What was asked for, in a few words.
    pub fn what(&self) -> String {
        match (&self.method, &self.path) {
            (None, _) => "connect".to_owned(),
            (Some(method), Some(path)) => format!("{method} {path}"),
            (Some(method), None) => format!("{method} (undeclared path)"),
        }
    }
}

/// A policy that permits something nobody has asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnusedGrant {
    /// The policy.
    pub policy: String,
    /// Whom it permits; empty: anybody.
    pub sources: Vec<String>,
    /// On which services; empty: any.
    pub services: Vec<String>,
}

/// Who talks to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FlowsResponse {
    /// What was seen, by source and service.
    pub flows: Vec<FlowView>,
    /// The grants that none of these flows rests on.
    pub unused: Vec<UnusedGrant>,
    /// How many requests and connections were counted in no flow since the server started.
    pub dropped: u64,
    /// For how long flows are kept after they were last seen.
    pub kept_days: u64,
}

/// What a set of manifests would change, and whom that would hit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanResponse {
    /// The revision that it was made for; absent when no server was asked.
    #[schema(value_type = Option<String>)]
    pub base: Option<Revision>,
    /// What would change.
    pub changes: Vec<PlannedChange>,
    /// What is in force, not in the manifests, and stays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<String>,
    /// The flows of the last 24 hours that are let pass now, and would not be any more.
    pub newly_denied: Vec<FlowView>,
    /// The flows of the last 24 hours that are refused now, and would not be any more.
    pub newly_allowed: Vec<FlowView>,
    /// What was assumed of the flows, in sentences: what policies read of the context, and flows do not carry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assumed: Vec<String>,
    /// What the change does besides, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consequences: Vec<String>,
    /// Who has to approve it, and who has; absent where nobody has to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<PlanApproval>,
}

/// Who has to approve a plan, and who has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanApproval {
    /// The digest of the plan: of its manifests, its base and whether it removes the rest.
    #[schema(value_type = String)]
    pub digest: Sha256,
    /// How many have to approve it, besides who applies it.
    pub needed: usize,
    /// Who may, `operator:uid:1001`.
    pub among: Vec<String>,
    /// Who has.
    pub given: Vec<ApprovalGiven>,
}

/// One operator's word on a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalGiven {
    /// Whose, `operator:uid:1001`.
    pub actor: String,
    /// When.
    #[schema(value_type = String)]
    pub at: Timestamp,
}

/// One change of one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlannedChange {
    /// What is done.
    pub action: Action,
    /// To which kind.
    #[schema(value_type = String)]
    pub kind: Kind,
    /// To which name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Every field that differs, if it is there before and after.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldChange>,
    /// Who changed it last, if that is still known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Touched>,
}

/// Who changed something, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Touched {
    /// At which revision.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// When, and by whom; absent when the log does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub at: Option<Timestamp>,
    /// `operator:uid:0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

/// What has changed, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryResponse {
    /// The revisions.
    pub entries: Vec<HistoryEntry>,
    /// Whether the list ends where the store's memory does, and not at the first revision.
    pub cut: bool,
}

/// One revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// Who made it, and when.
    #[serde(flatten)]
    pub touched: Touched,
    /// The records that it changed, `Policy/web-asks-orders`.
    pub put: Vec<String>,
    /// The records that it removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
}

/// Goes back to what was declared at a revision, as a new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RollbackRequest {
    /// To which.
    #[schema(value_type = String)]
    pub to: Revision,
    /// The revision that must still be in force; another one is a conflict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub base: Option<Revision>,
    /// Whether only to say what would change.
    #[serde(default)]
    pub dry_run: bool,
}
