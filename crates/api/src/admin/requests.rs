//! The bodies of requests and answers, and the lists.

use std::fmt;
use std::str::FromStr;

use countersign_identity::{
    Code, DurationText, KeyId, Lifetime, Name, NodeEvidence, NodeId, Revision, Serial, Sha256,
    SpiffeId, Timestamp,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::resource::Kind;

/// The most items that one page of a list holds.
pub const LIST_MAX: usize = 1000;

/// Asks for a set of resources to become the desired state, as one revision or not at all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApplyRequest {
    /// The manifests.
    #[schema(value_type = Vec<Object>)]
    pub resources: Vec<serde_json::Value>,
    /// The revision that the change was made for; another one in force is a conflict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub base: Option<Revision>,
    /// Whether resources that are not in the list are removed.
    #[serde(default)]
    pub prune: bool,
    /// Whether only to say what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// What `apply` did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApplyResponse {
    /// The revision in force afterwards.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// What changed. What stayed the same is not in the list.
    pub changes: Vec<AppliedChange>,
    /// Why the journal does not have it, where one is kept and should. It is in force all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_in_journal: Option<String>,
}

/// One change of one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppliedChange {
    /// What was done.
    pub action: Action,
    /// To which kind.
    #[schema(value_type = String)]
    pub kind: Kind,
    /// To which name.
    #[schema(value_type = String)]
    pub name: Name,
}

/// What was done to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// It is new.
    Create,
    /// It says something else now.
    Update,
    /// It is gone.
    Remove,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Remove => "remove",
        })
    }
}

/// Asks for a join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateTokenRequest {
    /// How long it may be used, once.
    #[schema(value_type = String)]
    pub ttl: Lifetime,
    /// The labels of the node that joins with it.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub labels: Vec<Name>,
}

/// A join token. It is shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateTokenResponse {
    /// The token.
    pub token: String,
    /// Until when it may be used.
    #[schema(value_type = String)]
    pub expires: Timestamp,
    /// What the agent must see in the server's chain.
    #[schema(value_type = String)]
    pub trust: TrustFingerprint,
}

impl fmt::Debug for CreateTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateTokenResponse")
            .field("expires", &self.expires)
            .field("trust", &self.trust)
            .finish_non_exhaustive()
    }
}

/// The fingerprint of a root's key, as join commands carry it: `sha256:` and 64 digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TrustFingerprint(pub KeyId);

/// A text that is no fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a root's fingerprint: expected `sha256:` and 64 lower-case hexadecimal digits"
)]
pub struct BadFingerprint(String);

impl fmt::Display for TrustFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl FromStr for TrustFingerprint {
    type Err = BadFingerprint;

    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        let key = text.strip_prefix("sha256:").and_then(|digits| digits.parse().ok());
        key.map(Self).ok_or_else(|| BadFingerprint(crate::resource::shorten(text)))
    }
}

impl Serialize for TrustFingerprint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TrustFingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The resources in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourcesResponse {
    /// As of which revision.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// The resources, by kind and name.
    pub resources: Vec<ResourceView>,
}

/// One resource, as a manifest would say it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceView {
    /// Its kind.
    #[schema(value_type = String)]
    pub kind: Kind,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// What it says.
    #[schema(value_type = Object)]
    pub spec: serde_json::Value,
}

/// The registered nodes, a page of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodesResponse {
    /// In the order of their ids.
    pub nodes: Vec<NodeView>,
    /// What to pass as `after` for the next page; absent: this was the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next: Option<NodeId>,
}

/// A registered node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// Its name.
    #[schema(value_type = String)]
    pub id: NodeId,
    /// Its agent's SPIFFE ID.
    #[schema(value_type = String)]
    pub spiffe_id: SpiffeId,
    /// What the agent calls the machine.
    pub host: String,
    /// Its labels.
    #[schema(value_type = Vec<String>)]
    pub labels: Vec<Name>,
    /// How many keys it has had.
    pub generation: u64,
    /// When it joined.
    #[schema(value_type = String)]
    pub attested_at: Timestamp,
    /// By what it proved itself then: `join-token` or `x509`. Of nodes that older servers have registered nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub attested_by: Option<NodeEvidence>,
    /// When it was heard of last.
    #[schema(value_type = String)]
    pub seen_at: Timestamp,
    /// Whether its stream is open now.
    pub connected: bool,
}

/// The latest handshakes, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HandshakesResponse {
    /// The handshakes.
    pub handshakes: Vec<Handshake>,
    /// How many facts were lost on their way since the server started.
    pub dropped: u64,
    /// What to pass as `after` to see only newer ones.
    pub next: u64,
}

/// One observed handshake, or several alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Handshake {
    /// Its number on this server.
    pub index: u64,
    /// When.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// Which enforcement point saw it.
    pub point: String,
    /// From which side.
    pub direction: HandshakeDirection,
    /// Whose door, or which upstream.
    pub service: String,
    /// Our own identity; empty when there was none.
    pub local_id: String,
    /// The peer's identity; empty when it was not authenticated.
    pub peer_id: String,
    /// The peer's address.
    pub peer_address: String,
    /// The peer's serial number in hexadecimal.
    pub peer_serial: String,
    /// `1.3`.
    pub version: String,
    /// The key exchange group.
    pub group: String,
    /// The cipher suite.
    pub suite: String,
    /// Whether the session was resumed.
    pub resumed: bool,
    /// How long it took.
    pub micros: u64,
    /// Why it was refused; absent: it was admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub code: Option<Code>,
    /// More on the reason.
    pub detail: String,
    /// How many alike this one stands for.
    pub count: u64,
}

/// Which side of a handshake was ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum HandshakeDirection {
    /// We accepted.
    Inbound,
    /// We dialled.
    Outbound,
}

/// Events of the audit log, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventsResponse {
    /// The events.
    pub events: Vec<EventView>,
    /// What to pass as `after` for the next page; absent: this was the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// Which events. What is not said is not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EventFilter {
    /// Of this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// About this subject; with a `*` at the end, about any that begins so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// By this actor; with a `*` at the end, by any that begins so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// About the certificate with this serial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
    /// At this time or later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// In the log of this incarnation; the present one when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventView {
    /// Its index in the log.
    pub index: u64,
    /// What happened.
    pub kind: String,
    /// When.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// At which revision.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// Who did it.
    pub actor: String,
    /// To what.
    pub subject: String,
    /// The serial number of what was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub serial: Option<Serial>,
    /// The digest of the leaf.
    #[schema(value_type = String)]
    pub leaf: Sha256,
    /// The details, unless they were trimmed.
    #[schema(value_type = Object)]
    pub details: serde_json::Value,
}

/// How long a join token lives when nothing else is said: ten minutes, enough to carry it to a machine.
pub const TOKEN_TTL: DurationText = DurationText(std::time::Duration::from_secs(600));
