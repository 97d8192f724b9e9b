//! The highest state that was seen, by which a database that lost its tail is noticed.

use std::sync::{Mutex, PoisonError};

use countersign_identity::Revision;

use crate::{Head, Result, StoreError};

/// What this process knows to have been durable.
pub(super) struct Seen(Mutex<Head>);

impl Seen {
    pub(super) fn new(head: Head) -> Self {
        Self(Mutex::new(head))
    }

    /// What was seen up to now. Whatever is read from now on is no older.
    pub(super) fn floor(&self) -> Head {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks a head that was read after `floor` was taken, and remembers it.
    ///
    /// # Errors
    /// When it is behind: a backup was restored in its place, or a standby that lacked the tail took over. What was
    /// acknowledged is lost, and to go on as if it were not would give one revision two meanings.
    pub(super) fn check(&self, floor: &Head, found: &Head) -> Result<()> {
        let lost = |seen: &Head| found.revision < seen.revision || found.log_size < seen.log_size;
        if found.revision.incarnation == floor.revision.incarnation && lost(floor)
            || found.revision.incarnation < floor.revision.incarnation
        {
            return Err(StoreError::WentBack { found: *found, seen: *floor });
        }
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if (seen.revision, seen.log_size) < (found.revision, found.log_size) {
            *seen = *found;
        }
        Ok(())
    }
}

/// Raises a hint; it never goes back.
pub(super) fn raise(hint: &tokio::sync::watch::Sender<Revision>, revision: Revision) {
    hint.send_if_modified(|known| {
        let moved = *known < revision;
        if moved {
            *known = revision;
        }
        moved
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(incarnation: u64, number: u64, log_size: u64) -> Head {
        let revision = Revision { incarnation, number };
        Head { revision, fence: revision, log_size }
    }

    #[test]
    fn a_state_that_went_back_is_noticed() {
        let seen = Seen::new(head(1, 5, 9));
        let early = seen.floor();
        seen.check(&early, &head(1, 6, 10)).unwrap();
        // Asked before the other was seen: no contradiction.
        seen.check(&early, &head(1, 5, 9)).unwrap();
        assert_eq!(seen.floor(), head(1, 6, 10));
        for behind in [head(1, 5, 10), head(1, 6, 9), head(0, 7, 11)] {
            let error = seen.check(&seen.floor(), &behind).unwrap_err();
            assert!(matches!(error, StoreError::WentBack { .. }), "{error}");
        }
        seen.check(&seen.floor(), &head(2, 0, 0)).unwrap();
        assert_eq!(seen.floor(), head(2, 0, 0));
    }
}
