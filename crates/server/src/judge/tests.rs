//! What policies come to, asked by an operator.

use countersign_api::resource::{Kind, Tree};
use serde_json::json;

use super::*;

fn resource(kind: &str, name: &str, spec: &serde_json::Value) -> Resource {
    let manifest = json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    });
    Resource::read(&Tree::from_value(&manifest)).unwrap()
}

const NOW: Timestamp = Timestamp::from_secs(1_000_000);

/// The shop, without a policy.
fn shop() -> Vec<Resource> {
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
            "dataSets": [{"name": "cards", "classification": "restricted"}],
            "topics": [{"name": "charges-made", "dataSets": ["cards"]}],
            "operations": [
                {"name": "charge", "method": "POST", "path": "/charges", "dataSets": ["cards"]},
                {"name": "charge-of", "method": "GET", "path": "/charges/{id}"},
            ],
        }),
    ));
    resources
}

/// The shop, with these policies, each with its mode.
fn judge(policies: &[(&str, &str, &str)]) -> Judge {
    let mut resources = shop();
    for (name, mode, cedar) in policies {
        resources.push(resource("Policy", name, &json!({"mode": mode, "cedar": cedar})));
    }
    Judge::of(&resources, &"shop.example".parse().unwrap(), NOW).unwrap()
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
        ..ExplainRequest::default()
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

#[test]
fn what_has_ended_permits_nothing_and_what_will_end_is_said_with_its_reason_and_its_limits() {
    let slow = format!("@rate(\"5/m\") @concurrent(\"2\") {CHARGE}");
    let judge = |until: &str| {
        let mut resources = shop();
        let spec = json!({"cedar": CONNECT});
        resources.push(resource("Policy", "connect", &spec));
        let spec = json!({"cedar": slow, "until": until, "reason": "the spring sale"});
        resources.push(resource("Policy", "sale", &spec));
        Judge::of(&resources, &"shop.example".parse().unwrap(), NOW).unwrap()
    };
    let request = ExplainRequest {
        from: "orders".to_owned(),
        to: "payments".to_owned(),
        method: Some("POST".to_owned()),
        path: Some("/charges".to_owned()),
        ..ExplainRequest::default()
    };
    let answer = judge("2027-01-31T00:00:00Z").explain(&request).unwrap();
    assert_eq!(answer.decision, Answer::Allow);
    let note =
        "`sale`: until 2027-01-31T00:00:00Z, the spring sale, at most 5 in 60s, at most 2 at once";
    assert!(answer.why.ends_with(note), "{}", answer.why);
    let answer = judge("1970-01-02T00:00:00Z").explain(&request).unwrap();
    assert_eq!((answer.decision, answer.policies), (Answer::Deny, Vec::new()));
}

#[test]
fn what_policies_read_of_the_context_is_assumed_in_words_and_nothing_else_is_told() {
    let hours = CONNECT.replace(
        ';',
        r#" when { context.time.toTime() >= duration("8h") && context.time.toTime() < duration("18h")
            && context has source && context.source.isInRange(ip("10.0.0.0/8"))
            && context has attestation && context.attestation.contains("launch") };"#,
    );
    let plain = CONNECT.replace("orders", "web");
    let judge = judge(&[("hours", "enforce", &hours), ("web", "enforce", &plain)]);
    let asked = |time: Option<&str>, address: Option<&str>| {
        let request = ExplainRequest {
            from: "orders".to_owned(),
            to: "payments".to_owned(),
            time: time.map(|text| text.parse().unwrap()),
            address: address.map(|text| text.parse().unwrap()),
            ..ExplainRequest::default()
        };
        judge.explain(&request).unwrap()
    };
    let answer = asked(Some("2026-11-26T10:00:00Z"), Some("10.0.0.7"));
    assert_eq!(answer.decision, Answer::Allow);
    let told = [
        "it is decided at 2026-11-26T10:00:00Z",
        "the caller comes from 10.0.0.7",
        "the caller's certificate says `launch`",
    ];
    assert_eq!(answer.assumed, told);
    assert_eq!(asked(Some("2026-11-26T18:00:00Z"), Some("10.0.0.7")).decision, Answer::Deny);
    let answer = asked(Some("2026-11-26T10:00:00Z"), None);
    assert_eq!(answer.decision, Answer::Deny);
    assert_eq!(answer.assumed[1], "it is not known from where the caller comes");
    // NOW, when nothing is said.
    assert_eq!(asked(None, None).assumed[0], "it is decided at 1970-01-12T13:46:40Z");
    assert_eq!(ask(&judge, "web", "payments", None).unwrap().assumed, [""; 0]);
    let stranger = ask(&judge, "spiffe://other.example/x", "payments", None).unwrap();
    assert_eq!(stranger.assumed, [""; 0], "no policy could bear on it");
}

