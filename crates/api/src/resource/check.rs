//! What must hold between resources, once each is right in itself.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use countersign_identity::{DurationText, Lifetime, Name, SpiffeId, TlsProfile, TrustDomain};

use super::address::{ListenAddress, Local};
use super::data_set::Classification;
use super::problem::Problem;
use super::role::{ROLE_MEMBERS_MAX, roles};
use super::tls_profile::TlsChoiceName;
use super::{Kind, Resource, RoleSpec, ServiceSpec, Spec, TrustDomainSpec, WorkloadSpec};

/// The resources by name, and the trust domain that they are for.
#[derive(Debug)]
pub struct Declaration<'a> {
    /// The trust domain.
    pub domain: TrustDomain,
    /// Its settings; those that nobody declared have their defaults.
    pub settings: TrustDomainSpec,
    /// The workloads.
    pub workloads: BTreeMap<&'a Name, &'a WorkloadSpec>,
    /// The services.
    pub services: BTreeMap<&'a Name, &'a ServiceSpec>,
}

/// Manifests that are there and could not be read: what they would have declared is not known to be missing.
#[derive(Clone, Debug, Default)]
pub struct Unread(pub Vec<(Option<Kind>, Option<Name>)>);

impl Unread {
    /// Whether one of them may be this resource.
    fn may_be(&self, kind: Kind, name: Option<&Name>) -> bool {
        self.0.iter().any(|(unread_kind, unread_name)| {
            unread_kind.is_none_or(|unread| unread == kind)
                && (name.is_none() || unread_name.is_none() || unread_name.as_ref() == name)
        })
    }
}

/// Checks the whole set of resources that a trust domain would hold; no problem means that it may be applied,
/// as far as this crate knows: whether policies compile, the crate `policy` says.
///
/// # Errors
/// With every problem.
pub fn check<'a>(
    resources: &'a [Resource],
    domain: Option<&TrustDomain>,
) -> Result<Declaration<'a>, Vec<Problem>> {
    check_beside(resources, domain, &Unread::default())
}

/// The same of a set in which some are in force word for word (`stays`): their lifetimes are not judged again. An earlier version
/// may have taken shorter ones, and a change of something else is not to wait until those are mended.
///
/// # Errors
/// With every problem.
pub fn check_change<'a>(
    resources: &'a [Resource],
    domain: Option<&TrustDomain>,
    stays: &dyn Fn(&Resource) -> bool,
) -> Result<Declaration<'a>, Vec<Problem>> {
    check_whole(resources, domain, &Unread::default(), stays)
}

/// The same beside manifests that could not be read, so that all problems can be told at once and none that
/// is not there.
///
/// # Errors
/// With every problem.
pub fn check_beside<'a>(
    resources: &'a [Resource],
    domain: Option<&TrustDomain>,
    unread: &Unread,
) -> Result<Declaration<'a>, Vec<Problem>> {
    check_whole(resources, domain, unread, &|_none| false)
}

fn check_whole<'a>(
    resources: &'a [Resource],
    domain: Option<&TrustDomain>,
    unread: &Unread,
    stays: &dyn Fn(&Resource) -> bool,
) -> Result<Declaration<'a>, Vec<Problem>> {
    let mut problems = Vec::new();
    repeated_names(resources, &mut problems);
    let settings = settings(resources, domain, unread, &mut problems);
    let authorities = resources.iter().filter(|one| one.kind() == Kind::Authority);
    for second in authorities.skip(1) {
        let message = "there is a second `Authority`: keep one of the two".to_owned();
        problems.push(about(Kind::Authority, &second.name, "", message));
    }
    let mut workloads = BTreeMap::new();
    let mut services = BTreeMap::new();
    for resource in resources {
        match &resource.spec {
            Spec::Workload(spec) => drop(workloads.insert(&resource.name, spec)),
            Spec::Service(spec) => drop(services.insert(&resource.name, spec)),
            Spec::TrustDomain(_)
            | Spec::Authority(_)
            | Spec::Policy(_)
            | Spec::Role(_)
            | Spec::TlsProfile(_) => {}
        }
    }
    check_lifetimes(resources.iter().filter(|one| !stays(one)), &mut problems);
    check_profiles(resources, &services, unread, &mut problems);
    check_roles(resources, &workloads, settings.as_ref(), unread, &mut problems);
    match settings {
        Some(settings) => {
            check_workloads(&workloads, &settings, &mut problems);
            check_services(&workloads, &services, unread, &mut problems);
            if problems.is_empty() {
                let domain = settings.trust_domain.clone();
                return Ok(Declaration { domain, settings, workloads, services });
            }
        }
        // Without the trust domain the workloads' identities are not known.
        None => check_services(&workloads, &services, unread, &mut problems),
    }
    Err(problems)
}

