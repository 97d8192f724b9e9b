//! Policies that speak of data sets and topics: what touches data is decided on by it, whichever way a policy says so, and what
//! nobody declares may touch any.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use cedar_policy::{
    Authorizer, Context as CedarContext, Decision as CedarDecision, Entities, Entity, EntityId,
    EntityTypeName, EntityUid, PolicySet, Request, RestrictedExpression,
};
use countersign_identity::{CanonicalPath, Code, Mode, Name, Timestamp, Verb};
use countersign_policy::{
    CallRequest, ConnectRequest, Context, Decision, Holdings, Inventory, Member, Members,
    Operation, Operations, Policies, PolicySource, Principal, TopicAct, TopicRequest, Verdict,
};
use proptest::prelude::*;

const NOW: Timestamp = Timestamp::from_secs(1_795_687_200);
/// How all data sets are classified.
const DATA: [(&str, &str); 4] =
    [("cards", "restricted"), ("menu", "public"), ("notes", "restricted"), ("plans", "internal")];
/// What `payments` does, and which data that touches.
const OPERATIONS: [(&str, Verb, &str, &[&str]); 4] = [
    ("charge", Verb::Post, "/charges", &["cards"]),
    ("see", Verb::Get, "/charges/{id}", &["menu"]),
    ("both", Verb::Get, "/both", &["cards", "menu"]),
    ("ping", Verb::Get, "/ping", &[]),
];
/// Its topics, likewise.
const TOPICS: [(&str, &[&str]); 2] = [("made", &["cards"]), ("alive", &[])];
/// What `payments` has.
const HELD: [&str; 3] = ["cards", "menu", "notes"];

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn names(texts: &[&str]) -> BTreeSet<Name> {
    texts.iter().map(|text| name(text)).collect()
}

fn classified(held: &[&str]) -> BTreeMap<Name, String> {
    let held = DATA.iter().filter(|(data, _)| held.contains(data));
    held.map(|(data, word)| (name(data), (*word).to_owned())).collect()
}

/// `payments` says what it does; `ledger`, which has cards, and `kiosk`, which has nothing, do not.
fn shop(policies: Policies) -> Policies {
    let operation = |(named, verb, path, _): &(&str, Verb, &str, &[&str])| Operation {
        name: name(named),
        verb: *verb,
        template: path.parse().unwrap(),
    };
    let operations = OPERATIONS.iter().map(operation).collect();
    let payments = Holdings {
        data_sets: classified(&HELD),
        operations: OPERATIONS.iter().map(|(it, _, _, data)| (name(it), names(data))).collect(),
        topics: TOPICS.iter().map(|(it, data)| (name(it), names(data))).collect(),
    };
    let ledger = Holdings { data_sets: classified(&["cards"]), ..Holdings::default() };
    let inventory = Inventory::new([(name("payments"), payments), (name("ledger"), ledger)]);
    let member = Member { roles: names(&["buyers"]), labels: names(&["pci"]) };
    policies
        .with_operations(Operations::new([(name("payments"), operations)]))
        .with_inventory(inventory)
        .with_members(Members::new([(Principal::Named(name("web")), member)]))
}

fn policies_of(texts: &[(Mode, &str)]) -> Policies {
    let source = |(number, (mode, text)): (usize, &(Mode, &str))| PolicySource {
        name: name(&format!("p{number}")),
        text: (*text).to_owned(),
        mode: *mode,
        until: None,
    };
    let sources: Vec<_> = texts.iter().enumerate().map(source).collect();
    shop(Policies::compile(&sources, None).unwrap())
}

