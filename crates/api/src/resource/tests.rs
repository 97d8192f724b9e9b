//! Manifests: what is accepted, which problems are told, and what their records hold.

mod role;
mod service;
mod tls_profile;
mod together;
mod trust_domain;
mod workload;

use serde_json::json;

use super::*;

fn manifest(kind: &str, spec: &serde_json::Value) -> Tree {
    Tree::from_value(&json!({
        "apiVersion": API_VERSION, "kind": kind, "metadata": { "name": "web" }, "spec": spec,
    }))
}

#[expect(clippy::needless_pass_by_value, reason = "cases read better without `&`")]
#[track_caller]
fn accepted(kind: &str, spec: serde_json::Value) -> Resource {
    let resource = Resource::read(&manifest(kind, &spec)).expect("the manifest is right");
    let decoded = Spec::decode(resource.kind(), &resource.spec.encode()).expect("it round-trips");
    assert_eq!(decoded, resource.spec, "encoding and decoding");
    let again = Resource::read(&Tree::from_value(&resource.manifest())).expect("it round-trips");
    assert_eq!(again, resource, "as a manifest");
    resource
}

/// Checks that there are exactly these problems, `field: part of the message`.
#[expect(clippy::needless_pass_by_value, reason = "cases read better without `&`")]
#[track_caller]
fn refused(kind: &str, spec: serde_json::Value, expected: &[(&str, &str)]) {
    let problems = Resource::read(&manifest(kind, &spec)).expect_err("the manifest is wrong");
    let told: Vec<_> = problems.iter().map(|p| format!("{}: {}", p.field, p.message)).collect();
    assert_eq!(problems.len(), expected.len(), "{told:#?}");
    for (field, part) in expected {
        let found = problems.iter().any(|p| p.field == *field && p.message.contains(part));
        assert!(found, "{field}: {part} is not in {told:#?}");
    }
}

#[expect(clippy::needless_pass_by_value, reason = "cases read better without `&`")]
fn resource(name: &str, kind: &str, spec: serde_json::Value) -> Resource {
    let value = json!({
        "apiVersion": API_VERSION, "kind": kind, "metadata": { "name": name }, "spec": spec,
    });
    Resource::read(&Tree::from_value(&value)).expect("the manifest is right")
}

#[track_caller]
fn together(resources: &[Resource], expected: &[(&str, &str, &str)]) {
    let domain = "shop.example".parse().expect("it is a trust domain");
    let problems = check(resources, Some(&domain)).err().unwrap_or_default();
    let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), expected.len(), "{told:#?}");
    for (resource, field, part) in expected {
        let found = problems
            .iter()
            .any(|p| p.resource == *resource && p.field == *field && p.message.contains(part));
        assert!(found, "{resource}: {field}: {part} is not in {told:#?}");
    }
}

#[test]
fn the_smallest_manifests_are_accepted() {
    accepted("TrustDomain", json!({ "trustDomain": "shop.example" }));
    accepted("Workload", json!({ "selectors": ["launch:web"] }));
    accepted("Service", json!({ "workload": "web" }));
    accepted("Policy", json!({ "cedar": "permit (principal, action, resource);" }));
    accepted("Role", json!({ "workloads": ["web"] }));
    accepted("TlsProfile", json!({}));
}

#[test]
fn a_kind_of_a_later_version_is_told_to_be_one() {
    for kind in ["Federation", "Notifier", "Playbook"] {
        let problems = Resource::read(&manifest(kind, &json!({}))).expect_err("it is not there");
        let said = format!("`{kind}` is not a kind that this version knows yet");
        assert!(problems.iter().any(|one| one.message.contains(&said)), "{problems:?}");
    }
    let problems = Resource::read(&manifest("Rule", &json!({}))).expect_err("it is none");
    assert!(problems.iter().any(|one| one.message.contains("`Rule` is not a kind: ")));
}

#[test]
fn the_largest_manifests_are_accepted() {
    accepted(
        "TrustDomain",
        json!({
            "trustDomain": "shop.example", "svidLifetime": "10m", "agentLifetime": "1h", "lifetimeMax": "2h",
            "revocationViews": {
                "url": "http://crl.shop.example:8880", "shards": 4, "ocsp": false, "interval": "5m", "validity": "30m",
            },
        }),
    );
    accepted(
        "Workload",
        json!({
            "spiffeId": "spiffe://shop.example/web", "selectors": ["launch:web", "unix:uid:1000"],
            "lifetime": "15m", "keyType": "ed25519", "dnsNames": ["web.example"], "nodes": ["edge"],
            "hint": "main", "crl": true,
        }),
    );
    accepted(
        "Service",
        json!({
            "workload": "web", "protocol": "tcp", "listen": "127.0.0.1:0", "forward": "unix:/run/w.sock",
            "addresses": ["web.example:8443"], "command": ["a", ""], "environment": { "A": "b" },
            "upstreams": [{ "service": "orders", "local": "tcp", "addresses": ["[::1]:1"] }],
        }),
    );
}

#[test]
fn all_problems_of_a_manifest_are_told_at_once() {
    refused(
        "Workload",
        json!({
            "spifeId": "spiffe://shop.example/web", "selectors": ["launch:*", 5], "lifetime": 900,
            "keyType": "rsa", "hint": ["a"],
        }),
        &[
            ("spec.spifeId", "did you mean `spiffeId`?"),
            ("spec.selectors[0]", "expected a name of a-z"),
            ("spec.selectors[1]", "the number `5`; quote it"),
            ("spec.lifetime", "the number `900`; quote it"),
            ("spec.keyType", "`rsa`"),
            ("spec.hint", "expected a text, found a list"),
        ],
    );
}

