//! Policies are kept by the operation that their scopes name, and no decision changes by that: Cedar is asked about the whole
//! set beside them.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::str::FromStr;

use cedar_policy::{
    Authorizer, Context as CedarContext, Decision as CedarDecision, Entities, Entity, EntityId,
    EntityTypeName, EntityUid, PolicySet, Request, RestrictedExpression,
};
use countersign_identity::{CanonicalPath, Code, Name, Timestamp, Verb};
use countersign_policy::{
    CallRequest, Context, Operation, Operations, Policies, PolicySource, Principal, Verdict,
};
use proptest::prelude::*;

const CALLERS: [&str; 3] = ["web", "orders", "stranger"];
const OPERATIONS: [&str; 3] = ["charge", "see", "refund"];
const VERBS: [Verb; 2] = [Verb::Get, Verb::Post];
/// One that no operation stands for.
const NOWHERE: &str = "elsewhere";

fn principal() -> impl Strategy<Value = String> {
    let name = prop::sample::select(&CALLERS[..2]);
    prop_oneof![
        1 => Just("principal".to_owned()),
        3 => name.prop_map(|name| format!("principal == Workload::\"{name}\"")),
    ]
}

fn action() -> impl Strategy<Value = &'static str> {
    let actions = [
        "action",
        "action == Action::\"GET\"",
        "action in [Action::\"GET\", Action::\"POST\"]",
        "action == Action::\"POST\"",
    ];
    prop::sample::select(actions.to_vec())
}

fn resource() -> impl Strategy<Value = String> {
    let named = |text: &'static str| {
        prop::sample::select(&OPERATIONS[..])
            .prop_map(move |name| text.replace('?', &format!("Operation::\"payments/{name}\"")))
    };
    prop_oneof![
        1 => Just("resource".to_owned()),
        1 => Just("resource is Operation".to_owned()),
        1 => Just("resource in Service::\"payments\"".to_owned()),
        1 => Just("resource is Operation in Service::\"payments\"".to_owned()),
        1 => Just("resource == Service::\"payments\"".to_owned()),
        4 => named("resource == ?"),
        1 => named("resource in ?"),
        1 => named("resource is Operation in ?"),
    ]
}

fn condition() -> impl Strategy<Value = &'static str> {
    let conditions = [
        "",
        "",
        " when { context.tls_version == \"1.3\" }",
        // Errs from an age of 2 on.
        " unless { context.peer_age_seconds * 9223372036854775807 == 3 }",
    ];
    prop::sample::select(conditions.to_vec())
}

fn policy() -> impl Strategy<Value = String> {
    let effect = prop_oneof![3 => Just("@unscoped(\"test\") permit"), 1 => Just("forbid")];
    (effect, principal(), action(), resource(), condition()).prop_map(
        |(effect, principal, action, resource, condition)| {
            format!("{effect} ({principal}, {action}, {resource}){condition};")
        },
    )
}

fn operations() -> Operations {
    let of = |name: &&str| Operation {
        name: name.parse().unwrap(),
        verb: Verb::Get,
        template: format!("/{name}").parse().unwrap(),
    };
    Operations::new([("payments".parse().unwrap(), OPERATIONS.iter().map(of).collect())])
}

fn uid(kind: &str, name: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(EntityTypeName::from_str(kind).unwrap(), EntityId::new(name))
}

/// What Cedar says of the whole set; an error denies.
fn whole(set: &PolicySet, request: &CallRequest<'_>, operation: Option<&Name>) -> Verdict {
    let string = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let age = i64::try_from(request.context.peer_age_seconds).unwrap();
    let context = CedarContext::from_pairs([
        ("tls_version".to_owned(), string(&request.context.tls_version)),
        ("group".to_owned(), string(&request.context.group)),
        ("peer_age_seconds".to_owned(), RestrictedExpression::new_long(age)),
    ]);
    let service = uid("Service", request.service);
    let (resource, entities) = match operation {
        None => (service, Entities::empty()),
        Some(name) => {
            let resource = uid("Operation", &format!("{}/{name}", request.service));
            let entity = Entity::new_no_attrs(resource.clone(), [service].into());
            (resource, Entities::from_entities([entity], None).unwrap())
        }
    };
    let asked = Request::new(
        uid("Workload", request.principal.as_str()),
        uid("Action", request.verb.unwrap().as_str()),
        resource,
        context.unwrap(),
        None,
    );
    let response = Authorizer::new().is_authorized(&asked.unwrap(), set, &entities);
    if response.diagnostics().errors().next().is_some() {
        return Verdict::Deny(Code::PolicyError);
    }
    match response.decision() {
        CedarDecision::Allow => Verdict::Allow,
        CedarDecision::Deny => Verdict::Deny(Code::PolicyDenied),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn decisions_about_calls_are_those_of_the_whole_set(
        texts in prop::collection::vec(policy(), 1..12),
        age in 0_u64..4,
    ) {
        let text = texts.join("\n");
        let source = PolicySource::enforced("random".parse().unwrap(), text.clone());
        let Ok(policies) = Policies::compile(&[source], None) else { return Err(TestCaseError::reject("it does not compile")) };
        let policies = policies.with_operations(operations());
        let set = PolicySet::from_str(&text).unwrap();
        let context = Context { tls_version: "1.3".to_owned(), group: "X25519".to_owned(), peer_age_seconds: age, ..Context::default() };
        for caller in CALLERS {
            let principal = Principal::Named(caller.parse().unwrap());
            for (verb, name) in VERBS.iter().flat_map(|verb| OPERATIONS.iter().chain(&[NOWHERE]).map(move |it| (*verb, it))) {
                let path = CanonicalPath::of(&format!("/{name}")).unwrap();
                let request = CallRequest { principal: &principal, service: "payments", verb: Some(verb), path: &path, context: &context, now: Timestamp::EPOCH };
                let called = policies.decide_call(&request).unwrap();
                let operation = called.operation.map(|operation| operation.name);
                prop_assert_eq!(called.decision.verdict, whole(&set, &request, operation.as_ref()), "{} {:?} {}", caller, verb, name);
            }
        }
    }
}
