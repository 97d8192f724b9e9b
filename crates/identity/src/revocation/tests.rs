use std::time::Duration;

use super::*;

fn at(number: u64) -> Revision {
    Revision { incarnation: 1, number }
}

fn id(name: &str) -> SpiffeId {
    format!("spiffe://shop.example/{name}").parse().unwrap()
}

fn rule(target: Revoked, reason: Reason) -> Arc<Revocation> {
    let (made, until) = (Timestamp::from_secs(1000), Timestamp::from_secs(4600));
    Arc::new(Revocation { target, about: None, reason, at: made, until })
}

fn set(rules: &[(&str, &Arc<Revocation>)]) -> Revocations {
    Revocations::new(rules.iter().map(|(name, rule)| (Arc::from(*name), Arc::clone(rule))))
}

const KEY: KeyId = KeyId::from_bytes([1; 32]);
const ROOT: KeyId = KeyId::from_bytes([2; 32]);
const NODE: NodeTag = NodeTag::from_bytes([3; 8]);

fn serial() -> Serial {
    Serial::from_bytes([4; 16]).unwrap()
}

/// What `orders` shows, authorised at this revision; none: without our extension.
fn shown(id: &SpiffeId, revision: Option<u64>) -> Presented<'_> {
    let provenance = revision.map(|number| (at(number), NODE));
    Presented { id, serial: Some(serial()), key: KEY, authorities: &[ROOT], provenance }
}

#[track_caller]
fn covers(target: &Revoked, revision: Option<u64>, expected: bool) {
    let set = set(&[("r", &rule(target.clone(), Reason::KeyCompromise))]);
    let found = set.covering(&shown(&id("orders"), revision)).is_some();
    assert_eq!(found, expected, "{target} and a certificate of revision {revision:?}");
}

#[test]
fn cut_off_is_a_revision_and_whoever_carries_none_is_covered() {
    let orders = || Revoked::Identity { id: id("orders"), before: at(5) };
    covers(&orders(), Some(4), true);
    covers(&orders(), Some(5), false);
    covers(&orders(), None, true);
    covers(&Revoked::Identity { id: id("web"), before: at(5) }, Some(4), false);
    let node = |tag| Revoked::Node { id: NodeId::from_bytes([3; 16]), tag, before: at(5) };
    covers(&node(NODE), Some(4), true);
    covers(&node(NODE), Some(5), false);
    covers(&node(NodeTag::from_bytes([9; 8])), Some(4), false);
}

#[test]
fn serials_keys_and_authorities_have_no_cut_off() {
    for revision in [None, Some(1), Some(u64::MAX)] {
        covers(&Revoked::Serial(serial()), revision, true);
        covers(&Revoked::Key(KEY), revision, true);
        covers(&Revoked::Authority(ROOT), revision, true);
        covers(&Revoked::Authority(KEY), revision, false);
        covers(&Revoked::Key(ROOT), revision, false);
    }
}

#[test]
fn what_is_of_an_earlier_incarnation_is_covered_in_its_own_domain_only() {
    let begun = Revision { incarnation: 2, number: 0 };
    let earlier =
        |domain: &str| Revoked::Earlier { domain: domain.parse().unwrap(), before: begun };
    covers(&earlier("shop.example"), Some(u64::MAX), true);
    covers(&earlier("shop.example"), None, true);
    covers(&earlier("other.example"), Some(1), false);
    let set = set(&[("r", &rule(earlier("shop.example"), Reason::Superseded))]);
    let orders = id("orders");
    let new = Revision { incarnation: 2, number: 1 };
    let presented = Presented { provenance: Some((new, NODE)), ..shown(&orders, None) };
    assert_eq!(set.covering(&presented), None);
}

#[test]
fn of_several_rules_one_that_cuts_decides() {
    let before = |number| Revoked::Identity { id: id("orders"), before: at(number) };
    let graceful = rule(before(9), Reason::Superseded);
    let hard = rule(before(5), Reason::KeyCompromise);
    let set = set(&[("a", &graceful), ("b", &hard)]);
    let orders = id("orders");
    let reason = |revision| set.covering(&shown(&orders, Some(revision))).map(|rule| rule.reason);
    assert_eq!(reason(4), Some(Reason::KeyCompromise));
    assert_eq!(reason(8), Some(Reason::Superseded));
    assert_eq!(reason(9), None);
}

#[test]
fn rule_that_a_newer_set_lacks_holds_until_it_is_moot() {
    let rule = rule(Revoked::Key(KEY), Reason::KeyCompromise);
    let older = set(&[("r", &rule)]);
    let still = Revocations::default().keeping(&older, rule.until + SKEW_ALLOWED);
    assert!(still.covering(&shown(&id("orders"), Some(1))).is_some());
    let later = rule.until + SKEW_ALLOWED + Duration::from_micros(1);
    assert!(Revocations::default().keeping(&older, later).is_empty());
}

#[test]
fn record_of_the_same_name_takes_nothing_away() {
    let old = rule(Revoked::Key(KEY), Reason::KeyCompromise);
    let new = rule(Revoked::Serial(Serial::from_bytes([8; 16]).unwrap()), Reason::Superseded);
    let both = set(&[("r", &new)]).keeping(&set(&[("r", &old)]), old.at);
    assert_eq!(both.len(), 2);
    assert!(both.covering(&shown(&id("orders"), Some(1))).is_some());
    let same = set(&[("r", &old)]).keeping(&set(&[("r", &old)]), old.at);
    assert_eq!(same.len(), 1);
}

#[test]
fn words_and_values_round_trip_and_unknown_ones_are_refused() {
    for reason in Reason::ALL {
        assert_eq!(reason.as_str().parse(), Ok(*reason));
    }
    assert!("keyCompromise".parse::<Reason>().is_err());
    let rule = rule(Revoked::Identity { id: id("orders"), before: at(5) }, Reason::Superseded);
    let text = serde_json::to_string(&*rule).unwrap();
    assert_eq!(serde_json::from_str::<Revocation>(&text).unwrap(), *rule);
    let narrower = text.replacen('{', r#"{"only":"tuesdays","#, 1);
    assert!(serde_json::from_str::<Revocation>(&narrower).is_err(), "{narrower}");
    assert!(serde_json::from_str::<Revoked>(r#"{"host":"a"}"#).is_err());
}
