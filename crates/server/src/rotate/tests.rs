//! The machine by itself: every gate, and that no path skips one.

mod clocks;

use std::time::Duration;

use countersign_api::admin::{Cause, Goal, RootKey, RootState, Step};
use countersign_identity::{Code, KeyId, Lifetime, Revision, Timestamp, Trial};

use super::approval::Approvals;
use super::gate::{DRAIN, Facts, Gate, Left, REACHABLE, SETTLE};
use super::next_key::NextKey;
use super::order::Order;
use super::root::Root;
use super::walk::Walk;

const START: Timestamp = Timestamp::from_secs(1_795_262_400);

fn key(number: u8) -> KeyId {
    format!("{number:02x}").repeat(32).parse().unwrap()
}

fn revision(number: u64) -> Revision {
    format!("1.{number}").parse().unwrap()
}

fn root(number: u8, state: RootState) -> Root {
    Root {
        key: key(number),
        certificate: String::new(),
        cross: None,
        state,
        since: START,
        tainted: None,
        published: None,
        superseded: None,
        dropped: None,
        held: RootKey::Here,
        issuers: Vec::new(),
        told: None,
    }
}

fn begun(goal: Goal) -> Walk {
    let roots = vec![root(1, RootState::Active)];
    let mut walk = Walk { roots, order: None, last: None, paused: None, request: None };
    walk.begin(Order::new(goal, key(1), "operator", None, START)).unwrap();
    walk
}

/// Takes the step that is next, as its commit would.
fn take(walk: &mut Walk, step: Step, number: u64, at: Timestamp) {
    let revision = revision(number);
    match step {
        Step::Prepare => walk.prepare(root(2, RootState::Prepared), at).unwrap(),
        Step::Publish => drop(walk.publish(revision, at).unwrap()),
        Step::Activate => drop(walk.activate(at).unwrap()),
        Step::Supersede => walk.supersede(key(1), revision).unwrap(),
        Step::Retire => walk.retire(key(1), revision, at).unwrap(),
        Step::Condemn => walk.condemn(key(1), revision, at).unwrap(),
        Step::Reissue | Step::Confirm | Step::Prove => {}
        Step::Rollback | Step::Taint => unreachable!("no order holds them"),
    }
    walk.did(step, revision, at);
}

fn states(walk: &Walk) -> Vec<RootState> {
    walk.roots.iter().map(|root| root.state).collect()
}

fn waits(gate: &Gate) -> &str {
    match gate {
        Gate::Waits { why, .. } => why,
        Gate::Open => panic!("the gate is open"),
    }
}

fn points(enforcing: u64, live: u64) -> Facts {
    let missing = (enforcing..live).map(|number| format!("point {number}")).collect();
    Facts { live, enforcing, missing, ..Facts::default() }
}

#[test]
fn rotation_takes_every_step_once_and_ends() {
    let mut walk = begun(Goal::Rotate);
    let mut taken = Vec::new();
    while let Some(step) = walk.next() {
        taken.push(step);
        take(&mut walk, step, taken.len() as u64, START);
        assert!(taken.len() < 10, "{taken:?}");
    }
    assert_eq!(taken, walk.order.as_ref().unwrap().steps(true));
    assert_eq!(states(&walk), [RootState::Retired, RootState::Active]);
    walk.end(None, START);
    assert!(walk.order.is_none() && walk.last.is_some());
}

#[test]
fn recovery_condemns_as_soon_as_another_root_signs() {
    let mut walk = begun(Goal::Recover);
    let mut taken = Vec::new();
    while let Some(step) = walk.next() {
        taken.push(step);
        take(&mut walk, step, taken.len() as u64, START);
        assert!(taken.len() < 10, "{taken:?}");
    }
    assert_eq!(taken, walk.order.as_ref().unwrap().steps(true));
    assert_eq!(states(&walk), [RootState::Retired, RootState::Active]);
    assert_eq!(walk.root(key(1)).unwrap().tainted, Some(Cause::Compromised));
}

#[test]
fn order_goes_on_from_what_is_on_record_wherever_it_was_interrupted() {
    for goal in [Goal::Rotate, Goal::Recover] {
        let mut walk = begun(goal);
        let steps = walk.order.as_ref().unwrap().steps(true);
        for (number, expected) in (1..).zip(steps) {
            let written = serde_json::to_vec(&walk).unwrap();
            walk = serde_json::from_slice(&written).unwrap();
            assert_eq!(walk.next(), Some(*expected), "{goal}");
            take(&mut walk, *expected, number, START);
        }
        assert_eq!(walk.next(), None);
    }
}

