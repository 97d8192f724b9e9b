//! Requests to a service with operations: what each policy reaches of them, remembered or not.

use countersign_identity::{CanonicalPath, Code, Mode, Verb};
use countersign_policy::{
    CallRequest, ConnectRequest, Decision, Operation, Operations, Policies, PolicySource, Verdict,
};

use crate::{NOW, allowed, ask, context, named};

/// The shop's `payments` with its operations, and these policies.
fn payments(policies: &[(Mode, &str)]) -> Policies {
    let operation = |name: &str, verb, path: &str| Operation {
        name: name.parse().unwrap(),
        verb,
        template: path.parse().unwrap(),
    };
    let operations = vec![
        operation("charge", Verb::Post, "/charges"),
        operation("mine", Verb::Get, "/charges/mine"),
        operation("see", Verb::Get, "/charges/{id}"),
    ];
    let source = |(number, (mode, text)): (usize, &(Mode, &str))| PolicySource {
        name: format!("p{number}").parse().unwrap(),
        text: (*text).to_owned(),
        mode: *mode,
        until: None,
    };
    let sources: Vec<_> = policies.iter().enumerate().map(source).collect();
    let operations = Operations::new([("payments".parse().unwrap(), operations)]);
    Policies::compile(&sources, None).unwrap().with_operations(operations)
}

#[track_caller]
fn call(policies: &Policies, verb: Option<Verb>, path: &str) -> Decision {
    let path = CanonicalPath::of(path).unwrap();
    let (principal, context) = (named("orders"), context());
    let (principal, context) = (&principal, &context);
    let (service, path, now) = ("payments", &path, NOW);
    let request = CallRequest { principal, service, verb, path, context, now };
    policies.decide_call(&request).unwrap().decision
}

#[test]
fn a_permit_for_one_operation_reaches_no_other_and_no_path_beside_it() {
    let see = r#"permit (principal == Workload::"orders", action == Action::"GET", resource == Operation::"payments/see");"#;
    let policies = payments(&[(Mode::Enforce, see)]);
    allowed(&call(&policies, Some(Verb::Get), "/charges/7"), &["p0"]);
    for (verb, path) in [
        (Some(Verb::Get), "/charges/mine"),
        (Some(Verb::Get), "/charges"),
        (Some(Verb::Get), "/charges/7/"),
        (Some(Verb::Get), "/charges/7/lines"),
        (Some(Verb::Head), "/charges/7"),
        (Some(Verb::Post), "/charges"),
        (None, "/charges/7"),
    ] {
        let decision = call(&policies, verb, path);
        assert!(!decision.is_allowed(), "{verb:?} {path}");
        assert_eq!(decision.policies, [""; 0]);
    }
    let request = ConnectRequest {
        principal: &named("orders"),
        service: "payments",
        context: &context(),
        now: NOW,
    };
    assert!(!policies.decide(&request).is_allowed(), "nor does it let connect");
}

#[test]
fn a_policy_for_the_whole_service_reaches_all_its_operations_and_undeclared_paths() {
    let all =
        r#"permit (principal == Workload::"orders", action, resource in Service::"payments");"#;
    let no = r#"forbid (principal, action == Action::"POST", resource in Service::"payments");"#;
    let policies = payments(&[(Mode::Enforce, all), (Mode::Enforce, no)]);
    allowed(&call(&policies, Some(Verb::Get), "/charges/7"), &["p0"]);
    allowed(&call(&policies, Some(Verb::Get), "/anything/else"), &["p0"]);
    assert_eq!(call(&policies, Some(Verb::Post), "/charges").policies, ["p1"]);
    assert!(!call(&policies, Some(Verb::Post), "/anything").is_allowed());
}

#[test]
fn an_observed_policy_lets_pass_within_its_scope_only() {
    let see = r#"permit (principal == Workload::"orders", action == Action::"GET", resource == Operation::"payments/see");"#;
    let other = r#"permit (principal == Workload::"web", action == Action::"GET", resource == Operation::"payments/see");"#;
    let policies = payments(&[(Mode::Observe, see)]);
    let decision = call(&policies, Some(Verb::Get), "/charges/7");
    assert_eq!((decision.verdict, decision.mode), (Verdict::Allow, Mode::Observe));
    let decision = call(&policies, Some(Verb::Post), "/charges");
    assert_eq!(
        (decision.verdict, decision.mode),
        (Verdict::Deny(Code::PolicyDenied), Mode::Observe)
    );
    assert!(decision.is_allowed());
    let policies = payments(&[(Mode::Observe, other)]);
    assert!(!call(&policies, Some(Verb::Get), "/charges/7").is_allowed(), "it speaks of another");
    let errs = r#"forbid (principal, action, resource) when { context.peer_age_seconds + 9223372036854775807 > 0 };"#;
    let policies = payments(&[(Mode::Enforce, errs), (Mode::Observe, see)]);
    let decision = call(&policies, Some(Verb::Get), "/charges/7");
    assert_eq!(
        (decision.verdict, decision.mode),
        (Verdict::Deny(Code::PolicyError), Mode::Enforce)
    );
}

#[test]
fn the_same_question_gets_the_same_answer_with_and_without_memory() {
    let all =
        r#"permit (principal == Workload::"orders", action, resource in Service::"payments");"#;
    let no = r#"forbid (principal, action == Action::"POST", resource == Operation::"payments/charge");"#;
    let seen = r#"permit (principal == Workload::"orders", action == Action::"GET", resource == Operation::"payments/see");"#;
    let texts = [(Mode::Enforce, all), (Mode::Enforce, no), (Mode::Observe, seen)];
    let (remembering, forgetful) = (payments(&texts), payments(&texts).forgetful());
    for _ in 0..2 {
        for verb in Verb::ALL.into_iter().map(Some).chain([None]) {
            for path in ["/charges", "/charges/7", "/charges/mine", "/other"] {
                let expected = call(&forgetful, verb, path);
                assert_eq!(call(&remembering, verb, path), expected, "{verb:?} {path}");
            }
        }
        assert_eq!(
            ask(&remembering, &named("orders"), "payments"),
            ask(&forgetful, &named("orders"), "payments"),
        );
    }
    let other = Operations::new([("payments".parse().unwrap(), Vec::new())]);
    let renewed = remembering.with_operations(other);
    allowed(&ask(&renewed, &named("orders"), "payments"), &["p0"]);
}
