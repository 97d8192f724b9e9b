//! What an enforcement point decides by its slice is what would be decided by all that its node knows.

#[path = "../../policy/tests/support/random.rs"]
mod random;

use std::sync::Arc;

use countersign_agent::core::{Record, RecordKey, RecordKind, Replica};
use countersign_agent::enforcement::cut;
use countersign_api::resource::Kind;
use countersign_identity::Revision;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestCaseResult};
use random::{
    Known, NAMES, Stored, callers, id, policy, stored_labels, stored_policy, stored_role,
    stored_roles, stored_workload,
};

fn record((kind, name, value): Stored) -> Record {
    let kind = match kind {
        Kind::Policy => RecordKind::Policy,
        Kind::Service => RecordKind::Service,
        Kind::Workload => RecordKind::Workload,
        Kind::Role => RecordKind::Role,
        Kind::TrustDomain | Kind::Authority | Kind::TlsProfile => RecordKind::TrustDomain,
    };
    Record { key: RecordKey { kind, name: name.into() }, value: value.into() }
}

/// Holds what each point decides against the whole, where these call those.
fn held(policies: &[(String, &'static str)], upstreams: &[Option<&str>]) -> TestCaseResult {
    let domain = br#"{"trustDomain":"shop.example"}"#;
    let mut stored: Vec<Stored> = vec![(Kind::TrustDomain, "shop".to_owned(), domain.to_vec())];
    for (number, policy) in policies.iter().enumerate() {
        stored.push(stored_policy(&format!("p{number}"), policy));
    }
    stored.extend(stored_roles());
    for (name, upstream) in NAMES.iter().zip(upstreams) {
        stored.extend(stored_workload(name, "x", *upstream));
    }
    let whole = Known::of(stored.clone(), NAMES.map(id));
    let whole = whole.ok_or_else(|| TestCaseError::reject("it does not compile"))?;
    let replica =
        Replica::of(Revision { incarnation: 1, number: 1 }, stored.into_iter().map(record));
    prop_assert_eq!(replica.workloads().len(), NAMES.len());
    for name in NAMES {
        let own = Arc::clone(&replica.workloads()[&name.parse().expect("it is a name")]);
        let slice = cut(&replica, &[own]);
        let policies =
            slice.policies.into_iter().map(|it| (Kind::Policy, it.name, it.value.to_vec()));
        let services =
            slice.services.into_iter().map(|it| (Kind::Service, it.name, it.value.to_vec()));
        let roles = slice.roles.iter().map(|it| stored_role(&it.role, &it.members));
        let labels = slice.workloads.iter().map(|it| stored_labels(&it.name, "x", &it.labels));
        let services = services.chain(roles).chain(labels).collect::<Vec<_>>();
        let named = slice.workloads.iter().map(|it| it.spiffe_id.parse().expect("it is one"));
        let part = Known::of(policies.chain(services), named).expect("it compiles in part");
        for from in callers() {
            prop_assert_eq!(
                part.connect(&from, name),
                whole.connect(&from, name),
                "{} to {}",
                from,
                name
            );
            prop_assert_eq!(
                part.calls(&from, name),
                whole.calls(&from, name),
                "{} to {}",
                from,
                name
            );
            prop_assert_eq!(
                part.topics(&from, name),
                whole.topics(&from, name),
                "{} to {}",
                from,
                name
            );
        }
        for to in whole.called_by(name) {
            prop_assert_eq!(
                part.connect(&id(name), &to),
                whole.connect(&id(name), &to),
                "{} to {}",
                name,
                to
            );
        }
    }
    Ok(())
}

#[test]
fn a_point_is_told_of_the_roles_of_those_whom_its_policies_name_by_identity() {
    let text = r#"permit (principal == Workload::"a", action == Action::"connect", resource == Service::"b")
        when { Workload::"spiffe://shop.example/stranger" in Role::"guests" };"#;
    let policies = [(text.to_owned(), "enforce")];
    held(&policies, &[Some("b"), None, None, None, None]).expect("it decides as the whole");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_slice_of_a_point_decides_as_the_whole(
        policies in proptest::collection::vec(policy(), 1..8),
        upstreams in proptest::collection::vec(proptest::option::of(proptest::sample::select(&NAMES[..])), NAMES.len()),
    ) {
        held(&policies, &upstreams)?;
    }
}
