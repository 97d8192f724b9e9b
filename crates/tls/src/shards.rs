//! Values that are locked apart, so that what is done on several cores hardly ever wants the same lock.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many. Two of 32 cores that are in a shard at once, each for a thousandth of its time, are rare then.
const COUNT: usize = 16;

/// A fixed number of values, each under a lock of its own.
///
/// A panic under one of the locks does not spoil its value, for who is to lock it next: values are to be whole at every step.
#[derive(Debug)]
pub struct Shards<T> {
    hasher: RandomState,
    all: [Mutex<T>; COUNT],
}

impl<T: Default> Default for Shards<T> {
    fn default() -> Self {
        Self::new(T::default)
    }
}

impl<T> Shards<T> {
    /// All of them, made alike.
    pub fn new(make: impl Fn() -> T) -> Self {
        Self { hasher: RandomState::new(), all: std::array::from_fn(|_| Mutex::new(make())) }
    }

    /// The one in which everything of this key is. Who chooses keys cannot choose which are together.
    pub fn of_key(&self, key: &impl Hash) -> MutexGuard<'_, T> {
        self.of_number(self.hasher.hash_one(key))
    }

    /// The one in which everything of this number is: numbers that follow one another are apart.
    pub fn of_number(&self, number: u64) -> MutexGuard<'_, T> {
        let [lowest, ..] = number.to_le_bytes();
        lock(&self.all[usize::from(lowest) % COUNT])
    }

    /// Each in turn, locked while it is looked at: one may change while another is looked at.
    pub fn each(&self) -> impl Iterator<Item = MutexGuard<'_, T>> {
        self.all.iter().map(lock)
    }
}

fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_key_is_always_in_the_same_one_and_numbers_in_a_row_are_apart() {
        let shards = Shards::<HashSet<u64>>::default();
        for key in 0..1000 {
            shards.of_key(&key).insert(key);
            assert!(shards.of_key(&key).contains(&key));
        }
        let held: Vec<usize> = shards.each().map(|shard| shard.len()).collect();
        assert_eq!(held.iter().sum::<usize>(), 1000);
        assert!(held.iter().all(|held| 0 < *held), "{held:?}");

        let shards = Shards::<usize>::default();
        (0..32).for_each(|number| *shards.of_number(number) += 1);
        assert!(shards.each().all(|count| *count == 2));
    }
}
