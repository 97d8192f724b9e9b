//! Admission against changes of what is enforced, on many threads and without TLS.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::{Arc, Barrier};
use std::task::{Context as TaskContext, Waker};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use countersign_identity::{
    Clock, Code, Reason, Revision, Revocation, Revocations, Revoked, SimClock, TlsGroup, TlsSuite,
    TlsVersion,
};
use countersign_pki::{Bundles, Role, Verified, verify};
use countersign_policy::{Context, Policies};

use super::{Admitted, Place, admit};
use crate::config::Agreed;
use crate::register::{Arrival, Proved, Register, Standing};
use crate::rule::{Expected, Expired, Inbound, Outbound, Rule};
use crate::{Limits, Slice, Trust};

#[path = "../../tests/connections/realm.rs"]
mod realm;

use realm::{Realm, START};

const THREADS: usize = 4;

/// A trust with one peer that may connect, or may not.
struct Door {
    trust: Arc<Trust>,
    peer: Verified,
    open: Slice,
    shut: Slice,
    /// As open, with a rule on the peer that cuts, or one that drains. Nothing else differs, so nothing else is looked at.
    revoked: Slice,
    superseded: Slice,
}

impl Door {
    fn new() -> Self {
        let realm = Realm::new("shop.example", 1);
        let web = realm.svid("/web", START, 3600);
        let bundles = Arc::new(Bundles::new(vec![realm.bundle()]).unwrap());
        let chain: Vec<&[u8]> = web.chain.certificates().iter().map(|c| c.der()).collect();
        let peer = verify(&chain, &bundles, Role::Client, START).unwrap();
        let with = |policies| Slice {
            revision: Revision { incarnation: 1, number: 1 },
            bundles: Arc::clone(&bundles),
            names: Arc::new(HashMap::new()),
            policies: Arc::new(policies),
            revocations: Arc::default(),
            profiles: Arc::default(),
        };
        let key = peer.key;
        let open = with(Policies::allow_ids(vec![web.id.clone()]));
        let shut = with(Policies::none());
        let ruled = |reason| {
            let until = START + Duration::from_secs(3600);
            let rule =
                Revocation { target: Revoked::Key(key), about: None, reason, at: START, until };
            let rules = [("r".into(), Arc::new(rule))];
            Slice { revocations: Arc::new(Revocations::new(rules)), ..open.clone() }
        };
        let revoked = ruled(Reason::KeyCompromise);
        let superseded = ruled(Reason::Superseded);
        let clock: Arc<dyn Clock> = Arc::new(SimClock::new(START));
        let limits = Limits { connections_max: 100_000, ..Limits::USUAL };
        let trust = Trust::with_limits(clock, open.clone(), limits);
        Self { trust, peer, open, shut, revoked, superseded }
    }

    fn arrival(&self) -> Arrival {
        let rule = Rule::inbound(&Inbound::service("orders".parse().unwrap()));
        let context = Context {
            tls_version: "1.3".to_owned(),
            group: "X25519".to_owned(),
            peer_age_seconds: 1,
            ..Context::default()
        };
        let (version, group, suite) = (TlsVersion::V13, TlsGroup::X25519, TlsSuite::Aes128);
        let agreed = Agreed { version, group, suite };
        let peer = self.peer.clone();
        let expires = peer.expires;
        Arrival {
            rule,
            agreed,
            standing: Some(Standing { peer, context }),
            shown: None,
            opened: START,
            expires,
            address: None,
            is_proof: false,
            session: None,
        }
    }

    fn knock(&self) -> Result<Place, Code> {
        admit(&self.trust, self.arrival()).map_err(|it| it.refused.code)
    }
}

