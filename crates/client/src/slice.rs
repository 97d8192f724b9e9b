//! What the agent wants enforced, read as a whole or not at all.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use countersign_api::resource::{DataSet, Kind, OperationSpec, PolicyRecord, ServiceSpec, Spec};
use countersign_api::v1;
use countersign_identity::{
    Name, Revision, Revocation, Revocations, SpiffeId, Timestamp, TrustDomain,
};
use countersign_pki::{Bundle, Bundles, Certificate};
use countersign_policy::{
    Holdings, Inventory, Member, Members, Operation, Operations, Policies, PolicySource, Principal,
};
use countersign_tls::{Accepted, ServiceTls, Slice};

use crate::Services;

/// The largest message that is taken from the agent.
pub(crate) const SLICE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The kind of those records.
const REVOCATION: &str = "Revocation";
const BUNDLES_MAX: usize = 1024;
const AUTHORITIES_MAX: usize = 64;
const WORKLOADS_MAX: usize = 50_000;
const SERVICES_MAX: usize = 4096;
const POLICIES_MAX: usize = 20_000;
const ROLES_MAX: usize = 20_000;
const LABELS_MAX: usize = 16;
const REVOCATIONS_MAX: usize = 100_000;

/// A slice that is ready to be enforced.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) slice: Slice,
    pub(crate) services: Services,
    pub(crate) compiled: Arc<Compiled>,
}

/// Policies beside the texts that they were compiled from: compiling takes longer than anything else about a slice, and
/// what takes a credential out of service comes with the same policies as the slice before.
#[derive(Debug)]
pub(crate) struct Compiled {
    sources: Vec<PolicySource>,
    operations: Operations,
    inventory: Inventory,
    members: Members,
    policies: Arc<Policies>, // INVARIANT: of `sources`, `operations`, `inventory` and `members`
}

impl Compiled {
    /// No text, no policy.
    pub(crate) fn nothing() -> Self {
        Self {
            sources: Vec::new(),
            operations: Operations::default(),
            inventory: Inventory::default(),
            members: Members::default(),
            policies: Arc::new(Policies::none()),
        }
    }
}

/// Why a slice is not enforced. What was enforced before stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSlice {
    #[error("the slice has no revision")]
    NoRevision,
    #[error("the slice has {count} {what}, over the limit of {max}")]
    Many { what: &'static str, count: usize, max: usize },
    #[error("the slice is not of a workload: {0}")]
    Caller(String),
    #[error("the bundle of `{domain}` is not one: {why}")]
    Bundle { domain: String, why: String },
    #[error("workload `{name}`: {why}")]
    Workload { name: String, why: String },
    #[error("record `{kind}/{name}`: {why}")]
    Record { kind: String, name: String, why: String },
    #[error("role `{role}`: {why}")]
    Role { role: String, why: String },
    #[error("the policies do not compile: {0}")]
    Policies(String),
}

/// Reads a slice. Takes as long as its policies take to compile, if they differ from those of the slice before.
pub(crate) fn decode(slice: v1::Slice, before: &Arc<Compiled>) -> Result<Decoded, BadSlice> {
    check_counts(&slice)?;
    let revision = slice.revision.map(Revision::from).ok_or(BadSlice::NoRevision)?;
    let workload = slice.workload.parse().map_err(|why| caller(&why))?;
    let id: SpiffeId = slice.spiffe_id.parse().map_err(|why| caller(&why))?;
    let bundles = bundles(slice.bundles)?;
    let labels = labels(&slice.workloads)?;
    let ids = workloads(slice.workloads)?;
    let roles = roles(slice.roles, &ids, &workload)?;
    let services = services(slice.services)?;
    let profiles = profiles(&services)?;
    let (operations, inventory) = (operations(&services), inventory(&services));
    let told = Told { operations, inventory, labels, roles };
    let compiled = policies(slice.policies, told, before)?;
    let revocations = revocations(slice.revocations)?;
    let mut names: HashMap<_, _> =
        ids.iter().map(|(name, id)| (id.clone(), name.clone())).collect();
    if names.len() < ids.len() {
        let why = "two workloads have one SPIFFE ID".to_owned();
        return Err(BadSlice::Workload { name: slice.workload, why });
    }
    // The agent may leave the caller itself out of the peers. Its own name is needed when it dials.
    let own = names.entry(id.clone()).or_insert_with(|| Name::clone(&workload));
    if *own != workload {
        let why = format!("`{id}` is also the SPIFFE ID of `{own}`");
        return Err(BadSlice::Workload { name: slice.workload, why });
    }
    let slice = Slice {
        revision,
        bundles: Arc::new(bundles),
        names: Arc::new(names),
        policies: Arc::clone(&compiled.policies),
        revocations: Arc::new(revocations),
        profiles: Arc::new(profiles),
    };
    let services = Services { revision, workload, id, services, ids };
    Ok(Decoded { slice, services, compiled })
}

