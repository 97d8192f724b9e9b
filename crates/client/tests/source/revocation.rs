//! What was taken out of service: enforced, acknowledged, remembered, and what becomes of our own.

use std::sync::Arc;
use std::time::Duration;

use countersign::steps::{Step, Steps};
use countersign::{Code, Identity, Topic, Trust};
use countersign_api::v1;
use countersign_identity::{
    Clock, KeyId, Reason, Revocation, Revoked, SKEW_ALLOWED, SimClock, Timestamp,
};
use countersign_tls::Slice;
use tokio::io::AsyncReadExt;

use crate::agent::Offer;
use crate::enforcement::{orders, web};
use crate::realm::Svid;
use crate::world::{World, connect, now, source, until};

pub(crate) const LEAK: Reason = Reason::KeyCompromise;

pub(crate) fn rule(target: Revoked, reason: Reason) -> Revocation {
    let (at, until) = (now(), now() + Duration::from_secs(3600));
    Revocation { target, about: None, reason, at, until }
}

fn key_of(svid: &Svid) -> Revoked {
    Revoked::Key(svid.chain.leaf().key_id())
}

/// A rule on nobody here.
pub(crate) fn other_rule() -> Revocation {
    rule(Revoked::Key(KeyId::from_bytes([5; 32])), LEAK)
}

pub(crate) fn record(name: &str, value: &[u8]) -> v1::Record {
    v1::Record {
        kind: "Revocation".to_owned(),
        name: name.to_owned(),
        value: value.to_vec().into(),
    }
}

/// The slice of this workload with these rules.
fn slice(world: &World, number: u64, workload: &str, rules: &[Revocation]) -> v1::Slice {
    let mut slice = world.slice(number, workload);
    let records = rules
        .iter()
        .map(|rule| record(&rule.target.to_string(), &serde_json::to_vec(rule).unwrap()));
    slice.revocations = records.collect();
    slice
}

fn shown(source: &countersign::Source) -> Revoked {
    Revoked::Key(source.trust().identity().unwrap().leaf().key_id())
}

#[tokio::test]
async fn a_rule_cuts_what_it_covers_before_it_is_acknowledged_and_outlives_its_record() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    let (client, server) = connect(&web, &orders).await;
    let (mut client, _server) = (client.unwrap(), server.unwrap());
    let leaked = rule(shown(&web), LEAK);
    world.agent.enforce(slice(&world, 6, "orders", &[leaked]));
    assert_eq!(world.agent.acknowledged_draining().await, (6, 1, 0));
    assert_eq!(client.read_to_end(&mut Vec::new()).await.unwrap_or(0), 0);
    let (_, server) = connect(&web, &orders).await;
    assert_eq!(server.unwrap_err().code, Code::Revoked);
    // A restored server may have lost the record. Nobody lifted the rule.
    world.agent.enforce(slice(&world, 7, "orders", &[other_rule()]));
    assert_eq!(world.agent.acknowledged_draining().await, (7, 1, 0));
    let (_, server) = connect(&web, &orders).await;
    assert_eq!(server.unwrap_err().code, Code::Revoked);
    // Nor does an older slice that comes late, or the first one of an incarnation that knows of nothing.
    world.agent.enforce(world.slice(5, "orders"));
    until(&orders, |status| status.troubles.contains_key(&Topic::Slice)).await;
    let (_, server) = connect(&web, &orders).await;
    assert_eq!(server.unwrap_err().code, Code::Revoked);
    let mut restored = world.slice(1, "orders");
    restored.revision = Some(v1::Revision { incarnation: 2, number: 1 });
    world.agent.enforce(restored);
    assert_eq!(world.agent.acknowledged().await, (1, 1));
    let (_, server) = connect(&web, &orders).await;
    assert_eq!(server.unwrap_err().code, Code::Revoked);
}

#[tokio::test]
async fn draining_is_acknowledged_apart_and_its_end_as_well() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    let (_client, server) = connect(&web, &orders).await;
    let server = server.unwrap();
    let graceful = rule(shown(&web), Reason::Superseded);
    world.agent.enforce(slice(&world, 6, "orders", &[graceful]));
    assert_eq!(world.agent.acknowledged_draining().await, (6, 0, 1));
    drop(server);
    assert_eq!(world.agent.acknowledged_draining().await, (6, 0, 0));
}

