//! Waiting longer after each failure, never in step with others.

use std::time::Duration;

use crate::{Entropy, Timestamp};

/// The bounds of a wait between tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffPolicy {
    /// The wait after the first failure, at most.
    pub first: Duration,
    /// The longest wait, at most.
    pub longest: Duration,
}

/// How many tries have failed in a row, and so how long to wait.
///
/// The wait doubles with each failure up to the longest; of it, a random half to whole is used, so that
/// callers that failed together do not come back together.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    policy: BackoffPolicy,
    failures: u32,
}

impl Backoff {
    /// No failure yet.
    pub const fn new(policy: BackoffPolicy) -> Self {
        Self { policy, failures: 0 }
    }

    /// How many tries failed in a row.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// A try succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// A try failed at `now`; says when to try again.
    pub fn failed(&mut self, now: Timestamp, entropy: &dyn Entropy) -> Timestamp {
        let whole =
            self.policy.first.saturating_mul(1 << self.failures.min(20)).min(self.policy.longest);
        self.failures = self.failures.saturating_add(1);
        let mut byte = [0];
        // Without randomness the wait is the whole one: late, never a herd of early ones.
        let share = entropy.fill(&mut byte).map_or(255, |()| u32::from(byte[0]));
        now + whole / 2 + whole / 2 * share / 255
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededEntropy;

    #[test]
    fn waits_grow_to_the_longest_and_stay_between_half_and_whole() {
        let entropy = SeededEntropy::new(7);
        let policy =
            BackoffPolicy { first: Duration::from_millis(100), longest: Duration::from_secs(5) };
        let mut backoff = Backoff::new(policy);
        for failure in 0..30_u32 {
            let whole = (policy.first * 2_u32.pow(failure.min(10))).min(policy.longest);
            let wait = backoff.failed(Timestamp::EPOCH, &entropy).since(Timestamp::EPOCH);
            assert!(whole / 2 <= wait && wait <= whole, "failure {failure}: {wait:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.failed(Timestamp::EPOCH, &entropy).since(Timestamp::EPOCH) <= policy.first);
    }
}
