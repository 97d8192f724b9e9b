//! The index and the memory change no decision: Cedar is asked about the whole set beside them.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::net::IpAddr;
use std::str::FromStr;

use cedar_policy::{
    Authorizer, Context as CedarContext, Decision as CedarDecision, Entities, EntityId,
    EntityTypeName, EntityUid, PolicySet, Request, RestrictedExpression,
};
use countersign_identity::{Attested, Code, SelectorKind, Timestamp};
use countersign_policy::{ConnectRequest, Context, Policies, PolicySource, Principal, Verdict};
use proptest::prelude::*;

const NAMES: [&str; 4] = ["web", "orders", "payments", "spiffe://other.example/web"];
const SERVICES: [&str; 3] = ["web", "orders", "payments"];

fn scope_of(
    variable: &'static str,
    kind: &'static str,
    names: &'static [&'static str],
) -> impl Strategy<Value = String> {
    let name = prop::sample::select(names);
    prop_oneof![
        2 => Just(variable.to_owned()),
        1 => Just(format!("{variable} is {kind}")),
        4 => name.clone().prop_map(move |name| format!("{variable} == {kind}::\"{name}\"")),
        1 => name.clone().prop_map(move |name| format!("{variable} in {kind}::\"{name}\"")),
        1 => name.prop_map(move |name| format!("{variable} is {kind} in {kind}::\"{name}\"")),
    ]
}

fn action() -> impl Strategy<Value = &'static str> {
    prop::sample::select(
        &["action", "action == Action::\"connect\"", "action in [Action::\"connect\"]"][..],
    )
}

fn condition() -> impl Strategy<Value = String> {
    let term = prop_oneof![
        prop::sample::select(&NAMES[..])
            .prop_map(|name| format!("principal == Workload::\"{name}\"")),
        prop::sample::select(&SERVICES[..])
            .prop_map(|name| format!("resource != Service::\"{name}\"")),
        (0_i64..100).prop_map(|age| format!("context.peer_age_seconds < {age}")),
        // Errs from an age of 2 on.
        Just("context.peer_age_seconds * 9223372036854775807 != 3".to_owned()),
        prop::sample::select(&["1.2", "1.3"][..])
            .prop_map(|text| format!("context.tls_version == \"{text}\"")),
        prop::sample::select(&["X*", "*768", "secp*"][..])
            .prop_map(|text| format!("context.group like \"{text}\"")),
        prop::sample::select(&TIMES[..])
            .prop_map(|text| format!("context.time < datetime(\"{text}\")")),
        (0_u32..24).prop_map(|hour| format!("context.time.toTime() < duration(\"{hour}h\")")),
        (1_u32..8).prop_map(|day| format!("context.weekday < {day}")),
        prop::sample::select(&["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"][..]).prop_map(|net| {
            format!("context has source && context.source.isInRange(ip(\"{net}\"))")
        }),
        prop::sample::select(&["launch", "unix:uid"][..]).prop_map(|kind| {
            format!("context has attestation && context.attestation.contains(\"{kind}\")")
        }),
        Just("context has source".to_owned()),
    ];
    let term = term.boxed();
    prop_oneof![
        3 => Just(String::new()),
        3 => term.clone().prop_map(|a| format!(" when {{ {a} }}")),
        1 => term.clone().prop_map(|a| format!(" unless {{ {a} }}")),
        2 => (term.clone(), term.clone()).prop_map(|(a, b)| format!(" when {{ {a} || {b} }}")),
        2 => (term.clone(), term).prop_map(|(a, b)| format!(" when {{ {a} && {b} }}")),
    ]
}

fn policy() -> impl Strategy<Value = String> {
    let effect = prop_oneof![3 => Just("@unscoped(\"test\") permit"), 1 => Just("forbid")];
    (
        effect,
        scope_of("principal", "Workload", &NAMES),
        action(),
        scope_of("resource", "Service", &SERVICES),
        condition(),
    )
        .prop_map(|(effect, principal, action, resource, mut condition)| {
            // A permit that names nobody may not read an address.
            if effect != "forbid" && !principal.contains("::") && condition.contains("source") {
                condition.clear();
            }
            format!("{effect} ({principal}, {action}, {resource}){condition};")
        })
}

const TIMES: [&str; 3] = ["2026-11-26T08:00:00Z", "2026-11-28T12:30:00.500Z", "1969-12-31"];

/// A moment around those.
fn moment() -> impl Strategy<Value = Timestamp> {
    let days = prop_oneof![20_783_i64..20_787, -2_i64..2];
    (days, 0_i64..86_400_000)
        .prop_map(|(day, millis)| Timestamp::from_micros((day * 86_400_000 + millis) * 1000))
}

fn context() -> impl Strategy<Value = Context> {
    let age = prop_oneof![0_u64..3, 0_u64..100];
    let version = prop::sample::select(&["1.2", "1.3"][..]);
    let group = prop::sample::select(&["X25519MLKEM768", "X25519", "secp256r1"][..]);
    let source =
        prop::sample::select(&["10.1.2.3", "192.0.2.7", "2001:db8::7", "::ffff:10.0.0.1"][..]);
    let source = prop::option::of(source.prop_map(|text| IpAddr::from_str(text).unwrap()));
    let kinds = prop::collection::vec(prop::sample::select(&KINDS[..]), 0..3);
    let attested =
        kinds.prop_map(|kinds| kinds.into_iter().fold(Attested::default(), Attested::and));
    (age, version, group, source, attested).prop_map(
        |(peer_age_seconds, version, group, source, attested)| Context {
            tls_version: version.to_owned(),
            group: group.to_owned(),
            peer_age_seconds,
            source,
            attested,
        },
    )
}

