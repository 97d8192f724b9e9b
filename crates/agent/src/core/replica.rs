//! The agent's copy of its slice of the state, at one revision.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use countersign_api::resource::{
    Kind, PolicyRecord, RoleRecord, ServiceSpec, Spec, TrustDomainSpec, WorkloadSpec,
};
use countersign_api::v1;
use countersign_identity::{
    Lifetime, Name, Revision, Revocation, Revocations, SpiffeId, Suspension, Timestamp, TrustDomain,
};
use countersign_pki::Bundle;

use super::record::{Record, RecordKey, RecordKind};

/// Records at one revision, and what they say. Cheap to clone: what did not change is shared.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    revision: Revision,
    records: BTreeMap<RecordKey, Arc<[u8]>>,
    domain: Option<TrustDomainSpec>,
    bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    workloads: BTreeMap<Name, Arc<Workload>>,
    services: BTreeMap<Name, Arc<ServiceSpec>>,
    policies: BTreeMap<Arc<str>, Arc<PolicyEntry>>,
    /// Who is in each role, by the words that policies have for them.
    roles: BTreeMap<Arc<str>, Arc<BTreeSet<String>>>,
    /// As the server says it now.
    revocations: BTreeMap<Arc<str>, Arc<Revocation>>,
    suspensions: BTreeMap<Arc<str>, Suspension>,
    /// Records that take rights away, or by which a policy may, and that this version cannot read.
    unread: BTreeSet<RecordKey>,
    /// All revocations in force: what the server says, and what it may not lift by leaving it out.
    rules: Arc<Revocations>,
}

/// A workload that is open to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The manifest's name.
    pub name: Name,
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// The rest of what the manifest says.
    pub spec: WorkloadSpec,
}

/// A policy, and whom it speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyEntry {
    /// The record's value, passed on as it is.
    pub value: Arc<[u8]>,
    /// What was understood of it; `None` when nothing was. It could be a prohibition, so everybody gets it then, and
    /// whoever cannot compile it denies.
    pub record: Option<PolicyRecord>,
}

/// A server that offers an older state than the one in force. It restored a backup without saying so, or fell behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server is at revision {offered}, behind {have}, which this agent has seen")]
pub struct Behind {
    /// What it offered.
    pub offered: Revision,
    /// What is in force.
    pub have: Revision,
}

impl Replica {
    /// A copy of this state, and of no other.
    pub fn of(revision: Revision, records: impl IntoIterator<Item = Record>) -> Self {
        let records = records.into_iter().map(|record| (record.key, record.value)).collect();
        let mut replica = Self { revision, records, ..Self::default() };
        replica.read_all();
        replica.read_rules(&Arc::default(), Timestamp::EPOCH);
        replica
    }

    /// With those of older rules as well that nobody may have lifted by `now`.
    #[must_use]
    pub fn keeping(mut self, older: &Arc<Revocations>, now: Timestamp) -> Self {
        self.read_rules(older, now);
        self
    }

    /// Lets go of rules that the server does not speak of any more, once nothing that they cover can be valid. True when
    /// there was one.
    pub fn forget_moot(&mut self, now: Timestamp) -> bool {
        let moot = self.kept().any(|(_, rule)| rule.is_moot(now));
        if moot {
            let rules = Arc::clone(&self.rules);
            self.read_rules(&rules, now);
        }
        moot
    }

    /// Applies changes that lead to `revision`. A revocation that they withdraw stays until it is moot at `now`.
    ///
    /// # Errors
    /// When that is not after the present revision.
    pub fn change(
        &mut self,
        revision: Revision,
        put: Vec<Record>,
        gone: &[RecordKey],
        now: Timestamp,
    ) -> Result<(), Behind> {
        if revision <= self.revision {
            return Err(Behind { offered: revision, have: self.revision });
        }
        self.revision = revision;
        let touches = |kind| {
            let mut keys = put.iter().map(|record| &record.key).chain(gone);
            keys.any(|key| key.kind == kind)
        };
        let touches_domain = touches(RecordKind::TrustDomain);
        let touches_rules = touches(RecordKind::Revocation);
        for key in gone {
            self.records.remove(key);
            self.forget(key);
        }
        for record in put {
            self.records.insert(record.key.clone(), Arc::clone(&record.value));
            self.forget(&record.key);
            if !touches_domain {
                self.read(&record.key, &record.value);
            }
        }
        if touches_domain {
            // The identities of workloads without an explicit one hang from the domain.
            self.read_all();
        }
        if touches_rules {
            let before = Arc::clone(&self.rules);
            self.read_rules(&before, now);
        }
        Ok(())
    }

