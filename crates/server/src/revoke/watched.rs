//! The latest revisions that took rights away: watched from their commit on, so that nothing that happens in between is missed.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_api::admin::Convergence;
use countersign_identity::{NodeId, Revision, SKEW_ALLOWED, SpiffeId, Timestamp};
use tokio::sync::watch;

use crate::revoke::replicas::CutCount;

/// Committed revisions that are watched at once; the oldest gives way. Who is about to commit one watches it beside these.
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
    begun: AtomicU64,
    cuts: Mutex<VecDeque<CutCount>>,
    pub(super) moved: watch::Sender<()>,
}

impl Default for Converging {
    fn default() -> Self {
        Self {
            watched: Mutex::default(),
            begun: AtomicU64::default(),
            cuts: Mutex::default(),
            moved: watch::Sender::new(()),
        }
    }
}

#[derive(Debug)]
struct Watch {
    /// Whose it is: two who want to commit one revision watch it, each for itself, until one of them has.
    number: u64,
    revision: Revision,
    committed: Timestamp,
    slowest: Option<Timestamp>,
    cut: u64,
    issued: HashMap<(SpiffeId, NodeId), Timestamp>,
    /// Up to when it was read what other servers have issued.
    read: Timestamp,
    /// None until it is committed.
    watched: Option<Watched>,
}

impl Watch {
    /// Whether it is of this revision, and that is committed.
    fn is_of(&self, revision: Revision) -> bool {
        self.revision == revision && self.watched.is_some()
    }
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

/// A revision that somebody is about to commit, and which is watched; dropped: it was not committed after all.
#[must_use = "it is watched for as long as this lives, or once it is committed"]
#[derive(Debug)]
pub(crate) struct Begun<'a> {
    converging: &'a Converging,
    number: u64,
}

impl Begun<'_> {
    /// It is committed, and this is what it comes to.
    pub(crate) fn committed(self, at: Timestamp, watched: Watched) {
        let mut all = self.converging.watched();
        if let Some(watch) = all.iter_mut().find(|watch| watch.number == self.number) {
            watch.committed = at;
            watch.watched = Some(watched);
        }
        let done = |watch: &Watch| watch.watched.is_some();
        if WATCHED_MAX < all.iter().filter(|watch| done(watch)).count()
            && let Some(oldest) = all.iter().position(done)
        {
            all.remove(oldest);
        }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let kept = |watch: &Watch| watch.number != self.number || watch.watched.is_some();
        self.converging.watched().retain(kept);
        self.converging.moved.send_replace(());
    }
}

