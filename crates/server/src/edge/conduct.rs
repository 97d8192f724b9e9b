//! What came of the proofs that were shown on a connection, which is held against the source that it comes from, or to its credit.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_tls::{Leave, Outcome, Rate, Source, StandingRates, Standings};

use crate::edge::crowd::Crowd;
use crate::refusal::Refused;

/// A proof costs up to half a millisecond: a signature, that of a request, and those of a chain. What strangers have together is
/// earned twice as fast as handshakes of strangers begin, and each connection takes of it once, so that no number of sources
/// uses it up: who waits because of a crowd waits at the door.
pub(super) const PROOFS: StandingRates = StandingRates {
    suspect: Rate { burst: 20, every: Duration::from_secs(3) },
    proven: Rate { burst: 256, every: Duration::from_millis(50) },
    suspects: Rate { burst: 256, every: Duration::from_millis(10) },
    strangers: Rate { burst: 2048, every: Duration::from_micros(500) },
};

/// The books of what was shown on connections, by source. Right proofs use nothing up.
#[derive(Debug)]
pub(super) struct Shown {
    /// Each of them costs operations with public keys.
    proofs: Standings,
    /// Words that nobody but an honest caller knows: each costs a look-up.
    guesses: Standings,
}

impl Shown {
    /// Nothing was shown yet.
    pub(super) fn new(now: Timestamp) -> Self {
        Self { proofs: Standings::new(PROOFS, now), guesses: Standings::new(PROOFS, now) }
    }

    /// Somebody from there has proved who they are in a handshake.
    pub(super) fn proven(&self, source: Source, now: Timestamp) {
        self.proofs.proven(source, now);
    }
}

/// One connection's conduct.
#[derive(Debug)]
pub(crate) struct Conduct {
    crowd: Crowd,
    source: Source,
    /// Of a handshake in which the caller did not say who it is.
    handshake: Option<Leave>,
    /// Proofs that failed, and those of which it is not known yet.
    doubtful: AtomicU32,
    proven: AtomicBool,
}

impl Conduct {
    /// Nothing was shown on the connection yet.
    pub(crate) fn new(crowd: Crowd, source: Source, handshake: Option<Leave>) -> Self {
        let (doubtful, proven) = (AtomicU32::new(0), AtomicBool::new(false));
        Self { crowd, source, handshake, doubtful, proven }
    }

    /// Whether a proof may be looked at now: asked before any operation with a public key. What came of it is told to
    /// [`Conduct::showed`].
    ///
    /// # Errors
    /// `rate-limited`, with the limit that is reached.
    pub(crate) fn shows(&self, now: Timestamp) -> Result<Leave, Refused> {
        let proofs = &self.crowd.shown().proofs;
        // There may be no room to remember the source, but there always is to remember this.
        let leave = match self.doubtful.fetch_add(1, Ordering::AcqRel) {
            0 => proofs.begin(self.source, now),
            _ => proofs.begin_again(self.source, now),
        };
        leave.map_err(|refused| {
            self.doubtful.fetch_sub(1, Ordering::AcqRel);
            Refused::new(refused.code, refused.why)
        })
    }

    /// What came of a proof that had leave to be looked at.
    pub(crate) fn showed(&self, leave: Leave, outcome: Outcome, now: Timestamp) {
        self.crowd.shown().proofs.ended(leave, outcome, now);
        if outcome == Outcome::Failed {
            return;
        }
        self.doubtful.fetch_sub(1, Ordering::AcqRel);
        if outcome == Outcome::Proven
            && !self.proven.swap(true, Ordering::AcqRel)
            && let Some(handshake) = self.handshake
        {
            // It counts as one in which the caller said who it is, so that its next one is let in.
            self.crowd.vouch(handshake, now);
        }
    }

    /// A word was not known. Says whether the caller may guess again without waiting.
    pub(crate) fn guessed(&self, now: Timestamp) -> bool {
        let guesses = &self.crowd.shown().guesses;
        let leave = guesses.begin(self.source, now);
        leave.map(|leave| guesses.ended(leave, Outcome::Failed, now)).is_ok()
    }
}
