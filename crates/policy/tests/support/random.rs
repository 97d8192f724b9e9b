//! Random policies over a few workloads and services, and who is decided about: what a part of them decides is held against the whole.

use std::collections::HashMap;
use std::time::Duration;

use countersign_api::resource::{
    Kind, PolicyRecord, PolicyScope, Resource, RoleRecord, ScopeNames, ServiceSpec, Spec, Tree,
};
use countersign_identity::{
    Attested, CanonicalPath, Name, SelectorKind, SpiffeId, Timestamp, Verb,
};
use countersign_policy::{
    CallRequest, ConnectRequest, Context, Decision, Holdings, Inventory, Member, Members, Names,
    Operation, Operations, Policies, PolicySource, Principal, TopicAct, TopicRequest,
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Workloads, and services of the same names.
pub(crate) const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Roles: who is in them, and that also strangers can be.
const ROLES: [(&str, &[&str]); 3] =
    [("first", &["a", "b"]), ("guests", &["c", "spiffe://shop.example/stranger"]), ("nobody", &[])];

/// Which data there is, and how it is classified.
const DATA_SETS: [(&str, &str); 3] =
    [("menu", "public"), ("cards", "restricted"), ("unused", "internal")];

/// Which services have which of it. Their topics carry all of it, what they do touches the first.
const HELD: [(&str, &[&str]); 4] =
    [("a", &["menu"]), ("b", &["cards", "menu"]), ("d", &["menu", "cards"]), ("e", &["cards"])];

/// Those that do not say what they do.
const SILENT: [&str; 2] = ["c", "d"];

/// Who has which labels.
const LABELS: [(&str, &[&str]); 3] = [("a", &["blue"]), ("c", &["blue", "red"]), ("d", &["red"])];

fn role() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&ROLES[..]).prop_map(|(role, _)| role)
}

fn data_set() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&DATA_SETS[..]).prop_map(|(name, _)| name)
}

fn classification() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&["public", "restricted"][..])
}

fn label() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&["blue", "red"][..])
}

fn name() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&NAMES[..])
}

/// A workload, or somebody whom no manifest names.
fn anybody() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => name(), 1 => Just("spiffe://shop.example/stranger")]
}

fn principal() -> impl Strategy<Value = String> {
    prop_oneof![
        1 => Just("principal".to_owned()),
        4 => name().prop_map(|name| format!("principal == Workload::\"{name}\"")),
        2 => role().prop_map(|role| format!("principal in Role::\"{role}\"")),
    ]
}

/// An action with a resource that it can have.
fn asked() -> impl Strategy<Value = String> {
    let connect = "action == Action::\"connect\"";
    let get = "action == Action::\"GET\"";
    prop_oneof![
        1 => Just(format!("{connect}, resource")),
        1 => Just("action, resource".to_owned()),
        3 => name().prop_map(move |name| format!("{connect}, resource == Service::\"{name}\"")),
        2 => name().prop_map(move |name| format!("{get}, resource == Operation::\"{name}/see\"")),
        1 => name().prop_map(move |name| format!("{get}, resource in Service::\"{name}\"")),
        1 => name().prop_map(move |name| format!("action, resource in Service::\"{name}\"")),
        2 => data_set().prop_map(move |name| format!("action, resource in Dataset::\"{name}\"")),
        1 => name().prop_map(move |name| {
            format!("action in [Action::\"publish\", Action::\"GET\"], resource in Service::\"{name}\"")
        }),
        1 => name().prop_map(move |name| {
            format!("action == Action::\"publish\", resource == Topic::\"{name}/news\"")
        }),
    ]
}

