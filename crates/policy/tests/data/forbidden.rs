//! What is permitted and forbidden of data and topics, where it is known what is touched.

use std::collections::BTreeMap;

use countersign_identity::{Code, Mode, Verb};
use countersign_policy::{Holdings, Inventory, Operations, Policies, TopicAct, Verdict};

use crate::shop::{
    ALL, Ask, HELD, OPERATIONS, ask, classified, enforced, lets_pass, name, names, policies_of,
};

#[test]
fn a_permit_on_a_data_set_reaches_what_touches_it_and_nothing_beside() {
    for text in [
        r#"permit (principal == Workload::"web", action, resource in Dataset::"cards");"#,
        r#"permit (principal in Role::"buyers", action, resource in Dataset::"cards");"#,
        r#"@unscoped("cards") permit (principal == Workload::"web", action, resource) when { resource in Dataset::"cards" };"#,
        r#"@unscoped("cards") permit (principal, action, resource) when { principal.labels.contains("pci") && resource.classifications.contains("restricted") };"#,
    ] {
        let reached = [
            Ask::Call(Verb::Post, "/charges"),
            Ask::Call(Verb::Get, "/both"),
            Ask::Topic(TopicAct::Publish, "made"),
            Ask::Topic(TopicAct::Subscribe, "made"),
        ];
        lets_pass(&enforced(&[text]), "web", &reached);
        lets_pass(&enforced(&[text]), "orders", &[]);
        // Nor does one that only observes let pass more.
        lets_pass(
            &policies_of(&[(
                Mode::Observe,
                r#"permit (principal == Workload::"web", action, resource in Dataset::"cards");"#,
            )]),
            "web",
            &reached,
        );
    }
}

/// All but what touches cards, and what may touch them.
const WITHOUT_CARDS: [Ask; 5] = [
    Ask::Connect("payments"),
    Ask::Connect("kiosk"),
    Ask::Call(Verb::Get, "/charges/7"),
    Ask::Call(Verb::Get, "/ping"),
    Ask::Topic(TopicAct::Publish, "alive"),
];

#[test]
fn what_is_forbidden_by_data_stays_so_whoever_permits_it_and_however_it_is_written() {
    let one_by_one = r#"
        @unscoped("test") permit (principal == Workload::"web", action == Action::"connect", resource);
        permit (principal == Workload::"web", action, resource == Operation::"payments/charge");
        permit (principal == Workload::"web", action, resource == Operation::"payments/see");
        permit (principal == Workload::"web", action, resource in Operation::"payments/both");
        permit (principal == Workload::"web", action, resource is Operation in Operation::"payments/ping");
        permit (principal == Workload::"web", action, resource == Service::"payments");
        permit (principal == Workload::"web", action, resource == Topic::"payments/made");
        permit (principal == Workload::"web", action, resource == Topic::"payments/alive");"#;
    for permits in [ALL, one_by_one] {
        for forbid in [
            r#"forbid (principal, action, resource in Dataset::"cards");"#,
            r#"forbid (principal == Workload::"web", action, resource in Dataset::"cards");"#,
            r#"forbid (principal in Role::"buyers", action, resource in Dataset::"cards");"#,
            r#"forbid (principal, action, resource) when { resource in Dataset::"cards" };"#,
            r#"forbid (principal, action, resource) when { resource.classifications.contains("restricted") };"#,
            r#"forbid (principal in Role::"buyers", action, resource) unless { !(resource in Dataset::"cards") };"#,
        ] {
            lets_pass(&enforced(&[permits, forbid]), "web", &WITHOUT_CARDS);
            lets_pass(&enforced(&[forbid, permits]), "web", &WITHOUT_CARDS);
        }
        // What a permit makes an exception of is not permitted either.
        if permits == ALL {
            let but = ALL.replace(");", r#") unless { resource in Dataset::"cards" };"#);
            lets_pass(&enforced(&[&but]), "web", &WITHOUT_CARDS);
        }
    }
}

/// The index by operation leaves out what names other operations, and nothing else.
#[test]
fn no_policy_on_data_is_skipped_because_others_name_the_operation() {
    let mut texts: Vec<String> = Vec::new();
    for (operation, ..) in OPERATIONS {
        texts.push(format!(
            r#"permit (principal == Workload::"web", action, resource == Operation::"payments/{operation}");"#
        ));
    }
    let named: Vec<&str> = texts.iter().map(String::as_str).collect();
    let calls = |policies: &Policies, path| ask(policies, "web", Ask::Call(Verb::Get, path));
    for forbid in [
        r#"forbid (principal, action, resource in Dataset::"cards");"#,
        r#"forbid (principal, action == Action::"GET", resource is Operation in Dataset::"cards");"#,
        r#"forbid (principal, action, resource in Service::"payments") when { resource in Dataset::"cards" };"#,
        r#"forbid (principal == Workload::"web", action, resource == Operation::"payments/both") when { resource in Dataset::"cards" };"#,
    ] {
        let mut all = named.clone();
        all.push(forbid);
        let policies = enforced(&all);
        // First what the forbid says nothing of, so that whatever is remembered is of that.
        for _ in 0..3 {
            assert!(calls(&policies, "/charges/7").is_allowed());
            assert!(calls(&policies, "/ping").is_allowed());
            let denied = calls(&policies, "/both");
            assert_eq!(denied.verdict, Verdict::Deny(Code::PolicyDenied), "{forbid}");
            assert_eq!((denied.policies, denied.mode), (vec!["p4".to_owned()], Mode::Enforce));
        }
    }
}

#[test]
fn what_was_decided_is_not_recalled_once_other_data_is_touched() {
    let forbid = r#"forbid (principal, action, resource in Dataset::"cards");"#;
    let policies = enforced(&[ALL, forbid]);
    let see = Ask::Call(Verb::Get, "/charges/7");
    assert!(ask(&policies, "web", see).is_allowed());
    let holdings = Holdings {
        data_sets: classified(&HELD),
        operations: [(name("see"), names(&["cards"]))].into(),
        topics: BTreeMap::new(),
    };
    let policies = policies.with_inventory(Inventory::new([(name("payments"), holdings)]));
    assert!(!ask(&policies, "web", see).is_allowed());
    // A service that begins to say what it does is asked about each of it, and no more about its door.
    let door = Ask::Connect("payments");
    assert!(ask(&policies, "web", door).is_allowed());
    let policies = policies.with_operations(Operations::default());
    assert!(!ask(&policies, "web", door).is_allowed());
}

#[test]
fn a_topic_is_decided_by_what_is_done_with_it_and_an_undeclared_one_is_denied() {
    let publish = r#"permit (principal == Workload::"web", action == Action::"publish", resource == Topic::"payments/made");"#;
    lets_pass(&enforced(&[publish]), "web", &[Ask::Topic(TopicAct::Publish, "made")]);
    let policies = enforced(&[ALL]);
    assert!(ask(&policies, "web", Ask::Topic(TopicAct::Subscribe, "alive")).is_allowed());
    let other = ask(&policies, "web", Ask::Topic(TopicAct::Subscribe, "other"));
    assert_eq!(other.verdict, Verdict::Deny(Code::PolicyDenied));
}

#[test]
fn where_no_data_is_known_none_is_restricted_and_nothing_errs() {
    let forbid = r#"forbid (principal, action, resource) when { resource.classifications.contains("restricted") };"#;
    let policies = enforced(&[ALL, forbid]).with_inventory(Inventory::default());
    assert!(ask(&policies, "web", Ask::Call(Verb::Post, "/charges")).is_allowed());
    assert!(ask(&policies, "web", Ask::Connect("ledger")).is_allowed());
}
