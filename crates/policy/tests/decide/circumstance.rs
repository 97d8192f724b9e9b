//! What policies read beside who asks: the handshake, the time, the address, the attestation.

use std::time::Duration;

use countersign_identity::{Attested, SelectorKind};
use countersign_policy::{ConnectRequest, Context};

use crate::{NOW, PERMIT, compile, context, named};

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
