//! The authorities: where each is on its walk, what is under way, and what a recovery comes to.

use std::fmt;

use countersign_identity::{KeyId, Revision, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! words {
    ($(#[$about:meta])* $type:ident { $($(#[$doc:meta])* $name:ident $text:literal;)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "camelCase")]
        pub enum $type { $($(#[$doc])* $name,)* }

        impl $type {
            /// The stable word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// Where a root is on its walk.
    RootState {
        /// Made, and known to nobody yet.
        Prepared "prepared";
        /// In every bundle; signs nothing yet.
        Published "published";
        /// It signs the issuer.
        Active "active";
        /// It signs nothing any more; what it vouches for is issued anew.
        Retiring "retiring";
        /// In no bundle any more.
        Retired "retired";
    }
}

words! {
    /// Where the private key of a root is.
    #[derive(Default)]
    RootKey {
        /// Sealed in the server's store.
        #[default]
        Here "here";
        /// With somebody else, who signs by ceremony.
        External "external";
        /// In a token that servers reach.
        Token "token";
    }
}

words! {
    /// Why an authority must not be trusted any more.
    Cause {
        /// Something newer takes its place: issued anew first, dropped last.
        Superseded "superseded";
        /// Somebody else has its key: dropped as soon as there is another.
        Compromised "compromised";
    }
}

words! {
    /// One step of a walk.
    Step {
        /// A new root is made, and cross-certified by the one before it.
        Prepare "prepare";
        /// It goes into every bundle.
        Publish "publish";
        /// It signs a new issuer, which signs everything from then on.
        Activate "activate";
        /// Nothing is left that only the old root vouches for: what it vouches for goes out of service.
        Supersede "supersede";
        /// The old root leaves every bundle.
        Retire "retire";
        /// At once: what the old root vouches for goes out of service, and it leaves every bundle.
        Condemn "condemn";
        /// Everybody has a credential under the new root.
        Reissue "reissue";
        /// Every enforcement point has done all of it.
        Confirm "confirm";
        /// Canaries are refused at the doors of enforcement points, one signed by the authority that has to go among them.
        Prove "prove";
        /// One rotation is taken back.
        Rollback "rollback";
        /// A root is marked as one that must not be trusted.
        Taint "taint";
    }
}

words! {
    /// To what end authorities walk.
    Goal {
        /// A new root in the place of an old one.
        Rotate "rotate";
        /// An old root leaves.
        Retire "retire";
        /// A root whose key leaked leaves at once.
        Recover "recover";
    }
}

/// Every authority, and what is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthoritiesResponse {
    /// The current revision.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// The roots, oldest first.
    pub roots: Vec<RootView>,
    /// The issuers that have not ended, oldest first.
    pub issuers: Vec<IssuerView>,
    /// What is under way.
    pub order: Option<OrderView>,
    /// What was under way before.
    pub last: Option<OrderView>,
    /// What somebody outside has to sign, now or soon.
    #[serde(default)]
    pub ceremony: Option<CeremonyView>,
}

/// What somebody outside has to sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CeremonyView {
    /// Since when a ceremony is due: the issuer is past half of its life.
    #[schema(value_type = Option<String>)]
    pub due: Option<Timestamp>,
    /// When nothing can be issued any more without one.
    #[schema(value_type = Option<String>)]
    pub ends: Option<Timestamp>,
    /// The request that waits for its certificate.
    pub request: Option<RequestView>,
}

/// A request that waits for its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestView {
    /// The key.
    #[schema(value_type = String)]
    pub key: KeyId,
    /// Who asked for it.
    pub actor: String,
    /// When.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// The request (PKCS#10), PEM.
    pub csr: String,
}

/// Asks for a request that an authority outside is to sign.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CeremonyRequest {
    /// Whether to throw the one away that waits, and its key.
    #[serde(default)]
    pub anew: bool,
}

/// Brings what an authority outside has signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImportRequest {
    /// The issuer's certificate, and the way up to its root, PEM.
    pub chain: String,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportResponse {
    /// The revision that it made.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// The issuer's key.
    #[schema(value_type = String)]
    pub issuer: KeyId,
    /// When it ends.
    #[schema(value_type = String)]
    pub expires: Timestamp,
    /// The root that it stands under.
    #[schema(value_type = String)]
    pub root: KeyId,
    /// Whether the root is new here: then it walks, and the issuer signs when the gate of `activate` opens. Otherwise it signs
    /// already.
    pub walks: bool,
}

/// A root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RootView {
    /// Its key.
    #[schema(value_type = String)]
    pub key: KeyId,
    /// Where it is.
    pub state: RootState,
    /// Since when.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// Why it must not be trusted any more.
    pub tainted: Option<Cause>,
    /// When its certificate ends.
    #[schema(value_type = String)]
    pub expires: Timestamp,
    /// Whether it is in the bundle.
    pub trusted: bool,
    /// Its certificate, PEM.
    pub certificate: String,
    /// Where its private key is.
    #[serde(default)]
    pub held: RootKey,
    /// The revision that put it into the bundle; none for the first root.
    #[schema(value_type = Option<String>)]
    pub published: Option<Revision>,
    /// SVIDs that it vouches for, that have not ended and are not revoked.
    pub credentials: u64,
}

/// An issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct IssuerView {
    /// Its key.
    #[schema(value_type = String)]
    pub key: KeyId,
    /// The root that signed it.
    #[schema(value_type = String)]
    pub root: KeyId,
    /// Whether it signs now.
    pub active: bool,
    /// Whether it is revoked.
    pub revoked: bool,
    /// When its certificate ends.
    #[schema(value_type = String)]
    pub expires: Timestamp,
    /// SVIDs that it signed, that have not ended and are not revoked.
    pub credentials: u64,
}

/// A walk that was ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderView {
    /// To what end.
    pub goal: Goal,
    /// The root that has to go; in a recovery it may be an issuer.
    #[schema(value_type = String)]
    pub from: KeyId,
    /// Who ordered it.
    pub actor: String,
    /// Why, in words.
    pub reason: Option<String>,
    /// When.
    #[schema(value_type = String)]
    pub begun: Timestamp,
    /// When it came to its end.
    #[schema(value_type = Option<String>)]
    pub ended: Option<Timestamp>,
    /// Its steps, in order.
    pub steps: Vec<StepView>,
    /// Who has to approve, and who has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvals: Option<ApprovalsView>,
    /// Until which step it can be taken back; none when it cannot any more.
    pub revocable_until: Option<Step>,
    /// Who had done all of it, at the end.
    pub proof: Option<ProofView>,
}

