//! Which listeners there should be, and where each leads: pure, from manifests or from the command.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;

use countersign::Services;
use countersign_api::resource::{
    Expired as SpecExpired, ForwardClientCertificate, Local, Network, Protocol as Spec,
    ProxyVersion, ServiceSpec, Upstream,
};
use countersign_identity::{Name, SpiffeId};
use countersign_tls::Expired;

use crate::bounds::{CONNECTIONS_MAX, CONNECTIONS_PER_PEER_MAX};
use crate::config::{FixedInbound, FixedOutbound, LocalPlace, Protocol};
use crate::dial::{Dialer, Target};
use crate::headers::Told;

/// All listeners that should be open, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) doors: BTreeMap<Name, DoorPlan>,
    /// By the service whose program calls, and the service that it calls.
    pub(crate) outlets: BTreeMap<(Name, Name), OutletPlan>,
    /// What the manifests ask for and cannot have, in sentences.
    pub(crate) problems: Vec<String>,
}

/// One door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DoorPlan {
    pub(crate) listen: SocketAddr,
    pub(crate) manners: Manners,
    pub(crate) leads: Leads,
}

/// How a door treats those who come in; of the connections that are made from then on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manners {
    /// What becomes of connections that outlive their peers' certificates.
    pub(crate) expired: Expired,
    /// What the program is told of its callers' certificates.
    pub(crate) told: Told,
    /// The load balancers through which everybody comes; none when peers dial the door themselves.
    pub(crate) balancers: Vec<Network>,
    /// What connections to the program begin with.
    pub(crate) preface: Preface,
    /// How many it takes.
    pub(crate) connections: Connections,
}

/// How many connections a door has at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connections {
    /// In all, handshakes under way included: as it was said when the door was opened.
    pub(crate) all: usize,
    /// Of one peer, by its identity.
    pub(crate) each: NonZeroUsize,
}

impl Connections {
    pub(crate) const USUAL: Self = Self { all: CONNECTIONS_MAX, each: CONNECTIONS_PER_PEER_MAX };
}

/// What a connection to the program begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preface {
    /// What the peer sends.
    Nothing,
    /// Where the peer is and who, by the PROXY protocol.
    Address,
}

impl Manners {
    /// When nobody says otherwise.
    pub(crate) const USUAL: Self = Self {
        expired: Expired::End,
        told: Told::Nothing,
        balancers: Vec::new(),
        preface: Preface::Nothing,
        connections: Connections::USUAL,
    };
}

/// One local listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OutletPlan {
    pub(crate) local: LocalPlace,
    pub(crate) leads: Leads,
}

/// Where it goes; may change without the listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leads {
    pub(crate) protocol: Protocol,
    /// In order of priority.
    pub(crate) ways: Vec<Dialer>,
}

impl Plan {
    /// As the slice of our own workload says.
    pub(crate) fn of_services(services: &Services, run_dir: &Path) -> Self {
        let mut plan = Self::default();
        for (name, spec) in services.own() {
            plan.add_door(name, spec, run_dir);
            for upstream in &spec.upstreams {
                plan.add_outlet(name, upstream, services, run_dir);
            }
        }
        plan.problems.extend(services.of_others().map(|(name, spec)| {
            let (own, other) = (&services.workload, &spec.workload);
            format!(
                "service `{name}` has no listener here: this process matches several workloads, and is `{own}` by \
                 default and not `{other}`; say by `--id` which of them it is, with a process for each, or let the selectors \
                 of only one of them hold for it"
            )
        }));
        plan
    }

    /// As the command says.
    pub(crate) fn fixed(inbound: &[FixedInbound], outbound: &[FixedOutbound]) -> Self {
        let mut plan = Self::default();
        for door in inbound {
            let leads = Leads {
                protocol: door.protocol,
                ways: vec![Dialer::Program(door.forward.clone())],
            };
            let before = plan.doors.insert(
                door.service.clone(),
                DoorPlan { listen: door.listen, manners: Manners::USUAL, leads },
            );
            if before.is_some() {
                plan.problems.push(format!(
                    "service `{}` has two doors: give each its own name",
                    door.service
                ));
            }
        }
        for outlet in outbound {
            let addresses = outlet.addresses.clone();
            let ways = mutual(&outlet.service, &outlet.peer, addresses, Expired::End);
            let leads = Leads { protocol: outlet.protocol, ways };
            let key = (outlet.service.clone(), outlet.service.clone());
            let before =
                plan.outlets.insert(key, OutletPlan { local: outlet.local.clone(), leads });
            if before.is_some() {
                plan.problems.push(format!(
                    "service `{}` has two ways: give each its own name",
                    outlet.service
                ));
            }
        }
        plan
    }