const KINDS: [SelectorKind; 3] =
    [SelectorKind::Launch, SelectorKind::UnixUid, SelectorKind::ContainerId];

fn uid(kind: &str, name: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(EntityTypeName::from_str(kind).unwrap(), EntityId::new(name))
}

/// What Cedar says of the whole set; an error denies.
fn whole(set: &PolicySet, request: &ConnectRequest<'_>) -> Verdict {
    let string = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let age = i64::try_from(request.context.peer_age_seconds).unwrap();
    let since_epoch = request.now.micros().div_euclid(1000);
    let (year, month, day, hour, minute, second) = request.now.civil();
    let time = format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
        since_epoch.rem_euclid(1000)
    );
    // Zeller counts from Saturday, and takes January and February for months of the year before.
    let (y, m) = if month < 3 { (year - 1, month + 12) } else { (year, month) };
    let zeller = (day + 13 * (m + 1) / 5 + y + y / 4 - y / 100 + y / 400).rem_euclid(7);
    let weekday = (zeller + 5) % 7 + 1;
    let mut pairs = vec![
        ("tls_version".to_owned(), string(&request.context.tls_version)),
        ("group".to_owned(), string(&request.context.group)),
        ("peer_age_seconds".to_owned(), RestrictedExpression::new_long(age)),
        ("time".to_owned(), RestrictedExpression::new_datetime(time)),
        ("weekday".to_owned(), RestrictedExpression::new_long(weekday)),
    ];
    if let Some(source) = request.context.source {
        let source = RestrictedExpression::new_ip(source.to_canonical().to_string());
        pairs.push(("source".to_owned(), source));
    }
    if !request.context.attested.is_empty() {
        let kinds = RestrictedExpression::new_set(request.context.attested.kinds().map(string));
        pairs.push(("attestation".to_owned(), kinds));
    }
    let context = CedarContext::from_pairs(pairs);
    let request = Request::new(
        uid("Workload", request.principal.as_str()),
        uid("Action", "connect"),
        uid("Service", request.service),
        context.unwrap(),
        None,
    );
    let response = Authorizer::new().is_authorized(&request.unwrap(), set, &Entities::empty());
    if response.diagnostics().errors().next().is_some() {
        return Verdict::Deny(Code::PolicyError);
    }
    match response.decision() {
        CedarDecision::Allow => Verdict::Allow,
        CedarDecision::Deny => Verdict::Deny(Code::PolicyDenied),
    }
}

fn principal(name: &str) -> Principal {
    name.parse().map_or_else(|_| Principal::Id(name.parse().unwrap()), Principal::Named)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn indexed_decisions_are_those_of_the_whole_set(
        texts in prop::collection::vec(policy(), 1..12),
        contexts in prop::collection::vec((context(), moment()), 1..4),
    ) {
        let text = texts.join("\n");
        let source = PolicySource::enforced("random".parse().unwrap(), text.clone());
        let policies = match Policies::compile(&[source], None) {
            Ok(policies) => policies,
            // Two conditions that exclude each other: a policy that never applies.
            Err(problems) => {
                prop_assert!(problems.iter().all(|p| p.message.contains("impossible")), "{problems:#?}");
                return Ok(());
            }
        };
        prop_assert_eq!(policies.count(), texts.len());
        let set = PolicySet::from_str(&text).unwrap();
        // Each is asked for a second time, when all of the others have been.
        for (context, now) in contexts.iter().chain(&contexts) {
            for name in NAMES.iter().chain(&["stranger"]) {
                let principal = principal(name);
                for service in SERVICES.iter().chain(&["stranger", ""]) {
                    let request = ConnectRequest { principal: &principal, service, context, now: *now };
                    prop_assert_eq!(policies.decide(&request).verdict, whole(&set, &request), "{} -> {}", name, service);
                }
            }
        }
    }

    #[test]
    fn no_text_makes_the_compiler_panic(text in "[ -~\\n]{0,200}") {
        let source = PolicySource::enforced("random".parse().unwrap(), text);
        let _either = Policies::compile(&[source], None).is_ok();
    }

    /// Our own scanner of the text must see what Cedar sees: a policy that it overlooked would be in force nowhere.
    #[test]
    fn whatever_is_put_into_a_text_no_policy_of_it_is_overlooked(
        texts in prop::collection::vec(policy(), 1..4),
        at in 0_usize..400,
        with in prop_oneof!["\\PC{0,3}", "//[;\"a]{0,2}[\r\n]{0,2}", "[\"\\\\;/@ ]{1,3}", "[\r\n\u{b}\u{85}\u{2028}]"],
    ) {
        let mut text = texts.join(" ");
        let mut at = at.min(text.len());
        while !text.is_char_boundary(at) { at -= 1; }
        text.insert_str(at, &with);
        let source = PolicySource::enforced("random".parse().unwrap(), text.clone());
        if let Ok(policies) = Policies::compile(&[source], None) {
            let seen = PolicySet::from_str(&text).unwrap().policies().count();
            prop_assert_eq!(policies.count(), seen, "{}", text);
        }
    }
}
