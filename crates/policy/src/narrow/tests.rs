//! What is left of a text, and what it says then.

use super::*;
use crate::{Declared, Member, Policies, PolicySource};

fn used(of: &[(&str, &str, &str, &str, Option<&str>)]) -> BTreeMap<String, BTreeSet<Use>> {
    let mut all: BTreeMap<String, BTreeSet<Use>> = BTreeMap::new();
    for (policy, principal, service, action, operation) in of {
        let principal = principal
            .parse()
            .map_or_else(|_| Principal::Id(principal.parse().unwrap()), Principal::Named);
        all.entry((*policy).to_owned()).or_default().insert(Use {
            principal,
            service: service.parse().unwrap(),
            verb: action.parse().ok(),
            operation: operation.map(|name| name.parse().unwrap()),
        });
    }
    all
}

#[track_caller]
fn narrowed(text: &str, of: &[(&str, &str, &str, &str, Option<&str>)]) -> Narrowed {
    let name = "p".parse().unwrap();
    let about = |_: &[String], _: &[String]| true;
    let of_topics = |actions: &[String], _: &[String]| actions.is_empty() && text == ANYTHING;
    let (used, members) = (&used(of), &buyers());
    let grounds = Grounds { used, members, about: &about, of_topics: &of_topics };
    let narrowed = narrow(&name, text, &grounds).unwrap();
    if let Some(text) = &narrowed.text {
        let source = PolicySource::enforced("p".parse().unwrap(), text.clone());
        Policies::compile(&[source], None::<&Declared>).unwrap();
    }
    narrowed
}

/// `web` and `orders` are buyers, and somebody from elsewhere; `nobody` has no members.
fn buyers() -> Members {
    let member = || Member { roles: ["buyers".parse().unwrap()].into(), ..Member::default() };
    let named = ["web", "orders"].map(|name| Principal::Named(name.parse().unwrap()));
    let guest = Principal::Id("spiffe://other.example/x".parse().unwrap());
    Members::new(named.into_iter().chain([guest]).map(|one| (one, member())))
}

const BUYERS: &str = r#"permit (principal in Role::"buyers", action == Action::"GET", resource == Operation::"payments/see");"#;

#[test]
fn a_role_of_which_some_did_not_use_a_grant_makes_room_for_those_who_did() {
    let see = |who| ("p", who, "payments", "GET", Some("see"));
    let some = [see("web"), see("spiffe://other.example/x"), see("cron")];
    let result = narrowed(BUYERS, &some);
    let [permit] = result.permits.as_slice() else { panic!("{result:?}") };
    assert_eq!(permit.role.as_deref(), Some("buyers"));
    assert_eq!(permit.principals, ["orders", "spiffe://other.example/x", "web"]);
    assert_eq!(permit.outcome, Outcome::Narrower);
    assert_eq!(permit.used.len(), 2, "cron is in it no more");
    let text = result.text.unwrap();
    assert!(!text.contains("Role::") && !text.contains("orders\""), "{text}");
    for who in ["web", "spiffe://other.example/x"] {
        assert!(text.contains(&format!("principal == Workload::\"{who}\"")), "{text}");
    }
    assert_eq!(narrowed(BUYERS, &[]).permits[0].outcome, Outcome::Unused);
    assert_eq!(narrowed(BUYERS, &[see("cron")]).permits[0].outcome, Outcome::Unused);
}

#[test]
fn a_role_of_which_everybody_used_a_grant_stays_and_what_nobody_did_goes() {
    let all = |action: &'static str, operation| {
        ["web", "orders", "spiffe://other.example/x"]
            .map(|who| ("p", who, "payments", action, operation))
    };
    let result = narrowed(BUYERS, &all("GET", Some("see")));
    assert_eq!(result.permits[0].outcome, Outcome::Exact);
    let wide = r#"permit (principal in Role::"buyers", action, resource in Service::"payments");"#;
    let mut used = all("connect", None).to_vec();
    used.push(("p", "web", "payments", "GET", Some("see")));
    let result = narrowed(wide, &used);
    assert_eq!(result.permits[0].outcome, Outcome::Narrower);
    let text = result.text.unwrap();
    assert_eq!(text.matches("principal in Role::\"buyers\"").count(), 2, "{text}");
    assert!(!text.contains("Workload::"), "{text}");
    let empty = BUYERS.replace("buyers", "nobody");
    let result = narrowed(&empty, &all("GET", Some("see")));
    assert_eq!((&result.permits[0].outcome, result.text), (&Outcome::Unused, None));
}

const ANYTHING: &str =
    r#"permit (principal == Workload::"web", action, resource in Service::"broker");"#;

#[test]
fn what_may_be_done_with_topics_stays_and_is_told_of() {
    let publish = r#"@id("tell") permit (principal == Workload::"web", action == Action::"publish", resource in Service::"broker");
permit (principal == Workload::"web", action, resource == Topic::"broker/paid");
permit (principal == Workload::"web", action == Action::"connect", resource == Service::"broker");
"#;
    let result = narrowed(publish, &[]);
    assert_eq!(result.uncounted, ["p#tell", "p#2"]);
    assert_eq!(result.permits.len(), 1);
    assert_eq!(result.text.unwrap().matches("permit").count(), 2);
    let result = narrowed(ANYTHING, &[("p", "web", "broker", "connect", None)]);
    assert_eq!((result.uncounted, result.permits), (vec!["p".to_owned()], Vec::new()));
    assert_eq!(result.text.unwrap().trim(), ANYTHING);
}