#[test]
fn a_manifest_of_endless_fields_costs_little_and_says_little() {
    let entries = (0..200_000).map(|index| Entry {
        key: format!("field-{}", index / 2),
        at: None,
        value: Tree { at: None, node: Node::Null },
    });
    let tree = Tree { at: None, node: Node::Map(entries.collect()) };
    let problems = Resource::read(&tree).expect_err("nothing in it is a field");
    assert!(problems.len() <= 100, "{}", problems.len());
}

#[test]
fn what_is_no_manifest_is_told() {
    let problems = |value| Resource::read(&Tree::from_value(&value)).expect_err("it is none");
    assert!(problems(json!(5))[0].message.contains("expected fields"));
    let told = problems(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": {}, "a": 1 }));
    let fields: Vec<_> = told.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(fields, ["apiVersion", "kind", "metadata.name", "spec", "a"]);
    assert!(told[0].message.contains(API_VERSION));
    assert!(told[1].message.contains("`Workload`"));
}

#[test]
fn records_with_what_this_version_does_not_know_are_refused() {
    assert!(Spec::decode(Kind::Workload, b"{\"selectors\":[\"launch:a\"],\"roles\":[]}").is_err());
    assert!(Spec::decode(Kind::Workload, b"{").is_err());
    assert!(Spec::decode(Kind::Policy, b"{\"cedar\":\"a\",\"cedar\":\"b\"}").is_err());
}

#[test]
fn encoding_is_canonical() {
    let value = json!({ "b": [1, { "z": "é\n", "a": null }], "a": true });
    let text = String::from_utf8(canonical(&value)).expect("JSON is UTF-8");
    assert_eq!(text, "{\"a\":true,\"b\":[1,{\"a\":null,\"z\":\"é\\n\"}]}");
}

#[test]
fn schemas_name_exactly_the_fields_that_the_reader_knows() {
    for (kind, fields) in [
        (
            Kind::TrustDomain,
            "agentLifetime changes flowRetention lifetimeMax observations revocationViews svidLifetime trustDomain",
        ),
        (
            Kind::Authority,
            "approvals approve approvers issuerLifetime keyType prepareBefore rootLifetime",
        ),
        (Kind::Workload, "crl dnsNames hint keyType labels lifetime nodes selectors spiffeId"),
        (
            Kind::Service,
            "addresses command connections dataSets environment forward forwardClientCertificate listen mutualTls operations protocol proxyProtocol tlsProfile topics upstreams workload",
        ),
        (Kind::Policy, "cedar cedarFile mode reason until"),
        (Kind::Role, "labels selectors spiffeIds workloads"),
        (
            Kind::TlsProfile,
            "clientCertificate groups reason roots suites trustDomains versions weak",
        ),
    ] {
        let schema = schema(kind);
        let properties = schema["properties"]["spec"]["properties"].as_object().expect("fields");
        let mut names: Vec<_> = properties.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names.join(" "), fields, "{kind}");
        for name in names.into_iter().filter(|name| *name != "cedarFile") {
            let problems = Resource::read(&manifest(kind.as_str(), &json!({ name: {} })));
            let unknown = problems
                .expect_err("fields are no value of any field alone")
                .iter()
                .any(|problem| problem.message.contains("unknown field"));
            assert!(!unknown, "{kind} does not read `{name}`");
        }
    }
}

#[test]
fn a_policy_record_keeps_its_scope() {
    let record = PolicyRecord {
        cedar: "permit (principal, action, resource);".parse().expect("it is a text"),
        mode: countersign_identity::Mode::Observe,
        until: Some(countersign_identity::Timestamp::from_secs(7)),
        reason: Some("a trial".parse().expect("it is a sentence")),
        scopes: vec![PolicyScope {
            principals: ScopeNames::Any,
            resources: ScopeNames::Only(["web".to_owned()].into()),
            workloads: ["a".to_owned()].into(),
            services: ["web".to_owned()].into(),
            roles: ["readers".to_owned()].into(),
            labels: true,
            data_sets: ["cards".to_owned()].into(),
            classifications: true,
        }],
    };
    assert_eq!(PolicyRecord::decode(&record.encode()).expect("it round-trips"), record);
}

#[test]
fn a_policy_may_say_when_it_ends_and_why_it_is_there() {
    let cedar = "permit (principal, action, resource);";
    accepted(
        "Policy",
        json!({ "cedar": cedar, "until": "2027-01-31T00:00:00Z", "reason": "the migration, ticket 12" }),
    );
    for (spec, path, why) in [
        (json!({ "cedar": cedar, "until": "tomorrow" }), "spec.until", "tomorrow"),
        (json!({ "cedar": cedar, "until": "2027-01-31" }), "spec.until", "2027-01-31"),
        (json!({ "cedar": cedar, "reason": " " }), "spec.reason", "is empty"),
        (json!({ "cedar": cedar, "reason": "a\nb" }), "spec.reason", "control character"),
        (json!({ "cedar": cedar, "reason": "a".repeat(501) }), "spec.reason", "501 bytes"),
    ] {
        refused("Policy", spec, &[(path, why)]);
    }
}