fn condition() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just(String::new()),
        1 => name().prop_map(|name| format!(" when {{ principal == Workload::\"{name}\" }}")),
        1 => name().prop_map(|name| format!(" unless {{ principal == Workload::\"{name}\" }}")),
        1 => name().prop_map(|name| format!(" unless {{ resource in Service::\"{name}\" }}")),
        1 => role().prop_map(|role| format!(" when {{ principal in Role::\"{role}\" }}")),
        1 => role().prop_map(|role| format!(" unless {{ principal in Role::\"{role}\" }}")),
        1 => label().prop_map(|label| format!(" when {{ principal.labels.contains(\"{label}\") }}")),
        1 => (anybody(), role()).prop_map(|(name, role)| {
            format!(" when {{ Workload::\"{name}\" in Role::\"{role}\" }}")
        }),
        1 => (anybody(), role()).prop_map(|(name, role)| {
            format!(" unless {{ Workload::\"{name}\" in Role::\"{role}\" }}")
        }),
        1 => (name(), label()).prop_map(|(name, label)| {
            format!(" unless {{ Workload::\"{name}\".labels.contains(\"{label}\") }}")
        }),
        1 => Just(" when { context.group like \"X*\" }".to_owned()),
        1 => Just(" when { context.peer_age_seconds * 9223372036854775807 != 3 }".to_owned()),
        1 => Just(" when { context.time.toTime() < duration(\"18h\") }".to_owned()),
        1 => Just(" unless { context.weekday == 4 }".to_owned()),
        1 => Just(ADDRESS.to_owned()),
        1 => classification().prop_map(|word| {
            format!(" when {{ resource.classifications.contains(\"{word}\") }}")
        }),
        1 => classification().prop_map(|word| {
            format!(" unless {{ resource.classifications.contains(\"{word}\") }}")
        }),
        1 => data_set().prop_map(|name| format!(" unless {{ resource in Dataset::\"{name}\" }}")),
        1 => data_set().prop_map(|name| format!(" when {{ resource in Dataset::\"{name}\" }}")),
        1 => (data_set(), data_set()).prop_map(|(one, other)| {
            format!(" when {{ resource in Dataset::\"{one}\" && !(resource in Dataset::\"{other}\") }}")
        }),
        1 => classification().prop_map(|word| {
            format!(" unless {{ resource.classifications == [\"{word}\"] }}")
        }),
        1 => Just(
            " unless { context has attestation && context.attestation.contains(\"launch\") }".to_owned()
        ),
    ]
}

const ADDRESS: &str =
    " when { context has source && context.source.isInRange(ip(\"10.0.0.0/8\")) }";

fn statement() -> impl Strategy<Value = String> {
    let effect = prop_oneof![3 => Just("@unscoped(\"test\") permit"), 1 => Just("forbid")];
    (effect, principal(), asked(), condition()).prop_map(
        |(effect, principal, asked, mut condition)| {
            // A permit for anybody may not read an address.
            if effect != "forbid" && principal == "principal" && condition == ADDRESS {
                condition.clear();
            }
            format!("{effect} ({principal}, {asked}){condition};")
        },
    )
}

/// A text, and its mode.
pub(crate) fn policy() -> impl Strategy<Value = (String, &'static str)> {
    let statements = proptest::collection::vec(statement(), 1..3);
    let mode = prop_oneof![4 => Just("enforce"), 1 => Just("observe")];
    (statements.prop_map(|statements| statements.join("\n")), mode)
}

/// A record of the state: its kind, its name, its value.
pub(crate) type Stored = (Kind, String, Vec<u8>);

fn resource(kind: Kind, name: &str, spec: &Value) -> Resource {
    let manifest = json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": kind.as_str(),
        "metadata": { "name": name }, "spec": spec,
    });
    Resource::read(&Tree::from_value(&manifest)).expect("the manifests are right")
}

/// As the server stores a policy: with whom it speaks of.
pub(crate) fn stored_policy(name: &str, (cedar, mode): &(String, &str)) -> Stored {
    let policy = resource(Kind::Policy, name, &json!({ "cedar": cedar, "mode": mode }));
    let Spec::Policy(spec) = policy.spec else { unreachable!("it is of that kind") };
    let names = |names: Names| match names {
        Names::Any => ScopeNames::Any,
        Names::Only(names) => ScopeNames::Only(names.into_iter().collect()),
        Names::Role(role) => ScopeNames::Role(role),
        Names::Dataset(name) => ScopeNames::Dataset(name),
    };
    let scopes = countersign_policy::scope(cedar).unwrap_or_default();
    let scopes = scopes.into_iter().map(|scope| PolicyScope {
        principals: names(scope.principals),
        resources: names(scope.resources),
        workloads: scope.workloads,
        services: scope.services,
        roles: scope.roles,
        labels: scope.labels,
        data_sets: scope.data_sets,
        classifications: scope.classifications,
    });
    let record = PolicyRecord {
        cedar: spec.cedar,
        mode: spec.mode,
        until: None,
        reason: None,
        scopes: scopes.collect(),
    };
    (Kind::Policy, name.to_owned(), record.encode())
}

