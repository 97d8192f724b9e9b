use countersign_pki::KeyKind;
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
fn a_role_lists_or_asks_and_holds_no_other_role() {
    accepted("Role", json!({ "spiffeIds": ["spiffe://other.example/web"] }));
    accepted("Role", json!({ "labels": ["pci"], "selectors": ["unix:uid:1000"] }));
    for (spec, path, why) in [
        (json!({}), "spec", "holds nobody"),
        (json!({ "workloads": [] }), "spec", "holds nobody"),
        (
            json!({ "workloads": ["web"], "roles": ["other"] }),
            "spec.roles",
            "no role is in another",
        ),
        (json!({ "workloads": ["web", "web"] }), "spec.workloads[1]", "listed twice"),
        (json!({ "labels": ["*"] }), "spec.labels[0]", "`*`"),
        (json!({ "selectors": ["unix:uid:*"] }), "spec.selectors[0]", "`*`"),
        (json!({ "spiffeIds": ["spiffe://a.example"] }), "spec.spiffeIds", "add a path"),
        (json!({ "workload": ["web"] }), "spec.workload", "did you mean `workloads`?"),
    ] {
        let problems = Resource::read(&manifest("Role", &spec)).expect_err("it is wrong");
        let told = problems.iter().any(|one| one.field == path && one.message.contains(why));
        assert!(told, "{path}: {why} is not in {problems:?}");
    }
}

