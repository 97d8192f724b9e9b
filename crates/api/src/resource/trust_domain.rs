//! The trust domain's own resource.

use countersign_identity::{Lifetime, TrustDomain};
use serde::Serialize;

use super::reader::{Fields, Problems};
use super::tree::Tree;
use super::{Approver, Observations, RevocationViews};

/// The lifetime of workloads' SVIDs, when nothing else is said: an hour, so that renewals are rare enough
/// to be cheap and an outage of 27 minutes is guaranteed to be survived.
const SVID_LIFETIME: &str = "1h";
/// The lifetime of agents' own SVIDs: a day, so that an agent outlives a night without a server.
const AGENT_LIFETIME: &str = "1d";
/// How long flows are remembered: a quarter, so that what happens once a month is seen in a review.
const FLOW_RETENTION: &str = "90d";
/// The longest lifetime that a workload may ask for.
const LIFETIME_MAX: &str = "1d";

/// Operators that may be named.
const APPROVERS_MAX: usize = 16;

/// Who has to approve what manifests declare, before it is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Changes {
    /// How many of `approvers` have to approve a plan before it is applied; all of them when it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approvals: Option<u8>,
    /// Who may, `uid:1001`: never who applies it.
    #[schemars(with = "Vec<String>")]
    pub approvers: Vec<Approver>,
}

impl Changes {
    /// How many have to approve.
    pub fn needed(&self) -> usize {
        self.approvals.map_or(self.approvers.len(), usize::from)
    }

    fn read(tree: &Tree, path: &str, problems: &mut Problems) -> Option<Self> {
        let mut fields = Fields::open(tree, path, problems)?;
        let approvals = fields.number::<u8>("approvals", problems);
        let approvers = fields.set::<Approver>("approvers", APPROVERS_MAX, problems);
        let (Some(approvals), Some(approvers)) = (approvals, approvers) else {
            fields.close(problems);
            return None;
        };
        let spec = Self { approvals, approvers };
        let named = spec.approvers.len();
        if named == 0 {
            let message = "is missing: name who may approve, such as `uid:1001`";
            problems.add(&fields.place_of("approvers"), message);
        } else if spec.approvals == Some(0) || named < spec.needed() {
            let message = format!(
                "expected a number from 1 to {named}, as many as `approvers` names: name more of them, or write less"
            );
            problems.add(&fields.place_of("approvals"), message);
        }
        fields.close(problems);
        Some(spec)
    }
}

/// The trust domain and its lifetimes. There is at most one of the kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct TrustDomainSpec {
    /// The name, `shop.example`. It can never change.
    #[schemars(with = "super::schema::TrustDomainText")]
    pub trust_domain: TrustDomain,
    /// How long the SVID of a workload lives that says nothing else.
    #[schemars(with = "Option<super::schema::LifetimeText>")]
    pub svid_lifetime: Lifetime,
    /// How long the SVID of an agent lives.
    #[schemars(with = "Option<super::schema::LifetimeText>")]
    pub agent_lifetime: Lifetime,
    /// The longest lifetime that any SVID may have.
    #[schemars(with = "Option<super::schema::LifetimeText>")]
    pub lifetime_max: Lifetime,
    /// How long it is remembered who talked to whom, after it was last seen.
    #[schemars(with = "Option<super::schema::LifetimeText>")]
    pub flow_retention: Lifetime,
    /// How much is remembered of handshakes and of answered requests.
    #[schemars(with = "Option<Observations>")]
    pub observations: Observations,
    /// Revocation lists and OCSP, for the rest of the world; absent: certificates name neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<RevocationViews>")]
    pub revocation_views: Option<RevocationViews>,
    /// Who has to approve what manifests declare, before it is in force; absent: whoever may administer changes it alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Changes>")]
    pub changes: Option<Changes>,
}

fn lifetime(text: &str) -> Lifetime {
    text.parse().expect("the constants of this file are lifetimes, as its test shows")
}

impl TrustDomainSpec {
    /// The settings of a trust domain for which nothing was declared.
    pub fn of(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            svid_lifetime: lifetime(SVID_LIFETIME),
            agent_lifetime: lifetime(AGENT_LIFETIME),
            lifetime_max: lifetime(LIFETIME_MAX),
            flow_retention: lifetime(FLOW_RETENTION),
            observations: Observations::default(),
            revocation_views: None,
            changes: None,
        }
    }

    pub(super) fn read(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let trust_domain = fields.required("trustDomain", problems);
        let svid_lifetime = fields.optional("svidLifetime", problems);
        let agent_lifetime = fields.optional("agentLifetime", problems);
        let lifetime_max = fields.optional("lifetimeMax", problems);
        let flow_retention = fields.optional("flowRetention", problems);
        let views = match fields.optional_child("revocationViews") {
            Some((tree, path)) => RevocationViews::read(tree, &path, problems).map(Some),
            None => Some(None),
        };
        let changes = match fields.optional_child("changes") {
            Some((tree, path)) => Changes::read(tree, &path, problems).map(Some),
            None => Some(None),
        };
        let observations = match fields.optional_child("observations") {
            Some((tree, path)) => Observations::read(tree, &path, problems),
            None => Some(Observations::default()),
        };
        let defaults = Self::of(trust_domain?);
        let lifetime_max = lifetime_max?.unwrap_or(defaults.lifetime_max);
        let spec = Self {
            // A default is never what breaks the limit that somebody wrote.
            svid_lifetime: svid_lifetime?.unwrap_or(defaults.svid_lifetime.min(lifetime_max)),
            agent_lifetime: agent_lifetime?.unwrap_or(defaults.agent_lifetime.min(lifetime_max)),
            lifetime_max,
            flow_retention: flow_retention?.unwrap_or(defaults.flow_retention),
            observations: observations?,
            revocation_views: views?,
            changes: changes?,
            ..defaults
        };
        for (key, lifetime) in
            [("svidLifetime", spec.svid_lifetime), ("agentLifetime", spec.agent_lifetime)]
        {
            if lifetime_max < lifetime {
                let message = format!(
                    "`{lifetime}` is over `lifetimeMax`, which is `{lifetime_max}`: lower it, or raise the limit"
                );
                problems.add(&fields.place_of(key), message);
            }
        }
        Some(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_lifetimes_within_the_limit() {
        let spec = TrustDomainSpec::of("shop.example".parse().unwrap());
        assert!(spec.svid_lifetime <= spec.lifetime_max);
        assert!(spec.agent_lifetime <= spec.lifetime_max);
    }
}
