//! What is refused before it can decide anything, and what is said of it.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use countersign_identity::Timestamp;
use countersign_policy::{
    ConnectRequest, Context, Declared, Names, Policies, PolicySource, Principal, Problem, scope,
};

fn source(name: &str, text: &str) -> PolicySource {
    PolicySource::enforced(name.parse().unwrap(), text)
}

fn shop() -> Declared {
    let names = |names: [&str; 3]| names.iter().map(|name| name.parse().unwrap()).collect();
    Declared {
        workloads: names(["web", "orders", "payments"]),
        services: names(["web", "orders", "payments"]),
        roles: names(["readers", "buyers", "guests"]),
        operations: ["payments/charge".to_owned(), "payments/refund".to_owned()].into(),
        data_sets: ["cards".to_owned(), "menu".to_owned()].into(),
        topics: ["payments/charges-made".to_owned()].into(),
    }
}

const GOOD: &str = r#"permit (principal == Workload::"web", action == Action::"connect", resource == Service::"orders");"#;

#[track_caller]
fn problems(text: &str) -> Vec<Problem> {
    Policies::compile(&[source("p", text)], Some(&shop())).err().unwrap_or_default()
}

#[track_caller]
fn fine(text: &str) {
    assert_eq!(problems(text), [], "{text}");
}

/// Refused with exactly one problem at this place whose message holds these words.
#[track_caller]
fn refused(text: &str, line: usize, column: usize, words: &str) {
    let problems = problems(text);
    let [problem] = problems.as_slice() else { panic!("{text}: {problems:#?}") };
    assert_eq!((problem.line, problem.column), (line, column), "{problem}");
    assert!(problem.message.contains(words), "{problem}");
    assert_eq!(problem.policy.as_ref().unwrap().as_str(), "p");
}

fn when(condition: &str) -> String {
    GOOD.replace(';', &format!("\nwhen {{ {condition} }};"))
}

