//! What waits to be told, so that nobody's takes the room of the others'.

use std::collections::BTreeMap;

use countersign_api::wire;

/// Things that wait to be told, by who told them. When there is no room, the one of whom most is waiting makes it.
#[derive(Clone, Debug)]
pub(super) struct Waiting<T> {
    by_whom: BTreeMap<String, Vec<T>>, // INVARIANT: at most FACTS_MAX in all, none empty
    count: usize,                      // INVARIANT: how many they are in all
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { by_whom: BTreeMap::new(), count: 0 }
    }
}

impl<T> Waiting<T> {
    /// Adds one. What finds no room is given back: this one, or the latest of somebody of whom more is waiting.
    pub(super) fn add(&mut self, whose: &str, one: T) -> Option<T> {
        let mut lost = None;
        if wire::FACTS_MAX <= self.count {
            let here = self.of(whose);
            let most = self.by_whom.values_mut().max_by_key(|theirs| theirs.len());
            let Some(most) = most.filter(|theirs| here + 1 < theirs.len()) else {
                return Some(one);
            };
            lost = most.pop();
            self.count -= 1;
        }
        match self.by_whom.get_mut(whose) {
            Some(theirs) => theirs.push(one),
            None => {
                self.by_whom.insert(whose.to_owned(), vec![one]);
            }
        }
        self.count += 1;
        lost
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many of one are waiting.
    pub(super) fn of(&self, whose: &str) -> usize {
        self.by_whom.get(whose).map_or(0, Vec::len)
    }

    /// All of them.
    pub(super) fn all(self) -> Vec<T> {
        self.by_whom.into_values().flatten().collect()
    }

    /// Each of them, with whose it is.
    pub(super) fn each(self, mut take: impl FnMut(&str, T)) {
        for (whose, theirs) in self.by_whom {
            theirs.into_iter().for_each(|one| take(&whose, one));
        }
    }
}