/// The slice as it follows on the one in force: with every revocation of that one which is not moot, and with the very
/// parts of it which did not change, so that nothing is decided anew because of them.
pub(crate) fn following(slice: Slice, before: &Slice, now: Timestamp) -> Slice {
    let rules = Arc::unwrap_or_clone(slice.revocations).keeping(&before.revocations, now);
    let revocations = match same_rules(&rules, &before.revocations) {
        true => Arc::clone(&before.revocations),
        false => Arc::new(rules),
    };
    Slice {
        bundles: unchanged(slice.bundles, &before.bundles),
        names: unchanged(slice.names, &before.names),
        profiles: unchanged(slice.profiles, &before.profiles),
        revocations,
        ..slice
    }
}

fn unchanged<T: PartialEq>(new: Arc<T>, before: &Arc<T>) -> Arc<T> {
    if new == *before { Arc::clone(before) } else { new }
}

fn same_rules(new: &Revocations, before: &Revocations) -> bool {
    if new.len() != before.len() {
        return false;
    }
    let before: HashMap<_, _> = before.iter().collect();
    new.iter().all(|(name, rule)| before.get(name) == Some(&rule))
}

fn caller(why: &dyn std::error::Error) -> BadSlice {
    BadSlice::Caller(why.to_string())
}

fn check_counts(slice: &v1::Slice) -> Result<(), BadSlice> {
    for (what, count, max) in [
        ("bundles", slice.bundles.len(), BUNDLES_MAX),
        ("workloads", slice.workloads.len(), WORKLOADS_MAX),
        ("services", slice.services.len(), SERVICES_MAX),
        ("policies", slice.policies.len(), POLICIES_MAX),
        ("roles", slice.roles.len(), ROLES_MAX),
        ("revocations", slice.revocations.len(), REVOCATIONS_MAX),
    ] {
        if max < count {
            return Err(BadSlice::Many { what, count, max });
        }
    }
    Ok(())
}

fn bundles(wire: Vec<v1::TrustBundle>) -> Result<Bundles, BadSlice> {
    let mut seen = HashSet::new();
    let mut bundles = Vec::with_capacity(wire.len());
    for bundle in wire {
        let shown = bundle.trust_domain.clone();
        let bad = |why: String| BadSlice::Bundle { domain: shown.clone(), why };
        let domain: TrustDomain =
            bundle.trust_domain.parse().map_err(|why| bad(format!("{why}")))?;
        if !seen.insert(domain.clone()) {
            return Err(bad("it is there twice".to_owned()));
        }
        if AUTHORITIES_MAX < bundle.authorities.len() {
            return Err(bad(format!("{} authorities", bundle.authorities.len())));
        }
        let parsed = bundle.authorities.iter().map(|der| Certificate::parse(der));
        let authorities = parsed.collect::<Result<_, _>>().map_err(|why| bad(why.to_string()))?;
        bundles.push(Bundle::new(domain, authorities, 0));
    }
    Bundles::new(bundles)
        .map_err(|why| BadSlice::Bundle { domain: "*".to_owned(), why: why.to_string() })
}

fn workloads(wire: Vec<v1::NamedWorkload>) -> Result<BTreeMap<Name, SpiffeId>, BadSlice> {
    let mut ids = BTreeMap::new();
    for v1::NamedWorkload { name: shown, spiffe_id, labels: _ } in wire {
        let bad = |why: String| BadSlice::Workload { name: shown.clone(), why };
        let name: Name = shown.parse().map_err(|why| bad(format!("{why}")))?;
        let id: SpiffeId = spiffe_id.parse().map_err(|why| bad(format!("{why}")))?;
        if ids.insert(name, id).is_some() {
            return Err(bad("it is there twice".to_owned()));
        }
    }
    Ok(ids)
}

