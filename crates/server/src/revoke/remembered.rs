//! What looks have read of all that is out, so that the next one, a tenth of a second later, does not read it again.
//!
//! A row that was read is there until it ends, which is judged anew with each look. What is missing in what is remembered are
//! rows that were issued since. So it says for as long as it likes who counts; that somebody does not count, a look says that
//! reads, or one that comes at most [`READ_AGAIN`] after such a one and asks of the same: of nodes and agents that this one has
//! not asked of it is taken that they count.
//!
//! That is no wrong "nobody" also for that moment. What an agent got before it ended was on record before it got it, and so
//! before its successor came; what the read did not see that found the successor running was issued to that one. It is read
//! again until the agent has run for so long that no clock can date anything before it any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_identity::{NodeId, Revision, SKEW_ALLOWED, SpiffeId, Timestamp};
use countersign_store::PointKey;

use crate::publish::Standing;
use crate::revoke::holdings::Out;
use crate::revoke::living::Fate;

/// Looks do not read again before.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// Nor do metrics before that; they are read by who likes to.
const COUNT_AGAIN: Duration = Duration::from_secs(15);
/// So long after an agent began, by our clock, nothing more is recorded as issued before, or in the minute after.
const SETTLED: Duration = Duration::from_secs(2 * SKEW_ALLOWED.as_secs());

/// What is known already.
#[derive(Debug, Default)]
pub(crate) struct Remembered(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// When all that is out was read last to tell who is unaware.
    read: Option<Timestamp>,
    estates: HashMap<NodeId, Estate>,
    points: HashMap<PointKey, Decided>,
    /// Until when what the rules of a revision cover could be accepted, and when that was read.
    exposure: Option<(Revision, Option<Timestamp>, Timestamp)>,
    unaware: Option<u64>,
    /// When those were counted last, or were to be.
    counted: Option<Timestamp>,
}

/// What the agents of one node before its present one may have given out.
#[derive(Clone, Debug)]
pub(super) struct Estate {
    /// Since when the present one runs.
    pub(super) since: Timestamp,
    /// When the last of each identity ends.
    pub(super) ends: BTreeMap<SpiffeId, Timestamp>,
    /// Whether nothing can be added any more.
    settled: bool,
}

impl Estate {
    /// Of an agent that has run since then, and before which nothing is known to have been given out.
    pub(super) fn of(since: Timestamp, now: Timestamp) -> Self {
        Self { since, ends: BTreeMap::new(), settled: since + SETTLED < now }
    }
}

/// What is known of what was given out before some agents.
pub(super) struct Known {
    /// What is not over.
    pub(super) estates: HashMap<NodeId, Estate>,
    /// Those of which it can change.
    pub(super) unsettled: HashMap<NodeId, Timestamp>,
    /// Those of which nothing was read.
    pub(super) unread: BTreeSet<NodeId>,
}

/// What became of a point for which nobody spoke.
#[derive(Debug)]
struct Decided {
    /// When an agent that does not know it began.
    left_out: Option<Timestamp>,
    at: Timestamp,
    /// When the last ends that it can present, if it counts.
    ends: Option<Timestamp>,
}

impl Decided {
    fn fate(&self, now: Timestamp) -> Option<Fate> {
        match self.ends {
            Some(end) => (now <= end + SKEW_ALLOWED).then_some(Fate::Counts),
            None => is_recent(self.at, now, READ_AGAIN).then_some(Fate::Passed),
        }
    }
}

fn is_recent(at: Timestamp, now: Timestamp, span: Duration) -> bool {
    at <= now && now < at + span
}

impl Remembered {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // Each statement leaves it whole, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this look reads what is out, to tell who is unaware; whoever hears that it does, reads.
    pub(super) fn is_read_now(&self, out: &Out<'_>) -> bool {
        let mut table = self.lock();
        let due = !table.read.is_some_and(|at| is_recent(at, out.shown, READ_AGAIN));
        if due {
            table.read = Some(out.shown);
        }
        due || out.is_read()
    }

    /// What is known of what was given out before these agents.
    pub(super) fn before(&self, agents: &HashMap<NodeId, Timestamp>, now: Timestamp) -> Known {
        let mut table = self.lock();
        table.estates.retain(|node, estate| agents.get(node) == Some(&estate.since));
        for estate in table.estates.values_mut() {
            estate.ends.retain(|_id, end| now <= *end + SKEW_ALLOWED);
        }
        let known = |node| table.estates.get(node);
        let unsettled = agents.iter().filter(|(node, _)| known(node).is_none_or(|it| !it.settled));
        let unread = agents.keys().filter(|node| known(node).is_none());
        let estates = table.estates.iter().filter(|(_, estate)| !estate.ends.is_empty());
        Known {
            estates: estates.map(|(node, estate)| (*node, estate.clone())).collect(),
            unsettled: unsettled.map(|(node, since)| (*node, *since)).collect(),
            unread: unread.copied().collect(),
        }
    }

    pub(super) fn remember_estates(&self, estates: &HashMap<NodeId, Estate>) {
        let estates = estates.iter().map(|(node, estate)| (*node, estate.clone()));
        self.lock().estates.extend(estates);
    }

    /// What becomes of a point, if that is known.
    pub(super) fn fate(&self, point: &Standing, now: Timestamp) -> Option<Fate> {
        if point.confirmed {
            return Some(Fate::Counts);
        }
        let table = self.lock();
        let decided = table.points.get(&point.key)?;
        decided.fate(now).filter(|_fate| decided.left_out == point.left_out)
    }

    /// Remembers what becomes of points, each with when the last ends that it can present if it counts.
    pub(super) fn remember_points<'a>(
        &self,
        points: impl Iterator<Item = (&'a Standing, Option<Timestamp>)>,
        now: Timestamp,
    ) {
        let mut table = self.lock();
        table.points.retain(|_key, decided| decided.fate(now).is_some());
        let decided = |(point, ends): (&Standing, _)| {
            (point.key.clone(), Decided { left_out: point.left_out, at: now, ends })
        };
        table.points.extend(points.map(decided));
    }

    /// Until when what the rules of a revision cover could be accepted by who does not know of them, if that was read a
    /// moment ago.
    pub(super) fn exposure(&self, revision: Revision, out: &Out<'_>) -> Option<Option<Timestamp>> {
        let (of, ends, at) = self.lock().exposure.filter(|_known| !out.is_read())?;
        (of == revision && is_recent(at, out.shown, READ_AGAIN)).then_some(ends)
    }

    pub(super) fn remember_exposure(
        &self,
        revision: Revision,
        ends: Option<Timestamp>,
        out: &Out<'_>,
    ) {
        self.lock().exposure = Some((revision, ends, out.shown));
    }

    /// Whether it is time to count for metrics who is unaware; whoever hears that it is, does.
    pub(super) fn count_is_due(&self, now: Timestamp) -> bool {
        let mut table = self.lock();
        let due = !table.counted.is_some_and(|at| is_recent(at, now, COUNT_AGAIN));
        if due {
            table.counted = Some(now);
        }
        due
    }

    /// So many are unaware.
    pub(super) fn counted(&self, unaware: u64, now: Timestamp) {
        let mut table = self.lock();
        (table.unaware, table.counted) = (Some(unaware), Some(now));
    }

    /// How many were, when it was counted last.
    pub(super) fn unaware(&self) -> Option<u64> {
        self.lock().unaware
    }
}