    /// What an operator should know about it.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let plain = self.outlets.iter().filter_map(|((service, upstream), outlet)| match &outlet.local {
            LocalPlace::Tcp(_) => Some(format!(
                "`{service}` reaches `{upstream}` over loopback TCP: the kernel's table tells callers apart by \
                 their user only; a Unix socket is the safer way"
            )),
            LocalPlace::Unix(_) => None,
        });
        plain.chain(self.problems.iter().cloned()).collect()
    }

    fn add_door(&mut self, name: &Name, spec: &ServiceSpec, run_dir: &Path) {
        let Some(listen) = spec.listen else { return };
        let forward = match &spec.forward {
            Some(Local::Unix) => Target::Unix(run_dir.join(format!("{name}.sock"))),
            Some(Local::UnixAt(path)) => Target::Unix(path.as_path().to_owned()),
            Some(Local::Tcp(address)) => Target::Tcp(address.socket_addr().to_string()),
            None => {
                let problem =
                    format!("service `{name}` has a door and no `forward`: nothing is behind it");
                return self.problems.push(problem);
            }
        };
        let leads =
            Leads { protocol: protocol(spec.protocol), ways: vec![Dialer::Program(forward)] };
        let manners = Manners {
            expired: expired(spec),
            told: told(spec),
            balancers: spec.proxy_protocol.from.clone(),
            preface: spec
                .proxy_protocol
                .send
                .map_or(Preface::Nothing, |ProxyVersion::V2| Preface::Address),
            connections: Connections::USUAL,
        };
        self.doors.insert(name.clone(), DoorPlan { listen: listen.0, manners, leads });
    }

    fn add_outlet(
        &mut self,
        name: &Name,
        upstream: &Upstream,
        services: &Services,
        run_dir: &Path,
    ) {
        let called = &upstream.service;
        let (Some(spec), Some(peer)) = (services.services.get(called), services.id_of(called))
        else {
            let problem =
                format!("service `{name}` calls `{called}`, of which the agent tells nothing");
            return self.problems.push(problem);
        };
        let addresses = if upstream.addresses.is_empty() {
            spec.dial_addresses()
        } else {
            upstream.addresses.clone()
        };
        if addresses.is_empty() {
            self.problems.push(format!("service `{called}`, which `{name}` calls, has no address"));
        }
        let local = match &upstream.local {
            Local::Unix => LocalPlace::Unix(run_dir.join(format!("{name}.{called}.sock"))),
            Local::UnixAt(path) => LocalPlace::Unix(path.as_path().to_owned()),
            Local::Tcp(address) => LocalPlace::Tcp(address.socket_addr()),
        };
        let addresses = addresses.iter().map(ToString::to_string).collect();
        let leads = Leads {
            protocol: protocol(spec.protocol),
            ways: mutual(called, peer, addresses, expired(spec)),
        };
        self.outlets.insert((name.clone(), called.clone()), OutletPlan { local, leads });
    }
}

fn mutual(
    service: &Name,
    peer: &SpiffeId,
    addresses: Vec<String>,
    expired: Expired,
) -> Vec<Dialer> {
    let way =
        |address| Dialer::Mutual { service: service.clone(), peer: peer.clone(), address, expired };
    addresses.into_iter().map(way).collect()
}

const fn expired(spec: &ServiceSpec) -> Expired {
    match spec.connections.expired {
        SpecExpired::End => Expired::End,
        SpecExpired::Keep => Expired::Keep,
    }
}

const fn told(spec: &ServiceSpec) -> Told {
    match spec.forward_client_certificate {
        ForwardClientCertificate::Nothing => Told::Nothing,
        ForwardClientCertificate::Identity => Told::Identity,
        ForwardClientCertificate::Certificate => Told::Certificate,
        ForwardClientCertificate::Chain => Told::Chain,
    }
}

const fn protocol(spec: Spec) -> Protocol {
    match spec {
        Spec::Http => Protocol::Http,
        Spec::Tcp => Protocol::Tcp,
    }
}

#[cfg(test)]
mod tests {
    use countersign_api::resource::{Spec as Resource, Tree};
    use countersign_identity::Revision;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn spec(manifest: &serde_json::Value) -> ServiceSpec {
        let manifest = serde_json::json!({
            "apiVersion": "countersign.dev/v1alpha1",
            "kind": "Service",
            "metadata": {"name": "any"},
            "spec": manifest,
        });
        let read = countersign_api::resource::Resource::read(&Tree::from_value(&manifest)).unwrap();
        match read.spec {
            Resource::Service(spec) => spec,
            other => panic!("{other:?}"),
        }
    }

