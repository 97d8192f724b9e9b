//! How often something may be done: bookkeeping for one who asks, and for many who ask at once.

use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use countersign_identity::Timestamp;

/// How often something may be done: so often at once, and once more after each span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At once.
    pub burst: u32,
    /// The span in which one more is earned. Not zero.
    pub every: Duration,
}

/// What is left of a [`Rate`] at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    left: u32,
    counted: Timestamp,
}

impl Allowance {
    /// All of it.
    pub const fn whole(rate: Rate, now: Timestamp) -> Self {
        Self { left: rate.burst, counted: now }
    }

    /// What is left at `now`.
    pub fn left(&mut self, rate: Rate, now: Timestamp) -> u32 {
        self.earn(rate, now);
        self.left
    }

    /// Takes one. False, and nothing is taken, when none is left.
    pub fn take(&mut self, rate: Rate, now: Timestamp) -> bool {
        self.earn(rate, now);
        let had = 0 < self.left;
        self.left = self.left.saturating_sub(1);
        had
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&mut self, rate: Rate) {
        self.left = self.left.saturating_add(1).min(rate.burst);
    }

    fn earn(&mut self, rate: Rate, now: Timestamp) {
        // A clock that went back must not make anybody wait for the time it was ahead.
        self.counted = self.counted.min(now);
        let every = rate.every.max(Duration::from_micros(1));
        let earned = now.since(self.counted).as_micros() / every.as_micros();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(earned).min(rate.burst);
        let whole = self.left == rate.burst;
        self.counted = if whole { now } else { self.counted + every * earned };
    }
}

/// What is left of a [`Rate`] that many have together. Nothing is locked for it.
#[derive(Debug)]
pub(crate) struct Budget {
    rate: Rate,
    left: AtomicU32, // INVARIANT: at most `rate.burst`
    /// Until when what was earned is in `left`. Who moves it on adds what was earned meanwhile, and nobody else does.
    counted: AtomicI64,
}

/// How far behind the others somebody may be who asks: far more than threads are.
const LAG_MICROS_MAX: i64 = 1_000_000;

impl Budget {
    /// All of it.
    pub(crate) const fn whole(rate: Rate, now: Timestamp) -> Self {
        let counted = AtomicI64::new(now.micros());
        Self { rate, left: AtomicU32::new(rate.burst), counted }
    }

    /// Takes one. False, and nothing is taken, when none is left.
    pub(crate) fn take(&self, now: Timestamp) -> bool {
        self.earn(now);
        let one_less = |left: u32| left.checked_sub(1);
        self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok()
    }

    /// Gives back what was taken and not used.
    pub(crate) fn give_back(&self) {
        self.add(1);
    }

    fn earn(&self, now: Timestamp) {
        let counted = self.counted.load(Ordering::Acquire);
        let every = i64::try_from(self.rate.every.as_micros()).unwrap_or(i64::MAX).max(1);
        let earned = now.micros().saturating_sub(counted).div_euclid(every);
        let until = match earned {
            0 => return,
            // Who asks may have been kept from asking since it looked at the clock. But a clock that went back must not make
            // anybody wait for the time it was ahead, unless that is a second.
            ..0 if counted.saturating_sub(now.micros()) <= LAG_MICROS_MAX => return,
            ..0 => now.micros(),
            _ => counted.saturating_add(earned.saturating_mul(every)),
        };
        let moved =
            self.counted.compare_exchange(counted, until, Ordering::AcqRel, Ordering::Acquire);
        if moved.is_ok() {
            self.add(u32::try_from(earned.max(0)).unwrap_or(u32::MAX));
        }
    }

    fn add(&self, more: u32) {
        let sum = |left: u32| Some(left.saturating_add(more).min(self.rate.burst));
        self.left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, sum)
            .expect("there always is a sum");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1000);
    const RATE: Rate = Rate { burst: 100, every: Duration::from_millis(2) };

    /// How many of very many tries come to something.
    fn granted(budget: &Budget, now: Timestamp) -> usize {
        (0..1000).filter(|_| budget.take(now)).count()
    }

    #[test]
    fn a_budget_is_spent_and_earned_as_an_allowance_is() {
        let (budget, mut alone) = (Budget::whole(RATE, NOW), Allowance::whole(RATE, NOW));
        // At moments at which something is earned: a budget that is whole keeps the part of a span that an allowance forgets.
        for millis in [0, 2, 2, 40, 80, 1000, 1002, 90_000] {
            let now = NOW + Duration::from_millis(millis);
            let allowed = (0..1000).filter(|_| alone.take(RATE, now)).count();
            assert_eq!(granted(&budget, now), allowed, "after {millis} ms");
        }
    }

    #[test]
    fn what_is_given_back_can_be_taken_and_never_makes_more_than_all_of_it() {
        let budget = Budget::whole(RATE, NOW);
        budget.give_back();
        assert_eq!(granted(&budget, NOW), 100);
        budget.give_back();
        assert_eq!(granted(&budget, NOW), 1);
    }

    #[test]
    fn a_clock_that_goes_back_makes_nobody_wait_for_the_time_it_was_ahead() {
        let budget = Budget::whole(RATE, NOW);
        assert_eq!(granted(&budget, NOW), 100);
        let back = Timestamp::from_secs(500);
        assert_eq!(granted(&budget, back), 0);
        assert_eq!(granted(&budget, back + RATE.every), 1);
    }

    #[test]
    fn who_is_a_little_behind_the_others_earns_nothing_a_second_time() {
        let budget = Budget::whole(RATE, NOW);
        assert_eq!(granted(&budget, NOW), 100);
        let ahead = NOW + RATE.every * 5;
        assert_eq!(granted(&budget, ahead), 5);
        assert_eq!(granted(&budget, NOW), 0);
        assert_eq!(granted(&budget, ahead), 0);
    }

    #[test]
    fn several_threads_get_what_one_would_and_nothing_twice() {
        let budget = &Budget::whole(RATE, NOW);
        let step = |number: u64| NOW + Duration::from_micros(50 * number);
        let granted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(move || (0..20_000).filter(|at| budget.take(step(*at))).count())
                })
                .collect();
            threads.into_iter().map(|it| it.join().unwrap()).sum()
        });
        let left = budget.left.load(Ordering::Acquire) as usize;
        assert_eq!(granted + left, 100 + 499, "a second, but for its last span");
    }
}
