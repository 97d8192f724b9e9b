//! From resources to processes: which address each listens on, what each program is told.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use countersign_api::resource::{
    Declaration, ListenAddress, Local, LoopbackAddress, Protocol, Resource, ServiceSpec, Spec,
    WorkloadSpec,
};
use countersign_identity::{Name, SelectorKind, SpiffeId};

use super::ports::Ports;

/// One service as it will run.
#[derive(Clone, Debug)]
pub(crate) struct ServicePlan {
    pub name: Name,
    pub workload: Name,
    pub spiffe_id: SpiffeId,
    /// Under which its processes are started; its workload's `launch:` selector names it.
    pub label: Name,
    /// Where others knock, over mutual TLS.
    pub door: Option<SocketAddr>,
    /// Where the program listens by itself for anybody, when it has no door.
    pub front: Option<SocketAddr>,
    /// Where the program listens, if it does.
    pub listen: Option<String>,
    /// The program and its arguments; empty: somebody else starts it.
    pub command: Vec<OsString>,
    pub environment: Vec<(String, OsString)>,
    /// The program's listener on loopback, which any process of the machine can reach.
    pub open_to_all: Option<String>,
}

impl ServicePlan {
    /// As `ready` tells it: a door is `https`, for mutual TLS; a front door of the program's own is `http`.
    pub(crate) fn url(&self) -> Option<String> {
        let door = self.door.map(|door| format!("https://{door}"));
        door.or_else(|| self.front.map(|front| format!("http://{front}")))
    }
}

/// The ports that manifests fix for listeners, of whatever address.
pub(crate) fn fixed_ports(resources: &[Resource]) -> BTreeSet<u16> {
    let services = resources.iter().filter_map(|resource| match &resource.spec {
        Spec::Service(spec) => Some(spec),
        _ => None,
    });
    let local = |local: &Local| match local {
        Local::Tcp(address) => Some(address.socket_addr()),
        Local::Unix | Local::UnixAt(_) => None,
    };
    let addresses = services.flat_map(|spec| {
        let door = spec.listen.map(|ListenAddress(door)| door);
        let upstreams = spec.upstreams.iter().filter_map(move |upstream| local(&upstream.local));
        door.into_iter().chain(spec.forward.as_ref().and_then(local)).chain(upstreams)
    });
    addresses.map(|address| address.port()).filter(|port| *port != 0).collect()
}

/// Replaces every port 0 by a free port, in the resources themselves: who dials a service learns its address from them.
pub(crate) fn fix_ports(resources: &mut [Resource], ports: &mut Ports) -> Result<()> {
    for resource in resources {
        let name = resource.name.clone();
        if let Spec::Service(spec) = &mut resource.spec {
            fix_service(&name, spec, ports)?;
        }
    }
    Ok(())
}

fn fix_service(name: &Name, spec: &mut ServiceSpec, ports: &mut Ports) -> Result<()> {
    if let Some(ListenAddress(door)) = &mut spec.listen {
        *door = ports.give(&format!("{name}.listen"), *door)?;
    }
    if let Some(forward) = &mut spec.forward {
        // Where the program itself listens.
        fix_local(forward, |asked| ports.lend(&format!("{name}.forward"), asked))?;
    }
    for upstream in &mut spec.upstreams {
        let purpose = format!("{name}.upstream.{}", upstream.service);
        fix_local(&mut upstream.local, |asked| ports.give(&purpose, asked))?;
    }
    Ok(())
}

fn fix_local(local: &mut Local, give: impl FnOnce(SocketAddr) -> Result<SocketAddr>) -> Result<()> {
    if let Local::Tcp(address) = local {
        let given = give(address.socket_addr())?;
        *address = given.to_string().parse::<LoopbackAddress>()?;
    }
    Ok(())
}

/// What to run, in the order of the services' names.
pub(crate) fn services(
    declaration: &Declaration<'_>,
    run: &Path,
    program: &Path,
) -> Vec<ServicePlan> {
    let places = Places { run, program, services: &declaration.services };
    let plan = |(name, spec): (&&Name, &&ServiceSpec)| {
        let workload = declaration.workloads.get(&spec.workload)?;
        let spiffe_id = workload.spiffe_id_in(&spec.workload, &declaration.domain);
        Some(places.plan(name, spec, workload, spiffe_id))
    };
    declaration.services.iter().filter_map(plan).collect()
}

struct Places<'a> {
    run: &'a Path,
    program: &'a Path,
    services: &'a BTreeMap<&'a Name, &'a ServiceSpec>,
}

