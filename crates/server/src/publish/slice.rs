//! Which part of the state a node with certain labels needs, and what differs between two such parts.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use countersign_api::resource::{RoleRecord, ScopeNames, ServiceSpec};
use countersign_api::v1;
use countersign_identity::{Name, Revision, Suspended, Suspension};
use countersign_store::Kind;

use crate::state::{Entry, Key, Parsed, State};

/// Sets of labels whose slices are kept. Beyond that they are computed anew for each stream.
const SLICES_MAX: usize = 1024;
/// Older slices that are kept.
const OLDER_MAX: usize = 32;
/// Under it are the identities of agents, which only servers meet.
const AGENT_PATH: &str = "/countersign/agent/";

/// The part of the state at one revision that nodes with the same labels need.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) revision: Revision,
    records: imbl::OrdMap<Key, Arc<Entry>>,
    /// The identities that belong to such nodes, as they are written.
    own: HashSet<String>,
    /// The difference from the slice before it, which is what nearly every stream asks for.
    latest: Option<(Revision, Arc<Delta>)>,
}

/// What differs between two slices.
#[derive(Debug)]
pub(crate) struct Delta {
    /// The revision of the newer.
    at: Revision,
    pub(crate) put: Vec<v1::Record>,
    pub(crate) gone: Vec<v1::RecordKey>,
    /// As it travels, with the silence that is told with it: nearly all streams are told the same.
    frames: Mutex<Option<(u32, Bytes)>>,
}

impl Delta {
    pub(crate) fn is_empty(&self) -> bool {
        self.put.is_empty() && self.gone.is_empty()
    }

    /// What a reader of the older slice is told.
    pub(crate) fn changes(&self) -> v1::Changes {
        v1::Changes {
            revision: Some(self.at.into()),
            put: self.put.clone(),
            gone: self.gone.clone(),
            witness: Bytes::new(),
        }
    }

    /// What travels with this silence, made once for all streams.
    pub(crate) fn frames(&self, quiet: u32, make: impl FnOnce(v1::Changes) -> Bytes) -> Bytes {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, made)) = &*frames
            && *of == quiet
        {
            return made.clone();
        }
        let made = make(self.changes());
        *frames = Some((quiet, made.clone()));
        made
    }
}

impl Slice {
    /// Cuts the slice of nodes with these labels.
    pub(crate) fn cut(state: &State, labels: &BTreeSet<Name>, before: Option<&Self>) -> Self {
        let own: BTreeSet<&str> = state.workloads_on(labels).map(Name::as_str).collect();
        let needed = needed(state, &own);
        // Starting from the slice before keeps what did not change shared, so that a comparison of the two
        // costs what the change costs.
        let mut records = before.map(|before| before.records.clone()).unwrap_or_default();
        let stale: Vec<Key> =
            records.keys().filter(|key| !needed.contains_key(*key)).cloned().collect();
        for key in stale {
            records.remove(&key);
        }
        for (key, entry) in needed {
            // What was made for these nodes anew, and says the same, is the same.
            if !records.get(&key).is_some_and(|known| *known == entry) {
                records.insert(key, entry);
            }
        }
        let domain = &state.domain().trust_domain;
        let id = |name: &&str| {
            state.workload(name).map(|(name, spec)| spec.spiffe_id_in(name, domain).to_string())
        };
        let own = own.iter().filter_map(id).collect();
        let mut slice = Self { revision: state.revision, records, own, latest: None };
        slice.latest = before.map(|before| (before.revision, Arc::new(slice.compare(before))));
        slice
    }

    /// What a reader of the older slice must be told.
    pub(crate) fn since(&self, older: &Self) -> Arc<Delta> {
        match &self.latest {
            Some((revision, delta)) if *revision == older.revision => Arc::clone(delta),
            Some(_) | None => Arc::new(self.compare(older)),
        }
    }

    fn compare(&self, older: &Self) -> Delta {
        let (put, gone, frames) = (Vec::new(), Vec::new(), Mutex::default());
        let mut delta = Delta { at: self.revision, put, gone, frames };
        for difference in older.records.diff(&self.records) {
            match difference {
                imbl::ordmap::DiffItem::Add(_, entry) => delta.put.push(entry.wire.clone()),
                imbl::ordmap::DiffItem::Update { new: (_, entry), .. } => {
                    delta.put.push(entry.wire.clone());
                }
                imbl::ordmap::DiffItem::Remove(key, _) => delta.gone.push(key.wire()),
            }
        }
        delta
    }

    /// Whether this identity may be held on such nodes.
    pub(crate) fn is_own(&self, id: &str) -> bool {
        self.own.contains(id)
    }

    /// A slice without records, for nodes that may hold these identities.
    #[cfg(test)]
    pub(crate) fn of_ids(revision: Revision, names: &[&str]) -> Self {
        let id = |name: &&str| format!("spiffe://shop.example/{name}");
        let own = names.iter().map(id).collect();
        Self { revision, records: imbl::OrdMap::new(), own, latest: None }
    }

