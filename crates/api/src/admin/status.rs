//! Who is alive, with which identity, until when.

use countersign_identity::{
    Lifetime, Name, NodeEvidence, NodeId, Revision, Serial, Sha256, SpiffeId, Timestamp,
    TrustDomain,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The state of a trust domain, as its server sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The trust domain.
    #[schema(value_type = String)]
    pub trust_domain: TrustDomain,
    /// The newest revision.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// The server that answers.
    pub server: ServerStatus,
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
    /// The enforcement points.
    pub points: Vec<PointStatus>,
    /// The workloads.
    pub workloads: Vec<WorkloadStatus>,
    /// How long the server may stay away.
    pub outage_budget: OutageBudget,
    /// The present incarnation of the store, when it followed another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<IncarnationView>,
    /// What an operator should know, one sentence each.
    pub warnings: Vec<String>,
}

/// The server itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// The program's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Its resident memory.
    pub resident_bytes: u64,
    /// Since when it runs.
    #[schema(value_type = String)]
    pub started_at: Timestamp,
    /// Where agents reach it. Absent while it is sealed: then nobody does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Where it serves revocation lists and OCSP. Absent when it does not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub views: String,
    /// Whether it cannot open its keys, and so serves nothing but this.
    pub sealed: bool,
    /// Its audit log.
    pub log: LogView,
    /// How the parts stand that it cannot do without. Absent while it is sealed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartView>,
}

/// How something stands that a process cannot do without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PartView {
    /// What: `leaf`, `issuer`, `bundle` or `policy`.
    pub part: String,
    /// When it was last had or confirmed. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last_good_at: Option<Timestamp>,
    /// When it was last wanted and not had. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last_failure_at: Option<Timestamp>,
    /// Why it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// When what is in use ends. Absent: it does not, or there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ends_at: Option<Timestamp>,
}

/// The audit log's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogView {
    /// How many leaves it has.
    pub size: u64,
    /// The hash of its Merkle tree.
    #[schema(value_type = String)]
    pub root: Sha256,
}

/// A node and what runs on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its name.
    #[schema(value_type = String)]
    pub id: NodeId,
    /// Its agent's SPIFFE ID.
    #[schema(value_type = String)]
    pub spiffe_id: SpiffeId,
    /// What the agent calls the machine. Nothing is decided by it.
    pub host: String,
    /// By what it proved itself when it joined: `join-token` or `x509`. Of nodes that older servers have registered nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub attested_by: Option<NodeEvidence>,
    /// Whether its stream is open now.
    pub connected: bool,
    /// When the server heard of it last.
    #[schema(value_type = String)]
    pub seen_at: Timestamp,
    /// The revision that the agent serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub revision: Option<Revision>,
    /// How far its clock is ahead of the server's, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew_millis: Option<i64>,
    /// The processes that report through it, itself included.
    pub processes: Vec<ProcessView>,
    /// What it holds for its workloads.
    pub credentials: Vec<CredentialView>,
}

/// A process and what it costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProcessView {
    /// Its name.
    pub name: String,
    /// What it is: `agent`, `proxy` or `library`.
    pub kind: String,
    /// Its process id on its node.
    pub pid: u32,
    /// Its resident memory.
    pub resident_bytes: u64,
    /// Its live connections.
    pub connections: u64,
    /// Its version.
    pub version: String,
    /// How the parts stand that it cannot do without, as it said last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartView>,
}

/// An SVID that an agent holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CredentialView {
    /// Whose.
    pub workload: String,
    /// Its identity.
    #[schema(value_type = String)]
    pub spiffe_id: SpiffeId,
    /// Its serial number.
    #[schema(value_type = String)]
    pub serial: Serial,
    /// When it was issued.
    #[schema(value_type = String)]
    pub issued_at: Timestamp,
    /// When it ends.
    #[schema(value_type = String)]
    pub expires_at: Timestamp,
    /// When its successor is due.
    #[schema(value_type = String)]
    pub renewal_at: Timestamp,
    /// Why its last renewal failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// An enforcement point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PointStatus {
    /// Its name.
    pub name: String,
    /// For which identity it enforces.
    #[schema(value_type = String)]
    pub spiffe_id: SpiffeId,
    /// Through which node.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// The revision that it has acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub revision: Option<Revision>,
    /// Whether it is live.
    pub live: bool,
    /// Its resident memory, when it told.
    pub resident_bytes: u64,
    /// Its live connections, when it told.
    pub connections: u64,
}

/// A workload and what is out for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadStatus {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its SPIFFE ID.
    #[schema(value_type = String)]
    pub spiffe_id: SpiffeId,
    /// The lifetime of its SVIDs.
    #[schema(value_type = String)]
    pub lifetime: Lifetime,
    /// The outage that each of its SVIDs is guaranteed to survive, in seconds.
    pub guaranteed_budget_seconds: u64,
    /// How many SVIDs agents hold for it now.
    pub held: u64,
}

/// A life of the store that followed another, which it had not seen to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct IncarnationView {
    /// Why it began.
    pub cause: String,
    /// When.
    #[schema(value_type = String)]
    pub began_at: Timestamp,
    /// The last revision of the one before that the store knows.
    #[schema(value_type = String)]
    pub from: Revision,
    /// The log of the one before.
    pub log_before: LogView,
    /// Until when nothing is issued; absent: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub held_until: Option<Timestamp>,
    /// When what is of an earlier incarnation is covered.
    #[schema(value_type = String)]
    pub covered_at: Timestamp,
    /// Whether it is.
    pub covered: bool,
}

/// How long the control plane may stay away until the first credential in use expires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutageBudget {
    /// What is guaranteed at any moment: 45 % of the shortest lifetime in use.
    pub guaranteed_seconds: u64,
    /// When the first credential in use expires, if the server went away now; absent: none is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ends_at: Option<Timestamp>,
}
