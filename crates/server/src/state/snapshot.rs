//! One snapshot of the state: every record, ready to be decided on and to be sent.

use std::collections::BTreeSet;
use std::sync::Arc;

use countersign_api::resource::{
    AuthoritySpec, PolicyRecord, Resource, RevocationViews, TrustDomainSpec, WorkloadSpec,
};
use countersign_identity::{
    Lifetime, Name, Revision, Revocations, Suspended, Suspension, TrustDomain,
};
use countersign_pki::{Bundle, Bundles, Profile};
use countersign_store::{Change, Kind, Snapshot};

use super::entry::{Entry, Key, Parsed, parse};
use super::index::Index;
use crate::incarnation::{CURRENT, Life};
use crate::refusal::Refused;
use crate::rotate::Walk;

/// Why records do not make a state. The server then stops rather than decide on half of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadState {
    /// A value that this version does not understand.
    #[error("record `{kind}/{name}` does not parse: {why}")]
    Record { kind: Kind, name: String, why: String },
    /// No description of the trust domain, or several.
    #[error("the state holds {0} records of kind `TrustDomain`, expected 1")]
    TrustDomains(usize),
    /// The bundles do not make anchors.
    #[error("the state's bundles cannot be used: {0}")]
    Bundles(String),
}

/// The whole state at one revision. Two snapshots share what did not change between them.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) revision: Revision,
    pub(crate) records: imbl::OrdMap<Key, Arc<Entry>>,
    domain: Arc<Entry>, // INVARIANT: of kind TrustDomain
    bundles: Arc<Bundles>,
    revocations: Arc<Revocations>,
    walk: Option<Arc<Walk>>,
    pub(super) index: Index,
}

impl State {
    /// Takes the whole of a store's state.
    ///
    /// # Errors
    /// When a record does not parse, or the trust domain's own are not there.
    pub(crate) fn from_snapshot(snapshot: Snapshot) -> Result<Self, BadState> {
        let mut records = imbl::OrdMap::new();
        for record in snapshot.records {
            let (key, entry) = parse(record)?;
            records.insert(key, entry);
        }
        let (domain, bundles) = (domain(&records)?, bundles(&records)?);
        let (revocations, walk) = (revocations(&records), walk(&records));
        let (revision, index) = (snapshot.revision, Index::default());
        Ok(Self { revision, records, domain, bundles, revocations, walk, index })
    }

    /// The state after these changes, of which `revision` is the last.
    ///
    /// # Errors
    /// As for a snapshot.
    pub(crate) fn changed(
        &self,
        revision: Revision,
        changes: Vec<Change>,
    ) -> Result<Self, BadState> {
        let mut records = self.records.clone();
        let mut moved = BTreeSet::new();
        for change in changes {
            match change {
                Change::Put(record) => {
                    let (key, entry) = parse(record)?;
                    moved.insert(key.kind);
                    records.insert(key, entry);
                }
                Change::Remove { kind, name } => {
                    moved.insert(kind);
                    records.remove(&Key::new(kind, &name));
                }
            }
        }
        let index = self.index.after(&moved);
        let moved = |kind| moved.contains(&kind);
        let Self { domain: old_domain, bundles: old_bundles, .. } = self;
        Ok(Self {
            domain: if moved(Kind::TrustDomain) { domain(&records)? } else { old_domain.clone() },
            bundles: if moved(Kind::Bundle) { bundles(&records)? } else { old_bundles.clone() },
            revocations: match moved(Kind::Revocation) {
                true => revocations(&records),
                false => Arc::clone(&self.revocations),
            },
            walk: if moved(Kind::Walk) { walk(&records) } else { self.walk.clone() },
            revision,
            records,
            index,
        })
    }

    /// The trust domain and its lifetimes.
    pub(crate) fn domain(&self) -> &TrustDomainSpec {
        match &self.domain.parsed {
            Parsed::TrustDomain { spec, .. } => spec,
            Parsed::Authority { .. }
            | Parsed::Workload { .. }
            | Parsed::Service { .. }
            | Parsed::Policy { .. }
            | Parsed::Role { .. }
            | Parsed::TlsProfile { .. }
            | Parsed::Bundle(_)
            | Parsed::Revocation(_)
            | Parsed::Suspension(_)
            | Parsed::Walk(_)
            | Parsed::Incarnation(_) => unreachable!("the field holds the trust domain's record"),
        }
    }

    /// The rules for what is issued.
    pub(crate) fn profile(&self) -> Profile {
        let spec = self.domain();
        let lifetime_max = spec.lifetime_max.max(spec.agent_lifetime);
        let pointers = spec.revocation_views.as_ref().and_then(RevocationViews::pointers);
        Profile { domain: spec.trust_domain.clone(), lifetime_max, pointers }
    }

