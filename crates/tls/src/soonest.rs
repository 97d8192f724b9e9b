//! What one waits for who waits for the earliest of many moments, and how others tell of an earlier one.

use std::sync::atomic::{AtomicI64, Ordering};

use countersign_identity::Timestamp;
use tokio::sync::Notify;

/// The moment that somebody sleeps until.
///
/// Moments are kept elsewhere, in places that are locked one by one. Who puts one there tells it here afterwards; who sleeps
/// [forgets](Self::forget) what it waits for before it looks through the places. So a moment is either found, or told.
#[derive(Debug)]
pub struct Soonest {
    awaited: AtomicI64,
    sooner: Notify,
}

impl Soonest {
    /// Nothing is waited for.
    pub const fn new() -> Self {
        Self { awaited: AtomicI64::new(Timestamp::LAST.micros()), sooner: Notify::const_new() }
    }

    /// Wakes who sleeps, if it would sleep longer than until then.
    pub fn tell(&self, moment: Timestamp) {
        if moment.micros() < self.awaited.load(Ordering::Acquire) {
            self.sooner.notify_one();
        }
    }

    /// Wakes who sleeps, whatever it waits for.
    pub fn look_again(&self) {
        self.sooner.notify_one();
    }

    /// Said by who sleeps, before it looks for the earliest moment: whatever is told meanwhile wakes it.
    pub fn forget(&self) {
        self.awaited.store(Timestamp::LAST.micros(), Ordering::Release);
    }

    /// Said by who sleeps: the earliest that it has found.
    pub fn awaits(&self, earliest: Option<Timestamp>) {
        self.awaited.store(earliest.unwrap_or(Timestamp::LAST).micros(), Ordering::Release);
    }

    /// Resolves when an earlier moment was told, also when that was before this is called.
    pub async fn sooner(&self) {
        self.sooner.notified().await;
    }
}

impl Default for Soonest {
    fn default() -> Self {
        Self::new()
    }
}
