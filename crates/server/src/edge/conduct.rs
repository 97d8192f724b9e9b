//! What came of the proofs that were shown on a connection, which is held against the source that it comes from, or to its credit.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::{Code, Timestamp};
use countersign_tls::{
    Leave, Limit, Outcome, Permit, Rate, Source, StandingRates, Standings, Unsaid,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::authority::internal;

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

/// Requests of one connection that are worked on at once: as many as it may have streams.
pub(super) const WORKS_MAX: usize = 32;
/// How often what machines' proofs are held against is read at once, each time on a blocking thread.
const READS_MAX: usize = 4;

/// The books of what was shown on connections, by source. Right proofs use nothing up.
#[derive(Debug)]
pub(super) struct Shown {
    /// Each of them costs operations with public keys.
    proofs: Standings,
    /// Words that nobody but an honest caller knows: each costs a look-up.
    guesses: Standings,
    /// Who waits for one is served in order. A connection waits for one of them only.
    reads: Arc<Semaphore>,
}

impl Shown {
    /// Nothing was shown yet.
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            proofs: Standings::new(PROOFS, now),
            guesses: Standings::new(PROOFS, now),
            reads: Arc::new(Semaphore::new(READS_MAX)),
        }
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
    /// Of a handshake in which the caller did not say who it is, until it has proved it.
    unsaid: Mutex<Option<Unsaid>>,
    /// Proofs that failed, and those of which it is not known yet.
    doubtful: AtomicU32,
    works: Limit,
    read: Limit,
}

/// A turn to read what machines' proofs are held against. Dropped, it is another's.
#[derive(Debug)]
pub(crate) struct Turn {
    _of_all: OwnedSemaphorePermit,
    _of_connection: Permit,
}

impl Conduct {
    /// Nothing was shown on the connection yet.
    pub(crate) fn new(crowd: Crowd, source: Source, unsaid: Option<Unsaid>) -> Self {
        let (doubtful, unsaid) = (AtomicU32::new(0), Mutex::new(unsaid));
        let (works, read) = (Limit::new(WORKS_MAX), Limit::new(1));
        Self { crowd, source, unsaid, doubtful, works, read }
    }

    /// One more request of this connection may be worked on. The permit goes with the work, since that goes on when the stream that
    /// it was asked on is gone: whoever gives up on its requests has no more of them under way for it.
    ///
    /// # Errors
    /// `rate-limited` when so many are under way.
    pub(crate) fn works(&self) -> Result<Permit, Refused> {
        self.works.take().ok_or_else(|| {
            let why = format!("{WORKS_MAX} requests of this connection are under way");
            Refused::new(Code::RateLimited, why)
        })
    }

    /// Waits for a turn to read what machines' proofs are held against.
    ///
    /// # Errors
    /// `rate-limited` when another request of this connection waits for one already, or has it.
    pub(crate) async fn reads(&self) -> Result<Turn, Refused> {
        let _of_connection = self.read.take().ok_or_else(|| {
            Refused::new(Code::RateLimited, "another proof of this connection is looked at")
        })?;
        let turn = Arc::clone(&self.crowd.shown().reads).acquire_owned();
        Ok(Turn { _of_all: turn.await.map_err(internal)?, _of_connection })
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
        if outcome != Outcome::Proven {
            return;
        }
        let unsaid = self.unsaid.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(handshake) = unsaid {
            // It counts as one in which the caller said who it is, so that its next one is let in.
            self.crowd.vouch(handshake, now);
        }
    }

    /// Leave to look something up by a word of the caller's, which is given before it is known whether the word is right. None when
    /// so many were wrong that the caller has to wait before.
    pub(crate) fn guesses(&self, now: Timestamp) -> Option<Leave> {
        self.crowd.shown().guesses.begin(self.source, now).ok()
    }

    /// What came of a word for which there was leave.
    pub(crate) fn guessed(&self, leave: Leave, outcome: Outcome, now: Timestamp) {
        self.crowd.shown().guesses.ended(leave, outcome, now);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);

    fn connect(crowd: &Crowd, number: u8) -> Conduct {
        let place = crowd.enter(IpAddr::from([127, 0, 0, number]), NOW).unwrap();
        place.handshake(Outcome::Anonymous, NOW).1
    }

    #[test]
    fn a_connection_has_so_many_works_under_way_and_the_next_when_one_has_ended() {
        let crowd = Crowd::new(NOW);
        let (conduct, other) = (connect(&crowd, 1), connect(&crowd, 1));
        let mut works: Vec<_> = (0..WORKS_MAX).map(|_| conduct.works().unwrap()).collect();
        assert_eq!(conduct.works().unwrap_err().code, Code::RateLimited);
        assert!(other.works().is_ok());
        works.pop();
        assert!(conduct.works().is_ok());
    }

    #[tokio::test]
    async fn turns_are_few_and_whoever_waits_gets_the_next_one() {
        let crowd = Crowd::new(NOW);
        let all: Vec<Conduct> = (0..=4).map(|number| connect(&crowd, number)).collect();
        let mut turns = Vec::new();
        for conduct in &all[..READS_MAX] {
            turns.push(conduct.reads().await.unwrap());
        }
        assert_eq!(all[0].reads().await.unwrap_err().code, Code::RateLimited, "its second");
        let mut last = std::pin::pin!(all[READS_MAX].reads());
        assert!(futures_util::poll!(last.as_mut()).is_pending());
        turns.pop();
        assert!(last.await.is_ok());
    }
}
