//! What is decided, by which policy, and what fails closed.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use countersign_identity::{Attested, CanonicalPath, Code, Mode, SelectorKind, Timestamp, Verb};
use countersign_policy::{
    CallRequest, ConnectRequest, Context, Decision, Member, Members, Operation, Operations,
    Policies, PolicySource, Principal, Verdict,
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

/// What is remembered is told apart by all that the policies can read, and not at all where they read time.
#[test]
fn what_was_decided_before_is_not_decided_for_another_handshake() {
    let only = |condition: &str| PERMIT.replace(");", &format!(") when {{ {condition} }};"));
    let verdicts = |condition: &str, contexts: &[Context]| {
        let policies = compile(&[("shop", &only(condition))]);
        let web = named("web");
        let ask = |context| {
            let (principal, service, now) = (&web, "orders", NOW);
            policies.decide(&ConnectRequest { principal, service, context, now })
        };
        contexts.iter().map(|context| ask(context).is_allowed()).collect::<Vec<_>>()
    };
    let (fine, weak) = (context(), Context { group: "secp256r1".to_owned(), ..context() });
    let contexts = [fine.clone(), weak.clone(), fine.clone(), weak];
    assert_eq!(verdicts("context.group like \"*MLKEM*\"", &contexts), [true, false, true, false]);
    let older = Context { peer_age_seconds: 61, ..fine.clone() };
    let contexts = [fine.clone(), older, fine];
    assert_eq!(verdicts("context.peer_age_seconds <= 60", &contexts), [true, false, true]);
}

/// The permit of [`PERMIT`], under this condition.
fn only_when(condition: &str) -> String {
    PERMIT.replace(");", &format!(") when {{ {condition} }};"))
}

#[test]
fn what_reads_the_time_is_decided_at_each_moment_anew() {
    let hours = r#"context.weekday <= 5 && context.time.toTime() >= duration("8h") && context.time.toTime() < duration("18h")"#;
    let policies = compile(&[("shop", &only_when(hours))]);
    assert!(policies.reads().time);
    let web = named("web");
    let open = |text: &str| {
        let (service, context, now) = ("orders", &context(), text.parse().unwrap());
        policies.decide(&ConnectRequest { principal: &web, service, context, now }).is_allowed()
    };
    for (at, expected) in [
        ("2026-11-26T17:59:59.999999Z", true),
        ("2026-11-26T18:00:00Z", false),
        ("2026-11-27T07:59:59Z", false),
        ("2026-11-27T08:00:00Z", true),
        ("2026-11-28T12:00:00Z", false),
        ("2026-11-29T12:00:00Z", false),
        ("2026-11-30T12:00:00Z", true),
        ("2026-11-26T17:59:59Z", true),
    ] {
        assert_eq!(open(at), expected, "{at}");
    }
    let ends = only_when(r#"context.time < datetime("2026-11-26T12:00:00Z")"#);
    let policies = compile(&[("shop", &ends)]);
    let at = |now| {
        let (service, context) = ("orders", &context());
        policies.decide(&ConnectRequest { principal: &web, service, context, now }).is_allowed()
    };
    assert!(at(NOW) && !at(NOW + Duration::from_secs(7200)) && at(NOW));
    assert!(!compile(&[("shop", PERMIT)]).reads().time);
}

#[test]
fn a_source_narrows_what_somebody_may_and_is_denied_where_it_is_not_known() {
    let condition = r#"context has source && context.source.isInRange(ip("10.0.0.0/8"))"#;
    let policies = compile(&[("shop", &only_when(condition))]);
    let from = |principal: &str, source: Option<&str>| {
        let source = source.map(|text| text.parse().unwrap());
        let (principal, service) = (&named(principal), "orders");
        let context = &Context { source, ..context() };
        policies.decide(&ConnectRequest { principal, service, context, now: NOW }).is_allowed()
    };
    // Twice, so that what is remembered of one address is not said of another.
    for _ in 0..2 {
        assert!(from("web", Some("10.1.2.3")) && from("web", Some("::ffff:10.1.2.3")));
        assert!(!from("web", Some("192.0.2.7")) && !from("web", None));
        assert!(!from("web", Some("::1")));
        assert!(!from("orders", Some("10.1.2.3")), "it is nobody's identity");
    }
}

#[test]
fn kinds_of_attestation_narrow_and_are_absent_where_nobody_says_them() {
    let condition = r#"context has attestation && context.attestation.contains("launch")"#;
    let policies = compile(&[("shop", &only_when(condition))]);
    let by = |kinds: &[SelectorKind]| {
        let attested = kinds.iter().fold(Attested::default(), |all, kind| all.and(*kind));
        let (web, context) = (named("web"), Context { attested, ..context() });
        let request =
            ConnectRequest { principal: &web, service: "orders", context: &context, now: NOW };
        policies.decide(&request).is_allowed()
    };
    for _ in 0..2 {
        assert!(by(&[SelectorKind::Launch]) && by(&[SelectorKind::UnixUid, SelectorKind::Launch]));
        assert!(!by(&[SelectorKind::UnixUid]) && !by(&[]));
    }
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