fn services(wire: Vec<v1::Record>) -> Result<BTreeMap<Name, ServiceSpec>, BadSlice> {
    let mut services = BTreeMap::new();
    for record in wire {
        let name = name_of(&record, Kind::Service)?;
        let spec = match Spec::decode(Kind::Service, &record.value) {
            Ok(Spec::Service(spec)) => spec,
            Ok(
                Spec::TrustDomain(_)
                | Spec::Authority(_)
                | Spec::Workload(_)
                | Spec::Policy(_)
                | Spec::Role(_)
                | Spec::TlsProfile(_),
            ) => return Err(bad_record(&record, "it is of another kind")),
            Err(problems) => {
                let lines: Vec<_> = problems.iter().take(5).map(ToString::to_string).collect();
                return Err(bad_record(&record, &lines.join("; ")));
            }
        };
        if services.insert(name, spec).is_some() {
            return Err(bad_record(&record, "it is there twice"));
        }
    }
    Ok(services)
}

/// What the services ask of handshakes that ask for something of their own.
fn profiles(services: &BTreeMap<Name, ServiceSpec>) -> Result<HashMap<Name, ServiceTls>, BadSlice> {
    let profile = |(name, spec): (&Name, &ServiceSpec)| {
        let Some(terms) = spec.tls_profile.terms() else {
            let why = format!("nobody has said what TLS profile `{}` is", spec.tls_profile.name);
            let (kind, name) = (Kind::Service.to_string(), name.to_string());
            return Err(BadSlice::Record { kind, name, why });
        };
        let declared = spec.tls_profile.spec.as_ref();
        let domains = declared.map(|it| it.trust_domains.iter().cloned().collect::<BTreeSet<_>>());
        let roots = declared.map(|it| it.roots.iter().copied().collect::<BTreeSet<_>>());
        let accepted = Accepted {
            domains: domains.filter(|domains| !domains.is_empty()),
            roots: roots.filter(|roots| !roots.is_empty()),
        };
        Ok((name.clone(), ServiceTls { terms, accepted }))
    };
    services.iter().map(profile).collect()
}

fn operations(services: &BTreeMap<Name, ServiceSpec>) -> Operations {
    let of = |spec: &ServiceSpec| {
        let operation = |one: &OperationSpec| Operation {
            name: one.name.clone(),
            verb: one.method,
            template: one.path.clone(),
        };
        spec.operations.iter().map(operation).collect()
    };
    Operations::new(services.iter().map(|(name, spec)| (name.clone(), of(spec))))
}

/// What the services keep, hand out and carry.
fn inventory(services: &BTreeMap<Name, ServiceSpec>) -> Inventory {
    let of = |spec: &ServiceSpec| {
        let set = |names: &[Name]| names.iter().cloned().collect();
        let classified = |one: &DataSet| (one.name.clone(), one.classification.as_str().to_owned());
        Holdings {
            data_sets: spec.data_sets.iter().map(classified).collect(),
            operations: spec
                .operations
                .iter()
                .map(|one| (one.name.clone(), set(&one.data_sets)))
                .collect(),
            topics: spec.topics.iter().map(|one| (one.name.clone(), set(&one.data_sets))).collect(),
        }
    };
    Inventory::new(services.iter().map(|(name, spec)| (name.clone(), of(spec))))
}

/// What policies are decided with, besides their texts.
struct Told {
    operations: Operations,
    inventory: Inventory,
    labels: Vec<(Name, BTreeSet<Name>)>,
    roles: BTreeMap<Name, Vec<Principal>>,
}

impl Told {
    fn members(&self) -> Members {
        let labelled = self.labels.iter().map(|(name, labels)| {
            let member = Member { labels: labels.clone(), ..Member::default() };
            (Principal::Named(name.clone()), member)
        });
        let in_roles = self.roles.iter().flat_map(|(role, members)| {
            let member = Member { roles: BTreeSet::from([role.clone()]), ..Member::default() };
            members.iter().map(move |principal| (principal.clone(), member.clone()))
        });
        Members::new(labelled.chain(in_roles))
    }
}

fn labels(wire: &[v1::NamedWorkload]) -> Result<Vec<(Name, BTreeSet<Name>)>, BadSlice> {
    let mut all = Vec::new();
    for v1::NamedWorkload { name: shown, labels, .. } in
        wire.iter().filter(|it| !it.labels.is_empty())
    {
        let bad = |why: String| BadSlice::Workload { name: shown.clone(), why };
        if LABELS_MAX < labels.len() {
            return Err(bad(format!("{} labels", labels.len())));
        }
        let name: Name = shown.parse().map_err(|why| bad(format!("{why}")))?;
        let labels = labels.iter().map(|label| label.parse()).collect::<Result<_, _>>();
        all.push((name, labels.map_err(|why| bad(format!("{why}")))?));
    }
    Ok(all)
}

