//! The latest revisions that took rights away: watched from their commit on, so that nothing that happens in between is missed.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_api::admin::Convergence;
use countersign_identity::{NodeId, Revision, SKEW_ALLOWED, SpiffeId, Timestamp};
use tokio::sync::watch;

use crate::revoke::replicas::CutCount;

/// Revisions that are watched at once; the oldest gives way.
const WATCHED_MAX: usize = 64;
/// New credentials that are remembered for one of them.
const ISSUED_MAX: usize = 100_000;
/// Ways from one revision to another on which connections were ended, and which are remembered.
const CUTS_MAX: usize = 64;
/// How often it is looked again what other servers have heard and issued, while somebody waits for it.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The latest revisions that took rights away, and how far they have come.
#[derive(Debug)]
pub(crate) struct Converging {
    watched: Mutex<VecDeque<Watch>>,
    cuts: Mutex<VecDeque<CutCount>>,
    pub(super) moved: watch::Sender<()>,
}

impl Default for Converging {
    fn default() -> Self {
        Self { watched: Mutex::default(), cuts: Mutex::default(), moved: watch::Sender::new(()) }
    }
}

#[derive(Debug)]
struct Watch {
    revision: Revision,
    committed: Timestamp,
    slowest: Option<Timestamp>,
    cut: u64,
    issued: HashMap<(SpiffeId, NodeId), Timestamp>,
    /// Up to when it was read what other servers have issued.
    read: Timestamp,
    watched: Watched,
}

/// What is waited for besides the acknowledgements.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched {
    /// Who is to be issued anew.
    pub(crate) reissue: BTreeSet<(SpiffeId, NodeId)>,
    /// The last moment at which anything that it covers could be accepted by who does not know.
    pub(crate) exposure_ends: Option<Timestamp>,
}

/// That a point has acknowledged more than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Advance {
    /// What it had acknowledged.
    pub(crate) from: Option<Revision>,
    /// What it acknowledges.
    pub(crate) to: Revision,
    /// How many connections it ended meanwhile.
    pub(crate) cut: u64,
}

impl Converging {
    /// Begins to watch a revision that is about to be committed.
    pub(crate) fn begin(&self, revision: Revision, now: Timestamp) {
        let mut all = self.watched();
        all.retain(|watch| watch.revision != revision);
        if WATCHED_MAX <= all.len() {
            all.pop_front();
        }
        all.push_back(Watch {
            revision,
            committed: now,
            slowest: None,
            cut: 0,
            issued: HashMap::new(),
            read: now,
            watched: Watched::default(),
        });
    }

    /// The latest revisions that are watched and when they were committed, the newest first.
    pub(crate) fn latest(&self, limit: usize) -> Vec<(Revision, Timestamp)> {
        let all = self.watched();
        all.iter().rev().take(limit).map(|watch| (watch.revision, watch.committed)).collect()
    }

    /// It was not committed after all.
    pub(crate) fn give_up(&self, revision: Revision) {
        self.watched().retain(|watch| watch.revision != revision);
    }

    /// It is committed, and this is what it comes to.
    pub(crate) fn committed(&self, revision: Revision, at: Timestamp, watched: Watched) {
        if let Some(watch) = self.watched().iter_mut().find(|watch| watch.revision == revision) {
            watch.committed = at;
            watch.watched = watched;
        }
        self.moved.send_replace(());
    }

    /// Points have acknowledged more than before.
    pub(crate) fn advanced(&self, advances: &[Advance], now: Timestamp) {
        let mut all = self.watched();
        for advance in advances {
            for watch in all.iter_mut() {
                if watch.revision <= advance.to && advance.from < Some(watch.revision) {
                    watch.slowest = Some(now);
                    // Told by points, which may tell anything.
                    watch.cut = watch.cut.saturating_add(advance.cut);
                }
            }
        }
        drop(all);
        self.count_cuts(advances);
        if !advances.is_empty() {
            self.moved.send_replace(());
        }
    }

    fn count_cuts(&self, advances: &[Advance]) {
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        for Advance { from, to, cut } in advances.iter().filter(|advance| advance.cut != 0) {
            match cuts.iter_mut().find(|count| count.from == *from && count.to == *to) {
                Some(count) => count.cut = count.cut.saturating_add(*cut),
                None => {
                    if CUTS_MAX <= cuts.len() {
                        cuts.pop_front();
                    }
                    cuts.push_back(CutCount { from: *from, to: *to, cut: *cut });
                }
            }
        }
    }

    /// How many connections points have ended, by the way on which they did, for the other servers.
    pub(crate) fn cuts(&self) -> Vec<CutCount> {
        let cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        cuts.iter().copied().collect()
    }

    /// From when on it is to be read what was issued, if anybody is still to be issued anew.
    pub(super) fn to_read(&self, revision: Revision, now: Timestamp) -> Option<Timestamp> {
        let all = self.watched();
        let watch = all.iter().find(|watch| watch.revision == revision)?;
        let mut wanted = watch.watched.reissue.iter();
        let pending = wanted.any(|holder| !watch.issued.contains_key(holder));
        let again = watch.read + LOOK_AGAIN <= now;
        (pending && again).then(|| watch.read - SKEW_ALLOWED)
    }

    pub(super) fn read(&self, revision: Revision, at: Timestamp) {
        if let Some(watch) = self.watched().iter_mut().find(|watch| watch.revision == revision) {
            watch.read = at;
        }
    }

    /// A certificate was issued that was authorised at this revision.
    pub(crate) fn issued(&self, id: &SpiffeId, node: NodeId, revision: Revision, now: Timestamp) {
        let mut moved = false;
        for watch in self.watched().iter_mut() {
            let room = watch.issued.len() < ISSUED_MAX;
            let holder = (id.clone(), node);
            if watch.revision <= revision && room && !watch.issued.contains_key(&holder) {
                watch.issued.insert(holder, now);
                moved = true;
            }
        }
        if moved {
            self.moved.send_replace(());
        }
    }

    fn watched(&self) -> MutexGuard<'_, VecDeque<Watch>> {
        // Each statement leaves it whole, so a panic elsewhere does not spoil it.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills in what is known of a watched revision.
    pub(super) fn fill(&self, answer: &mut Convergence) {
        let all = self.watched();
        let Some(watch) = all.iter().find(|watch| watch.revision == answer.revision) else {
            return;
        };
        let millis = |at: Timestamp| {
            u64::try_from(at.since(watch.committed).as_millis()).unwrap_or(u64::MAX)
        };
        answer.connections_cut = Some(watch.cut);
        answer.slowest_millis = watch.slowest.map(millis);
        let reissue = &watch.watched.reissue;
        let done: Option<Vec<Timestamp>> =
            reissue.iter().map(|holder| watch.issued.get(holder).copied()).collect();
        answer.reissue_pending = done.is_none();
        answer.reissued_millis = done.and_then(|moments| moments.into_iter().max()).map(millis);
        answer.exposure_ends = watch.watched.exposure_ends;
    }
}