/// Whatever the order of the two: what was admitted before or while the door was shut is ended when `apply` is done,
/// and nothing is admitted after it.
fn race(shut: impl Fn(&Door) -> &Slice, code: Code, over: impl Fn(&Place) -> Option<Code>) {
    let door = Door::new();
    let (mut cut, mut refused) = (0, 0);
    for _ in 0..300 {
        door.trust.apply(door.open.clone());
        let start = Barrier::new(THREADS + 1);
        let outcomes = std::thread::scope(|scope| {
            let knockers: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        (0..4).map(|_| door.knock()).collect::<Vec<_>>()
                    })
                })
                .collect();
            start.wait();
            door.trust.apply(shut(&door).clone());
            knockers.into_iter().flat_map(|k| k.join().unwrap()).collect::<Vec<_>>()
        });
        for outcome in &outcomes {
            match outcome {
                Ok(place) => {
                    assert_eq!(over(place), Some(code));
                    cut += 1;
                }
                Err(refusal) => {
                    assert_eq!(*refusal, code);
                    refused += 1;
                }
            }
        }
        drop(outcomes);
        assert_eq!(door.trust.connections(), 0, "everyone leaves the register");
        assert_eq!(*door.trust.draining().borrow(), 0, "and is counted no more");
    }
    assert_eq!(cut + refused, 300 * THREADS * 4);
    assert!(0 < refused, "the race was never on");
}

#[test]
fn no_connection_slips_through_while_the_slice_changes() {
    race(|door| &door.shut, Code::PolicyDenied, |place| place.admitted.why_ended());
}

#[test]
fn no_connection_slips_through_between_its_handshake_and_a_revocation() {
    race(|door| &door.revoked, Code::Revoked, |place| place.admitted.why_ended());
}

#[test]
fn no_connection_slips_through_between_its_handshake_and_a_graceful_revocation() {
    race(|door| &door.superseded, Code::Revoked, |place| place.admitted.why_retiring());
}

#[test]
fn a_refused_connection_leaves_the_register() {
    let door = Door::new();
    door.trust.apply(door.shut.clone());
    assert_eq!(door.knock().unwrap_err(), Code::PolicyDenied);
    assert_eq!(door.trust.connections(), 0);
}

#[test]
fn the_limit_on_connections_holds_however_many_come_at_once() {
    const MAX: usize = 50;
    let door = Door::new();
    let limits = Limits { connections_max: MAX, dialled_min: 0, ..Limits::USUAL };
    let clock: Arc<dyn Clock> = Arc::new(SimClock::new(START));
    let trust = Trust::with_limits(clock, door.open.clone(), limits);
    for _ in 0..20 {
        let start = Barrier::new(THREADS);
        let came = || {
            start.wait();
            let outcomes = (0..MAX).map(|_| admit(&trust, door.arrival()));
            outcomes.map(|outcome| outcome.map_err(|it| it.refused.code)).collect::<Vec<_>>()
        };
        let outcomes = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(came)).collect();
            threads.into_iter().flat_map(|it| it.join().unwrap()).collect::<Vec<_>>()
        });
        let (places, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!((places.len(), trust.connections()), (MAX, MAX), "all places, and no more");
        let full = |it: &Result<Place, Code>| it.as_ref().err() == Some(&Code::TooManyConnections);
        assert!(refused.iter().all(full));
        drop(places);
        assert_eq!(trust.connections(), 0);
    }
}

#[test]
fn those_who_come_leave_places_to_those_whom_we_dial() {
    let door = Door::new();
    let limits = Limits { connections_max: 10, dialled_min: 4, ..Limits::USUAL };
    let clock: Arc<dyn Clock> = Arc::new(SimClock::new(START));
    let trust = Trust::with_limits(clock, door.open.clone(), limits);
    let comes = || admit(&trust, door.arrival()).map_err(|it| it.refused.code);
    let came: Vec<Place> = std::iter::from_fn(|| comes().ok()).take(100).collect();
    assert_eq!((came.len(), comes().err()), (6, Some(Code::TooManyConnections)));
    let expected = Expected::Id("spiffe://shop.example/web".parse().unwrap());
    let outbound = Outbound::control(expected);
    let dialled = || {
        let arrival = Arrival { rule: Rule::outbound(&outbound), ..door.arrival() };
        admit(&trust, arrival).map_err(|it| it.refused.code)
    };
    let reached: Vec<Place> = std::iter::from_fn(|| dialled().ok()).take(100).collect();
    assert_eq!((reached.len(), dialled().err()), (4, Some(Code::TooManyConnections)));
}

