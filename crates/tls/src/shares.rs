//! How many places each peer takes, so that one that is let in cannot keep the others out. Pure bookkeeping.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::shards::Shards;

/// Places taken, by who took them. All places of one have something in common, as a limit that they share.
#[derive(Debug)]
pub struct Shares<K, C = ()>(Arc<Books<K, C>>);

#[derive(Debug)]
struct Books<K, C> {
    taken: Shards<HashMap<K, Taken<C>>>,
    begin: fn() -> C,
}

#[derive(Debug)]
struct Taken<C> {
    places: usize,
    common: C,
}

/// One place. Given up when dropped.
#[derive(Debug)]
pub struct Share<K: Eq + Hash, C = ()> {
    books: Arc<Books<K, C>>,
    who: K,
    common: C,
}

impl<K: Clone + Eq + Hash, C: Clone> Shares<K, C> {
    /// Nobody has a place. What the places of one have in common begins with the first of them.
    pub fn new(begin: fn() -> C) -> Self {
        Self(Arc::new(Books { taken: Shards::default(), begin }))
    }

    /// A place for `who`, who may have `most` of them.
    pub fn take(&self, who: &K, most: NonZeroUsize) -> Option<Share<K, C>> {
        let mut taken = self.0.taken.of_key(who);
        let begin = || Taken { places: 0, common: (self.0.begin)() };
        let taken = taken.entry(who.clone()).or_insert_with(begin);
        // Nobody is remembered who has no place: whoever is refused has some.
        if most.get() <= taken.places {
            return None;
        }
        taken.places += 1;
        let common = taken.common.clone();
        Some(Share { books: self.0.clone(), who: who.clone(), common })
    }

    /// How many have a place.
    pub fn len(&self) -> usize {
        self.0.taken.each().map(|taken| taken.len()).sum()
    }

    /// Whether nobody has one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Eq + Hash, C> Share<K, C> {
    /// What all places of the same one have in common.
    pub const fn common(&self) -> &C {
        &self.common
    }
}

impl<K: Eq + Hash, C> Drop for Share<K, C> {
    fn drop(&mut self) {
        let mut taken = self.books.taken.of_key(&self.who);
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

    const THREE: NonZeroUsize = NonZeroUsize::new(3).unwrap();

    #[test]
    fn each_has_its_own_share_and_leaves_nothing_behind() {
        let shares: Shares<&str> = Shares::new(|| ());
        let held: Vec<_> = (0..3).map(|_| shares.take(&"web", THREE).unwrap()).collect();
        assert!(shares.take(&"web", THREE).is_none());
        let other = shares.take(&"cron", THREE).unwrap();
        assert_eq!(shares.len(), 2);
        drop(held);
        assert!(shares.take(&"web", THREE).is_some());
        drop(other);
        assert!(shares.is_empty());
    }
}
