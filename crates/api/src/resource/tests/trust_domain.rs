//! The trust domain and its authority: lifetimes, lists, and whose word is needed.

use serde_json::json;

use super::*;

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
fn lifetimes_in_which_nothing_could_live_are_refused() {
    let read =
        |kind, spec| Resource::read(&manifest(kind, &spec)).expect("each is right in itself");
    let workload = |lifetime: &str| {
        read("Workload", json!({ "selectors": ["launch:a"], "lifetime": lifetime }))
    };
    let domain = |fields: serde_json::Value| {
        let mut spec = json!({ "trustDomain": "shop.example" });
        spec.as_object_mut().expect("it is one").extend(fields.as_object().cloned().expect("also"));
        read("TrustDomain", spec)
    };
    let short = [
        ("Workload/web", "spec.lifetime", "`1s` is shorter than `10s`"),
        ("TrustDomain/web", "spec.svidLifetime", "`9s` is shorter than `10s`"),
        ("TrustDomain/web", "spec.agentLifetime", "such as `15m`"),
    ];
    together(
        &[workload("1s"), domain(json!({ "svidLifetime": "9s", "agentLifetime": "2s" }))],
        &short,
    );
    together(
        &[workload("10s"), domain(json!({ "svidLifetime": "10s", "agentLifetime": "10s" }))],
        &[],
    );
    // Of the limit alone, which both others keep.
    let limit = [("TrustDomain/web", "spec.lifetimeMax", "`9s` is shorter than `10s`")];
    together(&[domain(json!({ "lifetimeMax": "9s" }))], &limit);
    let authority = |fields| read("Authority", fields);
    let short = [
        ("Authority/web", "spec.rootLifetime", "`59m` is shorter than `1h`"),
        ("Authority/web", "spec.issuerLifetime", "the least that an authority lives"),
    ];
    together(&[authority(json!({ "rootLifetime": "59m", "issuerLifetime": "1m" }))], &short);
    together(&[authority(json!({ "rootLifetime": "1h", "issuerLifetime": "1h" }))], &[]);
}