/// A member by name must be one whose SPIFFE ID is told as well: else it would be met as a stranger, who is in no role.
fn roles(
    wire: Vec<v1::RoleMembers>,
    ids: &BTreeMap<Name, SpiffeId>,
    own: &Name,
) -> Result<BTreeMap<Name, Vec<Principal>>, BadSlice> {
    let mut roles = BTreeMap::new();
    for v1::RoleMembers { role: shown, members } in wire {
        let bad = |why: String| BadSlice::Role { role: shown.chars().take(80).collect(), why };
        let role: Name = shown.parse().map_err(|why| bad(format!("{why}")))?;
        if WORKLOADS_MAX < members.len() {
            return Err(bad(format!("{} members", members.len())));
        }
        let member = |text: &String| match text.parse::<Name>() {
            Ok(name) if name == *own || ids.contains_key(&name) => Ok(Principal::Named(name)),
            Ok(name) => Err(bad(format!("`{name}` is in it, and nobody has said who that is"))),
            Err(_not_a_name) => {
                text.parse().map(Principal::Id).map_err(|why| bad(format!("{why}")))
            }
        };
        let members = members.iter().map(member).collect::<Result<_, _>>()?;
        if roles.insert(role, members).is_some() {
            return Err(bad("it is there twice".to_owned()));
        }
    }
    Ok(roles)
}

fn policies(
    wire: Vec<v1::Record>,
    told: Told,
    before: &Arc<Compiled>,
) -> Result<Arc<Compiled>, BadSlice> {
    let mut sources = Vec::with_capacity(wire.len());
    for record in wire {
        let name = name_of(&record, Kind::Policy)?;
        let policy = PolicyRecord::decode(&record.value)
            .map_err(|problem| bad_record(&record, &problem.to_string()))?;
        // Who is in it is not known, which is another thing than that nobody is.
        let untold =
            |role: &&String| told.roles.keys().all(|known| known.as_str() != role.as_str());
        if let Some(role) = policy.scopes.iter().flat_map(|scope| &scope.roles).find(untold) {
            return Err(bad_record(&record, &format!("nobody has said who is in role `{role}`")));
        }
        let text = policy.cedar.as_str().to_owned();
        sources.push(PolicySource { name, text, mode: policy.mode, until: policy.until });
    }
    let members = told.members();
    let (operations, inventory) = (told.operations, told.inventory);
    let same = sources == before.sources && operations == before.operations;
    if same && inventory == before.inventory && members == before.members {
        return Ok(Arc::clone(before));
    }
    // The server has checked the names against all manifests. Here only some of them are known.
    let policies = Policies::compile(&sources, None).map_err(|problems| {
        let lines: Vec<_> = problems.iter().take(5).map(ToString::to_string).collect();
        BadSlice::Policies(lines.join("; "))
    })?;
    let policies = policies.with_operations(operations.clone()).with_members(members.clone());
    let policies = Arc::new(policies.with_inventory(inventory.clone()));
    Ok(Arc::new(Compiled { sources, operations, inventory, members, policies }))
}

/// A rule that cannot be read refuses the slice: to leave it out would un-revoke.
fn revocations(wire: Vec<v1::Record>) -> Result<Revocations, BadSlice> {
    let mut rules: HashMap<Arc<str>, _> = HashMap::with_capacity(wire.len());
    for record in wire {
        if record.kind != REVOCATION {
            return Err(bad_record(&record, &format!("expected a record of kind {REVOCATION}")));
        }
        let rule: Revocation = serde_json::from_slice(&record.value)
            .map_err(|problem| bad_record(&record, &problem.to_string()))?;
        if rules.insert(Arc::from(record.name.as_str()), Arc::new(rule)).is_some() {
            return Err(bad_record(&record, "it is there twice"));
        }
    }
    Ok(Revocations::new(rules))
}

fn name_of(record: &v1::Record, kind: Kind) -> Result<Name, BadSlice> {
    if record.kind != kind.as_str() {
        return Err(bad_record(record, &format!("expected a record of kind {kind}")));
    }
    record.name.parse().map_err(|why| bad_record(record, &format!("{why}")))
}

fn bad_record(record: &v1::Record, why: &str) -> BadSlice {
    let short = |text: &str| text.chars().take(80).collect();
    BadSlice::Record { kind: short(&record.kind), name: short(&record.name), why: why.to_owned() }
}