#[test]
fn roles_are_principals_by_declared_names_and_nothing_else() {
    fine(r#"permit (principal in Role::"readers", action, resource in Service::"orders");"#);
    fine(
        r#"permit (principal is Workload in Role::"readers", action, resource == Service::"orders");"#,
    );
    fine(&when(r#"principal in [Role::"readers", Role::"buyers"]"#));
    fine(&when(r#"principal.labels.contains("pci")"#));
    let permit = |principal: &str| GOOD.replace(r#"principal == Workload::"web""#, principal);
    refused(&permit(r#"principal in Role::"reader""#), 1, 22, "did you mean `readers`?");
    refused(&when(r#"principal in Role::"*""#), 2, 21, "declare it with a manifest of kind Role");
    // A role is no workload, and no service is in one.
    assert!(!problems(&permit(r#"principal == Role::"readers""#)).is_empty());
    assert!(!problems(&GOOD.replace(r#"Service::"orders""#, r#"Role::"readers""#)).is_empty());
    assert!(!problems(&when(r#"resource in Role::"readers""#)).is_empty());
    assert!(!problems(&when(r#"principal.label.contains("pci")"#)).is_empty());
    assert!(!problems(&when(r#"principal.labels == "pci""#)).is_empty());
}

#[test]
fn a_scope_tells_of_roles_and_labels_wherever_they_are_asked_for() {
    let of = |text: &str| scope(text).unwrap().remove(0);
    let scope =
        of(r#"permit (principal in Role::"readers", action, resource == Service::"orders");"#);
    assert_eq!(scope.principals, Names::Role("readers".to_owned()));
    assert_eq!(scope.roles, ["readers".to_owned()].into());
    assert!(!scope.labels);
    let scope = of(
        r#"forbid (principal, action, resource) unless { principal in Role::"buyers" || principal.labels.contains("pci") };"#,
    );
    assert_eq!(scope.principals, Names::Any);
    assert_eq!((scope.roles, scope.labels), (["buyers".to_owned()].into(), true));
}

#[test]
fn scoped_policies_compile() {
    fine(GOOD);
    fine(&when(r#"context.tls_version == "1.3" && context.peer_age_seconds < 3600"#));
    fine(&when(r#"context.group like "X25519*""#));
    fine(r"forbid (principal, action, resource);");
    fine(
        r#"@unscoped("health checks come from everywhere") permit (principal, action, resource == Service::"web");"#,
    );
    fine(
        r#"permit (principal is Workload in Workload::"web", action in [Action::"connect"], resource in Service::"orders");"#,
    );
}

#[test]
fn a_name_that_no_manifest_declares_is_an_error_wherever_it_stands() {
    refused(&GOOD.replace("web", "wbe"), 1, 22, "did you mean `web`?");
    refused(&GOOD.replace("orders", "billing"), 1, 80, "manifest of kind Service");
    refused(&when(r#"principal == Workload::"wab""#), 2, 21, "no manifest declares");
    refused(
        &when(r#"[Workload::"web", Workload::"x"].contains(principal)"#),
        2,
        26,
        "`Workload::\"x\"`",
    );
    refused(
        &when(r#"if resource == Service::"z" then true else false"#),
        2,
        23,
        "`Service::\"z\"`",
    );
    // A SPIFFE ID that some manifest gives to a workload would match nothing: its peers go by name.
    refused(&GOOD.replace("web", "spiffe://shop.example/web"), 1, 22, "no manifest declares");
}

#[test]
fn names_with_metacharacters_are_refused_also_where_no_names_are_declared() {
    for name in [
        "*",
        "web*",
        "we?b",
        "a/b",
        "..",
        "%2f",
        "a,b",
        "",
        " web",
        "WEB",
        "we\\\"b",
        "\\0",
        "spiffe://x/*",
        "SPIFFE://x/y",
        "spiffe://X/y",
        "spiffe://x/y/",
    ] {
        let text = GOOD.replace("web", name);
        let problems = Policies::compile(&[source("p", &text)], None).unwrap_err();
        let told = problems.iter().any(|problem| problem.message.contains("can match nothing"));
        assert!(told, "{name}: {problems:#?}");
        assert!(scope(&text).is_err());
    }
    let foreign = GOOD.replace("web", "spiffe://other.example/web");
    assert!(Policies::compile(&[source("p", &foreign)], None).is_ok());
    let service = GOOD.replace("orders", "spiffe://other.example/web");
    assert!(Policies::compile(&[source("p", &service)], None).is_err());
}

#[test]
fn an_unscoped_permit_needs_a_reason() {
    let any = "permit (principal, action, resource);";
    refused(any, 1, 1, "any workload to any service");
    refused(&format!("{GOOD}\n  {any}"), 2, 3, "`@unscoped(");
    refused(&format!("@unscoped(\" \") {any}"), 1, 1, "needs a reason");
    refused(&format!("@unscoped {any}"), 1, 1, "needs a reason");
    refused(
        r#"permit (principal is Workload, action, resource == Service::"web");"#,
        1,
        1,
        "permits any workload;",
    );
    refused(
        r#"permit (principal == Workload::"web", action, resource is Service);"#,
        1,
        1,
        "any service",
    );
    // A condition is no scope: it may be wrong in ways that a scope cannot.
    refused(
        r#"permit (principal, action, resource == Service::"web") when { principal == Workload::"web" };"#,
        1,
        1,
        "any workload",
    );
}

/// Whoever can have the address would be whom it permits, however good the reason for it sounds.
#[test]
fn no_permit_for_anybody_may_read_an_address() {
    let inside = r#"context has source && context.source.isInRange(ip("10.0.0.0/8"))"#;
    fine(&when(inside));
    fine(
        &GOOD
            .replace(r#"principal == Workload::"web""#, r#"principal in Role::"readers""#)
            .replace(';', &format!(" when {{ {inside} }};")),
    );
    fine(&format!(r#"forbid (principal, action, resource) unless {{ {inside} }};"#));
    for principal in ["principal", "principal is Workload"] {
        for condition in [
            format!("when {{ {inside} }}"),
            "when { context has source }".to_owned(),
            format!(r#"when {{ principal in Role::"readers" && {inside} }}"#),
            format!(r#"when {{ principal.labels.contains("pci") || ({inside}) }}"#),
            format!("unless {{ !({inside}) }}"),
        ] {
            let text = format!(
                r#"@unscoped("the network is ours") permit ({principal}, action, resource in Service::"orders") {condition};"#
            );
            refused(&text, 1, 1, "an address is no identity");
        }
    }
    refused(
        &format!("permit (principal, action, resource) when {{ {inside} }};"),
        1,
        1,
        "and let `context.source` narrow that",
    );
}

#[test]
fn what_is_not_known_of_every_caller_has_to_be_asked_for_first() {
    fine(&when(r#"context.time < datetime("2027-01-31T00:00:00Z")"#));
    fine(&when(r#"context.weekday <= 5 && context.time.toTime() >= duration("8h")"#));
    fine(&when(r#"context has attestation && context.attestation.contains("launch")"#));
    refused(&when(r#"context.attestation.contains("launch")"#), 2, 8, "attestation");
    refused(&when(r#"context.source.isLoopback()"#), 2, 8, "source");
    refused(&when(r#"context.time < "2027-01-31""#), 2, 23, "expected datetime");
    assert!(!problems(&when(r#"context.time < datetime("tomorrow")"#)).is_empty());
    let any =
        when("context.source.isLoopback()").replace(r#"action == Action::"connect""#, "action");
    let [problem] = &*problems(&any) else { panic!("{:#?}", problems(&any)) };
    for action in ["connect", "GET", "OPTIONS"] {
        let named = format!(r#"Action::"{action}""#);
        assert_eq!(problem.message.matches(&named).count(), 1, "{problem}");
    }
}

#[test]
fn unknown_types_actions_and_attributes_are_refused() {
    refused(&GOOD.replace("Workload", "User"), 1, 22, "User");
    refused(&GOOD.replace("connect", "write"), 1, 49, "write");
    refused(&when("context.peer_age > 5"), 2, 8, "peer_age");
    refused(&when(r#"context.group == 5"#), 2, 8, "");
    refused(&when("principal.owner"), 2, 8, "owner");
    refused(&when("context.peer_age_seconds"), 2, 8, "");
}

#[test]
fn a_policy_that_can_never_apply_is_a_mistake() {
    let swapped =
        r#"permit (principal == Service::"web", action, resource == Workload::"orders");"#;
    assert!(!problems(swapped).is_empty());
    refused(&when("false"), 1, 1, "");
}

#[test]
fn templates_are_refused() {
    let text = r#"permit (principal == ?principal, action, resource == Service::"web");"#;
    refused(&format!("{GOOD}\n{text}"), 2, 1, "template");
}

#[test]
fn every_problem_of_every_text_is_told_at_once() {
    let one = format!("permit (principal, action, resource);\n{}", GOOD.replace("web", "wbe"));
    let two = GOOD.replace("orders", "oders");
    let problems =
        Policies::compile(&[source("one", &one), source("two", &two)], Some(&shop())).unwrap_err();
    let places: Vec<_> = problems
        .iter()
        .map(|problem| (problem.policy.as_ref().unwrap().as_str(), problem.line))
        .collect();
    assert_eq!(places, [("one", 1), ("one", 2), ("two", 1)]);
}

#[test]
fn what_does_not_parse_is_told_with_its_place() {
    refused("", 1, 1, "no policy");
    refused("// nothing", 1, 1, "no policy");
    refused("permit (principal, action, resource)", 1, 37, "expected");
    refused("\npermt (principal, action, resource);", 2, 1, "permt");
    refused(&format!("{GOOD} \"open"), 1, 100, "closed properly");
}

/// Cedar ends a comment at a carriage return, too. Whoever reads on to the next newline sees fewer policies.
#[test]
fn a_policy_behind_a_comment_that_ends_in_a_carriage_return_is_in_force() {
    let forbid = r#"forbid (principal == Workload::"web", action, resource);"#;
    for end in ["\r", "\r\r", "\r\n", "\n"] {
        let text = format!("{GOOD} // and yet:{end}{forbid} // nothing{end}");
        assert_eq!(scope(&text).unwrap().len(), 2, "{end:?}");
        let policies = Policies::compile(&[source("p", &text)], Some(&shop())).unwrap();
        assert_eq!(policies.count(), 2, "{end:?}");
        let (principal, context) = (Principal::Named("web".parse().unwrap()), Context::default());
        let now = Timestamp::EPOCH;
        let request =
            ConnectRequest { principal: &principal, service: "orders", context: &context, now };
        assert!(!policies.decide(&request).is_allowed(), "{end:?}");
    }
    refused(&format!("// a comment\r{}", GOOD.replace("web", "wbe")), 1, 35, "did you mean `web`?");
}

#[test]
fn two_policies_of_one_name_are_refused() {
    let problems = Policies::compile(&[source("p", GOOD), source("p", GOOD)], None).unwrap_err();
    assert!(problems[0].message.contains("two policies named `p`"), "{}", problems[0]);
    refused(&format!("@id(\"a\") {GOOD} @id(\"a\") {GOOD}"), 1, 109, "two policies `p#a`");
    refused(&format!("@id(\"a b\") {GOOD}"), 1, 1, "is not a name");
}

/// Bounds hold before Cedar recurses: nothing here may overflow a small stack, as a worker thread's is.
#[test]
fn hostile_texts_end_in_problems_also_on_a_small_stack() {
    let nested = |open: &str, middle: &str, close: &str, times: usize| {
        when(&format!("{}{middle}{}", open.repeat(times), close.repeat(times)))
    };
    let texts = [
        nested("(", "true", ")", 20_000),
        nested("[", "", "]", 20_000),
        nested("{a:", "1", "}", 10_000),
        nested("if true then ", "true", " else true", 2_000),
        nested("if true then true else ", "true", "", 3_000),
        nested("true || ", "true", "", 7_000),
        nested("true && ", "true", "", 900),
        nested("1 + ", "1", " == 1", 300),
        nested("context", ".a", "", 900),
        nested("!", "true", "", 1_900),
        nested("-", "1", "", 1_900),
        nested("(", "true", ")", 22),
        "(".repeat(65_000),
        "\"".repeat(65_000),
        "permit".repeat(10_000),
        "@a".repeat(30_000),
        "x".repeat(65 * 1024),
        ";".repeat(60_000),
        "permit(principal,action,resource);".repeat(1_900),
    ];
    let work = move || {
        for text in &texts {
            let start: String = text.chars().take(150).collect();
            let Ok(policies) = Policies::compile(&[source("p", text)], None) else { continue };
            assert_eq!(policies.count(), 1, "{start}");
            let request = ConnectRequest {
                principal: &Principal::Named("web".parse().unwrap()),
                service: "orders",
                context: &Context { peer_age_seconds: 1, ..Context::default() },
                now: Timestamp::EPOCH,
            };
            // Deep ones may be more than this stack takes, which denies.
            policies.decide(&request);
        }
    };
    std::thread::Builder::new().stack_size(1 << 19).spawn(work).unwrap().join().unwrap();
}

#[test]
fn the_scope_tells_what_a_policy_can_apply_to_and_whom_it_names() {
    let text = format!(
        "{GOOD}\n@unscoped(\"x\") permit (principal, action, resource == Service::\"web\") \
         when {{ principal != Workload::\"payments\" }}; forbid (principal, action, resource);"
    );
    let scopes = scope(&text).unwrap();
    assert_eq!(scopes.len(), 3);
    assert_eq!(scopes[0].principals, Names::Only(vec!["web".to_owned()]));
    assert_eq!(scopes[0].resources, Names::Only(vec!["orders".to_owned()]));
    assert_eq!(scopes[1].principals, Names::Any);
    assert!(scopes[1].workloads.contains("payments") && scopes[1].services.contains("web"));
    assert_eq!(scopes[2].principals, Names::Any);
    let json = serde_json::to_value(&scopes).unwrap();
    assert_eq!(json[0]["principals"], serde_json::json!({"only": ["web"]}));
    assert_eq!(json[2]["resources"], "any");
    assert_eq!(serde_json::from_value::<Vec<countersign_policy::Scope>>(json).unwrap(), scopes);
}

#[test]
fn operations_must_be_declared_and_are_called_by_their_services() {
    let permit = |operation: &str| {
        format!(
            r#"permit (principal == Workload::"orders", action == Action::"POST", resource == Operation::"{operation}");"#
        )
    };
    fine(&permit("payments/charge"));
    refused(&permit("payments/chrage"), 1, 80, "did you mean `payments/charge`?");
    refused(&permit("payments/return-all"), 1, 80, "declare it in `operations`");
    let alone = |operation: &str| scope(&permit(operation));
    let scopes = alone("payments/charge").unwrap();
    assert_eq!(scopes[0].resources, Names::Only(vec!["payments".to_owned()]));
    assert_eq!(scopes[0].services, ["payments".to_owned()].into());
    assert!(Policies::compile(&[source("p", &permit("payments"))], None).is_err());
}

#[test]
fn nobody_connects_to_an_operation() {
    let text = r#"permit (principal == Workload::"web", action == Action::"connect", resource == Operation::"payments/charge");"#;
    assert!(!problems(text).is_empty());
}

#[test]
fn a_text_that_was_read_before_is_told_by_its_own_name_and_held_against_what_is_declared_now() {
    let text = r#"
        permit (principal == Workload::"web", action, resource == Service::"payments");
        @id("never") forbid (principal == Workload::"orders", action, resource == Service::"payments");"#;
    let source = |name: &str| PolicySource::enforced(name.parse().unwrap(), text);
    let ids = |sources: &[PolicySource]| -> Vec<String> {
        let policies = Policies::compile(sources, Some(&shop())).unwrap();
        policies.grants().iter().map(|grant| grant.policy.clone()).collect()
    };
    assert_eq!(ids(&[source("first")]), ["first#1"]);
    assert_eq!(ids(&[source("second"), source("third")]), ["second#1", "third#1"]);
    let mut fewer = shop();
    assert!(fewer.workloads.remove(&"orders".parse().unwrap()));
    let problems = Policies::compile(&[source("first")], Some(&fewer)).unwrap_err();
    assert!(problems[0].message.contains("`Workload::\"orders\"`"), "{problems:#?}");
    assert_eq!(problems[0].line, 3);
}

#[test]
fn data_sets_and_topics_are_resources_by_declared_names() {
    fine(r#"permit (principal in Role::"readers", action, resource in Dataset::"cards");"#);
    fine(
        r#"@unscoped("what touches cards") permit (principal in Role::"readers", action, resource) when { resource in Dataset::"cards" };"#,
    );
    fine(
        r#"permit (principal == Workload::"web", action == Action::"GET", resource in Dataset::"menu");"#,
    );
    fine(
        r#"permit (principal == Workload::"web", action == Action::"publish", resource == Topic::"payments/charges-made");"#,
    );
    fine(
        r#"permit (principal == Workload::"web", action in [Action::"publish", Action::"subscribe"], resource in Service::"payments");"#,
    );
    fine(
        r#"forbid (principal, action, resource) when { resource.classifications.contains("restricted") };"#,
    );
    fine(r#"forbid (principal, action == Action::"subscribe", resource in Dataset::"cards");"#);
    let permit = |rest: &str| format!(r#"permit (principal == Workload::"web", {rest});"#);
    refused(&permit(r#"action, resource in Dataset::"card""#), 1, 59, "did you mean `cards`?");
    refused(&permit(r#"action, resource in Dataset::"medical""#), 1, 59, "`dataSets` of a Service");
    let publish = permit(r#"action == Action::"publish", resource == Topic::"payments/refunds""#);
    refused(&publish, 1, 80, "declare it in `topics` of its Service");
    // Nobody asks for a data set itself, publishes to a service, or asks for a topic by a method of HTTP.
    for rest in [
        r#"action == Action::"GET", resource == Dataset::"cards""#,
        r#"action == Action::"publish", resource == Service::"payments""#,
        r#"action == Action::"GET", resource == Topic::"payments/charges-made""#,
    ] {
        assert!(!problems(&permit(rest)).is_empty(), "{rest}");
    }
    // Nobody is let in at a door by what data is behind it, but may be kept out by it.
    for rest in [
        r#"action == Action::"connect", resource in Dataset::"cards""#,
        r#"action, resource is Service in Dataset::"cards""#,
    ] {
        refused(&permit(rest), 1, 1, "it can never permit");
        fine(&format!(r#"forbid (principal == Workload::"web", {rest});"#));
    }
    let wide = r#"permit (principal == Workload::"web", action, resource) when { resource in Dataset::"cards" };"#;
    refused(wide, 1, 1, r#"or `in Dataset::"…"`"#);
    let scopes = scope(r#"forbid (principal, action, resource in Dataset::"cards") unless { resource.classifications.isEmpty() };"#).unwrap();
    assert_eq!(scopes[0].resources, Names::Dataset("cards".to_owned()));
    assert!(scopes[0].classifications && scopes[0].services.is_empty());
    assert_eq!(scopes[0].data_sets, ["cards".to_owned()].into());
    let scopes =
        scope(r#"forbid (principal, action, resource) when { resource in Dataset::"menu" };"#)
            .unwrap();
    assert_eq!((&scopes[0].resources, scopes[0].classifications), (&Names::Any, false));
    assert_eq!(scopes[0].data_sets, ["menu".to_owned()].into());
}

#[test]
fn what_is_known_only_of_what_is_asked_for_is_asked_of_nothing_else() {
    let forbid =
        |condition: &str| format!("forbid (principal, action, resource)\nwhen {{ {condition} }};");
    let words = "is known only while it is what is asked for";
    let of_payments = r#"Service::"payments""#;
    for condition in [
        r#"Operation::"payments/charge" in Dataset::"cards""#,
        r#"Operation::"payments/charge" in Service::"payments""#,
        r#"Operation::"payments/charge" is Operation in Dataset::"cards""#,
        r#"Service::"payments" in [Dataset::"cards", Dataset::"menu"]"#,
        r#"Service::"payments".classifications.contains("restricted")"#,
        r#"Service::"payments" ["classifications"].isEmpty()"#,
        r#"Service::"payments" has classifications"#,
        r#"Topic::"payments/charges-made" in Dataset::"cards""#,
    ] {
        refused(&forbid(condition), 2, 8, words);
        // Also in the place of `resource` on some of the ways, and beside a scope that names the very thing.
        refused(&forbid(&format!("!(1 < 2) || ({condition})")), 2, 21, words);
        refused(&forbid(condition).replace("when", "unless"), 2, 10, words);
    }
    let chosen = forbid(&format!(
        r#"(if context.group like "X*" then resource else {of_payments}) in Dataset::"cards""#
    ));
    let chosen = chosen.replace("action", r#"action == Action::"connect""#);
    refused(&chosen, 2, 55, words);
    // Also where records lead to it, which are written there.
    for (condition, column) in [
        (r#"{a: Service::"payments"}.a in Dataset::"cards""#, 12),
        (r#"{a: {b: Service::"payments"}}.a.b in Dataset::"cards""#, 16),
        (r#"{a: Service::"payments"} has a.classifications"#, 12),
        (
            r#"(if 1 < 2 then {a: Service::"payments"} else {a: resource}).a in Dataset::"cards""#,
            27,
        ),
    ] {
        let condition = condition.replace("resource", r#"Service::"payments""#);
        refused(&forbid(&condition), 2, column, words);
    }
    let scoped = format!(
        r#"forbid (principal, action, resource == {of_payments}) when {{ {of_payments} in Dataset::"cards" }};"#
    );
    refused(
        &scoped,
        1,
        68,
        r#"write `resource` in its place, and `resource == Service::"payments"`"#,
    );
    // What it is, its name tells; and of workloads more is known.
    for condition in [
        r#"resource == Service::"payments" && resource in Dataset::"cards""#,
        r#"resource in Service::"payments" || Operation::"payments/charge" == resource"#,
        r#"principal == Workload::"web" || Workload::"web" in Role::"readers""#,
        r#"Workload::"web".labels.contains("pci")"#,
        r#"{a: Service::"payments", b: Role::"readers"}.a == resource"#,
    ] {
        fine(&forbid(condition));
    }
}
