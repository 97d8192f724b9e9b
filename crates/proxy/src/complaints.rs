//! How much the log says of answers that did not come: enough to learn why, and no flood.

use std::sync::{Mutex, PoisonError};

use countersign_identity::Timestamp;
use countersign_tls::Allowance;

use crate::bounds::UNANSWERED_SAID;

/// What may be said of one thing that is asked again and again.
pub(crate) struct Complaints(Mutex<Said>);

struct Said {
    allowance: Allowance,
    /// Since the last one that was said.
    unsaid: u64,
}

impl Complaints {
    pub(crate) const fn new(now: Timestamp) -> Self {
        Self(Mutex::new(Said { allowance: Allowance::whole(UNANSWERED_SAID, now), unsaid: 0 }))
    }

    /// How many were not said since the last one, if this one is to be.
    pub(crate) fn next(&self, now: Timestamp) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.allowance.take(UNANSWERED_SAID, now) {
            return Some(std::mem::take(&mut said.unsaid));
        }
        said.unsaid = said.unsaid.saturating_add(1);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_said_as_a_few_and_none_is_forgotten() {
        let now = Timestamp::from_secs(1_000_000);
        let complaints = Complaints::new(now);
        let burst = usize::try_from(UNANSWERED_SAID.burst).unwrap();
        let said = (0..1000).filter_map(|_| complaints.next(now)).collect::<Vec<_>>();
        assert_eq!(said, vec![0; burst]);
        let later = now + UNANSWERED_SAID.every;
        assert_eq!(complaints.next(later), Some(1000 - u64::from(UNANSWERED_SAID.burst)));
        assert_eq!(complaints.next(later), None);
    }
}