    /// Nothing changed up to this revision.
    ///
    /// # Errors
    /// When it lies before the present one.
    pub fn mark(&mut self, revision: Revision) -> Result<(), Behind> {
        if revision < self.revision {
            return Err(Behind { offered: revision, have: self.revision });
        }
        self.revision = revision;
        Ok(())
    }

    /// Which state it is.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Every record.
    pub fn records(&self) -> impl Iterator<Item = (&RecordKey, &Arc<[u8]>)> {
        self.records.iter()
    }

    /// The value of one record.
    pub fn value(&self, kind: RecordKind, name: &str) -> Option<&Arc<[u8]>> {
        self.records.get(&RecordKey { kind, name: name.into() })
    }

    /// The trust domain of this deployment.
    pub fn domain(&self) -> Option<&TrustDomain> {
        self.domain.as_ref().map(|spec| &spec.trust_domain)
    }

    /// How long SVIDs live for which nothing else is asked.
    pub fn usual_lifetime(&self) -> Option<Lifetime> {
        self.domain.as_ref().map(|domain| domain.svid_lifetime)
    }

    /// How long the SVIDs of one of its workloads live, unless the issuer ends before.
    pub fn lifetime(&self, name: &Name) -> Option<Lifetime> {
        let domain = self.domain.as_ref()?;
        let asked = self.workloads.get(name)?.spec.lifetime;
        Some(asked.unwrap_or(domain.svid_lifetime).min(domain.lifetime_max))
    }

    /// The authorities, by trust domain.
    pub fn bundles(&self) -> &BTreeMap<TrustDomain, Arc<Bundle>> {
        &self.bundles
    }

    /// The authorities of our own trust domain.
    pub fn own_bundle(&self) -> Option<&Arc<Bundle>> {
        self.bundles.get(self.domain()?)
    }

    /// The workloads that are open to this node.
    pub fn workloads(&self) -> &BTreeMap<Name, Arc<Workload>> {
        &self.workloads
    }

    /// The services.
    pub fn services(&self) -> &BTreeMap<Name, Arc<ServiceSpec>> {
        &self.services
    }

    /// The policies.
    pub fn policies(&self) -> &BTreeMap<Arc<str>, Arc<PolicyEntry>> {
        &self.policies
    }

    /// Who is in a role; `None` when nobody has said.
    pub fn role(&self, name: &str) -> Option<&BTreeSet<String>> {
        self.roles.get(name).map(|members| &**members)
    }

    /// What was issued and is out of service.
    pub fn rules(&self) -> &Arc<Revocations> {
        &self.rules
    }

    /// The revocations as records. One that this version does not understand is among them: whoever enforces and cannot
    /// read it goes on with what it had, and does not say that it enforces the new.
    pub fn rule_records(&self) -> Vec<v1::Record> {
        let told = self.records.iter().filter(|(key, _)| key.kind == RecordKind::Revocation);
        let told = told.map(|(key, value)| (&key.name, value.to_vec()));
        let kept = self.kept().map(|(name, rule)| (name, encoded(rule)));
        // Of two under one name the one that could not be read goes on: it stops whoever cannot read it either.
        let all: BTreeMap<_, _> = kept.chain(told).collect();
        let record = |(name, value): (&Arc<str>, Vec<u8>)| v1::Record {
            kind: RecordKind::Revocation.to_string(),
            name: name.to_string(),
            value: value.into(),
        };
        all.into_iter().map(record).collect()
    }

    /// Whether every record that takes rights away was understood. Otherwise nobody may say that this revision is in force.
    pub fn is_understood(&self) -> bool {
        self.unread.is_empty()
    }

    /// What is not issued any more.
    pub fn suspensions(&self) -> impl Iterator<Item = &Suspension> {
        self.suspensions.values()
    }

    /// The rules that the server does not speak of any more.
    fn kept(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Revocation>)> {
        self.rules.iter().filter(|(name, _)| !self.revocations.contains_key(*name))
    }

    fn read_rules(&mut self, before: &Arc<Revocations>, now: Timestamp) {
        let told = self.revocations.iter().map(|(name, rule)| (Arc::clone(name), Arc::clone(rule)));
        let rules = Revocations::new(told).keeping(before, now);
        // Whoever holds the set sees by its address whether it is another.
        self.rules = if same(&rules, before) { Arc::clone(before) } else { Arc::new(rules) };
    }

    fn read_all(&mut self) {
        self.bundles.clear();
        self.workloads.clear();
        self.services.clear();
        self.policies.clear();
        self.roles.clear();
        self.revocations.clear();
        self.suspensions.clear();
        self.unread.clear();
        self.domain = self.read_domain();
        for (key, value) in std::mem::take(&mut self.records) {
            self.read(&key, &value);
            self.records.insert(key, value);
        }
    }

