//! Drawn policies: what is decided of data is what Cedar says of the whole set in each case.

use std::collections::BTreeSet;
use std::str::FromStr;

use cedar_policy::{
    Authorizer, Context as CedarContext, Decision as CedarDecision, Entities, Entity, EntityId,
    EntityTypeName, EntityUid, PolicySet, Request, RestrictedExpression,
};
use countersign_identity::{CanonicalPath, Code, Mode, Verb};
use countersign_policy::{Policies, PolicySource, Verdict};
use proptest::prelude::*;

use crate::shop::{ASKS, Ask, DATA, HELD, OPERATIONS, TOPICS, ask, name, shop};

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
