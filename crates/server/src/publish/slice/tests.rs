use std::collections::BTreeMap;

use countersign_api::resource::{PolicyRecord, PolicyScope, Resource, ScopeNames, Tree};
use countersign_pki::Bundle;
use countersign_store::{Change, Record, Snapshot};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn record(kind: Kind, name: &str, spec: &serde_json::Value) -> Record {
    let manifest = json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": kind.as_str(),
        "metadata": { "name": name }, "spec": spec,
    });
    let resource = Resource::read(&Tree::from_value(&manifest)).unwrap();
    Record { kind, name: name.to_owned(), value: resource.spec.encode() }
}

pub(super) fn workload(name: &str, label: Option<&str>) -> Record {
    let nodes: Vec<&str> = label.into_iter().collect();
    record(
        Kind::Workload,
        name,
        &json!({ "selectors": [format!("launch:{name}")], "nodes": nodes }),
    )
}

pub(super) fn service(name: &str, upstream: Option<&str>) -> Record {
    let upstreams: Vec<_> = upstream
        .into_iter()
        .map(|service| json!({ "service": service, "local": "unix", "addresses": ["127.0.0.1:1"] }))
        .collect();
    record(
        Kind::Service,
        name,
        &json!({ "workload": name, "protocol": "tcp", "upstreams": upstreams }),
    )
}

fn policy(name: &str, principals: ScopeNames, resources: ScopeNames, mentioned: &[&str]) -> Record {
    let scope = PolicyScope {
        principals,
        resources,
        workloads: mentioned.iter().map(|&name| name.to_owned()).collect(),
        services: BTreeSet::new(),
        roles: BTreeSet::new(),
        labels: false,
        data_sets: BTreeSet::new(),
        classifications: false,
    };
    let cedar = "permit (principal, action, resource);".parse().unwrap();
    let mode = countersign_identity::Mode::Enforce;
    let record = PolicyRecord { cedar, mode, until: None, reason: None, scopes: vec![scope] };
    let value = record.encode();
    Record { kind: Kind::Policy, name: name.to_owned(), value }
}

fn only(name: &str) -> ScopeNames {
    ScopeNames::Only(BTreeSet::from([name.to_owned()]))
}

fn own_records() -> Vec<Record> {
    let bundle = Bundle::new("shop.example".parse().unwrap(), Vec::new(), 1);
    vec![
        record(Kind::TrustDomain, "shop", &json!({ "trustDomain": "shop.example" })),
        Record {
            kind: Kind::Bundle,
            name: "shop.example".to_owned(),
            value: bundle.to_json().into(),
        },
    ]
}

pub(super) fn state(records: Vec<Record>) -> State {
    let mut all = own_records();
    all.extend(records);
    let revision = Revision { incarnation: 1, number: 1 };
    State::from_snapshot(Snapshot { revision, records: all }).unwrap()
}

pub(super) fn labels(names: &[&str]) -> BTreeSet<Name> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

