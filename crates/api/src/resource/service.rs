//! Services: the doors of workloads, and the doors that they knock at.

mod choice;

use std::collections::BTreeMap;

use countersign_identity::Name;
use serde::Serialize;

pub use self::choice::{
    Expired, ForwardClientCertificate, Protocol, ProxyVersion, UnknownExpired, UnknownForward,
    UnknownProxyVersion,
};
use super::address::{HostPort, ListenAddress, Local};
use super::data_set::{DATA_SETS_MAX, DataSet, MutualTls, read_data_set};
use super::network::Network;
use super::operation::{OPERATIONS_MAX, OperationSpec, read_operation};
use super::reader::{Fields, Place, Problems, parse, text_of};
use super::text::{Argument, EnvName, EnvValue};
use super::tls_profile::TlsChoice;
use super::topic::{TOPICS_MAX, TopicSpec, check_topics, read_topic};
use super::tree::Tree;

/// How many upstreams one service may have.
pub const UPSTREAMS_MAX: usize = 64;
/// How many addresses one service or upstream may have.
const ADDRESSES_MAX: usize = 16;
/// How many words a command may have.
const ARGUMENTS_MAX: usize = 64;
/// How many variables a program may be given.
const ENVIRONMENT_MAX: usize = 64;

/// How long connections of a service live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Connections {
    /// What becomes of one that outlives the certificate of a peer which cannot prove it anew: `end` (the default) or
    /// `keep`. Revocation and policy end it in any case.
    #[schemars(with = "Option<super::schema::ExpiredText>")]
    pub expired: Expired,
}

impl Connections {
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// The PROXY protocol before a service's door, and behind it. What it tells serves detection and limits, never identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct ProxyProtocol {
    /// The load balancers before the door, by address or network. Each connection of theirs begins with a header of
    /// version 2, and nobody else may connect; absent: no header is read of anybody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<String>>")]
    pub from: Vec<Network>,
    /// `v2`: each connection to the program begins with a header that says where the caller is, and who. Only with `protocol: tcp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<super::schema::ProxyVersionText>")]
    pub send: Option<ProxyVersion>,
}

impl ProxyProtocol {
    fn is_unused(&self) -> bool {
        *self == Self::default()
    }
}

/// What a workload serves, and which services it calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct ServiceSpec {
    /// The workload whose service it is.
    #[schemars(with = "super::schema::NameText")]
    pub workload: Name,
    /// What is spoken: `http` (the default) or `tcp`.
    #[schemars(with = "Option<super::schema::ProtocolText>")]
    pub protocol: Protocol,
    /// The door for mutual TLS, `127.0.0.1:0` for a free port; absent: nobody may call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub listen: Option<ListenAddress>,
    /// Where the program itself listens: `unix`, `unix:/path` or `127.0.0.1:8080`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub forward: Option<Local>,
    /// Where peers dial, in order of priority; absent: `listen`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<String>>")]
    pub addresses: Vec<HostPort>,
    /// How long its connections live, at both ends.
    #[serde(skip_serializing_if = "Connections::is_usual")]
    #[schemars(with = "Option<Connections>")]
    pub connections: Connections,
    /// What the program is told of its callers' certificates, in `x-forwarded-client-cert`: `nothing` (the default),
    /// `identity`, `certificate` or `chain`. Only with `protocol: http`.
    #[serde(skip_serializing_if = "ForwardClientCertificate::is_usual")]
    #[schemars(with = "Option<super::schema::ForwardText>")]
    pub forward_client_certificate: ForwardClientCertificate,
    /// The PROXY protocol before its door, and behind it.
    #[serde(skip_serializing_if = "ProxyProtocol::is_unused")]
    #[schemars(with = "Option<ProxyProtocol>")]
    pub proxy_protocol: ProxyProtocol,
    /// What its door agrees to, and those who dial it: `modern` (the default), `compatible` (P-384 as well), `pq-only`
    /// (X25519MLKEM768 alone), or the name of a TlsProfile manifest.
    #[serde(skip_serializing_if = "TlsChoice::is_usual")]
    #[schemars(with = "Option<super::schema::NameText>")]
    pub tls_profile: TlsChoice,
    /// Whether it may be spoken to without mutual TLS: `required` (the default), or `none` for one that has no door and is known to
    /// be spoken to in plain text.
    #[serde(skip_serializing_if = "MutualTls::is_usual")]
    #[schemars(with = "Option<super::schema::MutualTlsText>")]
    pub mutual_tls: MutualTls,
    /// What it keeps or hands out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<DataSet>>")]
    pub data_sets: Vec<DataSet>,
    /// What it does, by name. With at least one, each request is decided on by policies that speak of operations; with
    /// none, whoever may connect may ask for anything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<OperationSpec>>")]
    pub operations: Vec<OperationSpec>,
    /// What it carries, by name, for policies that speak of topics. No proxy looks at them: a program that publishes and
    /// subscribes asks the library.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<TopicSpec>>")]
    pub topics: Vec<TopicSpec>,
    /// The services that it calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<Upstream>>")]
    pub upstreams: Vec<Upstream>,
    /// The program, for `countersign up`; absent: somebody else starts it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<String>>")]
    pub command: Vec<Argument>,
    /// Variables for the program, besides those that `up` sets.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub environment: BTreeMap<EnvName, EnvValue>,
}