fn about(kind: Kind, name: &Name, field: &str, message: String) -> Problem {
    Problem::about(format!("{kind}/{name}"), field, message)
}

fn repeated_names(resources: &[Resource], problems: &mut Vec<Problem>) {
    let mut seen = HashMap::new();
    for resource in resources {
        let count = seen.entry((resource.kind(), &resource.name)).or_insert(0_usize);
        *count += 1;
        if *count == 2 {
            let message = format!(
                "there are several resources `{}`: rename or remove all but one",
                resource.label()
            );
            problems.push(about(resource.kind(), &resource.name, "metadata.name", message));
        }
    }
}

/// The settings in force; `None`, with a problem, when the trust domain is not known.
fn settings(
    resources: &[Resource],
    domain: Option<&TrustDomain>,
    unread: &Unread,
    problems: &mut Vec<Problem>,
) -> Option<TrustDomainSpec> {
    let mut declared = None;
    for resource in resources {
        let Spec::TrustDomain(spec) = &resource.spec else { continue };
        if declared.is_some() {
            let message = "there is a second `TrustDomain`: keep one of the two".to_owned();
            problems.push(about(Kind::TrustDomain, &resource.name, "", message));
            continue;
        }
        if let Some(domain) = domain
            && *domain != spec.trust_domain
        {
            let message = format!(
                "`{}` is not this trust domain, which is `{domain}` and can never change: write `{domain}`",
                spec.trust_domain
            );
            problems.push(about(Kind::TrustDomain, &resource.name, "spec.trustDomain", message));
        }
        declared = Some(spec.clone());
    }
    let settings = declared.or_else(|| domain.map(|domain| TrustDomainSpec::of(domain.clone())));
    if settings.is_none() && !unread.may_be(Kind::TrustDomain, None) {
        let message = "no manifest of kind `TrustDomain` says which trust domain this is: add one with `spec: {trustDomain: …}`";
        problems.push(Problem::about("", "", message));
    }
    settings
}

fn check_workloads(
    workloads: &BTreeMap<&Name, &WorkloadSpec>,
    settings: &TrustDomainSpec,
    problems: &mut Vec<Problem>,
) {
    let domain = &settings.trust_domain;
    let mut owners: HashMap<SpiffeId, &Name> = HashMap::new();
    for (name, spec) in workloads {
        let id = spec.spiffe_id_in(name, domain);
        let mut bad =
            |field: &str, message| problems.push(about(Kind::Workload, name, field, message));
        if id.trust_domain() != domain {
            let message = format!(
                "`{id}` is outside trust domain `{domain}`: write `spiffe://{domain}{}`",
                id.path()
            );
            bad("spec.spiffeId", message);
        }
        if id.is_reserved() {
            let message = format!(
                "`{id}` lies under `/countersign`, which belongs to servers and agents: choose another path"
            );
            bad("spec.spiffeId", message);
        }
        if let Some(other) = owners.get(&id) {
            let message = format!(
                "`{id}` is also the SPIFFE ID of workload `{other}`: give each workload its own"
            );
            bad("spec.spiffeId", message);
        }
        if let Some(message) = over_limit(spec.lifetime, settings.lifetime_max) {
            bad("spec.lifetime", message);
        }
        owners.entry(id).or_insert(name);
    }
}

/// The shortest lifetime of a certificate that is renewed by itself. Ends are whole seconds, so one of a second or two would be renewed
/// as fast as its server signs, and each is in the log for good.
const RENEWED: Floor = Floor { secs: 10, what: "a certificate lives", such: "`15m`" };

/// The shortest of an authority: all agents are told of each, and it has to outlive what it signs.
const AUTHORITY: Floor = Floor { secs: 3600, what: "an authority lives", such: "`7d`" };

struct Floor {
    secs: u64,
    what: &'static str,
    such: &'static str,
}

impl Floor {
    fn broken_by(&self, lifetime: Lifetime) -> Option<String> {
        let least = Duration::from_secs(self.secs);
        (lifetime.duration() < least).then(|| {
            let (least, Self { what, such, .. }) = (DurationText(least), self);
            format!("`{lifetime}` is shorter than `{least}`, the least that {what}: write more, such as {such}")
        })
    }
}

