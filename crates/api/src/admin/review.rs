//! Reviews: what policies grant against what was used, who signed that it is as it should be, and when that is due.

use std::fmt;
use std::str::FromStr;

use countersign_identity::{Lifetime, Mode, Name, Revision, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::policy::FlowView;

/// What a review is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReviewSubject {
    /// Every policy.
    All,
    /// The policies of one manifest.
    Policy(Name),
    /// Those that permit something on one service.
    Service(Name),
}

/// A text that says of nothing that it is to be reviewed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` cannot be reviewed: expected `all`, `Policy/NAME` or `Service/NAME`")]
pub struct BadSubject(String);

impl fmt::Display for ReviewSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Policy(name) => write!(f, "Policy/{name}"),
            Self::Service(name) => write!(f, "Service/{name}"),
        }
    }
}

impl FromStr for ReviewSubject {
    type Err = BadSubject;

    fn from_str(text: &str) -> Result<Self, BadSubject> {
        let named = |name: &str| name.parse().ok();
        let subject = match text.split_once('/') {
            None if text == "all" => Some(Self::All),
            Some(("Policy", name)) => named(name).map(Self::Policy),
            Some(("Service", name)) => named(name).map(Self::Service),
            None | Some(_) => None,
        };
        subject.ok_or_else(|| BadSubject(crate::resource::shorten(text)))
    }
}

impl Serialize for ReviewSubject {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ReviewSubject {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Asks for a review.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartReviewRequest {
    /// What is reviewed: `all`, `Policy/NAME` or `Service/NAME`.
    #[schema(value_type = String)]
    pub subject: ReviewSubject,
    /// Within which time it is to be signed.
    #[schema(value_type = String)]
    pub due: Lifetime,
    /// How far back it is looked at what was used.
    #[schema(value_type = String)]
    pub window: Lifetime,
}

/// What somebody decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It stays as it is.
    Keep,
    /// It was made narrower.
    Narrowed,
    /// It was removed, or some of it.
    Removed,
}

impl Verdict {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Narrowed => "narrowed",
            Self::Removed => "removed",
        }
    }
}

/// A text that is no verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no verdict: expected `keep`, `narrowed` or `removed`")]
pub struct BadVerdict(String);

impl FromStr for Verdict {
    type Err = BadVerdict;

    fn from_str(text: &str) -> Result<Self, BadVerdict> {
        match text {
            "keep" => Ok(Self::Keep),
            "narrowed" => Ok(Self::Narrowed),
            "removed" => Ok(Self::Removed),
            _ => Err(BadVerdict(crate::resource::shorten(text))),
        }
    }
}

/// Signs a review.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignReviewRequest {
    /// What was decided.
    pub verdict: Verdict,
    /// Who signs. The user id at the other end of the socket is recorded beside it.
    pub name: String,
    /// Why.
    pub reason: String,
    /// Within which time the same is to be reviewed again; absent: no next review is opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub again: Option<Lifetime>,
}

/// Where a review stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReviewState {
    /// It waits to be signed.
    Open,
    /// It waits, and longer than it should.
    Overdue,
    /// It is signed.
    Signed,
}

impl ReviewState {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Overdue => "overdue",
            Self::Signed => "signed",
        }
    }
}

/// A review.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReviewView {
    /// Its name.
    #[schema(value_type = String)]
    pub id: Name,
    /// What it is about: `all`, `Policy/NAME` or `Service/NAME`.
    #[schema(value_type = String)]
    pub subject: ReviewSubject,
    /// Where it stands.
    pub state: ReviewState,
    /// How far back it is looked at what was used.
    #[schema(value_type = String)]
    pub window: Lifetime,
    /// When it began.
    #[schema(value_type = String)]
    pub started_at: Timestamp,
    /// Who began it: `operator:uid:0`.
    pub started_by: String,
    /// When it is to be signed.
    #[schema(value_type = String)]
    pub due: Timestamp,
    /// Who has signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<SignatureView>,
}

/// Somebody's word on a review.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignatureView {
    /// What was decided.
    pub verdict: Verdict,
    /// Who signed, as they call themselves.
    pub name: String,
    /// Whose user id it was: `operator:uid:0`.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// The review that follows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next: Option<Name>,
}

/// The reviews, those that wait first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReviewsResponse {
    /// The reviews, by when they are due.
    pub reviews: Vec<ReviewView>,
}

/// What policies grant, who used it, and what would be enough.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReviewReport {
    /// The review.
    pub review: ReviewView,
    /// Of which revision.
    #[schema(value_type = String)]
    pub revision: Revision,
    /// How long it could be seen what is used.
    pub observed: Observed,
    /// Each permit that the review is about.
    pub permits: Vec<PermitView>,
    /// The manifests that would be enough for what was seen; none where that is what there is.
    pub proposals: Vec<Proposal>,
    /// Why there is no narrower text for some policy, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withheld: Vec<String>,
}

/// How long it could be seen what is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// Since when.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// For how many seconds.
    pub seconds: u64,
    /// For how many seconds it was to be.
    pub asked_seconds: u64,
    /// How many requests and connections were counted in no flow, so nobody knows by which permits they were let pass.
    pub dropped: u64,
    /// What that means for what looks unused; absent: it was seen for as long as was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caution: Option<String>,
}

/// One permit: who could, and who did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PermitView {
    /// Under which name decisions tell of it.
    pub policy: String,
    /// Whether it is enforced.
    #[schema(value_type = String)]
    pub mode: Mode,
    /// Who could: whom its scope names, of a role all who are in it; empty: anybody, or nobody where a role is named.
    pub sources: Vec<String>,
    /// The role that its scope names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// What they could do; empty: anything.
    pub actions: Vec<String>,
    /// With what: services and operations; empty: any.
    pub resources: Vec<String>,
    /// Who did.
    pub used: Vec<FlowView>,
    /// What of all that its scope names nobody used.
    pub idle: Vec<String>,
    /// What is to become of it: `exact`, `unused`, `narrower` or `wide`.
    pub outcome: String,
}

/// A manifest, and a narrower one in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Proposal {
    /// The Policy manifest.
    #[schema(value_type = String)]
    pub policy: Name,
    /// As it is.
    #[schema(value_type = Object)]
    pub before: serde_json::Value,
    /// As it would be; absent: nothing is left of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub after: Option<serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subject_is_one_of_three_and_nothing_else() {
        for text in ["all", "Policy/a", "Service/b-1"] {
            assert_eq!(text.parse::<ReviewSubject>().unwrap().to_string(), text);
        }
        for text in ["", "All", "Policy/", "Policy/a/b", "Workload/a", "Service/*", "policy/a"] {
            assert!(text.parse::<ReviewSubject>().is_err(), "{text}");
        }
    }
}