impl Converging {
    /// Begins to watch a revision that is about to be committed.
    pub(crate) fn begin(&self, revision: Revision, now: Timestamp) -> Begun<'_> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        self.watched().push_back(Watch {
            number,
            revision,
            committed: now,
            slowest: None,
            cut: 0,
            issued: HashMap::new(),
            read: now,
            watched: None,
        });
        Begun { converging: self, number }
    }

    /// The latest revisions that are watched and when they were committed, the newest first.
    pub(crate) fn latest(&self, limit: usize) -> Vec<(Revision, Timestamp)> {
        let all = self.watched();
        let latest: BTreeMap<_, _> =
            all.iter().map(|watch| (watch.revision, watch.committed)).collect();
        latest.into_iter().rev().take(limit).collect()
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
        let watch = all.iter().find(|watch| watch.is_of(revision))?;
        let mut wanted = watch.watched.iter().flat_map(|watched| &watched.reissue);
        let pending = wanted.any(|holder| !watch.issued.contains_key(holder));
        let again = watch.read + LOOK_AGAIN <= now;
        (pending && again).then(|| watch.read - SKEW_ALLOWED)
    }

    pub(super) fn read(&self, revision: Revision, at: Timestamp) {
        if let Some(watch) = self.watched().iter_mut().find(|watch| watch.is_of(revision)) {
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
        let of_it = || all.iter().filter(|watch| watch.revision == answer.revision);
        let Some((watch, watched)) =
            of_it().find_map(|watch| Some((watch, watch.watched.as_ref()?)))
        else {
            // Who is to be issued anew is known in a moment.
            answer.reissue_pending = of_it().next().is_some();
            return;
        };
        let millis = |at: Timestamp| {
            u64::try_from(at.since(watch.committed).as_millis()).unwrap_or(u64::MAX)
        };
        answer.connections_cut = Some(watch.cut);
        answer.slowest_millis = watch.slowest.map(millis);
        let done: Option<Vec<Timestamp>> =
            watched.reissue.iter().map(|holder| watch.issued.get(holder).copied()).collect();
        answer.reissue_pending = done.is_none();
        answer.reissued_millis = done.and_then(|moments| moments.into_iter().max()).map(millis);
        answer.exposure_ends = watched.exposure_ends;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bytes([7; 16]);
    const REVISION: Revision = Revision { incarnation: 1, number: 5 };

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_secs(1_000_000) + Duration::from_millis(millis)
    }

    fn web() -> SpiffeId {
        "spiffe://shop.example/web".parse().unwrap()
    }

    fn told(converging: &Converging) -> Convergence {
        let mut answer = serde_json::from_value(serde_json::json!({
            "revision": REVISION, "live": 0, "enforcing": 0, "missing": [], "unaware": 0, "draining": 0,
            "reissuePending": false,
        }))
        .unwrap();
        converging.fill(&mut answer);
        answer
    }

    #[test]
    fn who_was_late_takes_nothing_from_who_committed_the_same_revision() {
        let converging = Converging::default();
        let (late, won) = (converging.begin(REVISION, at(0)), converging.begin(REVISION, at(1)));
        let (further, to) = (Revision { number: 6, ..REVISION }, REVISION);
        converging.advanced(&[Advance { from: None, to, cut: 3 }], at(30));
        assert!(told(&converging).reissue_pending, "it is not known yet who has to be waited for");
        let reissue = BTreeSet::from([(web(), NODE)]);
        won.committed(at(10), Watched { reissue, exposure_ends: Some(at(99)) });
        drop(late);
        let _later = converging.begin(further, at(20));
        let before = told(&converging);
        assert_eq!((before.connections_cut, before.slowest_millis), (Some(3), Some(20)));
        assert_eq!((before.reissue_pending, before.exposure_ends), (true, Some(at(99))));
        converging.issued(&web(), NODE, REVISION, at(50));
        let after = told(&converging);
        assert_eq!((after.reissue_pending, after.reissued_millis), (false, Some(40)));
        let latest: Vec<_> =
            converging.latest(9).into_iter().map(|(revision, _)| revision).collect();
        assert_eq!(latest, [further, REVISION]);
    }

    #[test]
    fn what_was_not_committed_is_not_watched() {
        let converging = Converging::default();
        let mut moved = converging.moved.subscribe();
        drop(converging.begin(REVISION, at(0)));
        assert!(moved.has_changed().unwrap(), "whoever waits looks again");
        moved.mark_unchanged();
        assert!(converging.latest(9).is_empty() && !told(&converging).reissue_pending);
    }

    #[test]
    fn committed_revisions_that_are_watched_are_bounded_and_none_gives_way_to_one_that_is_not() {
        let converging = Converging::default();
        let revision = |number| Revision { number, ..REVISION };
        for number in 0..WATCHED_MAX as u64 + 3 {
            converging.begin(revision(number), at(0)).committed(at(0), Watched::default());
        }
        let begun: Vec<_> =
            (200..300).map(|number| converging.begin(revision(number), at(0))).collect();
        drop(begun);
        let latest = converging.latest(usize::MAX);
        assert_eq!(latest.len(), WATCHED_MAX);
        assert_eq!(latest.last().unwrap().0, revision(3), "the oldest gave way");
    }
}