/// A workload for nodes with this label, and its service, which calls another.
pub(crate) fn stored_workload(name: &str, label: &str, upstream: Option<&str>) -> [Stored; 2] {
    let upstreams: Vec<_> = upstream
        .into_iter()
        .map(|service| json!({ "service": service, "local": "unix", "addresses": ["127.0.0.1:1"] }))
        .collect();
    let held = HELD.iter().find(|(holder, _)| *holder == name).map_or(&[][..], |(_, held)| held);
    let classified = DATA_SETS.iter().filter(|(name, _)| held.contains(name));
    let data_sets: Vec<_> =
        classified.map(|(name, word)| json!({ "name": name, "classification": word })).collect();
    let touched = &held[..held.len().min(1)];
    let operations = match SILENT.contains(&name) {
        true => json!([]),
        false => json!([{ "name": "see", "method": "GET", "path": "/see", "dataSets": touched }]),
    };
    let topics = json!([{ "name": "news", "dataSets": held }]);
    let service = json!({
        "workload": name, "operations": operations, "upstreams": upstreams,
        "dataSets": data_sets, "topics": topics,
    });
    let service = resource(Kind::Service, name, &service).spec.encode();
    let has = LABELS.iter().find(|(labelled, _)| *labelled == name).map_or(&[][..], |(_, has)| has);
    [stored_labels(name, label, has), (Kind::Service, name.to_owned(), service)]
}

/// A workload for nodes with this label, which has these labels of its own.
pub(crate) fn stored_labels<T: AsRef<str>>(name: &str, node: &str, labels: &[T]) -> Stored {
    let labels: Vec<&str> = labels.iter().map(AsRef::as_ref).collect();
    let spec =
        json!({ "selectors": [format!("launch:{name}")], "nodes": [node], "labels": labels });
    (Kind::Workload, name.to_owned(), resource(Kind::Workload, name, &spec).spec.encode())
}

/// All roles.
pub(crate) fn stored_roles() -> impl Iterator<Item = Stored> {
    ROLES.iter().map(|(role, members)| stored_role(role, members))
}

/// As the server stores a role: with who is in it.
pub(crate) fn stored_role<T: AsRef<str>>(name: &str, members: &[T]) -> Stored {
    let role = resource(Kind::Role, name, &json!({ "labels": ["any"] }));
    let Spec::Role(spec) = role.spec else { unreachable!("it is of that kind") };
    let members = members.iter().map(|member| member.as_ref().to_owned()).collect();
    (Kind::Role, name.to_owned(), RoleRecord { spec, members }.encode())
}

fn member_of(role: &str, principal: &str) -> (Principal, Member) {
    let named = principal.parse().map(Principal::Named);
    let principal =
        named.unwrap_or_else(|_| Principal::Id(principal.parse().expect("it is an identity")));
    let roles = [role.parse().expect("it is a name")].into();
    (principal, Member { roles, ..Member::default() })
}

pub(crate) fn id(name: &str) -> SpiffeId {
    format!("spiffe://shop.example/{name}").parse().expect("it is one")
}

/// Everybody, and somebody whom no manifest names.
pub(crate) fn callers() -> impl Iterator<Item = SpiffeId> {
    NAMES.iter().chain(&["stranger"]).map(|name| id(name))
}

/// Policies, names and services, as whoever has these records knows them.
pub(crate) struct Known {
    policies: Policies,
    names: HashMap<SpiffeId, Name>,
    services: HashMap<String, ServiceSpec>,
}