/// Lifetimes in which nothing could live.
fn check_lifetimes<'a>(resources: impl Iterator<Item = &'a Resource>, problems: &mut Vec<Problem>) {
    for resource in resources {
        let fields = match &resource.spec {
            // Within a limit that is too short itself, the others have to be.
            Spec::TrustDomain(spec) if RENEWED.broken_by(spec.lifetime_max).is_some() => {
                vec![(RENEWED, "spec.lifetimeMax", spec.lifetime_max)]
            }
            Spec::TrustDomain(spec) => vec![
                (RENEWED, "spec.svidLifetime", spec.svid_lifetime),
                (RENEWED, "spec.agentLifetime", spec.agent_lifetime),
            ],
            Spec::Authority(spec) => vec![
                (AUTHORITY, "spec.rootLifetime", spec.root_lifetime),
                (AUTHORITY, "spec.issuerLifetime", spec.issuer_lifetime),
            ],
            Spec::Workload(spec) => {
                let own = spec.lifetime.map(|own| (RENEWED, "spec.lifetime", own));
                own.into_iter().collect()
            }
            Spec::Service(_) | Spec::Policy(_) | Spec::Role(_) | Spec::TlsProfile(_) => continue,
        };
        for (floor, field, lifetime) in fields {
            if let Some(message) = floor.broken_by(lifetime) {
                problems.push(about(resource.kind(), &resource.name, field, message));
            }
        }
    }
}

fn over_limit(lifetime: Option<Lifetime>, max: Lifetime) -> Option<String> {
    let lifetime = lifetime.filter(|lifetime| max < *lifetime)?;
    Some(format!(
        "`{lifetime}` is over `lifetimeMax` of the trust domain, which is `{max}`: lower it, or raise the limit"
    ))
}

/// A service that names no profile in force would have a door that agrees to what nobody meant.
fn check_profiles(
    resources: &[Resource],
    services: &BTreeMap<&Name, &ServiceSpec>,
    unread: &Unread,
    problems: &mut Vec<Problem>,
) {
    let declared = resources.iter().filter(|one| one.kind() == Kind::TlsProfile);
    let declared: Vec<&Name> = declared.map(|one| &one.name).collect();
    for name in &declared {
        if name.as_str().parse::<TlsProfile>().is_ok() {
            let message = format!(
                "`{name}` is one of the three profiles that need no manifest: choose another name"
            );
            problems.push(about(Kind::TlsProfile, name, "metadata.name", message));
        }
    }
    for (service, spec) in services {
        let TlsChoiceName::Manifest(name) = &spec.tls_profile.name else { continue };
        if !declared.contains(&name) && !unread.may_be(Kind::TlsProfile, Some(name)) {
            let known = TlsProfile::ALL.iter().map(|known| known.as_str());
            let own = declared.iter().map(|name| name.as_str());
            let own = own.filter(|name| name.parse::<TlsProfile>().is_err());
            let names: Vec<_> = known.chain(own).take(10).collect();
            let message = format!(
                "no manifest declares TLS profile `{name}`: declare it, or name one of `{}`",
                names.join("`, `")
            );
            problems.push(about(Kind::Service, service, "spec.tlsProfile", message));
        }
    }
}

fn check_roles(
    resources: &[Resource],
    workloads: &BTreeMap<&Name, &WorkloadSpec>,
    settings: Option<&TrustDomainSpec>,
    unread: &Unread,
    problems: &mut Vec<Problem>,
) {
    for resource in resources {
        let Spec::Role(RoleSpec { workloads: listed, .. }) = &resource.spec else { continue };
        for (index, workload) in listed.iter().enumerate() {
            let missing = !workloads.contains_key(workload);
            if missing && !unread.may_be(Kind::Workload, Some(workload)) {
                let field = format!("spec.workloads[{index}]");
                let message = undeclared(Kind::Workload, workload, workloads.keys());
                problems.push(about(Kind::Role, &resource.name, &field, message));
            }
        }
    }
    // Without the trust domain the workloads' identities are not known.
    let Some(TrustDomainSpec { trust_domain: domain, .. }) = settings else { return };
    let unread_workload = unread.may_be(Kind::Workload, None);
    for (name, record) in roles(resources, domain) {
        let own = record.spec.spiffe_ids.iter().filter(|id| id.trust_domain() == domain);
        for id in own.filter(|id| record.members.contains(id.as_str()) && !unread_workload) {
            let message = format!("no manifest declares a workload with the SPIFFE ID `{id}`");
            problems.push(about(Kind::Role, name, "spec.spiffeIds", message));
        }
        let members = record.members.len();
        if ROLE_MEMBERS_MAX < members {
            let message = format!(
                "holds {members} workloads, over the limit of {ROLE_MEMBERS_MAX}: ask for more labels or selectors, or make several roles"
            );
            problems.push(about(Kind::Role, name, "spec", message));
        }
    }
}

