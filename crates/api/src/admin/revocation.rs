//! Taking credentials out of service, and who enforces it.

use std::fmt;

use countersign_identity::{
    KeyId, NodeId, Reason, Revision, Revoked, Serial, SpiffeId, Suspended, Timestamp,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most targets of one request: all of them become one revision.
pub const TARGETS_MAX: usize = 20_000;
/// The longest that an answer about convergence waits.
pub const CONVERGENCE_WAIT_MILLIS_MAX: u64 = 30_000;

/// What an operator names to be taken out of service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Target {
    /// One certificate.
    #[schema(value_type = String)]
    Serial(Serial),
    /// All certificates of an identity.
    #[schema(value_type = String)]
    Identity(SpiffeId),
    /// All certificates for a key.
    #[schema(value_type = String)]
    Key(KeyId),
    /// All certificates that were issued through a node, and its agent's own.
    #[schema(value_type = String)]
    Node(NodeId),
    /// All certificates under an authority's key.
    #[schema(value_type = String)]
    Authority(KeyId),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial(serial) => write!(f, "serial {serial}"),
            Self::Identity(id) => write!(f, "{id}"),
            Self::Key(key) => write!(f, "key {key}"),
            Self::Node(node) => write!(f, "node {node}"),
            Self::Authority(key) => write!(f, "authority {key}"),
        }
    }
}

/// Whether the honest workload gets a new credential.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Reissue {
    /// As the reason asks: after a leaked key, yes; after a leaked process, no.
    #[default]
    ByReason,
    /// No: it is suspended until an operator resumes it.
    No,
}

/// Asks to take credentials out of service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevokeRequest {
    /// What. All of it becomes one revision, or nothing does.
    pub targets: Vec<Target>,
    /// Why.
    #[schema(value_type = String)]
    pub reason: Reason,
    /// Only what was issued before this moment, give or take the allowed skew: it covers rather more than less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub issued_before: Option<Timestamp>,
    /// Whether there is a new credential.
    #[serde(default)]
    pub reissue: Reissue,
    /// Whether only to say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// What leaked, as the reason has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Leaked {
    /// Nothing.
    Nothing,
    /// A private key.
    Key,
    /// A running process: whatever it could do, somebody else could.
    Process,
    /// A machine, with everything on it.
    Node,
    /// The key of an authority.
    Authority,
}

impl Leaked {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Key => "a key",
            Self::Process => "a process",
            Self::Node => "a node",
            Self::Authority => "an authority's key",
        }
    }

    /// What may be true all the same, and this revocation does not help against.
    pub const fn not_ruled_out(self) -> &'static str {
        match self {
            Self::Nothing => "nothing is assumed to have leaked",
            Self::Key => {
                "that who has the key also ran code as the workload: then it can get the next key as well; revoke with `process-compromise`"
            }
            Self::Process => {
                "that who ran code as the workload also had the node: other workloads of one uid, or all of them as root; revoke the node"
            }
            Self::Node => "that what its workloads were allowed to reach was reached before",
            Self::Authority => {
                "that certificates were made which no log holds; they are refused as well, whatever they name"
            }
        }
    }
}

/// What a revocation did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevokeResponse {
    /// The revision that enforcement points have to reach.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// What it takes to have leaked.
    pub leaked: Leaked,
    /// What that does not rule out.
    pub not_ruled_out: String,
    /// The rules that it made.
    pub rules: Vec<RuleView>,
    /// What is not issued any more until an operator resumes it.
    pub suspended: Vec<SuspensionView>,
    /// How many certificates that could still be used it covers.
    pub covered: u64,
    /// Whom it concerns.
    #[schema(value_type = Vec<String>)]
    pub identities: Vec<SpiffeId>,
    /// The last moment at which anyone who does not know of it could still accept a covered certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub exposure_ends: Option<Timestamp>,
    /// Why the journal does not have it, where one is kept and should. It is in force all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_in_journal: Option<String>,
}

/// A rule in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuleView {
    /// The name of its record.
    pub name: String,
    /// What it covers.
    #[schema(value_type = Object)]
    pub target: Revoked,
    /// Whose credentials those are, when it is one identity's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub about: Option<SpiffeId>,
    /// Why.
    #[schema(value_type = String)]
    pub reason: Reason,
    /// When it was made.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// Until when it is kept.
    #[schema(value_type = String)]
    pub until: Timestamp,
}

/// A suspension in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SuspensionView {
    /// What is not issued.
    #[schema(value_type = Object)]
    pub target: Suspended,
    /// Why.
    #[schema(value_type = String)]
    pub reason: Reason,
    /// Since when.
    #[schema(value_type = String)]
    pub at: Timestamp,
}

/// Asks to suspend something, or to lift a suspension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuspendRequest {
    /// What.
    #[schema(value_type = Object)]
    pub target: Suspended,
    /// Why.
    #[schema(value_type = String)]
    pub reason: Reason,
}