    fn read_domain(&self) -> Option<TrustDomainSpec> {
        let mut domains =
            self.records.iter().filter(|(key, _)| key.kind == RecordKind::TrustDomain);
        let (_, value) = domains.next()?;
        match Spec::decode(Kind::TrustDomain, value) {
            Ok(Spec::TrustDomain(spec)) => Some(spec),
            Ok(
                Spec::Authority(_)
                | Spec::Workload(_)
                | Spec::Service(_)
                | Spec::Policy(_)
                | Spec::Role(_)
                | Spec::TlsProfile(_),
            )
            | Err(_) => None,
        }
    }

    fn forget(&mut self, key: &RecordKey) {
        match key.kind {
            RecordKind::TrustDomain => {}
            RecordKind::Bundle => {
                self.bundles.retain(|domain, _| domain.as_str() != &*key.name);
            }
            RecordKind::Workload => self.workloads.retain(|name, _| name.as_str() != &*key.name),
            RecordKind::Service => self.services.retain(|name, _| name.as_str() != &*key.name),
            RecordKind::Policy => {
                self.policies.remove(&key.name);
            }
            RecordKind::Role => {
                self.roles.remove(&key.name);
                self.unread.remove(key);
            }
            RecordKind::Revocation => {
                self.revocations.remove(&key.name);
                self.unread.remove(key);
            }
            RecordKind::Suspension => {
                self.suspensions.remove(&key.name);
                self.unread.remove(key);
            }
        }
    }

    /// Takes over what one record says. One that does not parse grants nothing: its workload is not served, its bundle
    /// trusted by nobody.
    fn read(&mut self, key: &RecordKey, value: &Arc<[u8]>) {
        let understood = match key.kind {
            RecordKind::TrustDomain => true,
            RecordKind::Bundle => self.read_bundle(key, value),
            RecordKind::Workload => self.read_workload(key, value),
            RecordKind::Service => self.read_service(key, value),
            RecordKind::Policy => {
                let record = PolicyRecord::decode(value).ok();
                let understood = record.is_some();
                let entry = PolicyEntry { value: Arc::clone(value), record };
                self.policies.insert(Arc::clone(&key.name), Arc::new(entry));
                understood
            }
            // A prohibition may speak of it.
            RecordKind::Role => {
                let members = RoleRecord::decode(value).ok().map(|role| Arc::new(role.members));
                self.roles.extend(members.map(|members| (Arc::clone(&key.name), members)));
                self.roles.contains_key(&key.name) || self.unread(key)
            }
            RecordKind::Revocation => {
                let rule = serde_json::from_slice(value).ok().map(Arc::new);
                self.revocations.extend(rule.map(|rule| (Arc::clone(&key.name), rule)));
                self.revocations.contains_key(&key.name) || self.unread(key)
            }
            RecordKind::Suspension => {
                let suspension = serde_json::from_slice(value).ok();
                self.suspensions.extend(suspension.map(|one| (Arc::clone(&key.name), one)));
                self.suspensions.contains_key(&key.name) || self.unread(key)
            }
        };
        if !understood {
            tracing::warn!(record = %key, "a record was not understood, so nothing is granted by it");
        }
    }

    fn unread(&mut self, key: &RecordKey) -> bool {
        self.unread.insert(key.clone());
        false
    }

    fn read_bundle(&mut self, key: &RecordKey, value: &[u8]) -> bool {
        let Ok(domain) = key.name.parse::<TrustDomain>() else { return false };
        let Ok(bundle) = Bundle::parse_json(domain.clone(), value) else { return false };
        self.bundles.insert(domain, Arc::new(bundle));
        true
    }

    fn read_workload(&mut self, key: &RecordKey, value: &[u8]) -> bool {
        let (Ok(name), Some(domain)) = (key.name.parse::<Name>(), self.domain()) else {
            return false;
        };
        let Ok(Spec::Workload(spec)) = Spec::decode(Kind::Workload, value) else { return false };
        let id = spec.spiffe_id_in(&name, domain);
        self.workloads.insert(name.clone(), Arc::new(Workload { name, id, spec }));
        true
    }

    fn read_service(&mut self, key: &RecordKey, value: &[u8]) -> bool {
        let Ok(name) = key.name.parse::<Name>() else { return false };
        let Ok(Spec::Service(spec)) = Spec::decode(Kind::Service, value) else { return false };
        self.services.insert(name, Arc::new(spec));
        true
    }
}

/// A rule as it travels.
fn encoded(rule: &Revocation) -> Vec<u8> {
    serde_json::to_vec(rule).expect("texts and numbers are JSON")
}

fn same(one: &Revocations, other: &Revocations) -> bool {
    let named: HashMap<_, _> = other.iter().collect();
    one.len() == other.len() && one.iter().all(|(name, rule)| named.get(name) == Some(&rule))
}