    /// All its records, as they travel.
    pub(crate) fn wire_records(&self) -> Vec<v1::Record> {
        self.records.values().map(|entry| entry.wire.clone()).collect()
    }
}

/// The records that nodes with these workloads of their own need: those workloads, their services, the services
/// that these call, the policies that can decide about any of these, the workloads whose names those policies or
/// services need, and every bundle. Of what is not the node's own, no more than a peer has to know.
fn needed(state: &State, own: &BTreeSet<&str>) -> imbl::HashMap<Key, Arc<Entry>> {
    let (own_services, called) = services(state, own);
    let mut workloads: BTreeSet<&str> = own.iter().copied().collect();
    let mut everybody = false;
    let mut named_roles = BTreeSet::new();
    let mut needed = imbl::HashMap::new();
    for (key, entry) in candidates(state, &own_services, &called) {
        let wanted = match &entry.parsed {
            Parsed::TrustDomain { .. } | Parsed::Bundle(_) => true,
            Parsed::Service { name, spec } => {
                let wanted =
                    own_services.contains_key(name.as_str()) || called.contains_key(name.as_str());
                if wanted {
                    workloads.insert(spec.workload.as_str());
                }
                wanted
            }
            Parsed::Policy { record, .. } => {
                let mut wanted = false;
                for scope in &record.scopes {
                    let about = |(name, spec): (&&str, &&ServiceSpec)| scope.is_about(name, spec);
                    let inbound = own_services.iter().any(about);
                    let is_in = |name: &str, role: &str| {
                        role_of(state, role).is_some_and(|role| role.members.contains(name))
                    };
                    let outbound = called.iter().any(about)
                        && own.iter().any(|name| scope.admits(name, |role| is_in(name, role)));
                    if !inbound && !outbound {
                        continue;
                    }
                    wanted = true;
                    workloads.extend(scope.workloads.iter().map(String::as_str));
                    for role in &scope.roles {
                        named_roles.insert(role.as_str());
                        // Whose door it is meets all of them; who calls is only one of them.
                        let met = role_of(state, role).filter(|_| inbound);
                        let met = met.into_iter().flat_map(|role| &role.members);
                        let met: Vec<&str> = met.map(String::as_str).collect();
                        workloads.extend(met);
                    }
                    match &scope.principals {
                        // No principal is in a data set. Whatever it meant, nobody is left out.
                        ScopeNames::Any | ScopeNames::Dataset(_) => everybody |= inbound,
                        ScopeNames::Only(names) => {
                            workloads.extend(names.iter().map(String::as_str));
                        }
                        // Its members were told above.
                        ScopeNames::Role(_) => {}
                    }
                }
                wanted
            }
            // Decided below, when it is known who is named.
            Parsed::Workload { .. }
            | Parsed::Role { .. }
            | Parsed::TlsProfile { .. }
            | Parsed::Authority { .. }
            | Parsed::Revocation(_)
            | Parsed::Suspension(_)
            | Parsed::Walk(_) => false,
            // What servers do among themselves.
            Parsed::Incarnation(_) => false,
        };
        if wanted {
            let abroad = key.kind == Kind::Service && !own_services.contains_key(&*key.name);
            needed.insert(key.clone(), if abroad { entry.abroad() } else { entry.home() });
        }
    }
    let mut tell = |key: &Key, entry: &Arc<Entry>| {
        let abroad = !own.contains(&*key.name);
        needed.insert(key.clone(), if abroad { entry.abroad() } else { entry.home() });
    };
    if everybody {
        state.of_kind(Kind::Workload).for_each(|(key, entry)| tell(key, entry));
    } else {
        let keys = workloads.iter().map(|name| Key::new(Kind::Workload, name));
        keys.filter_map(|key| state.records.get_key_value(&key))
            .for_each(|(key, entry)| tell(key, entry));
    }
    for role in named_roles {
        let key = Key::new(Kind::Role, role);
        let told = |name: &str| everybody || workloads.contains(name);
        let role = state.records.get(&key).and_then(|entry| entry.role_of(told));
        needed.extend(role.map(|entry| (key, entry)));
    }
    needed.extend(out_of_service(state, own, &workloads, everybody));
    needed
}

/// What can be needed of those that are told by what they are about, each once or more often.
fn candidates<'a>(
    state: &'a State,
    own_services: &Services<'a>,
    called: &Services<'a>,
) -> impl Iterator<Item = (&'a Key, &'a Arc<Entry>)> {
    let services: BTreeSet<&str> = own_services.keys().chain(called.keys()).copied().collect();
    let of_service = |name: &'a str| {
        let itself = state.records.get_key_value(&Key::new(Kind::Service, name));
        itself.into_iter().chain(state.policies_near(name))
    };
    let everybodys = [Kind::TrustDomain, Kind::Bundle].into_iter();
    everybodys.flat_map(|kind| state.of_kind(kind)).chain(services.into_iter().flat_map(of_service))
}

