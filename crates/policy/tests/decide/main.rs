//! What is decided, by which policy, and what fails closed.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod circumstance;
mod operations;

use std::time::{Duration, Instant};

use countersign_identity::{Code, Timestamp};
use countersign_policy::{
    ConnectRequest, Context, Decision, Member, Members, Policies, PolicySource, Principal, Verdict,
};

fn source(name: &str, text: &str) -> PolicySource {
    PolicySource::enforced(name.parse().unwrap(), text)
}

fn compile(texts: &[(&str, &str)]) -> Policies {
    let sources: Vec<_> = texts.iter().map(|(name, text)| source(name, text)).collect();
    Policies::compile(&sources, None).unwrap()
}

fn context() -> Context {
    Context {
        tls_version: "1.3".to_owned(),
        group: "X25519MLKEM768".to_owned(),
        peer_age_seconds: 60,
        ..Context::default()
    }
}

/// 2026-11-26, a Thursday, 10 in the morning.
const NOW: Timestamp = Timestamp::from_secs(1_795_687_200);

fn named(name: &str) -> Principal {
    Principal::Named(name.parse().unwrap())
}

fn id(text: &str) -> Principal {
    Principal::Id(text.parse().unwrap())
}

fn ask(policies: &Policies, principal: &Principal, service: &str) -> Decision {
    policies.decide(&ConnectRequest { principal, service, context: &context(), now: NOW })
}

#[track_caller]
fn allowed(decision: &Decision, by: &[&str]) {
    assert_eq!(decision.verdict, Verdict::Allow);
    assert_eq!(decision.policies, by);
}

#[track_caller]
fn denied(decision: &Decision, code: Code, by: &[&str]) {
    assert_eq!(decision.verdict, Verdict::Deny(code));
    assert_eq!(decision.policies, by);
}

const PERMIT: &str = r#"permit (principal == Workload::"web", action == Action::"connect", resource == Service::"orders");"#;

#[test]
fn without_a_policy_everything_is_denied() {
    denied(&ask(&Policies::none(), &named("web"), "orders"), Code::PolicyDenied, &[]);
    denied(&ask(&compile(&[]), &named("web"), "orders"), Code::PolicyDenied, &[]);
}

#[test]
fn only_what_a_policy_names_is_allowed() {
    let policies = compile(&[("shop", PERMIT)]);
    allowed(&ask(&policies, &named("web"), "orders"), &["shop"]);
    denied(&ask(&policies, &named("orders"), "orders"), Code::PolicyDenied, &[]);
    denied(&ask(&policies, &named("web"), "payments"), Code::PolicyDenied, &[]);
    for service in
        ["", "order", "orders2", "ORDERS", "*", "orders\"", "orders\0", "Service::\"orders\""]
    {
        denied(&ask(&policies, &named("web"), service), Code::PolicyDenied, &[]);
    }
}

fn member(roles: &[&str], labels: &[&str]) -> Member {
    let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
    Member { roles: names(roles), labels: names(labels) }
}