#[test]
fn one_identity_takes_its_share_and_can_still_prove_what_it_has() {
    const EACH: NonZeroUsize = NonZeroUsize::new(3).unwrap();
    let door = Door::new();
    let mut inbound = Inbound::service("orders".parse().unwrap());
    inbound.each_max = Some(EACH);
    let arrival = || Arrival { rule: Rule::inbound(&inbound), ..door.arrival() };
    let admitted =
        |arrival| admit(&door.trust, arrival).map_err(|it| (it.refused.code, it.refused.why));
    let comes = || admitted(arrival());
    let came: Vec<Place> = std::iter::from_fn(|| comes().ok()).take(100).collect();
    let full = "the limit on connections of this peer is reached".to_owned();
    assert_eq!((came.len(), comes().err()), (3, Some((Code::TooManyConnections, full))));
    assert_eq!(door.trust.connections(), 3, "who was refused holds no place");
    // Another identity has a share of its own, as have proofs.
    let mut other = arrival();
    other.standing.as_mut().unwrap().peer.id = "spiffe://shop.example/cron".parse().unwrap();
    let refused = admitted(other).err().unwrap();
    assert_eq!(refused.0, Code::PolicyDenied, "it is not on the list, and there was a place");
    let proofs: Vec<Place> =
        std::iter::from_fn(|| admitted(Arrival { is_proof: true, ..arrival() }).ok())
            .take(100)
            .collect();
    assert_eq!(proofs.len(), 3);
    // A place is free again with its connection, whoever still knows of it.
    let known: Vec<Admitted> = came.iter().map(|place| place.admitted.clone()).collect();
    drop(came);
    let again: Vec<Place> = std::iter::from_fn(|| comes().ok()).take(100).collect();
    assert_eq!((again.len(), known.len()), (3, 3));
    drop((again, proofs));
    assert_eq!(door.trust.connections(), 0);
}

/// Whatever the order of the two: whoever sweeps, and looks again whenever it is told to, waits for the first end of all.
#[test]
fn an_end_before_all_others_is_not_waited_past() {
    const EACH: u64 = 20;
    let door = Door::new();
    for _ in 0..200 {
        let register = Register::new(1000, 0);
        // What is known of the first end is of one that is over by now.
        register.enter(Arrival { expires: START, ..door.arrival() }).unwrap();
        assert_eq!(register.sweep(START), Some(START));
        let now = START + Duration::from_micros(1);
        let start = Barrier::new(THREADS + 1);
        let come = |thread: u64| {
            let (register, door, start) = (&register, &door, &start);
            move || {
                start.wait();
                for nth in 0..EACH {
                    let end = START + Duration::from_secs(1 + (EACH - nth) * 10 + thread);
                    register.enter(Arrival { expires: end, ..door.arrival() }).unwrap();
                }
            }
        };
        let waits = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS as u64).map(|it| scope.spawn(come(it))).collect();
            start.wait();
            let mut waits = register.sweep(now);
            loop {
                let all_in = threads.iter().all(ScopedJoinHandle::is_finished);
                if is_told(&register) {
                    waits = register.sweep(now);
                } else if all_in {
                    return waits;
                }
            }
        });
        assert_eq!(waits, Some(START + Duration::from_secs(11)));
    }
}

/// A connection that its service keeps although it had expired, and that is proven after all, ends when that proof does.
#[test]
fn who_sweeps_is_told_of_the_new_end_of_a_connection_that_had_expired() {
    let door = Door::new();
    let register = Register::new(10, 0);
    let inbound = Inbound::service("orders".parse().unwrap());
    let rule = Rule::inbound(&Inbound { expired: Expired::Keep, ..inbound });
    let held = register.enter(Arrival { rule, expires: START, ..door.arrival() }).unwrap();
    let now = START + Duration::from_secs(1);
    assert_eq!(register.sweep(now), None, "nothing is left to wait for");
    assert_eq!(held.ended(), None);
    let end = now + Duration::from_secs(60);
    let proof = register.enter(Arrival { expires: end, ..door.arrival() }).unwrap();
    register.evict(&proof);
    while is_told(&register) {}
    assert_eq!(register.prove(&held, &proof), Proved::More);
    assert!(is_told(&register));
    assert_eq!(register.sweep(now), Some(end));
}

