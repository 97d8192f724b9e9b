//! How many places each peer takes, so that one that is let in cannot keep the others out.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Places taken, by who took them.
pub(crate) struct Shares<K: Eq + Hash>(Arc<Mutex<HashMap<K, usize>>>);

/// One place. Given up when dropped.
pub(crate) struct Share<K: Eq + Hash> {
    shares: Arc<Mutex<HashMap<K, usize>>>,
    who: K,
}

impl<K: Clone + Eq + Hash> Shares<K> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// A place for `who`, who may have `most` of them.
    pub(crate) fn take(&self, who: &K, most: usize) -> Option<Share<K>> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(who.clone()).or_default();
        // Nobody is remembered who has no place: `most` is not 0, so a refused one has some.
        if most <= *count {
            return None;
        }
        *count += 1;
        Some(Share { shares: self.0.clone(), who: who.clone() })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_share_and_leaves_nothing_behind() {
        let shares = Shares::new();
        let held: Vec<_> = (0..3).map(|_| shares.take(&"web", 3).unwrap()).collect();
        assert!(shares.take(&"web", 3).is_none());
        let other = shares.take(&"cron", 3).unwrap();
        drop(held);
        assert!(shares.take(&"web", 3).is_some());
        drop(other);
        assert!(shares.0.lock().unwrap().is_empty());
    }
}