/// A service that is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Upstream {
    /// Its name.
    #[schemars(with = "super::schema::NameText")]
    pub service: Name,
    /// Where the program finds it: `unix` (the default), `unix:/path`, `tcp` or `127.0.0.1:PORT`.
    #[schemars(with = "Option<String>")]
    pub local: Local,
    /// Where it is dialled instead of its own addresses, in order of priority.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<String>>")]
    pub addresses: Vec<HostPort>,
}

impl ServiceSpec {
    /// Where peers dial it: its addresses, else its door, if that has a real port.
    pub fn dial_addresses(&self) -> Vec<HostPort> {
        match self.listen {
            Some(ListenAddress(door)) if self.addresses.is_empty() && door.port() != 0 => {
                vec![door.into()]
            }
            Some(_) | None => self.addresses.clone(),
        }
    }

    /// The data that whoever connects to it may touch, for all that is known: none where it declares operations, since then each
    /// request says by itself what it touches.
    pub fn data_at_the_door(&self) -> &[DataSet] {
        if self.operations.is_empty() { &self.data_sets } else { &[] }
    }

    pub(super) fn read(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let workload = fields.required("workload", problems);
        let protocol = fields.optional::<Protocol>("protocol", problems);
        let listen = fields.optional::<ListenAddress>("listen", problems);
        let forward = fields.optional::<Local>("forward", problems);
        let addresses = fields.set("addresses", ADDRESSES_MAX, problems);
        let connections = read_connections(fields, problems);
        let told =
            fields.optional::<ForwardClientCertificate>("forwardClientCertificate", problems);
        let proxy_protocol = read_proxy_protocol(fields, problems);
        let tls_profile = match fields.optional_child("tlsProfile") {
            None => Some(TlsChoice::default()),
            Some((tree, _)) => TlsChoice::read(tree, &fields.place_of("tlsProfile"), problems),
        };
        let mutual_tls = fields.optional::<MutualTls>("mutualTls", problems);
        let data_sets = fields.list("dataSets", DATA_SETS_MAX, problems, read_data_set);
        let operations = fields.list("operations", OPERATIONS_MAX, problems, read_operation);
        let topics = fields.list("topics", TOPICS_MAX, problems, read_topic);
        let upstreams = fields.list("upstreams", UPSTREAMS_MAX, problems, read_upstream);
        let command = fields.list("command", ARGUMENTS_MAX, problems, |tree, place, problems| {
            parse(tree, place, problems)
        });
        let environment = read_environment(fields, problems);
        if let Some(upstreams) = &upstreams {
            refuse_repeated(fields, upstreams, problems);
        }
        if let Some(operations) = &operations {
            super::operation::refuse_repeated(fields, operations, problems);
            if !operations.is_empty() && protocol == Some(Some(Protocol::Tcp)) {
                let message =
                    "cannot be told apart over `tcp`: write `protocol: http`, or leave them out";
                problems.add(&fields.place_of("operations"), message);
            }
        }
        if let (Some(operations), Some(data_sets)) = (&operations, &data_sets) {
            super::operation::check_data_sets(fields, operations, data_sets, problems);
        }
        if let (Some(topics), Some(data_sets)) = (&topics, &data_sets) {
            check_topics(fields, topics, data_sets, problems);
        }
        if let (Some(Some(MutualTls::None)), Some(Some(_))) = (&mutual_tls, &listen) {
            let message =
                "a door speaks mutual TLS and nothing else: leave `mutualTls` out, or `listen`";
            problems.add(&fields.place_of("mutualTls"), message);
        }
        if let (Some(Some(_)), Some(None)) = (&listen, &forward) {
            let message = "is missing: `listen` opens a door, so say where the program itself listens, such as `unix`";
            problems.add(&fields.place_of("forward"), message);
        }
        if let (Some(Some(Protocol::Tcp)), Some(Some(told))) = (&protocol, &told)
            && *told != ForwardClientCertificate::Nothing
        {
            let message = "needs `protocol: http`: a stream of bytes has no header fields";
            problems.add(&fields.place_of("forwardClientCertificate"), message);
        }
        if let (Some(protocol), Some(ProxyProtocol { send: Some(_), .. })) =
            (&protocol, &proxy_protocol)
            && *protocol != Some(Protocol::Tcp)
        {
            let mut place = fields.place_of("proxyProtocol");
            place.path.push_str(".send");
            let message = "needs `protocol: tcp`: requests of many callers share the connections to the program";
            problems.add(&place, message);
        }
        if command.as_ref().is_some_and(|words: &Vec<Argument>| {
            words.first().is_some_and(|program| program.as_str().is_empty())
        }) {
            problems
                .add(&fields.place_of("command"), "begins with an empty word: write the program");
        }
        Some(Self {
            workload: workload?,
            protocol: protocol?.unwrap_or_default(),
            listen: listen?,
            forward: forward?,
            addresses: addresses?,
            connections: connections?,
            forward_client_certificate: told?.unwrap_or_default(),
            proxy_protocol: proxy_protocol?,
            tls_profile: tls_profile?,
            mutual_tls: mutual_tls?.unwrap_or_default(),
            data_sets: data_sets?,
            operations: operations?,
            topics: topics?,
            upstreams: upstreams?,
            command: command?,
            environment: environment?,
        })
    }
}

