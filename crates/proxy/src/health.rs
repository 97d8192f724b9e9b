//! Which of an upstream's addresses to use: pure, on the time that it is told.
//!
//! Addresses are in order of priority. One that failed rests for a while and is then tried by the probing task,
//! not by a request, before requests come to it again. When all rest, requests try them all the same: nothing is
//! lost by it, and the first to return is found at once.
//!
//! Rests are reckoned by the clock that it is told. When that is set back, no rest becomes longer than the longest.

use std::time::Duration;

use countersign_identity::{Backoff, BackoffPolicy, Entropy, Timestamp};

use crate::bounds::{ADDRESSES_MAX, CONNECT_TIMEOUT, EJECTED_FIRST, EJECTED_LONGEST};

/// How long an address rests at most before it is probed.
pub const REST_LONGEST: Duration = EJECTED_LONGEST;

/// How long connecting to an address may take, by a request or a probe.
pub const CONNECT_LONGEST: Duration = CONNECT_TIMEOUT;

const POLICY: BackoffPolicy = BackoffPolicy { first: EJECTED_FIRST, longest: EJECTED_LONGEST };

/// What is known of each address of one upstream.
#[derive(Debug)]
pub struct Health {
    addresses: Vec<State>,
}

#[derive(Debug)]
struct State {
    backoff: Backoff,
    /// Resting, and to be probed from this moment on.
    resting: Option<Timestamp>,
}

impl State {
    /// When to probe it. At once when the clock was set back meanwhile: nobody rests for so long.
    fn probe_at(&self, now: Timestamp) -> Option<Timestamp> {
        let until = self.resting?;
        Some(if now + REST_LONGEST < until { now } else { until })
    }
}

/// The addresses that one request has tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried(u64);

const _: () = assert!(ADDRESSES_MAX <= 64, "one bit each");

impl Tried {
    /// This one, too.
    pub fn add(&mut self, address: usize) {
        self.0 |= 1 << address;
    }

    const fn holds(self, address: usize) -> bool {
        self.0 & (1 << address) != 0
    }
}

impl Health {
    /// All of `count` addresses are taken to be well.
    pub fn new(count: usize) -> Self {
        let well = || State { backoff: Backoff::new(POLICY), resting: None };
        Self { addresses: std::iter::repeat_with(well).take(count.min(ADDRESSES_MAX)).collect() }
    }

    /// The address to try next, after those that were tried: one that is well if there is one.
    pub fn pick(&self, tried: Tried) -> Option<usize> {
        let left = || self.addresses.iter().enumerate().filter(|(at, _)| !tried.holds(*at));
        let well = left().find(|(_, state)| state.resting.is_none());
        well.or_else(|| left().next()).map(|(at, _)| at)
    }

    /// The address answered.
    pub fn succeeded(&mut self, address: usize) {
        if let Some(state) = self.addresses.get_mut(address) {
            state.backoff.reset();
            state.resting = None;
        }
    }

    /// The address did not answer; it rests.
    pub fn failed(&mut self, address: usize, now: Timestamp, entropy: &dyn Entropy) {
        let Some(state) = self.addresses.get_mut(address) else { return };
        // Requests that failed together count as one failure: only a try after the rest makes it longer.
        if state.probe_at(now).is_none_or(|until| until <= now) {
            state.resting = Some(state.backoff.failed(now, entropy));
        }
    }

    /// The addresses to probe now.
    pub fn due(&self, now: Timestamp) -> Vec<usize> {
        let states = self.addresses.iter().enumerate();
        let due = states.filter(|(_, state)| state.probe_at(now).is_some_and(|until| until <= now));
        due.map(|(at, _)| at).collect()
    }

    /// When to probe next; `None` while no address rests.
    pub fn next_probe(&self, now: Timestamp) -> Option<Timestamp> {
        self.addresses.iter().filter_map(|state| state.probe_at(now)).min()
    }
}

#[cfg(test)]
mod tests {
    use countersign_identity::SeededEntropy;

    use super::*;

    fn order(health: &Health) -> Vec<usize> {
        let mut tried = Tried::default();
        let next = || {
            let address = health.pick(tried)?;
            tried.add(address);
            Some(address)
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn requests_go_by_priority_then_to_those_that_rest() {
        let (entropy, now) = (SeededEntropy::new(1), Timestamp::from_secs(100));
        let mut health = Health::new(3);
        assert_eq!(order(&health), [0, 1, 2]);
        health.failed(0, now, &entropy);
        assert_eq!(order(&health), [1, 2, 0]);
        health.failed(1, now, &entropy);
        health.failed(2, now, &entropy);
        assert_eq!(order(&health), [0, 1, 2]);
        health.succeeded(1);
        assert_eq!(order(&health), [1, 0, 2]);
    }

    #[test]
    fn a_resting_address_comes_back_through_a_probe_only() {
        let (entropy, mut now) = (SeededEntropy::new(1), Timestamp::from_secs(100));
        let mut health = Health::new(2);
        health.failed(0, now, &entropy);
        assert!(health.due(now).is_empty());
        now = health.next_probe(now).unwrap();
        assert_eq!(health.due(now), [0]);
        assert_eq!(order(&health), [1, 0], "time alone does not bring it back");
        health.failed(0, now, &entropy);
        assert!(now < health.next_probe(now).unwrap());
        health.succeeded(0);
        assert_eq!((order(&health), health.next_probe(now)), (vec![0, 1], None));
    }

    #[test]
    fn failures_of_one_moment_count_once_and_the_rest_is_bounded() {
        let (entropy, mut now) = (SeededEntropy::new(1), Timestamp::from_secs(100));
        let mut health = Health::new(1);
        for _ in 0..1000 {
            health.failed(0, now, &entropy);
        }
        assert!(health.next_probe(now).unwrap() <= now + EJECTED_FIRST);
        for _ in 0..100 {
            now = health.next_probe(now).unwrap();
            health.failed(0, now, &entropy);
            let rest = health.next_probe(now).unwrap().since(now);
            assert!(Duration::ZERO < rest && rest <= EJECTED_LONGEST);
        }
    }

    #[test]
    fn clock_that_is_set_back_makes_no_rest_longer() {
        let (entropy, now) = (SeededEntropy::new(1), Timestamp::from_secs(10_000));
        let mut health = Health::new(2);
        health.failed(0, now, &entropy);
        let back = Timestamp::from_secs(100);
        assert_eq!((health.due(back), health.next_probe(back)), (vec![0], Some(back)));
        // Nor does what fails then rest until the clock is where it was.
        health.failed(0, back, &entropy);
        assert!(health.due(back).is_empty());
        assert!(health.next_probe(back).unwrap() <= back + REST_LONGEST);
    }

    #[test]
    fn an_address_out_of_range_is_ignored() {
        let mut health = Health::new(1);
        health.succeeded(7);
        health.failed(7, Timestamp::EPOCH, &SeededEntropy::new(1));
        assert_eq!(order(&health), [0]);
    }
}