#[test]
fn who_is_in_a_role_is_let_in_by_it_and_nobody_else() {
    let in_readers = PERMIT.replace(r#"== Workload::"web""#, r#"in Role::"readers""#);
    let of = |members: Vec<(Principal, Member)>| {
        compile(&[("shop", &in_readers)]).with_members(Members::new(members))
    };
    denied(&ask(&of(Vec::new()), &named("web"), "orders"), Code::PolicyDenied, &[]);
    let foreign = "spiffe://other.example/web";
    let policies = of(vec![
        (named("web"), member(&["readers"], &[])),
        (named("cron"), member(&["writers"], &["readers"])),
        (id(foreign), member(&["readers"], &[])),
    ]);
    allowed(&ask(&policies, &named("web"), "orders"), &["shop"]);
    allowed(&ask(&policies, &id(foreign), "orders"), &["shop"]);
    for other in [named("cron"), named("readers"), id("spiffe://shop.example/web")] {
        denied(&ask(&policies, &other, "orders"), Code::PolicyDenied, &[]);
    }
    denied(&ask(&policies, &named("web"), "payments"), Code::PolicyDenied, &[]);
    // What was decided so far is not remembered where other people are in it.
    let policies = policies.with_members(Members::default());
    denied(&ask(&policies, &named("web"), "orders"), Code::PolicyDenied, &[]);
}

#[test]
fn roles_and_labels_keep_out_as_well_as_they_let_in() {
    let texts = [
        (
            "shop",
            r#"@unscoped("a test") permit (principal, action, resource == Service::"orders");"#,
        ),
        ("banned", r#"forbid (principal in Role::"banned", action, resource);"#),
        (
            "pci",
            r#"forbid (principal, action, resource) unless { principal.labels.contains("pci") };"#,
        ),
        (
            "while",
            r#"forbid (principal, action, resource) when { Workload::"off" in Role::"banned" };"#,
        ),
    ];
    let people = |off: &[&str]| {
        Members::new([
            (named("web"), member(&[], &["pci"])),
            (named("cron"), member(&["banned"], &["pci"])),
            (named("off"), member(off, &[])),
        ])
    };
    let policies = compile(&texts).with_members(people(&[]));
    allowed(&ask(&policies, &named("web"), "orders"), &["shop"]);
    denied(&ask(&policies, &named("cron"), "orders"), Code::PolicyDenied, &["banned"]);
    denied(&ask(&policies, &named("other"), "orders"), Code::PolicyDenied, &["pci"]);
    let policies = compile(&texts).with_members(people(&["banned"]));
    denied(&ask(&policies, &named("web"), "orders"), Code::PolicyDenied, &["while"]);
}

#[test]
fn a_spiffe_id_is_not_the_name_that_it_ends_in() {
    let policies = compile(&[("shop", PERMIT)]);
    for peer in ["spiffe://shop.example/web", "spiffe://web", "spiffe://web/web"] {
        denied(&ask(&policies, &id(peer), "orders"), Code::PolicyDenied, &[]);
    }
    let by_id = compile(&[("shop", &PERMIT.replace("web", "spiffe://shop.example/web"))]);
    allowed(&ask(&by_id, &id("spiffe://shop.example/web"), "orders"), &["shop"]);
    denied(&ask(&by_id, &id("spiffe://shop.example/web/x"), "orders"), Code::PolicyDenied, &[]);
    denied(&ask(&by_id, &id("spiffe://shop.example2/web"), "orders"), Code::PolicyDenied, &[]);
    denied(&ask(&by_id, &named("web"), "orders"), Code::PolicyDenied, &[]);
}

#[test]
fn decisions_name_the_policies_that_they_rest_on() {
    let two = format!("{PERMIT} @id(\"second\") {PERMIT}");
    let policies = compile(&[("a", &two), ("b", PERMIT)]);
    allowed(&ask(&policies, &named("web"), "orders"), &["a#1", "a#second", "b"]);
}

#[test]
fn a_forbid_wins_from_every_bucket() {
    for forbid in [
        "forbid (principal, action, resource);",
        r#"forbid (principal == Workload::"web", action, resource);"#,
        r#"forbid (principal, action, resource == Service::"orders");"#,
        r#"forbid (principal == Workload::"web", action, resource == Service::"orders");"#,
        r#"forbid (principal, action, resource) when { principal == Workload::"web" };"#,
        r#"forbid (principal, action, resource) unless { context.tls_version == "1.4" };"#,
    ] {
        let policies = compile(&[("permit", PERMIT), ("forbid", forbid)]);
        denied(&ask(&policies, &named("web"), "orders"), Code::PolicyDenied, &["forbid"]);
    }
}

/// Cedar skips a policy whose evaluation fails, so a failing forbid would allow.
#[test]
fn a_policy_that_cannot_be_evaluated_denies() {
    let overflow = "when { context.peer_age_seconds * 9223372036854775807 > 5 };";
    for scope in [
        "forbid (principal, action, resource)",
        r#"forbid (principal, action, resource == Service::"orders")"#,
        r#"@unscoped("x") permit (principal, action, resource)"#,
    ] {
        let policies = compile(&[("permit", PERMIT), ("broken", &format!("{scope} {overflow}"))]);
        denied(&ask(&policies, &named("web"), "orders"), Code::PolicyError, &["broken"]);
    }
    // One that does not bear on the question does not matter.
    let other = format!(r#"forbid (principal, action, resource == Service::"other") {overflow}"#);
    let policies = compile(&[("permit", PERMIT), ("broken", &other)]);
    allowed(&ask(&policies, &named("web"), "orders"), &["permit"]);
}

#[test]
fn an_age_that_no_policy_could_read_denies() {
    let policies = compile(&[("permit", PERMIT)]);
    let old = Context { peer_age_seconds: u64::MAX, ..context() };
    let request =
        ConnectRequest { principal: &named("web"), service: "orders", context: &old, now: NOW };
    denied(&policies.decide(&request), Code::PolicyError, &[]);
    allowed(&ask(&policies, &named("web"), "orders"), &["permit"]);
    denied(&policies.decide(&request), Code::PolicyError, &[]);
}

#[test]
fn conditions_read_the_handshake() {
    let text = PERMIT.replace(
        ';',
        r#" when { context.group == "X25519MLKEM768" && context.peer_age_seconds <= 60 };"#,
    );
    let policies = compile(&[("p", &text)]);
    let web = named("web");
    let ask = |context: &Context| {
        policies
            .decide(&ConnectRequest { principal: &web, service: "orders", context, now: NOW })
            .is_allowed()
    };
    assert!(ask(&context()));
    assert!(!ask(&Context { peer_age_seconds: 61, ..context() }));
    assert!(!ask(&Context { group: "X25519".to_owned(), ..context() }));
    assert!(!ask(&Context { group: "X25519MLKEM768\" || true || \"".to_owned(), ..context() }));
}

#[test]
fn an_allow_list_takes_exactly_its_ids() {
    let policies = Policies::allow_ids(vec!["spiffe://shop.example/web".parse().unwrap()]);
    allowed(&ask(&policies, &id("spiffe://shop.example/web"), "anything"), &["allow-list"]);
    for peer in [
        "spiffe://shop.example/web2",
        "spiffe://shop.example",
        "spiffe://shop.example/we",
        "spiffe://other.example/web",
    ] {
        denied(&ask(&policies, &id(peer), "anything"), Code::PolicyDenied, &[]);
    }
    denied(&ask(&policies, &named("web"), "anything"), Code::PolicyDenied, &[]);
    denied(
        &ask(&Policies::allow_ids(Vec::new()), &id("spiffe://shop.example/web"), "x"),
        Code::PolicyDenied,
        &[],
    );
}

/// Who dials names whom it means; the list is about those who come.
#[test]
fn only_an_allow_list_leaves_dialling_to_the_dialler() {
    let context = context();
    let request =
        |principal| ConnectRequest { principal, service: "orders", context: &context, now: NOW };
    let web = id("spiffe://shop.example/web");
    let list = Policies::allow_ids(Vec::new());
    allowed(&list.decide_outbound(&request(&web)), &["allow-list"]);
    denied(&list.decide(&request(&web)), Code::PolicyDenied, &[]);
    denied(&Policies::none().decide_outbound(&request(&web)), Code::PolicyDenied, &[]);
    let policies = compile(&[("shop", PERMIT)]);
    let (web, orders) = (named("web"), named("orders"));
    allowed(&policies.decide_outbound(&request(&web)), &["shop"]);
    denied(&policies.decide_outbound(&request(&orders)), Code::PolicyDenied, &[]);
}

#[test]
fn names_of_every_other_alphabet_deny() {
    let policies = compile(&[("shop", PERMIT)]);
    for service in ["оrders", "orders\u{200b}", "ｏrders", "orders\u{301}"] {
        denied(&ask(&policies, &named("web"), service), Code::PolicyDenied, &[]);
    }
}

/// The bound of the design holds with room even without optimisation.
#[test]
fn thousands_of_policies_for_others_cost_a_decision_nothing() {
    let sources: Vec<_> = (0..3_000)
        .map(|n| {
            source(
                &format!("p{n}"),
                &PERMIT
                    .replace("web", &format!("w{n}"))
                    .replace("orders", &format!("s{}", n % 100)),
            )
        })
        .collect();
    let policies = Policies::compile(&sources, None).unwrap().forgetful();
    assert_eq!(policies.count(), 3_000);
    let peer = named("w1242");
    // The median: this process is not alone on its machine.
    let mut spans: Vec<Duration> = (0..200)
        .map(|_| {
            let begin = Instant::now();
            allowed(&ask(&policies, &peer, "s42"), &["p1242"]);
            begin.elapsed()
        })
        .collect();
    spans.sort_unstable();
    assert!(spans[100] < Duration::from_micros(1500), "{:?}", spans[100]);
}

#[test]
fn a_policy_is_as_if_it_were_not_there_from_its_end_on() {
    let at = Timestamp::from_secs;
    let until = |name: &str, text: &str, until| PolicySource {
        until,
        ..PolicySource::enforced(name.parse().unwrap(), text)
    };
    let forbid = r#"forbid (principal == Workload::"web", action, resource);"#;
    let sources = [
        until("guest", &PERMIT.replace("\"web", "\"guest"), Some(at(20))),
        until("web", PERMIT, None),
        until("closed", forbid, Some(at(10))),
    ];
    let policies = Policies::compile(&sources, None).unwrap();
    let (web, guest) = (named("web"), named("guest"));
    assert_eq!(policies.ends(), Some(at(10)));
    assert!(!policies.lapse(Timestamp::from_micros(9_999_999)));
    denied(&ask(&policies, &web, "orders"), Code::PolicyDenied, &["closed"]);
    allowed(&ask(&policies, &guest, "orders"), &["guest"]);
    assert!(policies.lapse(at(10)) && !policies.lapse(at(10)));
    allowed(&ask(&policies, &web, "orders"), &["web"]);
    assert_eq!(policies.ends(), Some(at(20)));
    assert!(policies.lapse(at(20)));
    denied(&ask(&policies, &guest, "orders"), Code::PolicyDenied, &[]);
    allowed(&ask(&policies, &web, "orders"), &["web"]);
    assert_eq!(policies.ends(), None);
    assert!(
        !policies.lapse(at(1)),
        "what has ended does not come back with a clock that is set back"
    );
    denied(&ask(&policies, &guest, "orders"), Code::PolicyDenied, &[]);
}

#[test]
fn limits_are_told_by_the_name_under_which_decisions_tell_of_the_policy() {
    let text =
        format!("@id(\"slow\") @rate(\"5/m\") {} {PERMIT}", PERMIT.replace("connect", "GET"));
    let policies = compile(&[("p", &text)]);
    let rate = policies.limit("p#slow").and_then(|limit| limit.rate).unwrap();
    assert_eq!((rate.count, rate.span), (5, Duration::from_secs(60)));
    assert_eq!(policies.limit("p#2"), None);
}