#[test]
fn root_signs_only_when_every_live_point_has_the_bundle() {
    let mut walk = begun(Goal::Rotate);
    take(&mut walk, Step::Prepare, 1, START);
    take(&mut walk, Step::Publish, 2, START);
    assert_eq!(walk.awaited(Step::Activate), Some(revision(2)));
    let gate =
        walk.gate(Step::Activate, &points(2, 3), (START + Duration::from_secs(86_400)).into());
    assert!(waits(&gate).contains("2 of 3 enforcement points have it; missing: point 2"));
    assert!(walk.gate(Step::Activate, &points(3, 3), START.into()).is_open());
}

#[test]
fn verifiers_that_cannot_acknowledge_are_given_one_renewal() {
    let mut walk = begun(Goal::Rotate);
    take(&mut walk, Step::Prepare, 1, START);
    take(&mut walk, Step::Publish, 2, START);
    let lifetime = Some(Lifetime::from_secs(3600).unwrap());
    let facts = Facts { unaware: 2, lifetime, ..points(3, 3) };
    let told = START + Duration::from_secs(1800);
    match walk.gate(Step::Activate, &facts, START.into()) {
        Gate::Waits { until, .. } => assert_eq!(until, Some(told)),
        Gate::Open => panic!("two have not been told"),
    }
    assert!(walk.gate(Step::Activate, &facts, told.into()).is_open());
}

#[test]
fn recovery_does_not_wait_for_who_does_not_answer() {
    let mut walk = begun(Goal::Recover);
    take(&mut walk, Step::Prepare, 1, START);
    take(&mut walk, Step::Publish, 2, START);
    let facts = Facts { unaware: 5, ..points(1, 3) };
    assert!(!walk.gate(Step::Activate, &facts, START.into()).is_open());
    assert!(walk.gate(Step::Activate, &facts, (START + REACHABLE).into()).is_open());
}

#[test]
fn nothing_is_taken_out_of_service_that_somebody_still_needs() {
    let mut walk = begun(Goal::Rotate);
    for (number, step) in [(1, Step::Prepare), (2, Step::Publish), (3, Step::Activate)] {
        take(&mut walk, step, number, START);
    }
    let until = START + Duration::from_secs(3600);
    let facts = Facts {
        left: vec![Left { holder: "spiffe://shop.example/orders".to_owned(), until }],
        ..Facts::default()
    };
    let gate = walk.gate(Step::Supersede, &facts, START.into());
    assert!(waits(&gate).contains("spiffe://shop.example/orders"), "{gate:?}");
    // What nobody renewed has ended by anybody's clock.
    let over = until + countersign_identity::SKEW_ALLOWED + Duration::from_micros(1);
    assert!(walk.gate(Step::Supersede, &facts, over.into()).is_open());
    // The latest successors get a moment to be shown.
    let settling = Facts { settled_from: Some(START), ..Facts::default() };
    assert!(!walk.gate(Step::Supersede, &settling, START.into()).is_open());
    assert!(walk.gate(Step::Supersede, &settling, (START + SETTLE).into()).is_open());
}

#[test]
fn old_root_leaves_when_its_connections_are_drained_or_had_their_time() {
    let mut walk = begun(Goal::Rotate);
    let steps = [Step::Prepare, Step::Publish, Step::Activate, Step::Supersede];
    for (number, step) in (1..).zip(steps) {
        take(&mut walk, step, number, START);
    }
    assert_eq!(walk.awaited(Step::Retire), Some(revision(4)));
    let draining = Facts { draining: 2, ..points(3, 3) };
    assert!(!walk.gate(Step::Retire, &draining, START.into()).is_open());
    assert!(walk.gate(Step::Retire, &draining, (START + DRAIN).into()).is_open());
    assert!(
        !walk.gate(Step::Retire, &points(2, 3), (START + DRAIN).into()).is_open(),
        "one is missing"
    );
    assert!(walk.gate(Step::Retire, &points(3, 3), START.into()).is_open());
}

#[test]
fn words_open_the_gate_that_they_were_said_for_and_no_other() {
    let mut walk = begun(Goal::Rotate);
    take(&mut walk, Step::Prepare, 1, START);
    take(&mut walk, Step::Publish, 2, START);
    let order = walk.order.as_mut().unwrap();
    order.forced.insert(Step::Activate, "it burns".to_owned());
    assert!(walk.gate(Step::Activate, &points(0, 3), START.into()).is_open());
    assert!(!walk.gate(Step::Confirm, &points(0, 3), START.into()).is_open());
}