/// Whether whoever sweeps was told to look again, since this was asked last.
fn is_told(register: &Register) -> bool {
    let mut context = TaskContext::from_waker(Waker::noop());
    pin!(register.soonest().sooner()).poll(&mut context).is_ready()
}

#[test]
fn a_certificate_that_ran_out_during_the_handshake_is_not_admitted() {
    let door = Door::new();
    let late: Arc<dyn Clock> = Arc::new(SimClock::new(START + Duration::from_secs(3601)));
    let trust = Trust::new(late, door.open.clone());
    let denied = admit(&trust, door.arrival()).unwrap_err();
    assert_eq!(denied.refused.code, Code::Expired);
}

#[test]
fn ten_thousand_connections_are_reviewed_quickly_and_only_the_denied_ones_end() {
    let door = Door::new();
    let places: Vec<_> = (0..10_000)
        .map(|_| door.arrival())
        .map(|arrival| admit(&door.trust, arrival).unwrap())
        .collect();
    // Other names, so that every decision is made again.
    let anew = Slice { names: Arc::default(), ..door.open.clone() };
    let before = std::time::Instant::now();
    assert_eq!(door.trust.apply(anew.clone()).cut, 0);
    let took = before.elapsed();
    assert!(took < Duration::from_secs(2), "a review of {} took {took:?}", places.len());
    // A rule on somebody else: one question for each connection, and no policy.
    let key = countersign_identity::KeyId::from_bytes([7; 32]);
    let rule = Revocation {
        target: Revoked::Key(key),
        about: None,
        reason: Reason::KeyCompromise,
        at: START,
        until: START,
    };
    let revocations = Arc::new(Revocations::new([("other".into(), Arc::new(rule))]));
    let before = std::time::Instant::now();
    let applied = door.trust.apply(Slice { revocations, ..anew });
    let ruled = before.elapsed();
    println!("a rule among {} connections: {ruled:?}, all decisions: {took:?}", places.len());
    assert_eq!(applied.cut, 0);
    assert!(ruled < Duration::from_secs(1), "a rule among {} took {ruled:?}", places.len());
    assert_eq!(door.trust.apply(door.shut.clone()).cut, places.len());
    assert_eq!(door.trust.apply(door.shut.clone()).cut, 0, "each is ended once");
}

#[test]
fn what_did_not_change_is_not_looked_at_again_and_a_rule_alone_asks_no_policy() {
    let door = Door::new();
    let place = door.knock().unwrap();
    let changed = |before: &Slice, after: &Slice| super::Changed::between(before, after);
    let later = Slice { revision: Revision { incarnation: 1, number: 2 }, ..door.open.clone() };
    assert_eq!(changed(&door.open, &later), super::Changed::Nothing);
    assert_eq!(changed(&door.open, &door.revoked), super::Changed::Revocations);
    assert_eq!(changed(&door.open, &door.shut), super::Changed::Decisions);
    let other = Slice { bundles: Arc::default(), ..door.open.clone() };
    assert_eq!(changed(&door.open, &other), super::Changed::Decisions);
    let other = Slice { names: Arc::default(), ..door.open.clone() };
    assert_eq!(changed(&door.open, &other), super::Changed::Decisions);
    // Both at once: the policy that came with the rule counts as well.
    let both = Slice { revocations: Arc::clone(&door.revoked.revocations), ..door.shut.clone() };
    assert_eq!(changed(&door.open, &both), super::Changed::Decisions);
    assert_eq!(door.trust.apply(door.revoked.clone()).cut, 1);
    assert_eq!(place.admitted.why_ended(), Some(Code::Revoked));
}