#[tokio::test]
async fn our_own_revoked_identity_is_not_shown_and_the_next_one_is_at_once() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let old = world.svid("/orders");
    world.agent.give(world.wire(&old));
    world.agent.enforce(world.slice(5, "orders"));
    let orders = source(&world.agent).await;
    assert_eq!(world.agent.acknowledged().await, (5, 0));
    orders.ready().await.unwrap();
    let (client, server) = connect(&web, &orders).await;
    let (_client, mut server) = (client.unwrap(), server.unwrap());
    let leaked = rule(key_of(&old), LEAK);
    world.agent.enforce(slice(&world, 6, "orders", std::slice::from_ref(&leaked)));
    assert_eq!(world.agent.acknowledged_draining().await, (6, 1, 0));
    let status = orders.status();
    assert_eq!(status.identity, None);
    let why = &status.troubles[&Topic::Identity];
    for part in ["spiffe://shop.example/orders", &leaked.target.to_string(), "key-compromise"] {
        assert!(why.contains(part), "{why}");
    }
    assert!(why.contains("the agent brings another one by itself"), "{why}");
    let error = server.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(countersign_tls::code_of_io(&error), Code::Revoked);
    let (_, server) = connect(&web, &orders).await;
    assert_eq!(server.unwrap_err().code, Code::NoOwnIdentity);
    // The covered one again, from an agent that does not know better.
    world.agent.give(world.wire(&old));
    let status = until(&orders, |status| status.troubles[&Topic::Identity] != *why).await;
    assert!(status.troubles[&Topic::Identity].contains("is revoked by"), "{status:?}");
    assert_eq!(status.identity, None);
    let next = world.svid("/orders");
    world.agent.give(world.wire(&next));
    let status = until(&orders, |status| status.identity.is_some()).await;
    assert_eq!(status.identity.unwrap().serial, Some(next.serial()));
    assert!(!status.troubles.contains_key(&Topic::Identity));
    let (client, server) = connect(&web, &orders).await;
    assert!(client.is_ok() && server.is_ok());
}

/// A point on simulated time, with this identity.
fn steps(world: &World, clock: &Arc<SimClock>, svid: &Svid) -> Steps {
    let trust = Trust::new(Arc::clone(clock) as Arc<dyn Clock>, Slice::nothing());
    let steps = Steps::new(trust);
    let identity = Identity::new(svid.chain.clone(), &svid.pkcs8).unwrap();
    steps.identity(identity, vec![world.realm.bundle()]);
    steps
}

#[track_caller]
fn enforced(step: &Step) {
    assert!(matches!(step, Step::Acknowledged { .. }), "{step:?}");
}

fn rules(steps: &Steps) -> usize {
    steps.trust().slice().revocations.len()
}

#[tokio::test]
async fn a_rule_that_vanished_holds_until_it_is_moot_by_the_highest_time_seen() {
    let world = World::new(Offer::Enforcement);
    let start: Timestamp = now();
    let clock = Arc::new(SimClock::new(start));
    let steps = steps(&world, &clock, &world.svid("/orders"));
    let leaked = rule(Revoked::Key(KeyId::from_bytes([5; 32])), LEAK);
    enforced(&steps.slice(slice(&world, 6, "orders", std::slice::from_ref(&leaked))));
    enforced(&steps.slice(world.slice(7, "orders")));
    assert_eq!(rules(&steps), 1);
    clock.set(leaked.until + SKEW_ALLOWED);
    enforced(&steps.slice(world.slice(8, "orders")));
    assert_eq!(rules(&steps), 1, "the last moment counts");
    clock.set(start);
    enforced(&steps.slice(world.slice(9, "orders")));
    assert_eq!(rules(&steps), 1, "a clock that is set back lifts nothing");
    clock.set(leaked.until + SKEW_ALLOWED + Duration::from_micros(1));
    enforced(&steps.slice(world.slice(10, "orders")));
    assert_eq!(rules(&steps), 0);
}

#[tokio::test]
async fn what_a_slice_repeats_is_the_same_as_before_so_that_a_rule_asks_no_policy_again() {
    let world = World::new(Offer::Enforcement);
    let clock = Arc::new(SimClock::new(now()));
    let steps = steps(&world, &clock, &world.svid("/orders"));
    enforced(&steps.slice(slice(&world, 6, "orders", &[other_rule()])));
    let first = steps.trust().slice();
    enforced(&steps.slice(slice(&world, 7, "orders", &[first_rule(&first)])));
    let second = steps.trust().slice();
    assert!(Arc::ptr_eq(&first.policies, &second.policies), "not compiled again");
    assert!(Arc::ptr_eq(&first.bundles, &second.bundles));
    assert!(Arc::ptr_eq(&first.names, &second.names));
    assert!(Arc::ptr_eq(&first.revocations, &second.revocations));
    let own = rule(key_of(&world.svid("/web")), LEAK);
    enforced(&steps.slice(slice(&world, 8, "orders", &[own])));
    let third = steps.trust().slice();
    assert!(Arc::ptr_eq(&first.policies, &third.policies));
    assert!(!Arc::ptr_eq(&first.revocations, &third.revocations));
    assert_eq!(third.revocations.len(), 2);
    let mut other = world.slice(9, "orders");
    other.policies.clear();
    enforced(&steps.slice(other));
    assert!(!Arc::ptr_eq(&first.policies, &steps.trust().slice().policies));
}

fn first_rule(slice: &Slice) -> Revocation {
    let (_name, rule) = slice.revocations.iter().next().unwrap();
    Revocation::clone(rule)
}
