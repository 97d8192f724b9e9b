//! The highest state that was seen, by which a database that lost its tail is noticed, also when it has gone on since.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::{Revision, Sha256};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::hosts::{self, Primary, Reached};
use super::rows;
use super::session::{Fault, Session, Target, command};
use super::text;
use crate::version::Schema;
use crate::{Head, Result, StoreError};

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What this process knows to have been durable.
pub(super) struct Seen {
    known: Mutex<Known>,
    /// The version of the schema that this program knows.
    knows: u64,
    /// Where the database is, to be told.
    place: PathBuf,
}

struct Known {
    head: Head,
    /// The last leaf of the log whose hash is known. Leaves are salted, so a log that went another way has another one
    /// at its place.
    leaf: Option<(u64, Sha256)>,
    /// What was found when the database was behind. It may grow past what was seen, and is still not the same.
    lost: Option<Head>,
    /// The version of the schema that a program has to know, when this one does not.
    needs: Option<u64>,
    /// The primary that was used last. Who was promoted before it is used no more.
    primary: Option<Primary>,
}

/// What the head row says, as it is at one moment with the log.
#[derive(Clone, Copy)]
pub(super) struct Tip {
    pub(super) head: Head,
    /// The hash of the log's last leaf, where it was read.
    pub(super) leaf: Option<Sha256>,
    /// The version of the schema that a program has to know.
    pub(super) needs: u64,
}

impl Seen {
    pub(super) fn new(tip: Tip, knows: u64, place: PathBuf) -> Self {
        let (head, leaf) = (tip.head, tip.last());
        Self {
            known: Mutex::new(Known { head, leaf, lost: None, needs: None, primary: None }),
            knows,
            place,
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen up to now. Whatever is read from now on is no older.
    pub(super) fn floor(&self) -> Head {
        self.known().head
    }

    /// Checks a head that was read after `floor` was taken, and remembers it.
    ///
    /// # Errors
    /// When it is behind, or another: a backup was restored in its place, or a standby that lacked the tail took over.
    /// What was acknowledged is lost, and to go on as if it were not would give one revision two meanings. From then on
    /// every head is refused, until one of a later incarnation. Also when the schema has changed to one that this program does
    /// not know.
    pub(super) fn check(&self, floor: &Head, tip: &Tip) -> Result<()> {
        let (found, leaf) = (&tip.head, tip.last());
        let mut known = self.known();
        if self.knows < tip.needs {
            known.needs = Some(tip.needs);
        }
        if known.head.revision.incarnation < found.revision.incarnation {
            let Known { needs, primary, .. } = *known;
            *known = Known { head: *found, leaf, lost: None, needs, primary };
            return known.is_whole(self.knows, &self.place);
        }
        let behind = found.revision < floor.revision || found.log_size < floor.log_size;
        let is_of = |head: &Head| found.revision.incarnation == head.revision.incarnation;
        let went_back = found.revision.incarnation < floor.revision.incarnation
            || (is_of(floor) && behind)
            || (is_of(&known.head) && known.contradicts(leaf));
        if went_back {
            known.lost = Some(*found);
        }
        known.is_whole(self.knows, &self.place)?;
        if (known.head.revision, known.head.log_size) < (found.revision, found.log_size) {
            known.head = *found;
        }
        // What was asked before the incarnation began says nothing of its log.
        if is_of(&known.head) {
            known.learn(leaf);
        }
        Ok(())
    }

    /// Whether the database may be worked on, as far as is known.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(super) fn is_whole(&self) -> Result<()> {
        self.known().is_whole(self.knows, &self.place)
    }

    /// Connects to the primary, and checks that it has what was seen: a standby may have taken the place of another, and
    /// another replica may have written to it since.
    ///
    /// # Errors
    /// When nobody takes writes, it is not known who is the primary, or it is another state.
    pub(super) async fn connect(&self, target: &Target, notified: Arc<Notify>) -> Result<Session> {
        let reached = self.reached();
        let session = hosts::connect(target, Some(&reached), &notified).await?;
        self.uses(session.server.map(|server| server.primary));
        self.look(&session).await.map(|_head| session)
    }

    fn reached(&self) -> Reached {
        let Known { head, leaf, primary, .. } = *self.known();
        Reached { revision: head.revision, log_size: head.log_size, leaf, primary }
    }

    /// The primary that was used last.
    pub(super) fn primary(&self) -> Option<Primary> {
        self.known().primary
    }

    /// Remembers which primary is used, unless a later one was.
    pub(super) fn uses(&self, primary: Option<Primary>) {
        let mut known = self.known();
        if let Some(new) = primary
            && known.primary.is_none_or(|last| !new.is_before(last))
        {
            known.primary = Some(new);
        }
    }

    /// Whether a connection leads to a primary after which another was promoted and used.
    pub(super) fn is_past(&self, session: &Session) -> bool {
        let primaries = session.server.zip(self.primary());
        primaries.is_some_and(|(server, last)| server.primary.is_before(last))
    }

    /// Reads the head, and checks that the log still has the leaf that is known.
    ///
    /// # Errors
    /// As [`check`](Self::check), or when there is no answer.
    pub(super) async fn look(&self, session: &Session) -> Result<Head> {
        let (floor, leaf) = {
            let known = self.known();
            (known.head, known.leaf)
        };
        let index = rows::signed(leaf.map_or(0, |(index, _)| index))?;
        let command = command!(text::TIP_AND_LEAF, index);
        let asked = session.rows(&command);
        let late = |_| StoreError::Unavailable { why: format!("no answer in {ANSWER_TIMEOUT:?}") };
        let answers = timeout(ANSWER_TIMEOUT, asked).await.map_err(late)?.map_err(Fault::error)?;
        if self.is_past(session) {
            return Err(past());
        }
        let row = answers.first().ok_or_else(|| rows::broken("there is no head row"))?;
        let tip = rows::tip(row)?;
        if tip.head.revision.incarnation == floor.revision.incarnation
            && let Some((_, hash)) = leaf
            && rows::maybe_sha256(row, 6)? != Some(hash)
        {
            self.known().lost = Some(tip.head);
        }
        self.check(&floor, &tip).map(|()| tip.head)
    }
}

impl Known {
    fn contradicts(&self, leaf: Option<(u64, Sha256)>) -> bool {
        let (Some((known, hash)), Some((index, found))) = (self.leaf, leaf) else { return false };
        known == index && hash != found
    }