#[test]
fn rollback_is_possible_until_the_old_roots_word_counts_no_more() {
    let mut walk = begun(Goal::Rotate);
    take(&mut walk, Step::Prepare, 1, START);
    let mut prepared = walk.clone();
    assert_eq!(prepared.rollback(START).unwrap(), (None, key(2), RootState::Prepared));
    assert_eq!(states(&prepared), [RootState::Active]);

    take(&mut walk, Step::Publish, 2, START);
    take(&mut walk, Step::Activate, 3, START);
    let mut active = walk.clone();
    assert_eq!(active.rollback(START).unwrap(), (Some(key(1)), key(2), RootState::Active));
    assert_eq!(states(&active), [RootState::Active, RootState::Retiring]);
    assert!(active.order.is_none(), "the order is taken back with it");

    take(&mut walk, Step::Supersede, 4, START);
    assert!(walk.rollback(START).is_err());
    take(&mut walk, Step::Retire, 5, START);
    assert!(walk.rollback(START).is_err());
}

#[test]
fn compromised_root_is_never_gone_back_to() {
    let mut walk = begun(Goal::Recover);
    walk.taint(key(1), Cause::Compromised).unwrap();
    for (number, step) in [(1, Step::Prepare), (2, Step::Publish), (3, Step::Activate)] {
        take(&mut walk, step, number, START);
    }
    assert!(walk.rollback(START).is_err());
}

#[test]
fn recovery_can_be_taken_back_with_its_claim_until_the_new_root_signs() {
    let mut walk = begun(Goal::Recover);
    walk.taint(key(1), Cause::Compromised).unwrap();
    for (number, step) in [(1, Step::Prepare), (2, Step::Publish)] {
        take(&mut walk, step, number, START);
        let mut back = walk.clone();
        back.rollback(START).unwrap();
        assert!(back.order.is_none() && back.last.is_some());
        assert_eq!(back.active().unwrap().tainted, None, "no leaked key stays trusted unsaid");
    }
    take(&mut walk, Step::Activate, 3, START);
    assert!(walk.rollback(START).is_err());
    assert!(walk.order.is_some());
}

#[test]
fn recovery_does_not_wait_for_a_rotation_that_is_under_way() {
    let mut walk = begun(Goal::Rotate);
    for (number, step) in [(1, Step::Prepare), (2, Step::Publish), (3, Step::Activate)] {
        take(&mut walk, step, number, START);
    }
    walk.begin(Order::new(Goal::Recover, key(1), "operator", None, START)).unwrap();
    assert_eq!(walk.next(), Some(Step::Condemn), "another root signs already");
    assert_eq!(walk.last.as_ref().unwrap().goal, Goal::Rotate);
    assert!(walk.begin(Order::new(Goal::Recover, key(2), "operator", None, START)).is_err());
}

#[test]
fn one_walk_at_a_time_and_each_root_where_the_step_begins() {
    let mut walk = begun(Goal::Rotate);
    assert!(walk.begin(Order::new(Goal::Rotate, key(1), "other", None, START)).is_err());
    assert!(walk.publish(revision(1), START).is_err(), "none is prepared");
    assert!(walk.activate(START).is_err(), "none is published");
    assert!(walk.supersede(key(1), revision(1)).is_err(), "it signs");
    assert!(walk.condemn(key(1), revision(1), START).is_err(), "it signs");
    take(&mut walk, Step::Prepare, 1, START);
    assert!(walk.prepare(root(3, RootState::Prepared), START).is_err(), "there is one already");
    assert!(walk.activate(START).is_err(), "it is not published");
    take(&mut walk, Step::Publish, 2, START);
    take(&mut walk, Step::Activate, 3, START);
    assert!(walk.retire(key(1), revision(4), START).is_err(), "what it vouches for is in service");
    assert!(walk.taint(key(9), Cause::Superseded).is_err(), "nobody knows it");
}

fn recovering_from_an_issuer(mut walk: Walk) -> Walk {
    walk.begin(Order::new(Goal::Recover, key(9), "operator", None, START)).unwrap();
    walk
}