/// Who is in a role.
fn role_of<'a>(state: &'a State, role: &str) -> Option<&'a RoleRecord> {
    match &state.records.get(&Key::new(Kind::Role, role))?.parsed {
        Parsed::Role { record, .. } => Some(record),
        Parsed::Workload { .. }
        | Parsed::Service { .. }
        | Parsed::Policy { .. }
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

/// The revocations that can cover a peer of such nodes or something of their own, and the suspensions of their own.
///
/// A rule about a workload whose name they need not know is left out: no policy of theirs lets it in.
fn out_of_service(
    state: &State,
    own: &BTreeSet<&str>,
    named: &BTreeSet<&str>,
    everybody: bool,
) -> Vec<(Key, Arc<Entry>)> {
    let wanted = |entry: &Entry| match &entry.parsed {
        Parsed::Revocation(rule) => rule.about.as_ref().is_none_or(|id| {
            let agent = id.path().starts_with(AGENT_PATH);
            // Of an identity that no manifest declares any more nobody can say who met it.
            let name = state.workload_of(id);
            name.map_or(!agent, |name| everybody || named.contains(name.as_str()))
        }),
        Parsed::Suspension(Suspension { target: Suspended::Identity(id), .. }) => {
            state.workload_of(id).is_some_and(|name| own.contains(name.as_str()))
        }
        // Nobody else could hand it back after a loss: the node itself is not told anything any more.
        Parsed::Suspension(Suspension { target: Suspended::Node(_), .. }) => true,
        Parsed::Incarnation(_)
        | Parsed::Workload { .. }
        | Parsed::Service { .. }
        | Parsed::Policy { .. }
        | Parsed::Role { .. }
        | Parsed::TlsProfile { .. }
        | Parsed::TrustDomain { .. }
        | Parsed::Authority { .. }
        | Parsed::Bundle(_)
        | Parsed::Walk(_) => false,
    };
    let rules = state.of_kind(Kind::Revocation).chain(state.of_kind(Kind::Suspension));
    rules
        .filter(|(_, entry)| wanted(entry))
        .map(|(key, entry)| (key.clone(), Arc::clone(entry)))
        .collect()
}

/// The services of these workloads, and those that they call.
fn services<'a>(state: &'a State, own: &BTreeSet<&str>) -> (Services<'a>, Services<'a>) {
    let mut of_own = Services::new();
    let mut called = Services::new();
    for name in own.iter().flat_map(|workload| state.services_of(workload)) {
        let Some(spec) = state.service(name.as_str()) else { continue };
        of_own.insert(name.as_str(), spec);
        for upstream in &spec.upstreams {
            let name = upstream.service.as_str();
            called.extend(state.service(name).map(|spec| (name, spec)));
        }
    }
    (of_own, called)
}

/// Services by name.
type Services<'a> = BTreeMap<&'a str, &'a ServiceSpec>;

/// Slices of older states, by revision and labels.
type Older = HashMap<(Revision, BTreeSet<Name>), Arc<Slice>>;

/// The slice in use of nodes with the same labels, which the streams of those nodes share.
#[derive(Debug, Default)]
pub(crate) struct Shared(Mutex<Option<Arc<Slice>>>);

impl Shared {
    /// The slice at this state, of nodes with these labels, which are always the same.
    pub(crate) fn at(&self, state: &State, labels: &BTreeSet<Name>) -> Arc<Slice> {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slice) = &*latest
            && state.revision <= slice.revision
        {
            return Arc::clone(slice);
        }
        let slice = Arc::new(Slice::cut(state, labels, latest.as_deref()));
        *latest = Some(Arc::clone(&slice));
        slice
    }
}

/// The slices in use, one for each set of labels, computed once for all streams that need it.
#[derive(Debug, Default)]
pub(crate) struct Slices {
    by_labels: Mutex<HashMap<BTreeSet<Name>, Arc<Shared>>>,
    older: Mutex<Older>,
}

impl Slices {
    /// What all streams of nodes with these labels share.
    pub(crate) fn of(&self, labels: &BTreeSet<Name>) -> Arc<Shared> {
        let mut slices = self.by_labels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = slices.get(labels) {
            return Arc::clone(shared);
        }
        if SLICES_MAX <= slices.len() {
            // Nobody is served worse by an empty table than by a full one.
            slices.clear();
        }
        Arc::clone(slices.entry(labels.clone()).or_default())
    }

    /// The slice of nodes with these labels at this state.
    pub(crate) fn at(&self, state: &State, labels: &BTreeSet<Name>) -> Arc<Slice> {
        self.of(labels).at(state, labels)
    }

    /// The slice as it was at an older state, computed once for all agents that come back from the same moment.
    pub(crate) fn then(&self, state: &State, labels: &BTreeSet<Name>) -> Arc<Slice> {
        let current = self.at(state, labels);
        if current.revision == state.revision {
            return current;
        }
        let mut older = self.older.lock().unwrap_or_else(PoisonError::into_inner);
        if OLDER_MAX <= older.len() {
            older.clear();
        }
        let key = (state.revision, labels.clone());
        let cut = || Arc::new(Slice::cut(state, labels, Some(&current)));
        Arc::clone(older.entry(key).or_insert_with(cut))
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod whole;
