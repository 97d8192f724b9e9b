//! What manifests must agree on with each other.

use serde_json::json;

use super::*;

#[test]
fn two_workloads_never_share_a_spiffe_id() {
    let a = resource("a", "Workload", json!({ "selectors": ["launch:a"] }));
    let b = resource(
        "b",
        "Workload",
        json!({ "selectors": ["launch:b"], "spiffeId": "spiffe://shop.example/a" }),
    );
    together(&[a, b], &[("Workload/b", "spec.spiffeId", "also the SPIFFE ID of workload `a`")]);
}

#[test]
fn foreign_and_reserved_spiffe_ids_are_refused() {
    let workload = |name: &str, id: &str| {
        resource(name, "Workload", json!({ "selectors": ["launch:a"], "spiffeId": id }))
    };
    together(
        &[
            workload("a", "spiffe://other.example/a"),
            workload("b", "spiffe://shop.example/countersign/server/1"),
            workload("c", "spiffe://shop.example/countersign"),
            workload("d", "spiffe://shop.example/countersigned"),
        ],
        &[
            ("Workload/a", "spec.spiffeId", "write `spiffe://shop.example/a`"),
            ("Workload/b", "spec.spiffeId", "belongs to servers and agents"),
            ("Workload/c", "spec.spiffeId", "belongs to servers and agents"),
        ],
    );
}

#[test]
fn names_must_be_declared_and_unique() {
    let a = resource("a", "Workload", json!({ "selectors": ["launch:a"] }));
    let service =
        resource("a", "Service", json!({ "workload": "b", "upstreams": [{ "service": "c" }] }));
    together(
        &[a.clone(), a, service],
        &[
            ("Workload/a", "metadata.name", "several resources `Workload/a`"),
            ("Service/a", "spec.workload", "no manifest declares workload `b`"),
            ("Service/a", "spec.upstreams[0].service", "no manifest declares service `c`"),
        ],
    );
}

#[test]
fn fixed_ports_are_claimed_once() {
    let workload = resource("a", "Workload", json!({ "selectors": ["launch:a"] }));
    let service = |name: &str, listen: &str| {
        resource(name, "Service", json!({ "workload": "a", "listen": listen, "forward": "unix" }))
    };
    together(
        &[
            workload,
            service("a", "127.0.0.1:8443"),
            service("b", "0.0.0.0:8443"),
            service("c", "127.0.0.1:0"),
            service("d", "127.0.0.1:0"),
            service("e", "127.0.0.2:8444"),
            service("f", "127.0.0.1:8444"),
        ],
        &[("Service/b", "spec.listen", "already claimed by service `a`")],
    );
}

#[test]
fn the_trust_domain_never_changes() {
    let domain = |name: &str, of: &str| resource(name, "TrustDomain", json!({ "trustDomain": of }));
    together(
        &[domain("a", "other.example"), domain("b", "shop.example")],
        &[
            ("TrustDomain/a", "spec.trustDomain", "can never change"),
            ("TrustDomain/b", "", "a second `TrustDomain`"),
        ],
    );
    let problems = check(&[], None).expect_err("nobody says which trust domain it is");
    assert!(problems[0].message.contains("add one"));
}

#[test]
fn an_upstream_without_a_door_is_refused() {
    let workload = resource("a", "Workload", json!({ "selectors": ["launch:a"] }));
    let plain = resource("plain", "Service", json!({ "workload": "a", "forward": "tcp" }));
    let caller = resource(
        "caller",
        "Service",
        json!({ "workload": "a", "upstreams": [{ "service": "plain" }] }),
    );
    together(
        &[workload, plain, caller],
        &[("Service/caller", "spec.upstreams[0].service", "has no door")],
    );
}