#[test]
fn recovery_from_an_issuers_key_touches_no_root_and_lets_the_rotation_go_on_after_it() {
    let mut rotating = begun(Goal::Rotate);
    take(&mut rotating, Step::Prepare, 1, START);
    let before = states(&rotating);
    let mut walk = recovering_from_an_issuer(rotating);
    let mut taken = Vec::new();
    for number in 2..6 {
        let step = walk.next().unwrap();
        taken.push(step);
        walk.did(step, revision(number), START);
    }
    assert_eq!(taken, walk.order.as_ref().unwrap().steps(false));
    assert_eq!((walk.next(), states(&walk)), (None, before));
    assert_eq!(walk.dropped(), Some(revision(2)), "its rule is what everybody has to know");
    walk.end(None, START);
    assert_eq!(walk.last.as_ref().unwrap().goal, Goal::Recover);
    assert_eq!(walk.next(), Some(Step::Publish), "the rotation goes on where it was");
}

#[test]
fn recovery_from_an_issuers_key_makes_way_for_a_roots_and_for_nothing_else() {
    let walk = recovering_from_an_issuer(begun(Goal::Rotate));
    let order = |goal, from| Order::new(goal, key(from), "operator", None, START);
    assert!(walk.clone().begin(order(Goal::Recover, 8)).is_err(), "another issuer");
    assert!(walk.clone().begin(order(Goal::Rotate, 1)).is_err());
    let mut urgent = walk;
    urgent.begin(order(Goal::Recover, 1)).unwrap();
    assert_eq!(urgent.order.as_ref().unwrap().from, key(1));
    urgent.end(None, START);
    assert_eq!(urgent.order, None, "the rotation of a root that leaked is no more");
}

#[test]
fn rollback_takes_back_what_waits_for_a_recovery_and_not_the_recovery() {
    let mut rotating = begun(Goal::Rotate);
    take(&mut rotating, Step::Prepare, 1, START);
    let mut walk = recovering_from_an_issuer(rotating);
    walk.rollback(START).unwrap();
    assert_eq!(states(&walk), [RootState::Active]);
    assert_eq!(walk.order.as_ref().map(|order| order.from), Some(key(9)));
    assert!(walk.rollback(START).is_err(), "a leaked key does not come back");
    walk.end(None, START);
    assert_eq!(walk.order, None);
}

#[test]
fn recovery_waits_for_doors_to_be_tried_and_ends_without_those_that_cannot_be() {
    let mut walk = recovering_from_an_issuer(begun(Goal::Rotate));
    for (number, step) in [(1, Step::Condemn), (2, Step::Reissue), (3, Step::Confirm)] {
        walk.did(step, revision(number), START);
    }
    assert_eq!(walk.awaited(Step::Prove), Some(revision(3)), "its rule begins the trial");
    let facts = Facts { tried: 1, untried: vec!["web-proxy".to_owned()], ..Facts::default() };
    let gate = walk.gate(Step::Prove, &facts, START.into());
    assert!(waits(&gate).contains("1 of 2"), "{gate:?}");
    assert!(waits(&gate).contains("web-proxy"), "{gate:?}");
    assert!(walk.gate(Step::Prove, &facts, (START + Trial::TIME).into()).is_open());
    assert!(
        walk.gate(Step::Prove, &Facts { tried: 2, ..Facts::default() }, START.into()).is_open()
    );
}

#[test]
fn new_root_signs_once_enough_of_those_who_are_named_approve_and_never_by_who_ordered_it() {
    let mut walk = begun(Goal::Rotate);
    let among = ["operator", "a", "b"].map(str::to_owned).to_vec();
    let order = walk.order.as_mut().unwrap();
    order.approvals = Some(Approvals { needed: 2, among, given: Vec::new() });
    let early = walk.approve(key(2), "a", START).unwrap_err();
    assert_eq!(early.code, Code::NotReady, "{early}");
    take(&mut walk, Step::Prepare, 2, START);
    let early = walk.approve(walk.successor().unwrap().key, "a", START).unwrap_err();
    assert_eq!(early.code, Code::NotReady, "{early}");
    take(&mut walk, Step::Publish, 3, START);
    let root = walk.successor().unwrap().key;
    let gate = |walk: &Walk| walk.gate(Step::Activate, &Facts::default(), START.into());
    assert!(waits(&gate(&walk)).contains("0 of 2"));
    let other = walk.roots[0].key;
    assert!(walk.approve(other, "a", START).unwrap_err().why.contains("not `"), "another root");
    let own = walk.approve(root, "operator", START).unwrap_err();
    assert!(own.why.contains("others have to approve"), "{own}");
    assert!(walk.approve(root, "c", START).unwrap_err().why.contains("not among"));
    walk.approve(root, "a", START).unwrap();
    assert!(walk.approve(root, "a", START).unwrap_err().why.contains("counts once"));
    walk.order.as_mut().unwrap().forced.insert(Step::Activate, "in a hurry".to_owned());
    assert!(waits(&gate(&walk)).contains("1 of 2"), "force is not the second");
    assert_eq!(walk.may_activate(true).unwrap_err().code, Code::Forbidden);
    walk.approve(root, "b", START).unwrap();
    assert!(gate(&walk).is_open());
    walk.may_activate(true).unwrap();
}