/// Asks to lift a suspension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResumeRequest {
    /// Of what.
    #[schema(value_type = Object)]
    pub target: Suspended,
}

/// That something was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionResponse {
    /// The revision in force afterwards.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// Why the journal does not have it, where one is kept and should. It is in force all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_in_journal: Option<String>,
}

impl RevisionResponse {
    /// That something was done of which a journal has nothing to hold.
    pub const fn at(revision: Revision) -> Self {
        Self { revision, not_in_journal: None }
    }
}

/// What is out of service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevocationsResponse {
    /// At which revision.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// What was issued and is refused.
    pub rules: Vec<RuleView>,
    /// What is not issued.
    pub suspensions: Vec<SuspensionView>,
}

/// Who enforces a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Convergence {
    /// Which revision.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// How many enforcement points are live.
    pub live: u64,
    /// How many of them have acknowledged it.
    pub enforcing: u64,
    /// Those that have not.
    pub missing: Vec<MissingPoint>,
    /// Processes that hold an SVID and cannot acknowledge: counted beside, never inside. Each node that is unheard counts as
    /// one.
    pub unaware: u64,
    /// The nodes that hold what workloads can present, and of which it is not known how many processes they run that cannot
    /// acknowledge: no server has heard of them since it started, or an agent that has ended gave that out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub unheard: Vec<NodeId>,
    /// Connections that a graceful revocation ends and that are not closed yet.
    pub draining: u64,
    /// Connections that the changes up to it ended; known for recent changes of this server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_cut: Option<u64>,
    /// From the commit to the slowest acknowledgement so far, in milliseconds; known for recent changes of this server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowest_millis: Option<u64>,
    /// From the commit until every identity that it concerns was issued anew, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reissued_millis: Option<u64>,
    /// Whether a new credential is still to come.
    pub reissue_pending: bool,
    /// While anyone is missing or unaware: the moment after which it cannot matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub exposure_ends: Option<Timestamp>,
    /// What a trial has shown, when one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialView>,
}

/// What a trial has shown: an acknowledgement is a claim, and this is the proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrialView {
    /// The revision of its own rule.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// The points that were tried.
    pub verified: Vec<VerifiedPoint>,
    /// Those that were not: they only said that they enforce.
    pub unverified: Vec<UnverifiedPoint>,
    /// Whether any of them is still to be tried.
    pub pending: bool,
}

/// A point at whose door canaries were shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerifiedPoint {
    /// Its name.
    pub point: String,
    /// For which identity it enforces.
    #[schema(value_type = String)]
    pub spiffe_id: SpiffeId,
    /// Through which node.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// Where.
    pub door: String,
    /// What became of the canary that the trial's rule covers.
    pub covered: CanaryView,
    /// What became of the other.
    pub uncovered: CanaryView,
    /// What became of one that an authority out of service has signed, if there is such an authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<CanaryView>,
    /// What else is to be said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl VerifiedPoint {
    /// Whether it does what it says: refuses the one as revoked, lets the other through its verifier, and nothing that an
    /// authority out of service has signed.
    pub fn holds(&self) -> bool {
        let refused = [None, Some(CanaryView::Refused), Some(CanaryView::Untrusted)];
        self.covered == CanaryView::Refused
            && self.uncovered == CanaryView::Accepted
            && refused.contains(&self.former)
            && self.why.is_none()
    }
}

/// What became of a canary at a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum CanaryView {
    /// Refused, by the reason `revoked`.
    Refused,
    /// Refused, since no authority that is trusted vouches for it.
    Untrusted,
    /// Let through the verifier, and answered.
    Accepted,
    /// Neither.
    Unclear,
}

/// A point that was not tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnverifiedPoint {
    /// Its name.
    pub point: String,
    /// For which identity it enforces.
    #[schema(value_type = String)]
    pub spiffe_id: SpiffeId,
    /// Through which node.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// Why not.
    pub why: String,
    /// Whether it is still to be tried.
    #[serde(default)]
    pub pending: bool,
}

impl Convergence {
    /// Whether a trial was asked for that has not come to all points yet.
    pub fn is_tried_out_later(&self) -> bool {
        self.trial.as_ref().is_some_and(|trial| trial.pending)
    }

    /// Whether no trial contradicts what a point says.
    pub fn is_as_claimed(&self) -> bool {
        self.trial.iter().flat_map(|trial| &trial.verified).all(VerifiedPoint::holds)
    }

    /// Whether every live enforcement point has acknowledged.
    pub fn is_converged(&self) -> bool {
        self.missing.is_empty()
    }
}

/// An enforcement point that has not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MissingPoint {
    /// Its name.
    pub point: String,
    /// For which identity it enforces.
    #[schema(value_type = String)]
    pub spiffe_id: SpiffeId,
    /// Through which node.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// What it has acknowledged, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub revision: Option<Revision>,
    /// When it was last heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub since: Option<Timestamp>,
}
