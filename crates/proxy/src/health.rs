//! Which of an upstream's addresses to use: pure, on the time that it is told.
//!
//! Addresses are in order of priority. One that failed rests for a while and is then tried by the probing task,
//! not by a request, before requests come to it again. When all rest, requests try them all the same: nothing is
//! lost by it, and the first to return is found at once. Probes go on side by side, [`PROBES_MOST`] at most, so that an address that
//! answers nothing keeps no other from being found.
//!
//! Rests are reckoned by the clock that it is told. When that is set back, no rest becomes longer than the longest.

use std::time::Duration;

use countersign_identity::{Backoff, BackoffPolicy, Entropy, Timestamp};

use crate::bounds::{ADDRESSES_MAX, CONNECT_TIMEOUT, EJECTED_FIRST, EJECTED_LONGEST, PROBES_MAX};

/// How long an address rests at most before it is probed.
pub const REST_LONGEST: Duration = EJECTED_LONGEST;

/// How long connecting to an address may take, by a request or a probe.
pub const CONNECT_LONGEST: Duration = CONNECT_TIMEOUT;

/// How many addresses of one upstream are probed side by side.
pub const PROBES_MOST: usize = PROBES_MAX;

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
    /// Whether a probe of it is under way.
    probed: bool,
}

impl State {
    /// When its rest is over. At once when the clock was set back meanwhile: nobody rests for so long.
    fn rests_until(&self, now: Timestamp) -> Option<Timestamp> {
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
        let well = || State { backoff: Backoff::new(POLICY), resting: None, probed: false };
        Self { addresses: std::iter::repeat_with(well).take(count.min(ADDRESSES_MAX)).collect() }
    }

    /// The address to try next, after those that were tried: one that is well if there is one, else the one whose rest ends
    /// first, so that those which many tries found silent are not all that is ever tried.
    pub fn pick(&self, tried: Tried) -> Option<usize> {
        let left = || self.addresses.iter().enumerate().filter(|(at, _)| !tried.holds(*at));
        let well = left().find(|(_, state)| state.resting.is_none());
        well.or_else(|| left().min_by_key(|(_, state)| state.resting)).map(|(at, _)| at)
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
        if state.rests_until(now).is_none_or(|until| until <= now) {
            state.resting = Some(state.backoff.failed(now, entropy));
        }
    }

    /// The addresses to probe now, those first whose rest has been over for longest. A probe of each is under way from here on, until it is told that it [`has_ended`](Self::probe_ended).
    pub fn begin_probes(&mut self, now: Timestamp) -> Vec<usize> {
        let most = PROBES_MOST.saturating_sub(self.under_way());
        let others = self.addresses.iter().enumerate().filter(|(_, state)| !state.probed);
        let due = others.filter_map(|(at, state)| Some((state.rests_until(now)?, at)));
        let mut due: Vec<_> = due.filter(|(until, _)| *until <= now).collect();
        due.sort_unstable();
        let begun = due.into_iter().take(most).map(|(_, at)| at);
        begun.inspect(|at| self.addresses[*at].probed = true).collect()
    }

    /// A probe of this address is over. What came of it is told apart.
    pub fn probe_ended(&mut self, address: usize) {
        if let Some(state) = self.addresses.get_mut(address) {
            state.probed = false;
        }
    }

    /// When to begin the next probe; `None` while no other address rests, and while no more may be under way.
    pub fn next_probe(&self, now: Timestamp) -> Option<Timestamp> {
        if PROBES_MOST <= self.under_way() {
            return None;
        }
        let others = self.addresses.iter().filter(|state| !state.probed);
        others.filter_map(|state| state.rests_until(now)).min()
    }

    fn under_way(&self) -> usize {
        self.addresses.iter().filter(|state| state.probed).count()
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
        health.failed(1, now + Duration::from_secs(1), &entropy);
        health.failed(2, now + Duration::from_secs(2), &entropy);
        assert_eq!(order(&health), [0, 1, 2]);
        health.succeeded(1);
        assert_eq!(order(&health), [1, 0, 2]);
    }

    #[test]
    fn a_resting_address_comes_back_through_a_probe_only() {
        let (entropy, mut now) = (SeededEntropy::new(1), Timestamp::from_secs(100));
        let mut health = Health::new(2);
        health.failed(0, now, &entropy);
        assert!(health.begin_probes(now).is_empty());
        now = health.next_probe(now).unwrap();
        assert_eq!(health.begin_probes(now), [0]);
        health.probe_ended(0);
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
        assert_eq!((health.next_probe(back), health.begin_probes(back)), (Some(back), vec![0]));
        health.probe_ended(0);
        // Nor does what fails then rest until the clock is where it was.
        health.failed(0, back, &entropy);
        assert!(health.begin_probes(back).is_empty());
        assert!(health.next_probe(back).unwrap() <= back + REST_LONGEST);
    }

    #[test]
    fn an_address_is_probed_beside_others_that_were_begun_before_and_no_more_than_may_be() {
        let (entropy, now) = (SeededEntropy::new(1), Timestamp::from_secs(100));
        let mut health = Health::new(PROBES_MOST + 2);
        health.failed(0, now, &entropy);
        let first = health.next_probe(now).unwrap();
        assert_eq!((health.begin_probes(first), health.next_probe(first)), (vec![0], None));
        (1..PROBES_MOST + 2).for_each(|at| health.failed(at, first, &entropy));
        assert!(first < health.next_probe(first).unwrap(), "the others are not held up by it");
        let then = first + EJECTED_FIRST;
        assert_eq!(health.begin_probes(then).len(), PROBES_MOST - 1);
        assert_eq!((health.begin_probes(then), health.next_probe(then)), (vec![], None));
        health.probe_ended(0);
        health.succeeded(0);
        assert!(health.next_probe(then).unwrap() <= then);
        assert_eq!(health.begin_probes(then).len(), 1);
    }

    /// Each probe ends without an answer after as long as one may take.
    #[test]
    fn of_many_silent_addresses_each_is_probed_again_and_again() {
        let (entropy, mut now) = (SeededEntropy::new(1), Timestamp::from_secs(100));
        let mut health = Health::new(ADDRESSES_MAX);
        (0..ADDRESSES_MAX).for_each(|at| health.failed(at, now, &entropy));
        let mut probes = [0; ADDRESSES_MAX];
        for _ in 0..100 {
            let begun = health.begin_probes(now);
            now = now + CONNECT_LONGEST;
            for at in begun {
                probes[at] += 1;
                health.failed(at, now, &entropy);
                health.probe_ended(at);
            }
        }
        let (fewest, most) = (probes.iter().min().unwrap(), probes.iter().max().unwrap());
        assert!(20 <= *fewest && *most <= 30, "{probes:?}");
    }

    #[test]
    fn where_all_rest_the_one_is_tried_first_whose_rest_ends_first() {
        let (entropy, now) = (SeededEntropy::new(1), Timestamp::from_secs(100));
        let mut health = Health::new(2);
        health.failed(0, now + CONNECT_LONGEST, &entropy);
        health.failed(1, now, &entropy);
        assert_eq!(order(&health), [1, 0]);
    }

    #[test]
    fn an_address_out_of_range_is_ignored() {
        let mut health = Health::new(1);
        health.succeeded(7);
        health.probe_ended(7);
        health.failed(7, Timestamp::EPOCH, &SeededEntropy::new(1));
        assert_eq!(order(&health), [0]);
    }
}