#[track_caller]
fn holds(state: &State, with: &[&str], expected: &[&str]) {
    let slice = Slice::cut(state, &labels(with), None);
    let records = slice.wire_records();
    let found: Vec<_> = records
        .iter()
        .map(|record| format!("{}/{}", record.kind, record.name))
        .filter(|name| !name.starts_with("Bundle/") && !name.starts_with("TrustDomain/"))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn node_needs_all_labels_that_a_workload_asks_for() {
    let both = record(
        Kind::Workload,
        "both",
        &json!({ "selectors": ["launch:both"], "nodes": ["a", "b"] }),
    );
    let state = state(vec![both, workload("any", None), workload("one", Some("a"))]);
    holds(&state, &[], &["Workload/any"]);
    holds(&state, &["a"], &["Workload/any", "Workload/one"]);
    holds(&state, &["a", "b", "c"], &["Workload/any", "Workload/both", "Workload/one"]);
}

#[test]
fn slice_holds_what_is_called_but_not_who_else_calls_it() {
    let state = state(vec![
        workload("web", Some("front")),
        workload("cron", Some("other")),
        workload("orders", Some("back")),
        workload("payments", Some("back")),
        service("web", Some("orders")),
        service("cron", Some("orders")),
        service("orders", Some("payments")),
        service("payments", None),
        policy("web-orders", only("web"), only("orders"), &["web"]),
        policy("cron-orders", only("cron"), only("orders"), &["cron"]),
        policy("orders-payments", only("orders"), only("payments"), &["orders"]),
    ]);
    let front =
        ["Policy/web-orders", "Service/orders", "Service/web", "Workload/orders", "Workload/web"];
    holds(&state, &["front"], &front);
}

#[test]
fn policy_that_mentions_a_workload_in_a_condition_brings_its_name() {
    let forbid = policy("no-cron", ScopeNames::Only(BTreeSet::new()), only("orders"), &["cron"]);
    let state = state(vec![
        workload("orders", Some("back")),
        workload("cron", Some("other")),
        service("orders", None),
        forbid,
    ]);
    holds(
        &state,
        &["back"],
        &["Policy/no-cron", "Service/orders", "Workload/cron", "Workload/orders"],
    );
    holds(&state, &["front"], &[]);
}

#[test]
fn everybody_is_named_where_a_policy_admits_everybody() {
    let state = state(vec![
        workload("orders", Some("back")),
        workload("cron", Some("other")),
        service("orders", None),
        policy("all", ScopeNames::Any, only("orders"), &[]),
    ]);
    holds(&state, &["back"], &["Policy/all", "Service/orders", "Workload/cron", "Workload/orders"]);
}

#[test]
fn unchanged_records_are_shared_between_slices() {
    let first = state((0..100).map(|n| workload(&format!("w{n}"), None)).collect());
    let none = BTreeSet::new();
    let before = Slice::cut(&first, &none, None);
    let next = Revision { incarnation: 1, number: 2 };
    let changed = first.changed(next, vec![Change::Put(workload("w7", Some("x")))]).unwrap();
    let after = Slice::cut(&changed, &none, Some(&before));
    let delta = after.since(&before);
    assert_eq!((delta.put.len(), delta.gone.len()), (0, 1));
    let key = Key::new(Kind::Workload, "w1");
    assert!(Arc::ptr_eq(&before.records[&key], &after.records[&key]));
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn any_change() -> impl Strategy<Value = Change> {
    let name = proptest::sample::select(&NAMES[..]);
    let other = proptest::option::of(proptest::sample::select(&NAMES[..]));
    let label = proptest::option::of(proptest::sample::select(&["x", "y"][..]));
    let names = other.clone().prop_map(|name| name.map_or(ScopeNames::Any, only));
    prop_oneof![
        (name.clone(), label).prop_map(|(name, label)| Change::Put(workload(name, label))),
        (name.clone(), other).prop_map(|(name, other)| Change::Put(service(name, other))),
        (name.clone(), names.clone(), names, name.clone()).prop_map(
            |(name, principals, resources, mentioned)| Change::Put(policy(
                name,
                principals,
                resources,
                &[mentioned]
            ))
        ),
        (proptest::sample::select(&[Kind::Workload, Kind::Service, Kind::Policy][..]), name)
            .prop_map(|(kind, name)| Change::Remove { kind, name: name.to_owned() }),
    ]
}

proptest! {
    /// Whoever applies every difference has what a fresh snapshot would give, whichever slices it has missed.
    #[test]
    fn differences_add_up_to_the_slice(
        commits in proptest::collection::vec((proptest::collection::vec(any_change(), 1..6), any::<bool>()), 1..20)
    ) {
        let with = labels(&["x"]);
        let mut now = state(Vec::new());
        let slices = Slices::default();
        let mut told = slices.at(&now, &with);
        let mut reader: BTreeMap<(String, String), bytes::Bytes> = told
            .wire_records()
            .into_iter()
            .map(|record| ((record.kind, record.name), record.value))
            .collect();
        for (number, (changes, listens)) in (2..).zip(commits) {
            now = now.changed(Revision { incarnation: 1, number }, changes).unwrap();
            let current = slices.at(&now, &with);
            if !listens {
                continue;
            }
            let delta = current.since(&told);
            for gone in delta.gone.clone() {
                prop_assert!(reader.remove(&(gone.kind, gone.name)).is_some());
            }
            for put in delta.put.clone() {
                reader.insert((put.kind, put.name), put.value);
            }
            told = current;
            let fresh: BTreeMap<_, _> = Slice::cut(&now, &with, None)
                .wire_records()
                .into_iter()
                .map(|record| ((record.kind, record.name), record.value))
                .collect();
            prop_assert_eq!(&reader, &fresh);
        }
    }
}