fn enforced(texts: &[&str]) -> Policies {
    let all: Vec<_> = texts.iter().map(|text| (Mode::Enforce, *text)).collect();
    policies_of(&all)
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Connect(&'static str),
    Call(Verb, &'static str),
    Topic(TopicAct, &'static str),
}

const ASKS: [Ask; 12] = [
    Ask::Connect("payments"),
    Ask::Connect("ledger"),
    Ask::Connect("kiosk"),
    Ask::Call(Verb::Post, "/charges"),
    Ask::Call(Verb::Get, "/charges/7"),
    Ask::Call(Verb::Get, "/both"),
    Ask::Call(Verb::Get, "/ping"),
    Ask::Call(Verb::Post, "/charges/"),
    Ask::Call(Verb::Get, "/elsewhere"),
    Ask::Topic(TopicAct::Publish, "made"),
    Ask::Topic(TopicAct::Subscribe, "made"),
    Ask::Topic(TopicAct::Publish, "alive"),
];

fn ask(policies: &Policies, from: &str, what: Ask) -> Decision {
    let (principal, now) = (&Principal::Named(name(from)), NOW);
    let context = &Context {
        tls_version: "1.3".to_owned(),
        group: "X25519".to_owned(),
        peer_age_seconds: 60,
        ..Context::default()
    };
    match what {
        Ask::Connect(service) => {
            policies.decide(&ConnectRequest { principal, service, context, now })
        }
        Ask::Call(verb, path) => {
            let (service, verb, path) = ("payments", Some(verb), &CanonicalPath::of(path).unwrap());
            let request = CallRequest { principal, service, verb, path, context, now };
            policies.decide_call(&request).unwrap().decision
        }
        Ask::Topic(act, topic) => {
            let (service, topic) = ("payments", &name(topic));
            policies.decide_topic(&TopicRequest { principal, service, topic, act, context, now })
        }
    }
}

/// Holds what is let pass of all that can be asked for against these, however often and in which order it is asked for.
#[track_caller]
fn lets_pass(policies: &Policies, from: &str, expected: &[Ask]) {
    for what in ASKS.iter().chain(ASKS.iter().rev()) {
        let decision = ask(policies, from, *what);
        assert_eq!(decision.is_allowed(), expected.contains(what), "{what:?}: {decision:?}");
    }
}

const ALL: &str = r#"@unscoped("test") permit (principal == Workload::"web", action, resource);"#;

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
fn a_policy_that_only_observes_is_no_reason_to_let_pass_what_may_not_even_touch_the_data() {
    for observed in [
        r#"permit (principal == Workload::"web", action, resource in Dataset::"cards");"#,
        r#"forbid (principal == Workload::"web", action, resource in Dataset::"cards");"#,
    ] {
        let policies = policies_of(&[(Mode::Observe, observed)]);
        for what in [Ask::Call(Verb::Get, "/elsewhere"), Ask::Connect("ledger")] {
            assert!(!ask(&policies, "web", what).is_allowed(), "{observed}: {what:?}");
        }
        assert!(ask(&policies, "web", Ask::Call(Verb::Post, "/charges")).is_allowed());
    }
    let forbid = r#"forbid (principal == Workload::"web", action, resource in Dataset::"cards");"#;
    let policies = policies_of(&[(Mode::Enforce, ALL), (Mode::Observe, forbid)]);
    let told = ask(&policies, "web", Ask::Call(Verb::Get, "/elsewhere"));
    assert_eq!((told.verdict, told.mode), (Verdict::Deny(Code::PolicyDenied), Mode::Observe));
    assert_eq!(told.policies, ["p1"]);
}

#[test]
fn what_is_denied_by_policies_on_data_none_lets_pass_that_observes_other_data() {
    let enforced = r#"permit (principal == Workload::"web", action, resource in Service::"payments")
        unless { resource.classifications.contains("restricted") };"#;
    for effect in ["permit", "forbid"] {
        let observed = format!(
            r#"{effect} (principal == Workload::"web", action, resource in Dataset::"menu");"#
        );
        let policies = policies_of(&[(Mode::Enforce, enforced), (Mode::Observe, &observed)]);
        let asked = ask(&policies, "web", Ask::Call(Verb::Get, "/elsewhere"));
        assert!(!asked.is_allowed(), "{effect}: {asked:?}");
        let declared = ask(&policies, "web", Ask::Call(Verb::Get, "/ping"));
        assert!(declared.is_allowed(), "{effect}: {declared:?}");
    }
}

#[test]
fn what_passes_by_permits_of_which_one_observes_goes_on_passing_and_is_told_where_none_is_for_all_data()
 {
    let permits = [
        r#"permit (principal == Workload::"web", action, resource in Service::"payments") unless { resource in Dataset::"cards" };"#,
        r#"permit (principal == Workload::"web", action, resource in Service::"payments") when { resource in Dataset::"cards" };"#,
    ];
    let undeclared = Ask::Call(Verb::Get, "/elsewhere");
    let observe = [Mode::Observe, Mode::Enforce];
    for modes in observe.iter().flat_map(|one| observe.map(|other| [*one, other])) {
        let policies = policies_of(&[(modes[0], permits[0]), (modes[1], permits[1])]);
        let asked = ask(&policies, "web", undeclared);
        let observed = modes.contains(&Mode::Observe);
        assert_eq!(asked.is_allowed(), observed, "{modes:?}: {asked:?}");
        assert_eq!(asked.verdict, Verdict::Deny(Code::PolicyDenied), "{modes:?}");
        assert_eq!(asked.mode == Mode::Observe, observed, "{modes:?}");
    }
}

#[test]
fn an_exception_for_some_data_reaches_nothing_that_may_touch_other_data() {
    let undeclared = Ask::Call(Verb::Get, "/elsewhere");
    for forbid in [
        r#"forbid (principal, action, resource in Dataset::"cards") unless { resource in Dataset::"menu" };"#,
        r#"forbid (principal, action, resource) when { resource in Dataset::"cards" && !(resource in Dataset::"menu") };"#,
        r#"forbid (principal, action, resource) when { resource.classifications == ["restricted"] };"#,
        r#"forbid (principal, action, resource in Dataset::"cards") unless { resource.classifications.contains("public") };"#,
        r#"forbid (principal, action, resource) when { if resource in Dataset::"menu" then false else resource in Dataset::"notes" };"#,
    ] {
        let policies = enforced(&[ALL, forbid]);
        for _ in 0..2 {
            let asked = ask(&policies, "web", undeclared);
            assert_eq!(asked.verdict, Verdict::Deny(Code::PolicyDenied), "{forbid}");
            assert_eq!((asked.policies, asked.mode), (vec!["p1".to_owned()], Mode::Enforce));
            let told = ask(&policies, "web", Ask::Call(Verb::Get, "/ping"));
            assert!(told.is_allowed(), "{forbid}: {told:?}");
        }
        // One that only observes tells the same, and lets pass.
        let observed = policies_of(&[(Mode::Enforce, ALL), (Mode::Observe, forbid)]);
        let asked = ask(&observed, "web", undeclared);
        assert_eq!((asked.verdict, asked.mode), (Verdict::Deny(Code::PolicyDenied), Mode::Observe));
        assert_eq!(asked.policies, ["p1"], "{forbid}");
    }
    // Nor does a permit that is none in between permit.
    let permit = r#"permit (principal == Workload::"web", action, resource in Service::"payments")
        when { resource in Dataset::"cards" || !(resource in Dataset::"menu") };"#;
    assert!(!ask(&enforced(&[permit]), "web", undeclared).is_allowed());
    // Data that the service does not have is none that it could touch.
    let forbid = r#"forbid (principal, action, resource in Dataset::"cards") unless { resource in Dataset::"plans" };"#;
    let kept = r#"forbid (principal, action, resource in Dataset::"plans") unless { resource in Dataset::"menu" };"#;
    assert!(!ask(&enforced(&[ALL, forbid]), "web", undeclared).is_allowed());
    assert!(ask(&enforced(&[ALL, kept]), "web", undeclared).is_allowed());
}

#[test]
fn what_only_other_policies_permit_of_other_data_none_lets_pass_that_observes() {
    let permits = [
        r#"permit (principal == Workload::"web", action, resource in Service::"payments") unless { resource in Dataset::"cards" };"#,
        r#"permit (principal == Workload::"web", action, resource in Dataset::"cards");"#,
    ];
    let both = permits.map(|text| (Mode::Enforce, text));
    let undeclared = Ask::Call(Verb::Get, "/elsewhere");
    assert!(!ask(&policies_of(&both), "web", undeclared).is_allowed());
    for effect in ["permit", "forbid"] {
        let observed = format!(
            r#"{effect} (principal == Workload::"web", action, resource in Dataset::"cards");"#
        );
        let all = [both[0], both[1], (Mode::Observe, observed.as_str())];
        let asked = ask(&policies_of(&all), "web", undeclared);
        assert!(!asked.is_allowed(), "{effect}: {asked:?}");
    }
}

#[test]
fn a_policy_that_weighs_more_data_than_is_looked_through_denies_and_is_named() {
    let undeclared = Ask::Call(Verb::Get, "/elsewhere");
    let held = (0..6).map(|number| name(&format!("d{number}")));
    let data_sets: BTreeMap<Name, String> = held.map(|it| (it, "internal".to_owned())).collect();
    let holdings = Holdings { data_sets, ..Holdings::default() };
    let with = |texts: &[(Mode, &str)]| {
        let inventory = Inventory::new([(name("payments"), holdings.clone())]);
        policies_of(texts).with_inventory(inventory)
    };
    let exempt = |count: usize| {
        let data = |number| format!(r#"resource in Dataset::"d{number}""#);
        let others: Vec<String> = (1..count).map(data).collect();
        format!(
            r#"forbid (principal == Workload::"web", action, resource in Dataset::"d0") when {{ 1 < 0 }} unless {{ {} }};"#,
            others.join(" || ")
        )
    };
    let (few, many) = (exempt(5), exempt(6));
    assert!(
        ask(&with(&[(Mode::Enforce, ALL), (Mode::Enforce, &few)]), "web", undeclared).is_allowed()
    );
    let enforced = with(&[(Mode::Enforce, ALL), (Mode::Enforce, &many)]);
    let denied = ask(&enforced, "web", undeclared);
    assert_eq!((denied.verdict, denied.mode), (Verdict::Deny(Code::PolicyDenied), Mode::Enforce));
    assert_eq!(denied.policies, ["p1"]);
    assert!(ask(&enforced, "web", Ask::Connect("payments")).is_allowed());
    // Nor does one that only observes deny by that.
    let told = ask(&with(&[(Mode::Enforce, ALL), (Mode::Observe, &many)]), "web", undeclared);
    assert_eq!((told.verdict, told.mode), (Verdict::Deny(Code::PolicyDenied), Mode::Observe));
    assert_eq!(told.policies, ["p1"]);
    // However many data sets one names that makes no exception: it is looked at twice.
    let plain = many.replace("unless", "when");
    assert!(
        ask(&with(&[(Mode::Enforce, ALL), (Mode::Enforce, &plain)]), "web", undeclared)
            .is_allowed()
    );
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

fn principal() -> impl Strategy<Value = &'static str> {
    let principals = [
        "principal",
        "principal == Workload::\"web\"",
        "principal == Workload::\"web\"",
        "principal == Workload::\"orders\"",
    ];
    prop::sample::select(principals.to_vec())
}

fn resource() -> impl Strategy<Value = String> {
    let data = || prop::sample::select(&DATA[..]);
    let operation = prop::sample::select(&OPERATIONS[..]);
    prop_oneof![
        2 => Just("resource".to_owned()),
        1 => Just("resource in Service::\"payments\"".to_owned()),
        1 => Just("resource == Service::\"ledger\"".to_owned()),
        1 => Just("resource == Topic::\"payments/made\"".to_owned()),
        2 => operation.prop_map(|(it, ..)| format!("resource == Operation::\"payments/{it}\"")),
        4 => data().prop_map(|(it, _)| format!("resource in Dataset::\"{it}\"")),
        1 => data().prop_map(|(it, _)| format!("resource is Operation in Dataset::\"{it}\"")),
        1 => data().prop_map(|(it, _)| format!("resource is Topic in Dataset::\"{it}\"")),
    ]
}

/// Something that a condition can ask.
fn asked_of_data() -> impl Strategy<Value = String> {
    let data = || prop::sample::select(&DATA[..]);
    let one = prop_oneof![
        6 => data().prop_map(|(it, _)| format!("resource in Dataset::\"{it}\"")),
        4 => data().prop_map(|(_, it)| format!("resource.classifications.contains(\"{it}\")")),
        1 => Just("resource.classifications.isEmpty()".to_owned()),
        1 => Just("resource.classifications.containsAny([\"public\", \"internal\"])".to_owned()),
        1 => Just("resource.classifications == [\"restricted\"]".to_owned()),
        1 => Just("resource in [Dataset::\"cards\", Dataset::\"menu\"]".to_owned()),
        1 => Just("principal == Workload::\"web\"".to_owned()),
        // Errs.
        1 => Just("context.peer_age_seconds * 9223372036854775807 == 3".to_owned()),
    ];
    one.prop_recursive(2, 6, 3, |inner| {
        let (one, other, third) = (inner.clone(), inner.clone(), inner.clone());
        prop_oneof![
            (one.clone(), other.clone()).prop_map(|(a, b)| format!("({a}) && ({b})")),
            (one.clone(), other.clone()).prop_map(|(a, b)| format!("({a}) || ({b})")),
            inner.prop_map(|a| format!("!({a})")),
            (one, other, third).prop_map(|(a, b, c)| format!("if ({a}) then ({b}) else ({c})")),
        ]
    })
}

fn condition() -> impl Strategy<Value = String> {
    let word = prop_oneof![Just("when"), Just("unless")];
    let some = (word, asked_of_data()).prop_map(|(word, asked)| format!(" {word} {{ {asked} }}"));
    prop_oneof![3 => Just(String::new()), 3 => some]
}

fn policy() -> impl Strategy<Value = String> {
    let effect = prop_oneof![3 => Just("@unscoped(\"test\") permit"), 1 => Just("forbid")];
    (effect, principal(), resource(), condition()).prop_map(
        |(effect, principal, resource, condition)| {
            format!("{effect} ({principal}, action, {resource}){condition};")
        },
    )
}

fn uid(kind: &str, name: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(EntityTypeName::from_str(kind).unwrap(), EntityId::new(name))
}

/// What Cedar says of the whole set and of one thing that touches these data sets: an error, or what permits it.
fn of_cedar(
    set: &PolicySet,
    from: &str,
    what: Ask,
    touched: &[&str],
) -> Result<BTreeSet<String>, Code> {
    let string = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let payments = || uid("Service", "payments");
    let (action, resource, service) = match what {
        Ask::Connect(service) => ("connect", uid("Service", service), None),
        Ask::Topic(act, topic) => {
            (act.as_str(), uid("Topic", &format!("payments/{topic}")), Some(payments()))
        }
        Ask::Call(verb, path) => match operation(verb, path) {
            Some((it, ..)) => {
                (verb.as_str(), uid("Operation", &format!("payments/{it}")), Some(payments()))
            }
            None => (verb.as_str(), payments(), None),
        },
    };
    let data = touched.iter().map(|it| uid("Dataset", it));
    let words = DATA.iter().filter(|(it, _)| touched.contains(it)).map(|(_, word)| string(word));
    let attributes = [("classifications".to_owned(), RestrictedExpression::new_set(words))];
    let entity =
        Entity::new(resource.clone(), attributes.into(), data.chain(service).collect()).unwrap();
    let context = CedarContext::from_pairs([
        ("tls_version".to_owned(), string("1.3")),
        ("group".to_owned(), string("X25519")),
        ("peer_age_seconds".to_owned(), RestrictedExpression::new_long(60)),
    ]);
    let request = Request::new(
        uid("Workload", from),
        uid("Action", action),
        resource,
        context.unwrap(),
        None,
    );
    let entities = Entities::from_entities([entity], None).unwrap();
    let response = Authorizer::new().is_authorized(&request.unwrap(), set, &entities);
    if response.diagnostics().errors().next().is_some() {
        return Err(Code::PolicyError);
    }
    match response.decision() {
        CedarDecision::Allow => {
            Ok(response.diagnostics().reason().map(ToString::to_string).collect())
        }
        CedarDecision::Deny => Err(Code::PolicyDenied),
    }
}

fn operation(verb: Verb, path: &str) -> Option<(&'static str, &'static [&'static str])> {
    let path = CanonicalPath::of(path).unwrap();
    let is_it = |template: &str| {
        template.parse::<countersign_identity::PathTemplate>().unwrap().matches(&path)
    };
    let found = OPERATIONS.iter().find(|(_, of, template, _)| *of == verb && is_it(template));
    found.map(|(it, _, _, data)| (*it, *data))
}

/// Every choice of these.
fn choices<'a>(of: &[&'a str]) -> Vec<Vec<&'a str>> {
    let chosen = |choice: usize| {
        let is_in = |(place, _): &(usize, &&str)| choice >> place & 1 == 1;
        of.iter().enumerate().filter(is_in).map(|(_, it)| *it).collect()
    };
    (0..1 << of.len()).map(chosen).collect()
}

/// What it may touch.
fn cases(what: Ask) -> Vec<Vec<&'static str>> {
    match what {
        Ask::Connect("ledger") => choices(&["cards"]),
        Ask::Connect(_) => vec![Vec::new()],
        Ask::Call(verb, path) => match operation(verb, path) {
            Some((_, data)) => vec![data.to_vec()],
            None => choices(&HELD),
        },
        Ask::Topic(_, topic) => {
            vec![TOPICS.iter().find(|(it, _)| *it == topic).unwrap().1.to_vec()]
        }
    }
}

/// Whatever a thing may touch, it has to be permitted in each case, by one and the same policy.
fn expected(set: &PolicySet, from: &str, what: Ask) -> Verdict {
    let mut permits: Option<BTreeSet<String>> = None;
    let mut denied = None;
    for touched in cases(what) {
        match of_cedar(set, from, what, &touched) {
            Err(Code::PolicyError) => return Verdict::Deny(Code::PolicyError),
            Err(code) => denied = Some(Verdict::Deny(code)),
            Ok(found) => {
                permits = Some(match permits {
                    None => found,
                    Some(before) => before.intersection(&found).cloned().collect(),
                });
            }
        }
    }
    let by_none = permits.is_none_or(|permits| permits.is_empty());
    denied.unwrap_or(if by_none { Verdict::Deny(Code::PolicyDenied) } else { Verdict::Allow })
}

/// One that is there for nothing but some data.
fn policy_on_data() -> impl Strategy<Value = String> {
    let effect = prop_oneof![Just("permit"), Just("forbid")];
    let data = prop::sample::select(&DATA[..]);
    (effect, data, condition()).prop_map(|(effect, (data, _), condition)| {
        format!(
            r#"{effect} (principal == Workload::"web", action, resource in Dataset::"{data}"){condition};"#
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn no_policy_that_observes_data_lets_pass_what_may_not_touch_it(
        enforced in prop::collection::vec(policy(), 1..6),
        observed in prop::collection::vec(policy_on_data(), 1..4),
    ) {
        let source = |of: &str, texts: &[String], mode| {
            PolicySource { name: name(of), text: texts.join("\n"), mode, until: None }
        };
        let enforced = source("enforced", &enforced, Mode::Enforce);
        let observed = source("observed", &observed, Mode::Observe);
        let alone = Policies::compile(std::slice::from_ref(&enforced), None).map(shop);
        let both = Policies::compile(&[enforced, observed], None).map(shop);
        let (Ok(alone), Ok(both)) = (alone, both) else {
            return Err(TestCaseError::reject("they do not compile"));
        };
        for what in [Ask::Call(Verb::Get, "/elsewhere"), Ask::Connect("ledger")] {
            let (alone, both) = (ask(&alone, "web", what), ask(&both, "web", what));
            prop_assert_eq!(alone.is_allowed(), both.is_allowed(), "{:?}: {:?}, {:?}", what, alone, both);
        }
    }

    #[test]
    fn decisions_about_data_are_those_of_the_whole_set_in_each_case(texts in prop::collection::vec(policy(), 1..10)) {
        let text = texts.join("\n");
        let source = PolicySource::enforced(name("random"), text.clone());
        let Ok(policies) = Policies::compile(&[source], None) else { return Err(TestCaseError::reject("it does not compile")) };
        let policies = shop(policies);
        let set = PolicySet::from_str(&text).unwrap();
        for from in ["web", "orders", "stranger"] {
            for what in ASKS {
                let expected = expected(&set, from, what);
                // The second time it may be remembered.
                for _ in 0..2 {
                    prop_assert_eq!(ask(&policies, from, what).verdict, expected, "{} {:?}", from, what);
                }
            }
        }
    }
}
