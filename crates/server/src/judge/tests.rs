//! What policies come to, asked by an operator.

use countersign_api::resource::Tree;
use serde_json::json;

use super::*;

fn resource(kind: &str, name: &str, spec: &serde_json::Value) -> Resource {
    let manifest = json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    });
    Resource::read(&Tree::from_value(&manifest)).unwrap()
}

/// The shop, with these policies, each with its mode.
fn judge(policies: &[(&str, &str, &str)]) -> Judge {
    let mut resources = Vec::new();
    for name in ["web", "orders", "payments"] {
        resources.push(resource(
            "Workload",
            name,
            &json!({"selectors": [format!("launch:{name}")]}),
        ));
    }
    for name in ["web", "orders"] {
        resources.push(resource(
            "Service",
            name,
            &json!({"workload": name, "listen": "127.0.0.1:0", "forward": "unix"}),
        ));
    }
    resources.push(resource(
        "Service",
        "payments",
        &json!({
            "workload": "payments", "listen": "127.0.0.1:0", "forward": "unix",
            "operations": [
                {"name": "charge", "method": "POST", "path": "/charges"},
                {"name": "charge-of", "method": "GET", "path": "/charges/{id}"},
            ],
        }),
    ));
    for (name, mode, cedar) in policies {
        resources.push(resource("Policy", name, &json!({"mode": mode, "cedar": cedar})));
    }
    Judge::of(&resources, &"shop.example".parse().unwrap()).unwrap()
}

const CONNECT: &str = r#"permit (principal == Workload::"orders", action == Action::"connect", resource == Service::"payments");"#;
const CHARGE: &str = r#"permit (principal == Workload::"orders", action == Action::"POST", resource == Operation::"payments/charge");"#;

fn ask(
    judge: &Judge,
    from: &str,
    to: &str,
    call: Option<(&str, &str)>,
) -> Result<ExplainResponse, Unclear> {
    judge.explain(&ExplainRequest {
        from: from.to_owned(),
        to: to.to_owned(),
        method: call.map(|(method, _)| method.to_owned()),
        path: call.map(|(_, path)| path.to_owned()),
    })
}

#[track_caller]
fn told(
    judge: &Judge,
    question: (&str, &str, Option<(&str, &str)>),
    expected: (Answer, Mode, &[&str]),
) -> ExplainResponse {
    let answer = ask(judge, question.0, question.1, question.2).unwrap();
    let policies: Vec<&str> = answer.policies.iter().map(String::as_str).collect();
    assert_eq!((answer.decision, answer.mode, policies.as_slice()), expected, "{}", answer.why);
    answer
}

#[test]
fn requests_are_allowed_by_operation_and_denied_for_want_of_a_policy() {
    let judge = judge(&[("may-connect", "enforce", CONNECT), ("may-charge", "enforce", CHARGE)]);
    let enforce = Mode::Enforce;
    told(
        &judge,
        ("orders", "payments", Some(("POST", "/charges"))),
        (Answer::Allow, enforce, &["may-charge"]),
    );
    told(
        &judge,
        ("orders", "payments", Some(("POST", "/%63harges?a=//b"))),
        (Answer::Allow, enforce, &["may-charge"]),
    );
    told(
        &judge,
        ("spiffe://shop.example/orders", "payments", None),
        (Answer::Allow, enforce, &["may-connect"]),
    );
    let denied = told(
        &judge,
        ("orders", "payments", Some(("GET", "/charges/7"))),
        (Answer::Deny, enforce, &[]),
    );
    assert!(denied.remedy.unwrap().contains(r#"Operation::"payments/charge-of""#));
    let denied =
        told(&judge, ("web", "payments", Some(("POST", "/refunds"))), (Answer::Deny, enforce, &[]));
    let remedy = denied.remedy.unwrap();
    assert!(
        remedy.contains(r#"Action::"connect""#) && remedy.contains("declares `POST /refunds`"),
        "{remedy}"
    );
    told(&judge, ("orders", "payments", Some(("BREW", "/charges"))), (Answer::Deny, enforce, &[]));
    told(&judge, ("spiffe://else.example/x", "payments", None), (Answer::Deny, enforce, &[]));
}

#[test]
fn an_observed_policy_lets_pass_what_its_scope_admits_and_says_so() {
    let judge = judge(&[("connect", "enforce", CONNECT), ("charge", "observe", CHARGE)]);
    told(
        &judge,
        ("orders", "payments", Some(("POST", "/charges"))),
        (Answer::Allow, Mode::Observe, &["charge"]),
    );
    told(
        &judge,
        ("orders", "payments", Some(("POST", "/refunds"))),
        (Answer::Deny, Mode::Observe, &[]),
    );
    told(
        &judge,
        ("web", "payments", Some(("POST", "/charges"))),
        (Answer::Deny, Mode::Enforce, &[]),
    );
}

#[test]
fn an_enforced_forbid_wins_over_everything_observed() {
    let forbid =
        r#"forbid (principal, action == Action::"POST", resource in Service::"payments");"#;
    let judge = judge(&[
        ("c", "enforce", CONNECT),
        ("no", "enforce", forbid),
        ("charge", "observe", CHARGE),
    ]);
    told(
        &judge,
        ("orders", "payments", Some(("POST", "/charges"))),
        (Answer::Deny, Mode::Enforce, &["no"]),
    );
}

#[test]
fn what_is_not_declared_is_told_with_the_nearest_names() {
    let judge = judge(&[]);
    let error = ask(&judge, "wbe1", "payments", None).unwrap_err().to_string();
    assert!(error.contains("`orders`") || error.contains("did you mean `web`"), "{error}");
    let error = ask(&judge, "web", "payment", None).unwrap_err().to_string();
    assert!(error.contains("did you mean `payments`"), "{error}");
    let error = ask(&judge, "web", "payments", Some(("GET", "/a/../b"))).unwrap_err().to_string();
    assert!(error.contains("before any policy is asked"), "{error}");
}
