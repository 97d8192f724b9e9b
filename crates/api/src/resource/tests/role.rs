//! Roles: whom they hold, and what they may not say.

use serde_json::json;

use super::*;

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