    fn services(specs: &[(&str, serde_json::Value)]) -> Services {
        Services {
            revision: Revision::default(),
            workload: name("orders"),
            id: "spiffe://shop.example/orders".parse().unwrap(),
            services: specs.iter().map(|(service, text)| (name(service), spec(text))).collect(),
            ids: BTreeMap::from([(
                name("payments"),
                "spiffe://shop.example/payments".parse().unwrap(),
            )]),
        }
    }

    fn plan(specs: &[(&str, serde_json::Value)]) -> Plan {
        Plan::of_services(&services(specs), Path::new("/run/c"))
    }

    #[test]
    fn a_service_gets_its_door_and_its_ways_out() {
        let plan = plan(&[
            (
                "orders",
                serde_json::json!({
                    "workload": "orders", "listen": "127.0.0.1:7001", "forward": "unix",
                    "upstreams": [{"service": "payments"}, {"service": "bank", "local": "tcp", "addresses": ["b:1", "a:2"]}],
                }),
            ),
            (
                "payments",
                serde_json::json!({"workload": "payments", "listen": "127.0.0.1:7002", "forward": "unix", "connections": {"expired": "keep"}}),
            ),
            (
                "bank",
                serde_json::json!({"workload": "payments", "protocol": "tcp", "addresses": ["c:3"]}),
            ),
        ]);
        assert_eq!(plan.problems, [""; 0]);
        let door = &plan.doors[&name("orders")];
        assert_eq!(plan.doors.len(), 1, "not those of others");
        assert_eq!((door.listen.port(), &door.manners), (7001, &Manners::USUAL));
        assert_eq!(door.leads.ways, [Dialer::Program(Target::Unix("/run/c/orders.sock".into()))]);
        let payments = &plan.outlets[&(name("orders"), name("payments"))];
        assert_eq!(payments.local, LocalPlace::Unix("/run/c/orders.payments.sock".into()));
        assert_eq!(
            payments.leads.ways[0].to_string(),
            "`spiffe://shop.example/payments` at `127.0.0.1:7002`"
        );
        let bank = &plan.outlets[&(name("orders"), name("bank"))];
        assert_eq!((bank.leads.protocol, bank.leads.ways.len()), (Protocol::Tcp, 2));
        assert!(bank.leads.ways[0].to_string().ends_with("at `b:1`"), "its own order of priority");
        assert!(plan.warnings()[0].contains("over loopback TCP"));
        assert_eq!(plan.warnings().len(), 1);
    }

    #[test]
    fn a_door_of_another_workload_of_the_same_process_is_told_of_and_not_opened() {
        let plan = plan(&[
            (
                "orders",
                serde_json::json!({"workload": "orders", "listen": "127.0.0.1:7001", "forward": "unix", "upstreams": [{"service": "payments"}]}),
            ),
            (
                "payments",
                serde_json::json!({"workload": "payments", "listen": "127.0.0.1:7002", "forward": "unix"}),
            ),
            (
                "shipping",
                serde_json::json!({"workload": "shipping", "listen": "127.0.0.1:7003", "forward": "unix", "upstreams": [{"service": "billing"}]}),
            ),
            // Of this workload the process is not at all: it is told for `shipping`, which calls it.
            (
                "billing",
                serde_json::json!({"workload": "billing", "listen": "127.0.0.1:7004", "forward": "unix"}),
            ),
        ]);
        assert_eq!(plan.doors.keys().map(Name::as_str).collect::<Vec<_>>(), ["orders"]);
        let [problem] = &plan.problems[..] else { panic!("{:?}", plan.problems) };
        assert!(problem.starts_with("service `shipping` has no listener here"), "{problem}");
        assert!(problem.contains("is `orders` by default and not `shipping`"), "{problem}");
    }

    #[test]
    fn what_cannot_be_reached_is_told_and_not_guessed() {
        let plan = plan(&[
            (
                "orders",
                serde_json::json!({"workload": "orders", "upstreams": [{"service": "gone"}, {"service": "mute"}, {"service": "other"}]}),
            ),
            ("mute", serde_json::json!({"workload": "payments"})),
            ("other", serde_json::json!({"workload": "unheard-of", "addresses": ["a:1"]})),
        ]);
        assert_eq!(plan.doors.len(), 0);
        assert_eq!(plan.outlets.len(), 1, "without the identity of the peer there is no way to it");
        assert!(plan.outlets[&(name("orders"), name("mute"))].leads.ways.is_empty());
        assert_eq!(plan.problems.len(), 3, "{:?}", plan.problems);
    }
}
