//! The places of each peer at a door, which share what requests it may have under way.

use std::hash::Hash;
use std::num::NonZeroUsize;

use countersign_tls::Limit;

use crate::bounds::REQUESTS_PER_PEER_MAX;

/// Places taken, by who took them.
pub(crate) struct Shares<K>(countersign_tls::Shares<K, Limit>);

/// One place. Given up when dropped.
pub(crate) struct Share<K: Eq + Hash>(countersign_tls::Share<K, Limit>);

impl<K: Clone + Eq + Hash> Shares<K> {
    pub(crate) fn new() -> Self {
        Self(countersign_tls::Shares::new(|| Limit::new(REQUESTS_PER_PEER_MAX)))
    }

    /// A place for `who`, who may have `most` of them.
    pub(crate) fn take(&self, who: &K, most: NonZeroUsize) -> Option<Share<K>> {
        self.0.take(who, most).map(Share)
    }
}

impl<K: Eq + Hash> Share<K> {
    /// The requests that may be under way over all places of the same one.
    pub(crate) const fn requests(&self) -> &Limit {
        self.0.common()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: NonZeroUsize = NonZeroUsize::new(2).unwrap();

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
