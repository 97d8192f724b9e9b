//! How much of what policies permit each peer has taken, where they say how much it may.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_identity::{SpiffeId, Timestamp};
use countersign_policy::Limit;

/// What is remembered of peers that policies limit: one entry for each policy and peer, about 300 bytes. Beyond that, who is not among
/// them is refused.
const LIMITED_MAX: usize = 16_384;

/// What was taken, by policy and by peer.
#[derive(Clone, Default)]
pub(crate) struct Limits(Arc<Mutex<HashMap<Key, Usage>>>);

/// Under which name decisions tell of the policy, and whom it permits something.
type Key = (String, SpiffeId);

/// What one peer has taken of what one policy permits.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    under_way: u32,
    /// When all that was taken is given back, at the rate of the policy (the theoretical arrival time of the GCRA).
    empty_at: Option<Timestamp>,
}

/// A place among those that may be under way at once. Given up when dropped.
pub(crate) struct Held {
    of: Limits,
    key: Key,
}

/// What a peer may not have now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exceeded {
    /// Of which policy.
    pub(crate) policy: String,
    /// When there may be room again, for rates.
    pub(crate) again: Option<Duration>,
}

impl Limits {
    /// Takes one request of what these policies permit to the peer: from the first of them that has room, or from none
    /// when one of them sets no limit.
    pub(crate) fn take<'a>(
        &self,
        permits: impl Iterator<Item = (&'a str, &'a Option<Limit>)> + Clone,
        peer: &SpiffeId,
        now: Timestamp,
    ) -> Result<Option<Held>, Exceeded> {
        if permits.clone().any(|(_, limit)| limit.is_none()) {
            return Ok(None);
        }
        let mut exceeded = None;
        for (policy, limit) in permits {
            let Some(limit) = limit else { continue };
            match self.take_one((policy.to_owned(), peer.clone()), limit, now) {
                Ok(held) => return Ok(Some(held)),
                Err(one) => exceeded = exceeded.or(Some(one)),
            }
        }
        exceeded.map_or(Ok(None), Err)
    }

    fn take_one(&self, key: Key, limit: &Limit, now: Timestamp) -> Result<Held, Exceeded> {
        let mut used = self.used();
        let exceeded = |again| Exceeded { policy: key.0.clone(), again };
        if !used.contains_key(&key) && LIMITED_MAX <= used.len() {
            used.retain(|_, usage| usage.matters(now));
            if LIMITED_MAX <= used.len() {
                return Err(exceeded(None));
            }
        }
        let mut usage = used.get(&key).copied().unwrap_or_default();
        usage.take(limit, now).map_err(exceeded)?;
        used.insert(key.clone(), usage);
        Ok(Held { of: self.clone(), key })
    }

    fn used(&self) -> MutexGuard<'_, HashMap<Key, Usage>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Usage {
    /// One more; or in which time there may be room for it.
    fn take(&mut self, limit: &Limit, now: Timestamp) -> Result<(), Option<Duration>> {
        if limit.concurrent.is_some_and(|most| most <= self.under_way) {
            return Err(None);
        }
        if let Some(rate) = limit.rate {
            let each = rate.span / rate.count;
            let empty_at = self.empty_at.map_or(now, |at| at.max(now)) + each;
            // Whoever has asked for nothing for a whole span may have all of it at once.
            let over = empty_at.since(now).saturating_sub(each * rate.count);
            if !over.is_zero() {
                return Err(Some(over));
            }
            self.empty_at = Some(empty_at);
        }
        self.under_way += 1;
        Ok(())
    }

    /// Whether it is not as if it had never been.
    fn matters(&self, now: Timestamp) -> bool {
        0 < self.under_way || self.empty_at.is_some_and(|at| now < at)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(usage) = self.of.used().get_mut(&self.key) {
            usage.under_way -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use countersign_policy::Rate;

    use super::*;

    fn id(number: usize) -> SpiffeId {
        format!("spiffe://shop.example/w{number}").parse().unwrap()
    }

    fn rate(count: u32, secs: u64) -> Limit {
        Limit { rate: Some(Rate { count, span: Duration::from_secs(secs) }), concurrent: None }
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_secs(1000) + Duration::from_millis(millis)
    }

    fn take(
        limits: &Limits,
        permits: &[(&str, Option<Limit>)],
        peer: &SpiffeId,
        now: Timestamp,
    ) -> Result<Option<Held>, Exceeded> {
        limits.take(permits.iter().map(|(policy, limit)| (*policy, limit)), peer, now)
    }

    #[test]
    fn as_many_as_the_rate_says_pass_in_its_span_and_each_peer_has_its_own() {
        let (limits, slow) = (Limits::default(), rate(4, 2));
        let permits = [("slow", Some(slow))];
        for _ in 0..4 {
            assert!(take(&limits, &permits, &id(1), at(0)).is_ok());
        }
        let again = take(&limits, &permits, &id(1), at(0)).err().unwrap();
        let policy = "slow".to_owned();
        assert_eq!(again, Exceeded { policy, again: Some(Duration::from_millis(500)) });
        assert!(take(&limits, &permits, &id(2), at(0)).is_ok(), "another peer has its own");
        assert!(take(&limits, &permits, &id(1), at(499)).is_err());
        assert!(take(&limits, &permits, &id(1), at(500)).is_ok());
        assert!(take(&limits, &permits, &id(1), at(500)).is_err());
        let passed = (0..10_000).filter(|ms| take(&limits, &permits, &id(3), at(*ms)).is_ok());
        assert_eq!(passed.count(), 4 + 19, "all at once, then one in each half second");
    }

    #[test]
    fn as_many_as_it_says_are_under_way_at_once() {
        let (limits, few) = (Limits::default(), Limit { rate: None, concurrent: Some(2) });
        let permits = [("few", Some(few))];
        let first = take(&limits, &permits, &id(1), at(0)).ok().unwrap();
        let second = take(&limits, &permits, &id(1), at(0)).ok().unwrap();
        assert_eq!(take(&limits, &permits, &id(1), at(0)).err().unwrap().again, None);
        drop(first);
        assert!(take(&limits, &permits, &id(1), at(0)).is_ok());
        drop(second);
    }

    #[test]
    fn permits_add_up_and_one_without_a_limit_permits_all() {
        let (limits, one, two) = (Limits::default(), rate(1, 3600), rate(2, 3600));
        let permits = [("one", Some(one)), ("two", Some(two))];
        for _ in 0..3 {
            assert!(take(&limits, &permits, &id(1), at(0)).is_ok());
        }
        assert_eq!(take(&limits, &permits, &id(1), at(0)).err().unwrap().policy, "one");
        let open = [("one", Some(one)), ("open", None)];
        assert!(take(&limits, &open, &id(1), at(0)).is_ok_and(|held| held.is_none()));
    }

    #[test]
    fn peers_without_end_take_no_memory_without_end_and_free_nobody_of_a_limit() {
        let (limits, slow) = (Limits::default(), rate(1, 3600));
        let permits = [("slow", Some(slow))];
        for number in 0..LIMITED_MAX {
            assert!(take(&limits, &permits, &id(number), at(0)).is_ok());
        }
        assert!(take(&limits, &permits, &id(LIMITED_MAX), at(0)).is_err(), "there is no room");
        assert!(take(&limits, &permits, &id(0), at(0)).is_err(), "nobody was forgotten");
        assert_eq!(limits.used().len(), LIMITED_MAX);
        let later = at(0) + Duration::from_secs(3600);
        assert!(take(&limits, &permits, &id(LIMITED_MAX), later).is_ok());
        assert_eq!(limits.used().len(), 1);
    }
}