/// Who has to approve a new root, and who has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalsView {
    /// How many have to.
    pub needed: u64,
    /// Who may.
    pub among: Vec<String>,
    /// Who has.
    pub given: Vec<ApprovalView>,
    /// Who has not, of those who may; nobody once enough have.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// One operator's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalView {
    /// Whose.
    pub actor: String,
    /// The root that it is for.
    #[schema(value_type = String)]
    pub authority: KeyId,
    /// When.
    #[schema(value_type = String)]
    pub at: Timestamp,
}

/// The media type of a signed report, without `application/`.
pub const REPORT_TYPE: &str = "countersign-report+json";

/// Who enforces what a walk came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProofView {
    /// The revision that took the old root out of every bundle.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// Enforcement points that were live at the end.
    pub live: u64,
    /// Those that had acknowledged it.
    pub enforcing: u64,
    /// Verifiers that cannot acknowledge.
    pub unaware: u64,
    /// What was tried at their doors, after a recovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialSummary>,
}

/// What a trial has shown, in numbers and names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrialSummary {
    /// The revision of its own rule.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// Points that refused what must be refused, and nothing else.
    pub as_said: u64,
    /// Those of them that refused a credential which the authority that had to go has signed since.
    pub former_refused: u64,
    /// Points that did otherwise than they say, by name; at most a hundred.
    pub contradicted: Vec<String>,
    /// Points that were not tried, by name and with the reason; at most a hundred.
    pub only_said: Vec<String>,
}

/// A step of a walk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepView {
    /// Which.
    pub step: Step,
    /// When it was taken.
    #[schema(value_type = Option<String>)]
    pub at: Option<Timestamp>,
    /// The revision that it made.
    #[schema(value_type = Option<String>)]
    pub revision: Option<Revision>,
    /// The words of who forced it.
    pub forced: Option<String>,
    /// What it waits for, when it is the next.
    pub gate: Option<GateView>,
}

/// What a step waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateView {
    /// A sentence.
    pub why: String,
    /// How much of it has happened.
    pub done: u64,
    /// Of how much.
    pub of: u64,
    /// Who is missing, by name; at most a hundred.
    pub missing: Vec<String>,
    /// When it opens by itself, at the latest, if that is known.
    #[schema(value_type = Option<String>)]
    pub until: Option<Timestamp>,
}

/// Asks for one step of a walk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StepRequest {
    /// Which root, for `retire` and `taint`; the oldest that is on its way out when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub authority: Option<KeyId>,
    /// Why, for `taint`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// For `prepare` and `taint`: where the new root's key is to be, `here` or in a token (`pkcs11:…`, RFC 7512). As the active
    /// root's when absent, and asked for if that is in a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_key: Option<String>,
    /// Words that go on record, to take the step although its gate is not open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<String>,
}

/// An operator's word that a new root may sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApproveRequest {
    /// Which root: the approval is for this key, and for none that takes its place.
    #[schema(value_type = String)]
    pub authority: KeyId,
}

/// Asks for a rotation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotateRequest {
    /// Why, in words that go on record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For a root: where the new one's key is to be, `here` or `pkcs11:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_key: Option<String>,
}

/// Asks for a recovery from an authority's leaked key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecoverRequest {
    /// The authority whose key leaked: a root or an issuer.
    #[schema(value_type = String)]
    pub compromised: KeyId,
    /// Whether only to say what would happen.
    #[serde(default)]
    pub dry_run: bool,
    /// Why, in words that go on record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where the new root's key is to be, `here` or `pkcs11:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_key: Option<String>,
}

/// What a recovery comes to, before or after it was ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoverResponse {
    /// The authority whose key leaked.
    #[schema(value_type = String)]
    pub compromised: KeyId,
    /// Whether it is a root; otherwise an issuer.
    pub is_root: bool,
    /// What is done, in this order.
    pub plan: Vec<PlannedStep>,
    /// SVIDs that it vouches for now, which are refused from the step `condemn` on until they are issued anew.
    pub credentials: u64,
    /// Whose they are.
    pub identities: Vec<String>,
    /// Enforcement points that are told.
    pub points: u64,
    /// Verifiers that cannot acknowledge.
    pub unaware: u64,
    /// The revision from which on it is under way, unless this was a dry run.
    #[schema(value_type = Option<String>)]
    pub revision: Option<Revision>,
}

/// A step that a recovery is going to take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlannedStep {
    /// Which.
    pub step: Step,
    /// What it does, and what it waits for.
    pub what: String,
    /// Whether it can be taken back.
    pub revocable: bool,
    /// How long it takes at most when nobody is missing, in milliseconds, if that is known.
    pub at_most_millis: Option<u64>,
}