fn check_services(
    workloads: &BTreeMap<&Name, &WorkloadSpec>,
    services: &BTreeMap<&Name, &ServiceSpec>,
    unread: &Unread,
    problems: &mut Vec<Problem>,
) {
    let mut doors = Doors::default();
    check_classifications(services, problems);
    for (name, spec) in services {
        let mut bad =
            |field: &str, message| problems.push(about(Kind::Service, name, field, message));
        let unread_workload = unread.may_be(Kind::Workload, Some(&spec.workload));
        if !workloads.contains_key(&spec.workload) && !unread_workload {
            bad("spec.workload", undeclared(Kind::Workload, &spec.workload, workloads.keys()));
        }
        for (index, upstream) in spec.upstreams.iter().enumerate() {
            let field = format!("spec.upstreams[{index}].service");
            let unread_service = unread.may_be(Kind::Service, Some(&upstream.service));
            match services.get(&upstream.service) {
                None if unread_service => {}
                None => bad(&field, undeclared(Kind::Service, &upstream.service, services.keys())),
                Some(called)
                    if called.listen.is_none()
                        && upstream.addresses.is_empty()
                        && called.addresses.is_empty() =>
                {
                    let message = format!(
                        "service `{}` has no door: give it `listen`, or `addresses`, or give this upstream `addresses`",
                        upstream.service
                    );
                    bad(&field, message);
                }
                Some(_) => {}
            }
        }
        doors.claim_all(name, spec, problems);
    }
    // Several services may lead to one program, so its own socket clashes with doors only.
    for (name, spec) in services {
        if let Some(Local::Tcp(address)) = &spec.forward {
            doors.check_port("spec.forward", name, address.socket_addr(), problems);
        }
    }
}

/// Two services that have the same data have to say the same of it: policies go by the word.
fn check_classifications(services: &BTreeMap<&Name, &ServiceSpec>, problems: &mut Vec<Problem>) {
    let mut known: BTreeMap<&Name, (&Name, Classification)> = BTreeMap::new();
    for (service, spec) in services {
        for (index, data) in spec.data_sets.iter().enumerate() {
            let (first, word) = *known.entry(&data.name).or_insert((service, data.classification));
            if word != data.classification {
                let message = format!(
                    "`{}` is `{word}` to service `{first}`: classify it alike, or give it another name",
                    data.name
                );
                let field = format!("spec.dataSets[{index}].classification");
                problems.push(about(Kind::Service, service, &field, message));
            }
        }
    }
}

fn undeclared<'a>(kind: Kind, name: &Name, declared: impl Iterator<Item = &'a &'a Name>) -> String {
    let word = kind.as_str().to_lowercase();
    let names: Vec<_> = declared.take(10).map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        return format!("no manifest declares {word} `{name}`: declare it");
    }
    format!("no manifest declares {word} `{name}`: declare it, or name one of {}", names.join(", "))
}

/// The fixed addresses and sockets that services claim.
#[derive(Default)]
struct Doors<'a> {
    ports: Vec<(SocketAddr, &'a Name)>,
    sockets: HashMap<&'a std::path::Path, &'a Name>,
}

impl<'a> Doors<'a> {
    fn claim_all(&mut self, name: &'a Name, spec: &'a ServiceSpec, problems: &mut Vec<Problem>) {
        if let Some(ListenAddress(address)) = spec.listen {
            self.claim_port("spec.listen", name, address, problems);
        }
        for (index, upstream) in spec.upstreams.iter().enumerate() {
            let field = format!("spec.upstreams[{index}].local");
            self.claim_local(&field, name, &upstream.local, problems);
        }
    }

    fn claim_local(
        &mut self,
        field: &str,
        name: &'a Name,
        local: &'a Local,
        problems: &mut Vec<Problem>,
    ) {
        match local {
            Local::Unix => {}
            Local::Tcp(address) => self.claim_port(field, name, address.socket_addr(), problems),
            Local::UnixAt(path) => {
                if let Some(other) = self.sockets.insert(path.as_path(), name) {
                    let message = format!(
                        "`{path}` is already used by service `{other}`: choose another path"
                    );
                    problems.push(about(Kind::Service, name, field, message));
                }
            }
        }
    }

    fn claim_port(
        &mut self,
        field: &str,
        name: &'a Name,
        address: SocketAddr,
        problems: &mut Vec<Problem>,
    ) {
        self.check_port(field, name, address, problems);
        if address.port() != 0 {
            self.ports.push((address, name));
        }
    }

    fn check_port(
        &self,
        field: &str,
        name: &Name,
        address: SocketAddr,
        problems: &mut Vec<Problem>,
    ) {
        let clash = self.ports.iter().find(|(taken, _)| overlap(*taken, address));
        if let Some((taken, other)) = clash {
            let message = format!(
                "`{address}` is already claimed by service `{other}` as `{taken}`: choose another port, or 0 for a free one"
            );
            problems.push(about(Kind::Service, name, field, message));
        }
    }
}

/// Whether both cannot be listened on at once.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (any || a.ip() == b.ip())
}