fn read_connections(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Connections> {
    let Some((tree, path)) = fields.optional_child("connections") else {
        return Some(Connections::default());
    };
    let mut fields = Fields::open(tree, &path, problems)?;
    let expired = fields.optional("expired", problems);
    fields.close(problems);
    Some(Connections { expired: expired?.unwrap_or_default() })
}

fn read_proxy_protocol(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<ProxyProtocol> {
    let Some((tree, path)) = fields.optional_child("proxyProtocol") else {
        return Some(ProxyProtocol::default());
    };
    let mut fields = Fields::open(tree, &path, problems)?;
    let from = fields.set("from", ADDRESSES_MAX, problems);
    let send = fields.optional("send", problems);
    fields.close(problems);
    Some(ProxyProtocol { from: from?, send: send? })
}

fn read_upstream(tree: &Tree, place: &Place, problems: &mut Problems) -> Option<Upstream> {
    let mut fields = Fields::open(tree, &place.path, problems)?;
    let service = fields.required("service", problems);
    let local = fields.optional("local", problems);
    let addresses = fields.set("addresses", ADDRESSES_MAX, problems);
    fields.close(problems);
    Some(Upstream { service: service?, local: local?.unwrap_or_default(), addresses: addresses? })
}

fn refuse_repeated(fields: &Fields<'_>, upstreams: &[Upstream], problems: &mut Problems) {
    for (index, upstream) in upstreams.iter().enumerate() {
        if upstreams[..index].iter().any(|earlier| earlier.service == upstream.service) {
            let mut place = fields.place_of("upstreams");
            place.path = format!("{}[{index}].service", place.path);
            let message = format!("`{}` is listed twice: keep one of the two", upstream.service);
            problems.add(&place, message);
        }
    }
}

fn read_environment(
    fields: &mut Fields<'_>,
    problems: &mut Problems,
) -> Option<BTreeMap<EnvName, EnvValue>> {
    let entries = fields.entries("environment", ENVIRONMENT_MAX, problems)?;
    let read: Vec<Option<(EnvName, EnvValue)>> = entries
        .into_iter()
        .map(|(entry, place)| {
            let name: Option<EnvName> = entry
                .key
                .parse()
                .map_err(|error: super::text::BadText| problems.add(&place, error.to_string()))
                .ok();
            let value = text_of(&entry.value, &place, problems).and_then(|text| {
                text.parse()
                    .map_err(|error: super::text::BadText| problems.add(&place, error.to_string()))
                    .ok()
            });
            Some((name?, value?))
        })
        .collect();
    read.into_iter().collect()
}
