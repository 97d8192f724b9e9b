//! Graceful revocation: nothing new begins, what is under way goes on, and there is a deadline.

use std::time::Duration;

use countersign_identity::{Clock, Code, Reason, Revoked};
use countersign_tls::{DRAIN_TIMEOUT, Established, Trust};

use crate::ends::{Shop, end_of, exchange, identity, revoking, slice};
use crate::lifetime::run;
use crate::realm::START;

fn graceful(trust: &Trust, key: countersign_identity::KeyId) -> countersign_tls::Slice {
    revoking(trust, Reason::Superseded, &[Revoked::Key(key)])
}

fn key_of(end: &Established) -> countersign_identity::KeyId {
    end.stream.admitted().peer().unwrap().key
}

#[tokio::test]
async fn what_a_graceful_rule_covers_goes_on_until_its_deadline_and_begins_nothing_new() {
    let shop = Shop::open();
    let (running, stop) = run(&shop.orders);
    let (mut web, mut orders) = shop.shake().await.both();
    let admitted = orders.stream.admitted().clone();
    assert!(admitted.takes_more());
    let applied = shop.orders.apply(graceful(&shop.orders, key_of(&orders)));
    assert_eq!((applied.cut, applied.draining, applied.own), (0, 1, None));
    assert_eq!((admitted.retires().await, admitted.why_ended()), (Code::Revoked, None));
    assert!(!admitted.takes_more());
    assert_eq!((*shop.orders.draining().borrow(), shop.orders.revoked()), (1, 1));
    exchange(&mut web, &mut orders).await;
    shop.shake().await.refused_by_server(Code::Revoked);
    // The same rule again is nothing new.
    let again = shop.orders.apply(graceful(&shop.orders, key_of(&orders)));
    assert_eq!((again.cut, again.draining), (0, 0));

    shop.clock.advance(DRAIN_TIMEOUT);
    exchange(&mut web, &mut orders).await;
    shop.clock.advance(Duration::from_micros(1));
    assert_eq!(admitted.ended().await, Code::Revoked);
    assert_eq!(end_of(&mut orders).await, Code::Revoked);
    assert_eq!(end_of(&mut web).await, Code::PeerClosed);
    assert_eq!((*shop.orders.draining().borrow(), shop.orders.revoked()), (0, 1));
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn whoever_finishes_earlier_is_not_counted_any_more() {
    let shop = Shop::open();
    let (_web, orders) = shop.shake().await.both();
    let (_other, second) = shop.shake().await.both();
    let mut draining = shop.orders.draining();
    assert_eq!(shop.orders.apply(graceful(&shop.orders, key_of(&orders))).draining, 2);
    drop(orders);
    assert_eq!(*draining.borrow_and_update(), 1);
    drop(second);
    assert_eq!(*draining.wait_for(|left| *left == 0).await.unwrap(), 0);
    assert_eq!(shop.orders.revoked(), 2);
}

#[tokio::test]
async fn a_rule_that_cuts_does_not_wait_for_one_that_drains() {
    let shop = Shop::open();
    let (_web, mut orders) = shop.shake().await.both();
    shop.orders.apply(graceful(&shop.orders, key_of(&orders)));
    let key = Revoked::Key(key_of(&orders));
    let leaked = shop.orders.apply(revoking(&shop.orders, Reason::KeyCompromise, &[key]));
    assert_eq!((leaked.cut, leaked.draining), (1, 0));
    assert_eq!(end_of(&mut orders).await, Code::Revoked);
    assert_eq!((*shop.orders.draining().borrow(), shop.orders.revoked()), (0, 1));
}

#[tokio::test]
async fn what_policy_ends_as_well_is_cut_and_not_drained() {
    let shop = Shop::open();
    let (_web, mut orders) = shop.shake().await.both();
    let mut both = graceful(&shop.orders, key_of(&orders));
    both.policies = slice(&[&shop.realm], "").policies;
    let applied = shop.orders.apply(both);
    assert_eq!((applied.cut, applied.draining), (1, 0));
    assert_eq!(end_of(&mut orders).await, Code::PolicyDenied);
}

#[tokio::test]
async fn draining_never_makes_a_connection_live_longer() {
    let shop = Shop::open();
    let (running, stop) = run(&shop.orders);
    shop.web.set_identity(identity(&shop.realm.svid("/web", START, 10))).unwrap();
    let (_web, mut orders) = shop.shake().await.both();
    shop.orders.apply(graceful(&shop.orders, key_of(&orders)));
    shop.clock.set(START + Duration::from_secs(10) + Duration::from_micros(1));
    assert!(shop.clock.now() < START + DRAIN_TIMEOUT);
    orders.stream.admitted().ended().await;
    end_of(&mut orders).await;
    assert_eq!(*shop.orders.draining().borrow(), 0);
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn our_own_superseded_credential_retires_what_it_made_and_is_shown_no_more() {
    let shop = Shop::open();
    let (mut web, mut orders) = shop.shake().await.both();
    let own = shop.orders.identity().unwrap().leaf().key_id();
    let applied = shop.orders.apply(graceful(&shop.orders, own));
    assert_eq!((applied.cut, applied.draining, applied.own.is_some()), (0, 1, true));
    exchange(&mut web, &mut orders).await;
    assert_eq!(shop.shake().await.server.unwrap_err().code, Code::NoOwnIdentity);
    shop.orders.set_identity(identity(&shop.realm.svid("/orders", START, 3600))).unwrap();
    shop.shake().await.both();
    assert_eq!(orders.stream.admitted().why_retiring(), Some(Code::Revoked), "it stays so");
}

#[tokio::test]
async fn a_slice_that_forgets_the_rule_does_not_bring_a_retired_connection_back() {
    let shop = Shop::open();
    let (running, stop) = run(&shop.orders);
    let (_web, mut orders) = shop.shake().await.both();
    let before = shop.orders.slice();
    shop.orders.apply(graceful(&shop.orders, key_of(&orders)));
    shop.orders.apply(countersign_tls::Slice::clone(&before));
    assert!(!orders.stream.admitted().takes_more());
    shop.clock.advance(DRAIN_TIMEOUT + Duration::from_micros(1));
    assert_eq!(end_of(&mut orders).await, Code::Revoked);
    stop.cancel();
    running.await.unwrap();
}
