//! What may touch any data, since nobody declares what it touches.

use std::collections::BTreeMap;

use countersign_identity::{Code, Mode, Name, Verb};
use countersign_policy::{Holdings, Inventory, Verdict};

use crate::shop::{ALL, Ask, ask, enforced, name, policies_of};

#[test]
fn a_policy_that_only_observes_is_no_reason_to_let_pass_what_may_not_even_touch_the_data() {
    for observed in [
        r#"permit (principal == Workload::"web", action, resource in Dataset::"cards");"#,
        r#"forbid (principal == Workload::"web", action, resource in Dataset::"cards");"#,
    ] {
        let policies = policies_of(&[(Mode::Observe, observed)]);
        for what in [Ask::Call(Verb::Get, "/elsewhere"), Ask::Connect("ledger")] {
            assert!(!ask(&policies, "web", what).is_allowed(), "{observed}: {what:?}");
        }
        assert!(ask(&policies, "web", Ask::Call(Verb::Post, "/charges")).is_allowed());
    }
    let forbid = r#"forbid (principal == Workload::"web", action, resource in Dataset::"cards");"#;
    let policies = policies_of(&[(Mode::Enforce, ALL), (Mode::Observe, forbid)]);
    let told = ask(&policies, "web", Ask::Call(Verb::Get, "/elsewhere"));
    assert_eq!((told.verdict, told.mode), (Verdict::Deny(Code::PolicyDenied), Mode::Observe));
    assert_eq!(told.policies, ["p1"]);
}

#[test]
fn what_is_denied_by_policies_on_data_none_lets_pass_that_observes_other_data() {
    let enforced = r#"permit (principal == Workload::"web", action, resource in Service::"payments")
        unless { resource.classifications.contains("restricted") };"#;
    for effect in ["permit", "forbid"] {
        let observed = format!(
            r#"{effect} (principal == Workload::"web", action, resource in Dataset::"menu");"#
        );
        let policies = policies_of(&[(Mode::Enforce, enforced), (Mode::Observe, &observed)]);
        let asked = ask(&policies, "web", Ask::Call(Verb::Get, "/elsewhere"));
        assert!(!asked.is_allowed(), "{effect}: {asked:?}");
        let declared = ask(&policies, "web", Ask::Call(Verb::Get, "/ping"));
        assert!(declared.is_allowed(), "{effect}: {declared:?}");
    }
}

#[test]
fn what_passes_by_permits_of_which_one_observes_goes_on_passing_and_is_told_where_none_is_for_all_data()
 {
    let permits = [
        r#"permit (principal == Workload::"web", action, resource in Service::"payments") unless { resource in Dataset::"cards" };"#,
        r#"permit (principal == Workload::"web", action, resource in Service::"payments") when { resource in Dataset::"cards" };"#,
    ];
    let undeclared = Ask::Call(Verb::Get, "/elsewhere");
    let observe = [Mode::Observe, Mode::Enforce];
    for modes in observe.iter().flat_map(|one| observe.map(|other| [*one, other])) {
        let policies = policies_of(&[(modes[0], permits[0]), (modes[1], permits[1])]);
        let asked = ask(&policies, "web", undeclared);
        let observed = modes.contains(&Mode::Observe);
        assert_eq!(asked.is_allowed(), observed, "{modes:?}: {asked:?}");
        assert_eq!(asked.verdict, Verdict::Deny(Code::PolicyDenied), "{modes:?}");
        assert_eq!(asked.mode == Mode::Observe, observed, "{modes:?}");
    }
}