impl Places<'_> {
    fn plan(
        &self,
        name: &Name,
        spec: &ServiceSpec,
        workload: &WorkloadSpec,
        spiffe_id: SpiffeId,
    ) -> ServicePlan {
        let launch = workload.selectors.iter().find(|fact| fact.kind() == SelectorKind::Launch);
        let label = launch.and_then(|fact| fact.value().parse().ok());
        let front = match (&spec.listen, &spec.forward) {
            (None, Some(Local::Tcp(address))) => Some(address.socket_addr()),
            _ => None,
        };
        let listen = spec.forward.as_ref().map(|forward| match forward {
            Local::Unix => unix(&self.run.join(format!("{name}.sock"))),
            Local::UnixAt(path) => unix(path.as_path()),
            Local::Tcp(address) => address.to_string(),
        });
        ServicePlan {
            name: name.clone(),
            workload: spec.workload.clone(),
            spiffe_id,
            label: label.unwrap_or_else(|| spec.workload.clone()),
            door: spec.listen.map(|ListenAddress(door)| door),
            front,
            command: self.command(spec),
            environment: self.environment(name, spec, listen.as_deref()),
            listen,
            open_to_all: open_to_all(name, spec),
        }
    }

    /// A first word `countersign` is this very program, wherever it was built.
    fn command(&self, spec: &ServiceSpec) -> Vec<OsString> {
        let mut words: Vec<OsString> =
            spec.command.iter().map(|word| word.as_str().into()).collect();
        if words.first().is_some_and(|word| word == "countersign") {
            words[0] = self.program.into();
        }
        words
    }

    fn environment(
        &self,
        name: &Name,
        spec: &ServiceSpec,
        listen: Option<&str>,
    ) -> Vec<(String, OsString)> {
        let mut told: Vec<(String, OsString)> = Vec::new();
        told.extend(listen.map(|listen| ("LISTEN".to_owned(), listen.into())));
        for upstream in &spec.upstreams {
            let variable = upstream.service.as_str().to_ascii_uppercase().replace('-', "_");
            let local = match &upstream.local {
                Local::Unix => unix(&self.run.join(format!("{name}.{}.sock", upstream.service))),
                Local::UnixAt(path) => unix(path.as_path()),
                Local::Tcp(address) => format!("{}://{address}", self.scheme(&upstream.service)),
            };
            told.push((format!("UPSTREAM_{variable}"), local.into()));
        }
        // What the manifest says comes last, and so wins.
        let own = spec.environment.iter();
        told.extend(own.map(|(name, value)| (name.as_str().to_owned(), value.as_str().into())));
        told
    }

    /// What is spoken on the way to a service, as the scheme of an address.
    fn scheme(&self, service: &Name) -> &'static str {
        match self.services.get(service).map(|spec| spec.protocol) {
            Some(Protocol::Tcp) => "tcp",
            Some(Protocol::Http) | None => "http",
        }
    }
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

/// The listener that nothing protects from other users of the machine. (Ways out over loopback let in their own user only.)
fn open_to_all(name: &Name, spec: &ServiceSpec) -> Option<String> {
    match &spec.forward {
        Some(Local::Tcp(address)) => Some(format!("{name} listens on {address}")),
        Some(Local::Unix | Local::UnixAt(_)) | None => None,
    }
}

/// The Unix socket or port on which the program must be seen before a request can go through.
pub(crate) fn awaited(plan: &ServicePlan) -> Option<Awaited> {
    let listen = plan.listen.as_deref().filter(|_| !plan.command.is_empty())?;
    match listen.strip_prefix("unix:") {
        Some(path) => Some(Awaited::Unix(path.into())),
        None => listen.parse().ok().map(Awaited::Tcp),
    }
}

/// Somewhere that a program is expected to listen.
pub(crate) enum Awaited {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl Awaited {
    pub(crate) async fn answers(&self) -> bool {
        match self {
            Self::Unix(path) => tokio::net::UnixStream::connect(path).await.is_ok(),
            Self::Tcp(address) => tokio::net::TcpStream::connect(address).await.is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use countersign_api::resource::check;

    use super::*;

    const MANIFESTS: &str = "
apiVersion: countersign.dev/v1alpha1
kind: TrustDomain
metadata: {name: shop}
spec: {trustDomain: shop.example}
---
apiVersion: countersign.dev/v1alpha1
kind: Workload
metadata: {name: web}
spec: {selectors: [\"launch:web\"]}
---
apiVersion: countersign.dev/v1alpha1
kind: Service
metadata: {name: web}
spec:
  workload: web
  upstreams:
    - {service: pages, local: \"127.0.0.1:8001\"}
    - {service: my-database, local: \"127.0.0.1:8002\"}
    - {service: cache, local: unix}
---
apiVersion: countersign.dev/v1alpha1
kind: Service
metadata: {name: pages}
spec: {workload: web, listen: \"127.0.0.1:8444\", forward: unix}
---
apiVersion: countersign.dev/v1alpha1
kind: Service
metadata: {name: my-database}
spec: {workload: web, protocol: tcp, listen: \"127.0.0.1:8445\", forward: unix}
---
apiVersion: countersign.dev/v1alpha1
kind: Service
metadata: {name: cache}
spec: {workload: web, protocol: tcp, listen: \"127.0.0.1:8446\", forward: unix}
";

    #[test]
    fn a_program_is_told_what_is_spoken_on_the_way_to_each_upstream() {
        let resources = crate::manifest::read_text("a.yaml", MANIFESTS).unwrap();
        let declaration = check(&resources, None).unwrap();
        let plans = services(&declaration, Path::new("/run"), Path::new("/countersign"));
        let web = plans.iter().find(|plan| plan.name.as_str() == "web").unwrap();
        let told = |name: &str| {
            let found = web.environment.iter().find(|(variable, _)| variable == name);
            found.map(|(_, value)| value.to_str().unwrap())
        };
        assert_eq!(told("UPSTREAM_PAGES"), Some("http://127.0.0.1:8001"));
        assert_eq!(told("UPSTREAM_MY_DATABASE"), Some("tcp://127.0.0.1:8002"));
        assert_eq!(told("UPSTREAM_CACHE"), Some("unix:/run/web.cache.sock"));
    }
}