#[test]
fn approval_is_for_one_root_and_counts_for_none_that_takes_its_place() {
    let mut walk = begun(Goal::Rotate);
    let among = ["a", "b"].map(str::to_owned).to_vec();
    let approvals = Some(Approvals { needed: 1, among, given: Vec::new() });
    walk.order.as_mut().unwrap().approvals = approvals;
    take(&mut walk, Step::Prepare, 2, START);
    take(&mut walk, Step::Publish, 3, START);
    let root = walk.successor().unwrap().key;
    walk.approve(root, "a", START).unwrap();
    assert!(walk.approval().is_open());
    // Another stands in its place, however it came there.
    walk.roots.iter_mut().find(|one| one.key == root).unwrap().key = key(9);
    assert!(waits(&walk.approval()).contains("0 of 1"));
    assert_eq!(walk.may_activate(true).unwrap_err().code, Code::Forbidden);
    walk.approve(key(9), "a", START).unwrap();
    walk.may_activate(true).unwrap();
}

#[test]
fn no_way_leads_past_those_who_have_to_approve() {
    // By hand, without an order; and beside an order that is about something else.
    let mut walk = begun(Goal::Retire);
    assert!(walk.may_activate(true).unwrap_err().why.contains("rotate root"));
    walk.may_activate(false).unwrap();
    walk.order = None;
    assert!(walk.may_activate(true).unwrap_err().why.contains("rotate root"));
    // The recovery of an issuer that a rotation waits for.
    let mut walk = begun(Goal::Rotate);
    let among = vec!["a".to_owned()];
    let approvals = Some(Approvals { needed: 1, among, given: Vec::new() });
    walk.order.as_mut().unwrap().approvals = approvals;
    take(&mut walk, Step::Prepare, 2, START);
    take(&mut walk, Step::Publish, 3, START);
    walk.begin(Order::new(Goal::Recover, key(77), "operator", None, START)).unwrap();
    assert!(waits(&walk.approval()).contains("0 of 1"));
    assert_eq!(walk.may_activate(true).unwrap_err().code, Code::Forbidden);
    // A root whose key leaked asks nobody.
    begun(Goal::Recover).may_activate(true).unwrap();
}

#[test]
fn successor_of_a_root_in_a_token_is_made_where_somebody_says_and_never_silently_elsewhere() {
    for goal in [Goal::Rotate, Goal::Recover] {
        let mut walk = begun(goal);
        let from = walk.active().unwrap().key;
        walk.roots[0].held = RootKey::Token;
        let gate = |walk: &Walk| walk.gate(Step::Prepare, &Facts::default(), START.into());
        assert!(waits(&gate(&walk)).contains("say where"));
        let said = walk.needs_key(goal, from, None).unwrap_err();
        assert!(said.why.contains("--root-key"), "{said}");
        walk.needs_key(goal, from, Some(&NextKey::Here)).unwrap();
        walk.order.as_mut().unwrap().root_key = Some(NextKey::Token("pkcs11:…".to_owned()));
        assert!(gate(&walk).is_open());
    }
}

#[test]
fn successor_of_a_root_outside_is_waited_for_until_people_bring_it() {
    for goal in [Goal::Rotate, Goal::Recover] {
        let mut walk = begun(goal);
        walk.roots[0].held = RootKey::External;
        assert_eq!(walk.next(), Some(Step::Prepare));
        let gate = walk.gate(
            Step::Prepare,
            &Facts::default(),
            (START + Duration::from_secs(86_400)).into(),
        );
        assert!(waits(&gate).contains("authority import"), "{gate:?}");
        take(&mut walk, Step::Prepare, 2, START);
        assert_eq!(walk.next(), Some(Step::Publish), "brought, it goes on by itself");
    }
}