impl Known {
    /// `None` when the policies do not compile, as one that can never apply does not.
    pub(crate) fn of(
        records: impl IntoIterator<Item = Stored>,
        names: impl IntoIterator<Item = SpiffeId>,
    ) -> Option<Self> {
        let (mut sources, mut services) = (Vec::new(), HashMap::new());
        let mut members = Vec::new();
        for (kind, name, value) in records {
            match kind {
                Kind::Policy => {
                    let record = PolicyRecord::decode(&value).expect("it was encoded");
                    let (text, mode) = (record.cedar.as_str().to_owned(), record.mode);
                    let name = name.parse().expect("it is a name");
                    sources.push(PolicySource { name, text, mode, until: None });
                }
                Kind::Service => {
                    let spec = Spec::decode(kind, &value).expect("it was encoded");
                    let Spec::Service(spec) = spec else { unreachable!("it is of that kind") };
                    services.insert(name, spec);
                }
                Kind::Role => {
                    let record = RoleRecord::decode(&value).expect("it was encoded");
                    members.extend(record.members.iter().map(|member| member_of(&name, member)));
                }
                Kind::Workload => {
                    let spec = Spec::decode(kind, &value).expect("it was encoded");
                    let Spec::Workload(spec) = spec else { unreachable!("it is of that kind") };
                    let labels = spec.labels.into_iter().collect();
                    let name = Principal::Named(name.parse().expect("it is a name"));
                    members.push((name, Member { labels, ..Member::default() }));
                }
                Kind::TrustDomain | Kind::Authority | Kind::TlsProfile => {}
            }
        }
        let operation = |spec: &ServiceSpec| {
            let one = |it: &countersign_api::resource::OperationSpec| Operation {
                name: it.name.clone(),
                verb: it.method,
                template: it.path.clone(),
            };
            spec.operations.iter().map(one).collect()
        };
        let of = services
            .iter()
            .map(|(name, spec)| (name.parse().expect("it is a name"), operation(spec)));
        let policies = Policies::compile(&sources, None).ok()?.with_operations(Operations::new(of));
        let holdings = |spec: &ServiceSpec| {
            let set = |names: &[Name]| names.iter().cloned().collect();
            let of = |it: &countersign_api::resource::DataSet| {
                (it.name.clone(), it.classification.to_string())
            };
            Holdings {
                data_sets: spec.data_sets.iter().map(of).collect(),
                operations: spec
                    .operations
                    .iter()
                    .map(|it| (it.name.clone(), set(&it.data_sets)))
                    .collect(),
                topics: spec
                    .topics
                    .iter()
                    .map(|it| (it.name.clone(), set(&it.data_sets)))
                    .collect(),
            }
        };
        let of = services
            .iter()
            .map(|(name, spec)| (name.parse().expect("it is a name"), holdings(spec)));
        let policies = policies.with_inventory(Inventory::new(of));
        let policies = policies.with_members(Members::new(members));
        let named = |id: SpiffeId| {
            let name = id.path().trim_start_matches('/').parse().expect("it is a name");
            (id, name)
        };
        Some(Self { policies, names: names.into_iter().map(named).collect(), services })
    }

    /// The services that this one calls.
    pub(crate) fn called_by(&self, service: &str) -> Vec<String> {
        let spec = &self.services[service];
        spec.upstreams.iter().map(|upstream| upstream.service.to_string()).collect()
    }

    /// About a connection, in each of the contexts.
    pub(crate) fn connect(&self, from: &SpiffeId, to: &str) -> Vec<Decision> {
        let principal = &self.principal(from);
        let ask = |(context, now): (Context, Timestamp)| {
            let request = ConnectRequest { principal, service: to, context: &context, now };
            self.policies.decide(&request)
        };
        contexts().map(ask).into()
    }

    /// About what its operation is, and about what no operation is.
    pub(crate) fn calls(&self, from: &SpiffeId, to: &str) -> Vec<Option<Decision>> {
        let principal = &self.principal(from);
        let ask = |path: &str, (context, now): (Context, Timestamp)| {
            let path = &CanonicalPath::of(path).expect("it is in its one form");
            let (service, verb, context) = (to, Some(Verb::Get), &context);
            let request = CallRequest { principal, service, verb, path, context, now };
            self.policies.decide_call(&request).map(|called| called.decision)
        };
        let both = |path| contexts().map(|context| ask(path, context));
        ["/see", "/other"].into_iter().flat_map(both).collect()
    }

    /// About what is done with its topic, and with one that it does not have.
    pub(crate) fn topics(&self, from: &SpiffeId, to: &str) -> Vec<Decision> {
        let principal = &self.principal(from);
        let topics = ["news", "other"].map(|name| name.parse::<Name>().expect("it is a name"));
        let mut decisions = Vec::new();
        for (context, now) in &contexts() {
            for act in TopicAct::ALL {
                for topic in &topics {
                    let (service, now) = (to, *now);
                    let request = TopicRequest { principal, service, topic, act, context, now };
                    decisions.push(self.policies.decide_topic(&request));
                }
            }
        }
        decisions
    }

    fn principal(&self, id: &SpiffeId) -> Principal {
        let name = self.names.get(id).cloned();
        name.map_or_else(|| Principal::Id(id.clone()), Principal::Named)
    }
}

/// From inside, by day, of somebody who was attested; and from nobody knows where, by night.
fn contexts() -> [(Context, Timestamp); 2] {
    let usual = Context {
        tls_version: "1.3".to_owned(),
        group: "X25519MLKEM768".to_owned(),
        peer_age_seconds: 1,
        ..Context::default()
    };
    let attested = Attested::default().and(SelectorKind::Launch);
    let inside = Context { source: Some([10, 0, 0, 7].into()), attested, ..usual.clone() };
    let day = Timestamp::from_secs(1_795_687_200);
    [(inside, day), (usual, day + Duration::from_secs(12 * 3600))]
}
