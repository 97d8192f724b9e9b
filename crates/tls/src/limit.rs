//! How many there may be of something at once, counted without a lock and without anybody who waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many at once. Its clones are the same limit.
#[derive(Clone, Debug)]
pub struct Limit(Arc<Left>);

#[derive(Debug)]
struct Left(AtomicUsize);

/// One of them. Dropped, there may be another in its place.
#[derive(Debug)]
pub struct Permit(Arc<Left>);

impl Limit {
    /// At most `most` at once.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Left(AtomicUsize::new(most))))
    }

    /// One more, if there may be.
    pub fn take(&self) -> Option<Permit> {
        let one_less = |left: usize| left.checked_sub(1);
        let left = &self.0.0;
        left.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).ok()?;
        Some(Permit(self.0.clone()))
    }

    /// How many more there may be.
    pub fn left(&self) -> usize {
        self.0.0.load(Ordering::Acquire)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_than_the_limit_and_each_may_be_followed_by_another() {
        let limit = Limit::new(3);
        let mut taken: Vec<Permit> = std::iter::from_fn(|| limit.take()).collect();
        assert_eq!((taken.len(), limit.left()), (3, 0));
        drop(taken.pop());
        assert!(limit.take().is_some(), "what was taken last is free again");
        drop(taken);
        assert_eq!(limit.left(), 3);
    }

    #[test]
    fn threads_that_take_at_once_get_no_more_than_there_are() {
        let (limit, inside) = (&Limit::new(2), &AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let Some(_permit) = limit.take() else { continue };
                        assert!(inside.fetch_add(1, Ordering::AcqRel) < 2);
                        inside.fetch_sub(1, Ordering::AcqRel);
                    }
                });
            }
        });
        assert_eq!(limit.left(), 2);
    }
}
