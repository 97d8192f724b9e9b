//! The end of threads that go on until they are told.

use std::sync::atomic::{AtomicBool, Ordering};

/// Ends what waits for it, also when a test fails: a scope waits for its threads before the failure is told.
pub(crate) struct Ending<'a>(pub(crate) &'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