#[test]
fn a_role_holds_whom_it_lists_and_who_has_all_that_it_asks_for() {
    let workload = |name: &str, labels: &[&str]| {
        let selectors = [format!("launch:{name}"), "unix:uid:7".to_owned()];
        resource(name, "Workload", json!({ "selectors": selectors, "labels": labels }))
    };
    let roles_of = |role: serde_json::Value| {
        let declared = [
            workload("a", &["red", "blue"]),
            workload("b", &["red"]),
            workload("c", &[]),
            resource("it", "Role", role),
        ];
        let domain = "shop.example".parse().expect("it is a trust domain");
        let name: Name = "it".parse().expect("it is a name");
        let record = roles(&declared, &domain).remove(&name).expect("it is declared");
        assert_eq!(RoleRecord::decode(&record.encode()).expect("it round-trips"), record);
        record.members.into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(roles_of(json!({ "workloads": ["c"] })), "c");
    assert_eq!(roles_of(json!({ "labels": ["red"] })), "a b");
    assert_eq!(roles_of(json!({ "labels": ["red", "blue"] })), "a", "all of them");
    assert_eq!(roles_of(json!({ "labels": ["reds"] })), "", "no prefix");
    assert_eq!(roles_of(json!({ "selectors": ["unix:uid:7"] })), "a b c");
    assert_eq!(roles_of(json!({ "selectors": ["unix:uid:7"], "labels": ["blue"] })), "a");
    assert_eq!(roles_of(json!({ "selectors": ["launch:a", "launch:b"] })), "");
    assert_eq!(roles_of(json!({ "workloads": ["c"], "labels": ["blue"] })), "a c");
    let ids = ["spiffe://shop.example/b", "spiffe://other.example/a"];
    assert_eq!(roles_of(json!({ "spiffeIds": ids })), "b spiffe://other.example/a");
}

#[test]
fn a_role_names_nobody_who_is_not_declared() {
    let a = resource("a", "Workload", json!({ "selectors": ["launch:a"] }));
    let ids = ["spiffe://shop.example/gone", "spiffe://other.example/gone"];
    let role = json!({ "workloads": ["a", "gone"], "spiffeIds": ids });
    together(
        &[a, resource("it", "Role", role)],
        &[
            ("Role/it", "spec.workloads[1]", "no manifest declares workload `gone`"),
            ("Role/it", "spec.spiffeIds", "the SPIFFE ID `spiffe://shop.example/gone`"),
        ],
    );
}

#[test]
fn what_becomes_of_expired_connections_is_one_of_two_words() {
    accepted("Service", json!({ "workload": "web", "connections": { "expired": "keep" } }));
    accepted("Service", json!({ "workload": "web", "connections": { "expired": "end" } }));
    accepted("Service", json!({ "workload": "web", "connections": {} }));
    for (connections, field, words) in [
        (json!({ "expired": "forgive" }), "spec.connections.expired", "`end` or `keep`"),
        (json!({ "expires": "keep" }), "spec.connections.expires", "unknown field"),
    ] {
        let spec = json!({ "workload": "web", "connections": connections });
        refused("Service", spec, &[(field, words)]);
    }
}

#[test]
fn what_a_program_is_told_of_certificates_is_one_of_four_words_and_for_requests_only() {
    for word in ["nothing", "identity", "certificate", "chain"] {
        accepted("Service", json!({ "workload": "web", "forwardClientCertificate": word }));
    }
    let spec = json!({ "workload": "web", "forwardClientCertificate": "path" });
    let words = "`nothing`, `identity`, `certificate` or `chain`";
    refused("Service", spec, &[("spec.forwardClientCertificate", words)]);
    let spec =
        json!({ "workload": "web", "protocol": "tcp", "forwardClientCertificate": "identity" });
    refused("Service", spec, &[("spec.forwardClientCertificate", "needs `protocol: http`")]);
}

#[test]
fn load_balancers_are_named_and_programs_get_a_header_only_where_bytes_are_passed() {
    let service = |protocol: &str, proxy: serde_json::Value| json!({ "workload": "web", "protocol": protocol, "proxyProtocol": proxy });
    accepted("Service", service("http", json!({ "from": ["10.0.0.7", "2001:db8::/32"] })));
    accepted("Service", service("tcp", json!({ "from": ["10.0.0.0/8"], "send": "v2" })));
    accepted("Service", service("http", json!({})));
    for (protocol, proxy, field, words) in [
        ("http", json!({ "send": "v2" }), "spec.proxyProtocol.send", "needs `protocol: tcp`"),
        ("tcp", json!({ "send": "v1" }), "spec.proxyProtocol.send", "expected `v2`"),
        ("tcp", json!({ "from": ["0.0.0.0/0"] }), "spec.proxyProtocol.from[0]", "every address"),
        ("tcp", json!({ "from": ["lb.example"] }), "spec.proxyProtocol.from[0]", "neither an IP"),
        ("tcp", json!({ "form": ["10.0.0.7"] }), "spec.proxyProtocol.form", "unknown field"),
    ] {
        refused("Service", service(protocol, proxy), &[(field, words)]);
    }
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
fn a_workload_without_selectors_is_refused() {
    refused("Workload", json!({}), &[("spec.selectors", "needs at least one selector")]);
    refused("Workload", json!({ "selectors": [] }), &[("spec.selectors", "at least one")]);
    refused(
        "Workload",
        json!({ "selectors": ["launch:a", "launch:a"] }),
        &[("spec.selectors[1]", "listed twice")],
    );
}

#[test]
fn a_workload_is_never_the_trust_domain_itself() {
    refused(
        "Workload",
        json!({ "selectors": ["launch:a"], "spiffeId": "spiffe://shop.example" }),
        &[("spec.spiffeId", "add a path")],
    );
    let long = format!("spiffe://shop.example/{}", "a".repeat(600));
    refused(
        "Workload",
        json!({ "selectors": ["launch:a"], "spiffeId": long }),
        &[("spec.spiffeId", "at most 512")],
    );
}

#[test]
fn plain_bytes_never_leave_the_machine() {
    refused(
        "Service",
        json!({ "workload": "web", "listen": "0.0.0.0:8443", "forward": "10.0.0.1:80" }),
        &[("spec.forward", "not a loopback address")],
    );
    refused(
        "Service",
        json!({ "workload": "web", "upstreams": [{ "service": "a", "local": "0.0.0.0:80" }] }),
        &[("spec.upstreams[0].local", "not a loopback address")],
    );
}

#[test]
fn a_door_must_lead_somewhere() {
    refused(
        "Service",
        json!({ "workload": "web", "listen": "127.0.0.1:0" }),
        &[("spec.forward", "is missing")],
    );
}

#[test]
fn variables_that_up_sets_cannot_be_given() {
    refused(
        "Service",
        json!({ "workload": "web", "environment": { "LISTEN": "a", "UPSTREAM_X": "b", "1": "c", "A": 5 } }),
        &[
            ("spec.environment.LISTEN", "set by `up` itself"),
            ("spec.environment.UPSTREAM_X", "set by `up` itself"),
            ("spec.environment.1", "not a variable's name"),
            ("spec.environment.A", "quote it"),
        ],
    );
}

#[test]
fn lifetimes_over_the_limit_are_refused() {
    refused(
        "TrustDomain",
        json!({ "trustDomain": "a", "svidLifetime": "2h", "lifetimeMax": "1h" }),
        &[("spec.svidLifetime", "over `lifetimeMax`, which is `1h`")],
    );
    let spec = accepted("TrustDomain", json!({ "trustDomain": "a", "lifetimeMax": "10s" }));
    let Spec::TrustDomain(spec) = spec.spec else { panic!("it is a trust domain") };
    assert_eq!(spec.svid_lifetime, spec.lifetime_max);
}

#[test]
fn revocation_views_that_leave_a_gap_or_name_nothing_useful_are_refused() {
    let refused = |views: serde_json::Value, expected: &[(&str, &str)]| {
        refused("TrustDomain", json!({ "trustDomain": "a", "revocationViews": views }), expected);
    };
    refused(
        json!({ "url": "https://a", "shards": 3, "ocsp": "no", "interval": "5s", "validity": 5 }),
        &[
            ("spec.revocationViews.url", "an address of plain HTTP"),
            ("spec.revocationViews.shards", "`3` is not a number of shards"),
            (
                "spec.revocationViews.ocsp",
                "expected `true` or `false`, without quotes, found the text `no`",
            ),
            ("spec.revocationViews.validity", "the number `5`; quote it"),
        ],
    );
    refused(json!({ "shards": "4" }), &[("spec.revocationViews.shards", "without quotes")]);
    refused(
        json!({ "interval": "5s" }),
        &[("spec.revocationViews.interval", "write `10s` or more")],
    );
    refused(
        json!({ "interval": "5m", "validity": "9m" }),
        &[("spec.revocationViews.validity", "less than twice `interval`, which is `5m`")],
    );
    refused(json!([]), &[("spec.revocationViews", "expected fields")]);
    refused(json!({ "urls": "http://a" }), &[("spec.revocationViews.urls", "did you mean `url`?")]);
    let views = |views: serde_json::Value| {
        let spec = accepted("TrustDomain", json!({ "trustDomain": "a", "revocationViews": views }));
        let Spec::TrustDomain(spec) = spec.spec else { panic!("it is a trust domain") };
        spec.revocation_views.expect("it is there")
    };
    assert_eq!(views(json!({})), RevocationViews::default());
    assert!(views(json!({})).pointers().is_none());
    assert_eq!(views(json!({ "interval": "2h" })).validity.to_string(), "4h");
    assert_eq!(views(json!({ "validity": "20m" })).interval.to_string(), "10m");
}

#[test]
fn lists_for_a_workload_are_off_unless_asked_for() {
    let spec = accepted("Workload", json!({ "selectors": ["launch:a"] }));
    assert!(matches!(spec.spec, Spec::Workload(WorkloadSpec { crl: false, .. })));
    refused(
        "Workload",
        json!({ "selectors": ["launch:a"], "crl": "yes" }),
        &[("spec.crl", "expected `true` or `false`")],
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
fn authority_has_defaults_that_fit_and_refuses_what_does_not() {
    let spec = accepted("Authority", json!({ "rootLifetime": "30d" }));
    let Spec::Authority(spec) = spec.spec else { panic!("it is an authority") };
    assert_eq!(spec.prepare_before.to_string(), "15d");
    assert_eq!(spec.issuer_lifetime.to_string(), "7d");
    for (fields, said) in [
        (
            json!({ "rootLifetime": "1d", "issuerLifetime": "7d" }),
            "does not fit into `rootLifetime`",
        ),
        (json!({ "rootLifetime": "60d", "prepareBefore": "60d" }), "does not fit"),
        (json!({ "approve": "maybe" }), "write `automatic` or `operator`"),
        (json!({ "keyType": "rsa" }), "rsa"),
        (json!({ "approve": "operator", "approvals": 2 }), "name more of them"),
        (json!({ "approve": "operator", "approvals": 0, "approvers": ["uid:1"] }), "from 1 to 1"),
        (json!({ "approvers": ["uid:1"] }), "write `approve: operator` as well"),
        (json!({ "approve": "operator", "approvers": ["uid:01"] }), "such as `uid:1001`"),
        (json!({ "approve": "operator", "approvers": ["uid:1", "uid:1"] }), "listed twice"),
    ] {
        let problems = Resource::read(&manifest("Authority", &fields)).expect_err(said);
        assert!(problems.iter().any(|one| one.message.contains(said)), "{problems:?}");
    }
}

#[test]
fn whoever_has_to_approve_changes_is_named_and_there_are_enough_of_them() {
    let of =
        |changes: serde_json::Value| json!({ "trustDomain": "shop.example", "changes": changes });
    let spec = accepted("TrustDomain", of(json!({ "approvers": ["uid:1", "uid:2"] })));
    let Spec::TrustDomain(spec) = spec.spec else { panic!("it is a trust domain") };
    assert_eq!(spec.changes.expect("they are named").needed(), 2);
    for (changes, said) in [
        (json!({}), "name who may approve"),
        (json!({ "approvals": 1 }), "name who may approve"),
        (json!({ "approvals": 0, "approvers": ["uid:1"] }), "from 1 to 1"),
        (json!({ "approvals": 2, "approvers": ["uid:1"] }), "from 1 to 1"),
        (json!({ "approvers": ["uid:*"] }), "such as `uid:1001`"),
        (json!({ "approvers": ["uid:1"], "required": false }), "unknown field"),
    ] {
        let problems = Resource::read(&manifest("TrustDomain", &of(changes))).expect_err(said);
        assert!(problems.iter().any(|one| one.message.contains(said)), "{said}: {problems:?}");
    }
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

#[test]
fn a_workload_may_ask_for_any_kind_of_key_and_an_authority_for_none_of_rsa() {
    for kind in KeyKind::ALL {
        let resource =
            accepted("Workload", json!({ "selectors": ["launch:web"], "keyType": kind }));
        assert!(matches!(&resource.spec, Spec::Workload(spec) if spec.key_type == kind));
    }
    for kind in ["ecdsa-p256", "ecdsa-p384", "ed25519"] {
        accepted("Authority", json!({ "keyType": kind }));
    }
    for kind in ["rsa-2048", "rsa-3072"] {
        let expected = [("spec.keyType", "write `ecdsa-p256`, `ecdsa-p384` or `ed25519`")];
        refused("Authority", json!({ "keyType": kind }), &expected);
    }
    for kind in ["rsa-1024", "rsa-4096", "rsa", "ecdsa-p521", "RSA-2048", "*"] {
        let spec = json!({ "selectors": ["launch:web"], "keyType": kind });
        refused("Workload", spec, &[("spec.keyType", "`rsa-2048` or `rsa-3072`")]);
    }
}

#[test]
fn a_service_names_one_of_three_tls_profiles_or_one_of_a_manifest() {
    for profile in ["modern", "compatible", "pq-only", "legacy"] {
        accepted("Service", json!({ "workload": "web", "tlsProfile": profile }));
    }
    for (profile, why) in [
        (json!("Legacy"), "expected `modern`, `compatible`, `pq-only` or the name of a TlsProfile"),
        (json!(["modern"]), "found a list"),
        // What a record holds, no manifest can say: it would be a profile that nobody declared.
        (
            json!({ "name": "modern", "spec": { "versions": ["1.2"], "weak": true } }),
            "found fields",
        ),
    ] {
        let spec = json!({ "workload": "web", "tlsProfile": profile });
        refused("Service", spec, &[("spec.tlsProfile", why)]);
    }
}

#[test]
fn what_is_weak_in_a_tls_profile_is_marked_with_a_reason_and_nothing_else_is() {
    let why = "a press that nobody can update";
    accepted("TlsProfile", json!({ "groups": ["X25519MLKEM768", "P-384"] }));
    accepted("TlsProfile", json!({ "trustDomains": ["shop.example"], "roots": ["ab".repeat(32)] }));
    accepted("TlsProfile", json!({ "versions": ["1.3", "1.2"], "weak": true, "reason": why }));
    accepted("TlsProfile", json!({ "groups": ["P-384"], "weak": true, "reason": why }));
    for (spec, path, said) in [
        (json!({ "versions": ["1.3", "1.2"] }), "spec.versions", "is weak, since TLS 1.2"),
        (json!({ "groups": ["X25519"] }), "spec.groups", "write `weak: true` and a `reason`"),
        (json!({ "versions": ["1.2"], "weak": true }), "spec.reason", "needs a sentence"),
        (json!({ "weak": true, "reason": why }), "spec.weak", "marks nothing that is weak"),
        (json!({ "versions": ["1.1"] }), "spec.versions[0]", "expected one of `1.3`, `1.2`"),
        (json!({ "versions": [] }), "spec.versions", "is empty"),
        (json!({ "groups": [] }), "spec.groups", "is empty"),
        (json!({ "trustDomains": [] }), "spec.trustDomains", "is empty"),
        (json!({ "roots": [] }), "spec.roots", "is empty"),
        (json!({ "suites": ["TLS_RSA_WITH_RC4_128_SHA"] }), "spec.suites[0]", "cipher suite"),
        (json!({ "clientCertificate": "optional" }), "spec.clientCertificate", "is nobody"),
        (json!({ "clientCertificate": "none" }), "spec.clientCertificate", "write `required`"),
        (
            json!({ "versions": ["1.2"], "groups": ["X25519MLKEM768"], "weak": true, "reason": why }),
            "spec.groups",
            "nothing that TLS 1.2 could use",
        ),
    ] {
        refused("TlsProfile", spec, &[(path, said)]);
    }
}

#[test]
fn a_service_names_a_tls_profile_that_is_declared_and_its_record_holds_it() {
    let workload = resource("a", "Workload", json!({ "selectors": ["launch:a"] }));
    let service =
        |profile: &str| resource("a", "Service", json!({ "workload": "a", "tlsProfile": profile }));
    let profile = |name: &str| resource(name, "TlsProfile", json!({}));
    together(&[workload.clone(), service("legacy"), profile("legacy")], &[]);
    together(
        &[workload.clone(), service("legacies"), profile("legacy")],
        &[(
            "Service/a",
            "spec.tlsProfile",
            "or name one of `modern`, `compatible`, `pq-only`, `legacy`",
        )],
    );
    together(
        &[workload, profile("modern")],
        &[("TlsProfile/modern", "metadata.name", "choose another name")],
    );
    let Spec::Service(mut spec) = service("legacy").spec else { unreachable!("it is a service") };
    assert_eq!(spec.tls_profile.terms(), None, "what is not known is not the usual");
    let Spec::TlsProfile(legacy) = profile("legacy").spec else { unreachable!("it is one") };
    spec.tls_profile.spec = Some(Box::new(legacy));
    let spec = Spec::Service(spec);
    assert_eq!(spec.json()["tlsProfile"], "legacy");
    assert_eq!(Spec::decode(Kind::Service, &spec.encode()), Ok(spec));
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
