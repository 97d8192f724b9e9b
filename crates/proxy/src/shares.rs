//! How many places each peer takes, so that one that is let in cannot keep the others out.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::Arc;

use countersign_tls::{Limit, Shards};

use crate::bounds::REQUESTS_PER_PEER_MAX;

/// Places taken, by who took them.
pub(crate) struct Shares<K>(Arc<Books<K>>);

type Books<K> = Shards<HashMap<K, Taken>>;

struct Taken {
    places: usize,
    requests: Limit,
}

/// One place. Given up when dropped.
pub(crate) struct Share<K: Eq + Hash> {
    books: Arc<Books<K>>,
    who: K,
    requests: Limit,
}

impl<K: Clone + Eq + Hash> Shares<K> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// A place for `who`, who may have `most` of them.
    pub(crate) fn take(&self, who: &K, most: NonZeroUsize) -> Option<Share<K>> {
        let mut taken = self.0.of_key(who);
        let taken = taken
            .entry(who.clone())
            .or_insert_with(|| Taken { places: 0, requests: Limit::new(REQUESTS_PER_PEER_MAX) });
        // Nobody is remembered who has no place: whoever is refused has some.
        if most.get() <= taken.places {
            return None;
        }
        taken.places += 1;
        let requests = taken.requests.clone();
        Some(Share { books: self.0.clone(), who: who.clone(), requests })
    }
}

impl<K: Eq + Hash> Share<K> {
    /// The requests that may be under way over all places of the same one.
    pub(crate) const fn requests(&self) -> &Limit {
        &self.requests
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.books.of_key(&self.who);
        if let Some(held) = taken.get_mut(&self.who) {
            held.places -= 1;
            if held.places == 0 {
                taken.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: NonZeroUsize = NonZeroUsize::new(2).unwrap();
    const THREE: NonZeroUsize = NonZeroUsize::new(3).unwrap();

    #[test]
    fn each_has_its_own_share_and_leaves_nothing_behind() {
        let shares = Shares::new();
        let held: Vec<_> = (0..3).map(|_| shares.take(&"web", THREE).unwrap()).collect();
        assert!(shares.take(&"web", THREE).is_none());
        let other = shares.take(&"cron", THREE).unwrap();
        drop(held);
        assert!(shares.take(&"web", THREE).is_some());
        drop(other);
        assert!(shares.0.each().all(|taken| taken.is_empty()));
    }

    #[test]
    fn all_places_of_one_share_its_requests() {
        let shares = Shares::new();
        let (first, second) =
            (shares.take(&"web", TWO).unwrap(), shares.take(&"web", TWO).unwrap());
        let busy: Vec<_> = std::iter::from_fn(|| first.requests().take()).collect();
        assert_eq!(busy.len(), REQUESTS_PER_PEER_MAX);
        assert!(second.requests().take().is_none());
        assert!(shares.take(&"cron", TWO).unwrap().requests().take().is_some());
        drop(busy);
        assert!(second.requests().take().is_some());
    }
}
