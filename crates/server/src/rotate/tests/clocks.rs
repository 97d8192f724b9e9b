//! Gates by a clock that is ahead of what has passed.

use super::*;
use crate::watch::Moment;

const AHEAD: Duration = Duration::from_secs(5 * 86_400);

/// A moment at which the clock is ahead.
fn ahead(steady: Timestamp) -> Moment {
    Moment { now: steady + AHEAD, steady }
}

/// A rotation that took these steps.
fn walked(steps: &[Step]) -> Walk {
    let mut walk = begun(Goal::Rotate);
    for (number, step) in (1..).zip(steps) {
        take(&mut walk, *step, number, START);
    }
    walk
}

#[test]
fn clock_that_is_ahead_counts_no_renewal_that_did_not_happen() {
    let walk = walked(&[Step::Prepare, Step::Publish]);
    let lifetime = Some(Lifetime::from_secs(3600).unwrap());
    let facts = Facts { unaware: 2, lifetime, ..points(3, 3) };
    assert!(!walk.gate(Step::Activate, &facts, ahead(START)).is_open());
    assert!(walk.gate(Step::Activate, &facts, ahead(START + AHEAD)).is_open());
}

#[test]
fn clock_that_is_ahead_ends_no_credential_that_is_shown_still() {
    let walk = walked(&[Step::Prepare, Step::Publish, Step::Activate]);
    let until = START + Duration::from_secs(3600);
    let left = vec![Left { holder: "spiffe://shop.example/orders".to_owned(), until }];
    let needed = Facts { left, ..Facts::default() };
    let settling = Facts { settled_from: Some(START), ..Facts::default() };
    for step in [Step::Supersede, Step::Reissue] {
        for facts in [&needed, &settling] {
            assert!(!walk.gate(step, facts, ahead(START)).is_open(), "{step}");
            assert!(walk.gate(step, facts, ahead(START + AHEAD)).is_open(), "{step}");
        }
    }
}

#[test]
fn clock_that_is_ahead_cuts_no_connection_that_is_being_drained() {
    let walk = walked(&[Step::Prepare, Step::Publish, Step::Activate, Step::Supersede]);
    let draining = Facts { draining: 2, ..points(3, 3) };
    assert!(!walk.gate(Step::Retire, &draining, ahead(START)).is_open());
    assert!(walk.gate(Step::Retire, &draining, ahead(START + DRAIN)).is_open());
}

#[test]
fn clock_that_is_ahead_ends_no_trial_whose_doors_nobody_has_tried() {
    let mut walk = recovering_from_an_issuer(begun(Goal::Rotate));
    for (number, step) in [(1, Step::Condemn), (2, Step::Reissue), (3, Step::Confirm)] {
        walk.did(step, revision(number), START);
    }
    let untried = Facts { untried: vec!["web-proxy".to_owned()], ..Facts::default() };
    assert!(!walk.gate(Step::Prove, &untried, ahead(START)).is_open());
    assert!(walk.gate(Step::Prove, &untried, ahead(START + Trial::TIME)).is_open());
}

#[test]
fn recovery_goes_on_by_the_clock_as_it_is_since_a_leaked_key_is_trusted_meanwhile() {
    let mut walk = begun(Goal::Recover);
    take(&mut walk, Step::Prepare, 1, START + AHEAD);
    take(&mut walk, Step::Publish, 2, START + AHEAD);
    let facts = points(1, 3);
    assert!(!walk.gate(Step::Activate, &facts, ahead(START)).is_open());
    assert!(walk.gate(Step::Activate, &facts, ahead(START + REACHABLE)).is_open());
}