    /// The longest life of an SVID that is issued now.
    pub(crate) fn longest_svid(&self) -> Lifetime {
        let spec = self.domain();
        let asked = self.workloads().filter_map(|(_, workload)| workload.lifetime);
        let longest = asked.max().map_or(spec.svid_lifetime, |asked| asked.max(spec.svid_lifetime));
        longest.min(spec.lifetime_max)
    }

    /// This incarnation, when it followed another.
    pub(crate) fn life(&self) -> Option<Arc<Life>> {
        match &self.records.get(&Key::new(Kind::Incarnation, CURRENT))?.parsed {
            Parsed::Incarnation(life) => Some(Arc::clone(life)),
            Parsed::Workload { .. }
            | Parsed::Service { .. }
            | Parsed::Policy { .. }
            | Parsed::Role { .. }
            | Parsed::TlsProfile { .. }
            | Parsed::TrustDomain { .. }
            | Parsed::Bundle(_)
            | Parsed::Revocation(_)
            | Parsed::Suspension(_)
            | Parsed::Walk(_)
            | Parsed::Authority { .. } => None,
        }
    }

    /// The anchors of every trust domain, for verification.
    pub(crate) fn bundles(&self) -> &Arc<Bundles> {
        &self.bundles
    }

    /// What was issued and is out of service.
    pub(crate) fn revocations(&self) -> Arc<Revocations> {
        Arc::clone(&self.revocations)
    }

    /// What is not issued any more.
    pub(crate) fn suspensions(&self) -> impl Iterator<Item = &Suspension> {
        let of_kind = self.records.range(Key::new(Kind::Suspension, "")..);
        of_kind.map_while(|(_, entry)| match &entry.parsed {
            Parsed::Suspension(suspension) => Some(suspension),
            Parsed::Incarnation(_)
            | Parsed::Workload { .. }
            | Parsed::Service { .. }
            | Parsed::Policy { .. }
            | Parsed::Role { .. }
            | Parsed::TlsProfile { .. }
            | Parsed::TrustDomain { .. }
            | Parsed::Authority { .. }
            | Parsed::Bundle(_)
            | Parsed::Revocation(_)
            | Parsed::Walk(_) => None,
        })
    }

    /// Whether this is not issued any more.
    pub(crate) fn is_suspended(&self, target: &Suspended) -> bool {
        self.suspensions().any(|suspension| suspension.target == *target)
    }

    /// The bundle of a trust domain.
    pub(crate) fn bundle(&self, domain: &TrustDomain) -> Option<&Bundle> {
        match &self.records.get(&Key::new(Kind::Bundle, domain.as_str()))?.parsed {
            Parsed::Bundle(bundle) => Some(bundle),
            Parsed::Workload { .. }
            | Parsed::Service { .. }
            | Parsed::Policy { .. }
            | Parsed::Role { .. }
            | Parsed::TlsProfile { .. }
            | Parsed::TrustDomain { .. }
            | Parsed::Authority { .. }
            | Parsed::Revocation(_)
            | Parsed::Suspension(_)
            | Parsed::Walk(_)
            | Parsed::Incarnation(_) => None,
        }
    }

    /// How far the authorities have walked.
    ///
    /// # Errors
    /// When the store holds no word of it.
    pub(crate) fn walk(&self) -> Result<&Arc<Walk>, Refused> {
        let missing =
            || Refused::new(countersign_identity::Code::Internal, "the state holds no `Walk`");
        self.walk.as_ref().ok_or_else(missing)
    }

    /// How authorities are made and succeeded, as declared or by default.
    pub(crate) fn authority(&self) -> AuthoritySpec {
        self.declared_authority().unwrap_or_default()
    }

    /// The same, if it is declared.
    pub(crate) fn declared_authority(&self) -> Option<AuthoritySpec> {
        let (_, first) = self.records.range(Key::new(Kind::Authority, "")..).next()?;
        match &first.parsed {
            Parsed::Authority { spec, .. } => Some(spec.clone()),
            Parsed::Workload { .. }
            | Parsed::Service { .. }
            | Parsed::Policy { .. }
            | Parsed::Role { .. }
            | Parsed::TlsProfile { .. }
            | Parsed::TrustDomain { .. }
            | Parsed::Bundle(_)
            | Parsed::Revocation(_)
            | Parsed::Suspension(_)
            | Parsed::Walk(_)
            | Parsed::Incarnation(_) => None,
        }
    }

    /// The workload of this name.
    pub(crate) fn workload(&self, name: &str) -> Option<(&Name, &WorkloadSpec)> {
        match &self.records.get(&Key::new(Kind::Workload, name))?.parsed {
            Parsed::Workload { name, spec } => Some((name, spec)),
            Parsed::Service { .. }
            | Parsed::Policy { .. }
            | Parsed::Role { .. }
            | Parsed::TlsProfile { .. }
            | Parsed::TrustDomain { .. }
            | Parsed::Authority { .. }
            | Parsed::Bundle(_)
            | Parsed::Revocation(_)
            | Parsed::Suspension(_)
            | Parsed::Walk(_)
            | Parsed::Incarnation(_) => None,
        }
    }