#[test]
fn an_exception_for_some_data_reaches_nothing_that_may_touch_other_data() {
    let undeclared = Ask::Call(Verb::Get, "/elsewhere");
    for forbid in [
        r#"forbid (principal, action, resource in Dataset::"cards") unless { resource in Dataset::"menu" };"#,
        r#"forbid (principal, action, resource) when { resource in Dataset::"cards" && !(resource in Dataset::"menu") };"#,
        r#"forbid (principal, action, resource) when { resource.classifications == ["restricted"] };"#,
        r#"forbid (principal, action, resource in Dataset::"cards") unless { resource.classifications.contains("public") };"#,
        r#"forbid (principal, action, resource) when { if resource in Dataset::"menu" then false else resource in Dataset::"notes" };"#,
    ] {
        let policies = enforced(&[ALL, forbid]);
        for _ in 0..2 {
            let asked = ask(&policies, "web", undeclared);
            assert_eq!(asked.verdict, Verdict::Deny(Code::PolicyDenied), "{forbid}");
            assert_eq!((asked.policies, asked.mode), (vec!["p1".to_owned()], Mode::Enforce));
            let told = ask(&policies, "web", Ask::Call(Verb::Get, "/ping"));
            assert!(told.is_allowed(), "{forbid}: {told:?}");
        }
        // One that only observes tells the same, and lets pass.
        let observed = policies_of(&[(Mode::Enforce, ALL), (Mode::Observe, forbid)]);
        let asked = ask(&observed, "web", undeclared);
        assert_eq!((asked.verdict, asked.mode), (Verdict::Deny(Code::PolicyDenied), Mode::Observe));
        assert_eq!(asked.policies, ["p1"], "{forbid}");
    }
    // Nor does a permit that is none in between permit.
    let permit = r#"permit (principal == Workload::"web", action, resource in Service::"payments")
        when { resource in Dataset::"cards" || !(resource in Dataset::"menu") };"#;
    assert!(!ask(&enforced(&[permit]), "web", undeclared).is_allowed());
    // Data that the service does not have is none that it could touch.
    let forbid = r#"forbid (principal, action, resource in Dataset::"cards") unless { resource in Dataset::"plans" };"#;
    let kept = r#"forbid (principal, action, resource in Dataset::"plans") unless { resource in Dataset::"menu" };"#;
    assert!(!ask(&enforced(&[ALL, forbid]), "web", undeclared).is_allowed());
    assert!(ask(&enforced(&[ALL, kept]), "web", undeclared).is_allowed());
}

#[test]
fn what_only_other_policies_permit_of_other_data_none_lets_pass_that_observes() {
    let permits = [
        r#"permit (principal == Workload::"web", action, resource in Service::"payments") unless { resource in Dataset::"cards" };"#,
        r#"permit (principal == Workload::"web", action, resource in Dataset::"cards");"#,
    ];
    let both = permits.map(|text| (Mode::Enforce, text));
    let undeclared = Ask::Call(Verb::Get, "/elsewhere");
    assert!(!ask(&policies_of(&both), "web", undeclared).is_allowed());
    for effect in ["permit", "forbid"] {
        let observed = format!(
            r#"{effect} (principal == Workload::"web", action, resource in Dataset::"cards");"#
        );
        let all = [both[0], both[1], (Mode::Observe, observed.as_str())];
        let asked = ask(&policies_of(&all), "web", undeclared);
        assert!(!asked.is_allowed(), "{effect}: {asked:?}");
    }
}

#[test]
fn a_policy_that_weighs_more_data_than_is_looked_through_denies_and_is_named() {
    let undeclared = Ask::Call(Verb::Get, "/elsewhere");
    let held = (0..6).map(|number| name(&format!("d{number}")));
    let data_sets: BTreeMap<Name, String> = held.map(|it| (it, "internal".to_owned())).collect();
    let holdings = Holdings { data_sets, ..Holdings::default() };
    let with = |texts: &[(Mode, &str)]| {
        let inventory = Inventory::new([(name("payments"), holdings.clone())]);
        policies_of(texts).with_inventory(inventory)
    };
    let exempt = |count: usize| {
        let data = |number| format!(r#"resource in Dataset::"d{number}""#);
        let others: Vec<String> = (1..count).map(data).collect();
        format!(
            r#"forbid (principal == Workload::"web", action, resource in Dataset::"d0") when {{ 1 < 0 }} unless {{ {} }};"#,
            others.join(" || ")
        )
    };
    let (few, many) = (exempt(5), exempt(6));
    assert!(
        ask(&with(&[(Mode::Enforce, ALL), (Mode::Enforce, &few)]), "web", undeclared).is_allowed()
    );
    let enforced = with(&[(Mode::Enforce, ALL), (Mode::Enforce, &many)]);
    let denied = ask(&enforced, "web", undeclared);
    assert_eq!((denied.verdict, denied.mode), (Verdict::Deny(Code::PolicyDenied), Mode::Enforce));
    assert_eq!(denied.policies, ["p1"]);
    assert!(ask(&enforced, "web", Ask::Connect("payments")).is_allowed());
    // Nor does one that only observes deny by that.
    let told = ask(&with(&[(Mode::Enforce, ALL), (Mode::Observe, &many)]), "web", undeclared);
    assert_eq!((told.verdict, told.mode), (Verdict::Deny(Code::PolicyDenied), Mode::Observe));
    assert_eq!(told.policies, ["p1"]);
    // However many data sets one names that makes no exception: it is looked at twice.
    let plain = many.replace("unless", "when");
    assert!(
        ask(&with(&[(Mode::Enforce, ALL), (Mode::Enforce, &plain)]), "web", undeclared)
            .is_allowed()
    );
}