    fn learn(&mut self, leaf: Option<(u64, Sha256)>) {
        let newer = |index| self.leaf.is_none_or(|(known, _)| known < index);
        if let Some((index, _)) = leaf
            && newer(index)
        {
            self.leaf = leaf;
        }
    }

    fn is_whole(&self, knows: u64, place: &Path) -> Result<()> {
        if let Some(needs) = self.needs {
            // At least that; what it is exactly only a program that knows it has to ask.
            return Schema { version: needs, needs }.check(knows, place);
        }
        match self.lost {
            None => Ok(()),
            Some(found) => Err(StoreError::WentBack { found, seen: self.head }),
        }
    }
}

impl Tip {
    /// The log's last leaf: its place and its hash.
    fn last(&self) -> Option<(u64, Sha256)> {
        self.head.log_size.checked_sub(1).zip(self.leaf)
    }
}

/// What an old primary says counts for nothing, not even as a loss.
pub(super) fn past() -> StoreError {
    StoreError::Unavailable {
        why: "an old primary answered; another was promoted since".to_owned(),
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

    fn tip(incarnation: u64, number: u64, log_size: u64, leaf: u8) -> Tip {
        let revision = Revision { incarnation, number };
        let head = Head { revision, fence: revision, log_size };
        Tip { head, leaf: Some(Sha256::from_bytes([leaf; 32])), needs: 1 }
    }

    #[track_caller]
    fn refused(seen: &Seen, found: &Tip) {
        let error = seen.check(&seen.floor(), found).unwrap_err();
        assert!(matches!(error, StoreError::WentBack { .. }), "{error}");
    }

    #[test]
    fn a_state_that_went_back_is_noticed() {
        for behind in [tip(1, 5, 10, 2), tip(1, 6, 9, 1), tip(0, 7, 11, 3)] {
            let seen = Seen::new(tip(1, 5, 9, 1), 5, "place".into());
            let early = seen.floor();
            seen.check(&early, &tip(1, 6, 10, 2)).unwrap();
            // Asked before the other was seen: no contradiction.
            seen.check(&early, &tip(1, 5, 9, 1)).unwrap();
            assert_eq!(seen.floor(), tip(1, 6, 10, 2).head);
            refused(&seen, &behind);
        }
    }

    #[test]
    fn a_state_that_went_another_way_is_noticed_and_stays_refused_until_it_begins_anew() {
        let seen = Seen::new(tip(1, 6, 10, 2), 5, "place".into());
        refused(&seen, &tip(1, 6, 10, 3));
        // It has grown past what was seen.
        refused(&seen, &tip(1, 9, 20, 4));
        seen.check(&seen.floor(), &tip(2, 1, 1, 5)).unwrap();
        assert_eq!(seen.floor(), tip(2, 1, 1, 5).head);
        seen.check(&seen.floor(), &tip(2, 1, 1, 5)).unwrap();
    }

    #[test]
    fn a_schema_that_this_program_does_not_know_stops_it_for_good() {
        let seen = Seen::new(tip(1, 6, 10, 2), 5, "place".into());
        for needs in [6, 1] {
            let changed = Tip { needs, ..tip(2, 1, 1, 5) };
            let error = seen.check(&seen.floor(), &changed).unwrap_err();
            assert!(matches!(error, StoreError::NewerSchema { .. }), "{error}");
            assert_eq!(seen.is_whole(), Err(error));
        }
    }
}