#[test]
fn whom_a_tls_profile_takes_comes_before_policy() {
    let any = r#"@unscoped("a test") permit (principal, action, resource == Service::"orders");"#;
    let judge = |domains: serde_json::Value| {
        let mut resources = shop();
        resources.retain(|one| (one.kind(), one.name.as_str()) != (Kind::Service, "orders"));
        let orders = json!({"workload": "orders", "tlsProfile": "own"});
        resources.push(resource("Service", "orders", &orders));
        resources.push(resource("TlsProfile", "own", &domains));
        resources.push(resource("Policy", "any", &json!({"cedar": any})));
        Judge::of(&resources, &"shop.example".parse().unwrap(), NOW).unwrap()
    };
    let asked = |judge: &Judge, from: &str| ask(judge, from, "orders", None).unwrap();
    let stranger = "spiffe://press.example/x";
    let open = judge(json!({}));
    assert_eq!(asked(&open, stranger).decision, Answer::Allow);
    let own = judge(json!({"trustDomains": ["shop.example"]}));
    assert_eq!(asked(&own, "web").decision, Answer::Allow);
    let answer = asked(&own, stranger);
    assert_eq!((answer.decision, answer.mode), (Answer::Deny, Mode::Enforce));
    assert!(answer.why.contains("the TLS profile of `orders` takes no identities"), "{answer:?}");
    assert!(answer.remedy.unwrap().contains("`trustDomains`"));
    let theirs = judge(json!({"trustDomains": ["press.example"]}));
    assert_eq!(asked(&theirs, "web").decision, Answer::Deny);
}

#[test]
fn topics_and_data_sets_are_explained_as_they_are_decided() {
    let cards =
        r#"permit (principal == Workload::"orders", action, resource in Dataset::"cards");"#;
    let both = [("connect", "enforce", CONNECT), ("cards", "enforce", cards)];
    let judge = judge(&both);
    let made = Some(("publish", "charges-made"));
    let answer =
        told(&judge, ("orders", "payments", made), (Answer::Allow, Mode::Enforce, &["cards"]));
    assert!(
        answer.why.contains("may publish topic `charges-made` of `payments`"),
        "{}",
        answer.why
    );
    told(
        &judge,
        ("orders", "payments", Some(("POST", "/charges"))),
        (Answer::Allow, Mode::Enforce, &["cards"]),
    );
    told(
        &judge,
        ("orders", "payments", Some(("GET", "/charges/7"))),
        (Answer::Deny, Mode::Enforce, &[]),
    );
    let answer = told(&judge, ("web", "payments", made), (Answer::Deny, Mode::Enforce, &[]));
    let remedy = answer.remedy.unwrap();
    assert!(remedy.contains(r#"resource == Topic::"payments/charges-made""#), "{remedy}");
    assert!(remedy.contains(r#"action == Action::"connect""#), "{remedy}");
    for (asked, words) in [
        (Some(("publish", "charges-mad")), "did you mean `charges-made`?"),
        (Some(("subscribe", "nothing-like-it")), "no manifest declares a topic of it"),
    ] {
        let why = ask(&judge, "orders", "payments", asked).unwrap_err().to_string();
        assert!(why.contains(words), "{why}");
    }
    let forbid = r#"forbid (principal, action, resource in Dataset::"cards");"#;
    let all =
        r#"permit (principal == Workload::"orders", action, resource in Service::"payments");"#;
    let forbidden = self::judge(&[("all", "enforce", all), ("no-cards", "enforce", forbid)]);
    for (asked, answer) in [
        (None, (Answer::Allow, Mode::Enforce, &["all"][..])),
        (Some(("GET", "/charges/7")), (Answer::Allow, Mode::Enforce, &["all"])),
        (Some(("POST", "/charges")), (Answer::Deny, Mode::Enforce, &["no-cards"])),
        (Some(("POST", "/charges/")), (Answer::Deny, Mode::Enforce, &["no-cards"])),
        (made, (Answer::Deny, Mode::Enforce, &["no-cards"])),
    ] {
        told(&forbidden, ("orders", "payments", asked), answer);
    }
    let unused = judge.grants_beside(&BTreeSet::new());
    let cards = unused.iter().find(|grant| grant.policy == "cards").unwrap();
    assert_eq!(cards.services, ["payments"]);
}
