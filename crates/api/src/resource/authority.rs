//! How the authorities of the trust domain are made and succeeded.

use countersign_identity::Lifetime;
use countersign_pki::KeyKind;
use serde::Serialize;

use super::reader::{Fields, Problems};

/// The life of a root.
const ROOT_LIFETIME: &str = "365d";
/// The life of an issuer.
const ISSUER_LIFETIME: &str = "7d";
/// How long before its end a root's successor is prepared.
const PREPARE_BEFORE: &str = "60d";

/// Operators that may be named.
const APPROVERS_MAX: usize = 16;

/// Who lets a new root sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Approval {
    /// Nobody has to be asked: the gates decide.
    #[default]
    Automatic,
    /// An operator says `countersign authority activate`.
    Operator,
}

/// A text that is neither of the two.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a way to approve: write `automatic` or `operator`")]
pub struct UnknownApproval(String);

impl std::str::FromStr for Approval {
    type Err = UnknownApproval;

    fn from_str(text: &str) -> Result<Self, UnknownApproval> {
        match text {
            "automatic" => Ok(Self::Automatic),
            "operator" => Ok(Self::Operator),
            other => Err(UnknownApproval(other.chars().take(80).collect())),
        }
    }
}

/// An operator who may approve, by the user id at the other end of the admin socket: `uid:1001`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Approver(pub u32);

/// A text that names no operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an operator: write a user id, such as `uid:1001`")]
pub struct BadApprover(String);

impl std::str::FromStr for Approver {
    type Err = BadApprover;

    fn from_str(text: &str) -> Result<Self, BadApprover> {
        let digits = text.strip_prefix("uid:");
        let id: Option<u32> = digits.and_then(|digits| digits.parse().ok());
        // One spelling for each, so that none is named twice.
        let id = id.filter(|id| Some(id.to_string().as_str()) == digits);
        id.map(Self).ok_or_else(|| BadApprover(text.chars().take(80).collect()))
    }
}

impl std::fmt::Display for Approver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "uid:{}", self.0)
    }
}

impl Serialize for Approver {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How authorities are made and succeeded. There is at most one of the kind; what is active already stays as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct AuthoritySpec {
    /// The kind of key that the next root and the next issuers get.
    #[schemars(with = "Option<super::schema::AuthorityKeyTypeText>")]
    pub key_type: KeyKind,
    /// How long the next root lives.
    #[schemars(with = "Option<super::schema::LifetimeText>")]
    pub root_lifetime: Lifetime,
    /// How long the next issuers live.
    #[schemars(with = "Option<super::schema::LifetimeText>")]
    pub issuer_lifetime: Lifetime,
    /// How long before the end of the active root its successor is prepared.
    #[schemars(with = "Option<super::schema::LifetimeText>")]
    pub prepare_before: Lifetime,
    /// Who lets the new root sign.
    #[schemars(with = "Option<Approval>")]
    pub approve: Approval,
    /// How many of `approvers` have to say so before a new root signs; all of them when it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approvals: Option<u8>,
    /// Who may say so, `uid:1001`: never who ordered the rotation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<String>>")]
    pub approvers: Vec<Approver>,
}

fn lifetime(text: &str) -> Lifetime {
    text.parse().expect("the constants of this file are lifetimes, as its test shows")
}

impl Default for AuthoritySpec {
    fn default() -> Self {
        Self {
            key_type: KeyKind::P256,
            root_lifetime: lifetime(ROOT_LIFETIME),
            issuer_lifetime: lifetime(ISSUER_LIFETIME),
            prepare_before: lifetime(PREPARE_BEFORE),
            approve: Approval::Automatic,
            approvals: None,
            approvers: Vec::new(),
        }
    }
}

impl AuthoritySpec {
    pub(super) fn read(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let key_type = fields.optional("keyType", problems);
        if let Some(Some(rsa)) =
            key_type.filter(|kind: &Option<KeyKind>| kind.is_some_and(KeyKind::is_rsa))
        {
            let message = format!(
                "`{rsa}` is for workloads alone whose clients know nothing else: write `ecdsa-p256`, `ecdsa-p384` or `ed25519`"
            );
            problems.add(&fields.place_of("keyType"), message);
        }
        let root_lifetime = fields.optional("rootLifetime", problems);
        let issuer_lifetime = fields.optional("issuerLifetime", problems);
        let prepare_before = fields.optional("prepareBefore", problems);
        let approve = fields.optional("approve", problems);
        let approvals = fields.number::<u8>("approvals", problems);
        let approvers = fields.set::<Approver>("approvers", APPROVERS_MAX, problems);
        let defaults = Self::default();
        let root_lifetime = root_lifetime?.unwrap_or(defaults.root_lifetime);
        let spec = Self {
            key_type: key_type?.unwrap_or(defaults.key_type),
            root_lifetime,
            issuer_lifetime: issuer_lifetime?
                .unwrap_or(defaults.issuer_lifetime.min(root_lifetime)),
            prepare_before: prepare_before?
                .unwrap_or_else(|| defaults.prepare_before.min(half(root_lifetime))),
            approve: approve?.unwrap_or_default(),
            approvals: approvals?,
            approvers: approvers?,
        };
        spec.check_approvals(fields, problems);
        for (key, lifetime) in
            [("issuerLifetime", spec.issuer_lifetime), ("prepareBefore", spec.prepare_before)]
        {
            if root_lifetime <= lifetime && key == "prepareBefore" || root_lifetime < lifetime {
                let message = format!(
                    "`{lifetime}` does not fit into `rootLifetime`, which is `{root_lifetime}`: write less"
                );
                problems.add(&fields.place_of(key), message);
            }
        }
        Some(spec)
    }
}

impl AuthoritySpec {
    /// How many have to approve.
    pub fn approvals_needed(&self) -> usize {
        self.approvals.map_or(self.approvers.len(), usize::from)
    }

    fn check_approvals(&self, fields: &Fields<'_>, problems: &mut Problems) {
        let named = self.approvers.len();
        if self.approvals == Some(0) || named < self.approvals_needed() {
            let message = format!(
                "expected a number from 1 to {named}, as many as `approvers` names: name more of them, or write less"
            );
            problems.add(&fields.place_of("approvals"), message);
        }
        if self.approve == Approval::Automatic && !self.approvers.is_empty() {
            let message = "somebody is named who has to approve: write `approve: operator` as well";
            problems.add(&fields.place_of("approvers"), message);
        }
    }
}

fn half(of: Lifetime) -> Lifetime {
    Lifetime::from_secs((of.duration().as_secs() / 2).max(1)).unwrap_or(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_lifetimes_that_fit_into_each_other() {
        let spec = AuthoritySpec::default();
        assert!(spec.issuer_lifetime < spec.root_lifetime);
        assert!(spec.prepare_before < spec.root_lifetime);
    }
}