    /// Every workload, by name.
    pub(crate) fn workloads(&self) -> impl Iterator<Item = (&Name, &WorkloadSpec)> {
        self.records.values().filter_map(|entry| match &entry.parsed {
            Parsed::Workload { name, spec } => Some((name, spec)),
            Parsed::Service { .. }
            | Parsed::Policy { .. }
            | Parsed::Role { .. }
            | Parsed::TlsProfile { .. }
            | Parsed::TrustDomain { .. }
            | Parsed::Authority { .. }
            | Parsed::Bundle(_)
            | Parsed::Revocation(_)
            | Parsed::Suspension(_)
            | Parsed::Walk(_)
            | Parsed::Incarnation(_) => None,
        })
    }

    /// Every policy.
    pub(crate) fn policies(&self) -> impl Iterator<Item = &PolicyRecord> {
        let of_kind = self.records.range(Key::new(Kind::Policy, "")..);
        of_kind.map_while(|(_, entry)| match &entry.parsed {
            Parsed::Policy { record, .. } => Some(record),
            Parsed::Workload { .. }
            | Parsed::Service { .. }
            | Parsed::Role { .. }
            | Parsed::TlsProfile { .. }
            | Parsed::TrustDomain { .. }
            | Parsed::Authority { .. }
            | Parsed::Bundle(_)
            | Parsed::Revocation(_)
            | Parsed::Suspension(_)
            | Parsed::Walk(_)
            | Parsed::Incarnation(_) => None,
        })
    }

    /// What operators declared, in the order of kinds and names.
    pub(crate) fn resources(&self) -> impl Iterator<Item = Resource> {
        self.records.values().filter_map(|entry| entry.resource())
    }
}

type Records = imbl::OrdMap<Key, Arc<Entry>>;

/// The one record of the trust domain.
fn domain(records: &Records) -> Result<Arc<Entry>, BadState> {
    let domains: Vec<_> = records
        .values()
        .filter(|entry| matches!(entry.parsed, Parsed::TrustDomain { .. }))
        .collect();
    match domains.as_slice() {
        [domain] => Ok(Arc::clone(domain)),
        others => Err(BadState::TrustDomains(others.len())),
    }
}

/// The anchors of all bundles.
fn bundles(records: &Records) -> Result<Arc<Bundles>, BadState> {
    let bundles = records.values().filter_map(|entry| match &entry.parsed {
        Parsed::Bundle(bundle) => Some(bundle.clone()),
        Parsed::Workload { .. }
        | Parsed::Service { .. }
        | Parsed::Policy { .. }
        | Parsed::Role { .. }
        | Parsed::TlsProfile { .. }
        | Parsed::TrustDomain { .. }
        | Parsed::Authority { .. }
        | Parsed::Revocation(_)
        | Parsed::Suspension(_)
        | Parsed::Walk(_)
        | Parsed::Incarnation(_) => None,
    });
    let bundles = Bundles::new(bundles.collect());
    bundles.map(Arc::new).map_err(|bad| BadState::Bundles(bad.to_string()))
}

/// All revocations, ready to be asked.
fn revocations(records: &Records) -> Arc<Revocations> {
    let rules = records.range(Key::new(Kind::Revocation, "")..);
    let rules = rules.map_while(|(key, entry)| match &entry.parsed {
        Parsed::Revocation(rule) => Some((Arc::clone(&key.name), Arc::clone(rule))),
        Parsed::Workload { .. }
        | Parsed::Service { .. }
        | Parsed::Policy { .. }
        | Parsed::Role { .. }
        | Parsed::TlsProfile { .. }
        | Parsed::TrustDomain { .. }
        | Parsed::Authority { .. }
        | Parsed::Bundle(_)
        | Parsed::Suspension(_)
        | Parsed::Walk(_)
        | Parsed::Incarnation(_) => None,
    });
    Arc::new(Revocations::new(rules))
}

/// The one record of the authorities' walk.
fn walk(records: &Records) -> Option<Arc<Walk>> {
    let (_, entry) = records.range(Key::new(Kind::Walk, "")..).next()?;
    match &entry.parsed {
        Parsed::Walk(walk) => Some(Arc::clone(walk)),
        Parsed::Workload { .. }
        | Parsed::Service { .. }
        | Parsed::Policy { .. }
        | Parsed::Role { .. }
        | Parsed::TlsProfile { .. }
        | Parsed::TrustDomain { .. }
        | Parsed::Authority { .. }
        | Parsed::Bundle(_)
        | Parsed::Revocation(_)
        | Parsed::Suspension(_)
        | Parsed::Incarnation(_) => None,
    }
}

impl From<BadState> for crate::refusal::Refused {
    fn from(bad: BadState) -> Self {
        Self::new(countersign_identity::Code::Internal, bad.to_string())
    }
}