#[test]
fn a_permit_on_a_data_set_becomes_what_was_used_of_it() {
    let text = r#"permit (principal in Role::"buyers", action, resource in Dataset::"cards");"#;
    let result = narrowed(text, &[("p", "web", "payments", "POST", Some("charge"))]);
    assert_eq!(result.permits[0].resources, [r#"Dataset::"cards""#]);
    assert_eq!(result.permits[0].outcome, Outcome::Narrower);
    let one = r#"permit (principal == Workload::"web", action == Action::"POST", resource == Operation::"payments/charge");"#;
    assert_eq!(result.text.unwrap().trim(), one);
}

const WIDE: &str = r#"// Who asks payments.
@id("all")
@rate("5/s")
permit (principal, action, resource in Service::"payments")
  when { context.tls_version == "1.3" }; // all
@id("never") forbid (principal == Workload::"web", action, resource);
"#;

fn wide() -> String {
    WIDE.replace("@id(\"all\")", "@id(\"all\")\n@unscoped(\"adoption\")")
}

#[test]
fn wide_permit_becomes_one_for_each_who_used_it_with_its_conditions() {
    let text = wide().replace("@rate(\"5/s\")\n", "");
    let result = narrowed(
        &text,
        &[
            ("p#all", "orders", "payments", "connect", None),
            ("p#all", "orders", "payments", "POST", Some("charge")),
            ("p#all", "spiffe://other.example/x", "payments", "GET", None),
            ("p#all", "orders", "ledger", "connect", None),
        ],
    );
    let text = result.text.unwrap();
    let when = "\n  when { context.tls_version == \"1.3\" };";
    for line in [
        "permit (principal == Workload::\"orders\", action == Action::\"connect\", resource == Service::\"payments\")",
        "permit (principal == Workload::\"orders\", action == Action::\"POST\", resource == Operation::\"payments/charge\")",
        "permit (principal == Workload::\"spiffe://other.example/x\", action == Action::\"GET\", resource == Service::\"payments\")",
    ] {
        assert!(text.contains(&format!("{line}{when}")), "{line}\n{text}");
    }
    assert_eq!(text.matches("permit").count(), 3, "{text}");
    assert!(text.starts_with("// Who asks payments.\n@id(\"all\")\n"), "{text}");
    assert!(text.contains("@id(\"all-2\")") && text.contains("@id(\"all-3\")"), "{text}");
    assert!(!text.contains("unscoped"), "a narrow scope needs no excuse: {text}");
    assert!(text.contains("@id(\"never\") forbid"), "what forbids stays: {text}");
    assert_eq!(result.permits[0].used.len(), 3, "another service is not what it admits");
    assert_eq!(result.permits[0].outcome, Outcome::Narrower);
}

#[test]
fn what_nobody_used_goes_and_what_is_exact_stays_as_it_is_written() {
    let text = r#"
@id("a") permit (principal == Workload::"web", action == Action::"connect", resource == Service::"orders");
@id("b")
permit (principal == Workload::"web", action in [Action::"GET", Action::"POST"], resource == Operation::"orders/make");
"#;
    let both =
        [("p#a", "web", "orders", "connect", None), ("p#b", "web", "orders", "GET", Some("make"))];
    let result = narrowed(text, &both[..1]);
    assert_eq!(result.permits[1].outcome, Outcome::Unused);
    assert_eq!(result.permits[0].outcome, Outcome::Exact);
    assert_eq!(result.text.unwrap().trim(), text.lines().nth(1).unwrap());
    let result = narrowed(text, &both);
    assert_eq!(result.permits[1].outcome, Outcome::Narrower, "only one of its actions");
    assert!(!result.text.unwrap().contains("POST"));
    assert_eq!(narrowed(text, &[]).text, None, "nothing is left of it");
}

#[test]
fn what_many_use_stays_wide() {
    let text = "@unscoped(\"all\") permit (principal, action == Action::\"connect\", resource == Service::\"orders\");";
    let names: Vec<String> = (0..17).map(|number| format!("w{number}")).collect();
    let of: Vec<_> =
        names.iter().map(|name| ("p", name.as_str(), "orders", "connect", None)).collect();
    assert_eq!(narrowed(text, &of).permits[0].outcome, Outcome::Wide);
    assert_eq!(narrowed(text, &of[..16]).permits[0].outcome, Outcome::Narrower);
}

#[test]
fn names_in_annotations_and_comments_cannot_write_policies() {
    let text = "@unscoped(\"x\") @note(\"\\\") permit (principal\") permit (principal, action, resource == Service::\"a\");";
    let result = narrowed(text, &[("p", "web", "a", "connect", None)]);
    assert_eq!(result.text.unwrap().matches("principal ==").count(), 1);
}
