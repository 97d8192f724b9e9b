//! Who enforces a revision: watched from its commit on, so that nothing that happens in between is missed.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_api::admin::{Convergence, MissingPoint};
use countersign_identity::{NodeId, Revision, Revocations, SKEW_ALLOWED, SpiffeId, Timestamp};
use countersign_store::{Batch, Op, PointKey};
use tokio::sync::watch;

use crate::control::Control;
use crate::publish::Standing;
use crate::refusal::Refused;
use crate::revoke::held;

/// Revisions that are watched at once; the oldest gives way.
const WATCHED_MAX: usize = 64;
/// New credentials that are remembered for one of them.
const ISSUED_MAX: usize = 100_000;

/// The latest revisions that took rights away, and how far they have come.
#[derive(Debug)]
pub(crate) struct Converging {
    watched: Mutex<VecDeque<Watch>>,
    moved: watch::Sender<()>,
}

impl Default for Converging {
    fn default() -> Self {
        Self { watched: Mutex::default(), moved: watch::Sender::new(()) }
    }
}

#[derive(Debug)]
struct Watch {
    revision: Revision,
    committed: Timestamp,
    slowest: Option<Timestamp>,
    cut: u64,
    issued: HashMap<(SpiffeId, NodeId), Timestamp>,
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
            watched: Watched::default(),
        });
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
        if !advances.is_empty() {
            self.moved.send_replace(());
        }
    }

    /// A certificate was issued that was authorised at this revision.
    pub(crate) fn issued(&self, id: &SpiffeId, node: NodeId, revision: Revision, now: Timestamp) {
        let mut moved = false;
        for watch in self.watched().iter_mut() {
            let room = watch.issued.len() < ISSUED_MAX;
            if watch.revision <= revision && room {
                watch.issued.entry((id.clone(), node)).or_insert(now);
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
    fn fill(&self, answer: &mut Convergence) {
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

/// Says who enforces a revision; waits for at most so long until all do.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn converged(
    control: &Control,
    revision: Revision,
    wait: Duration,
) -> Result<Convergence, Refused> {
    let mut moved = control.converging.moved.subscribe();
    let until = control.clock.now() + wait;
    loop {
        moved.mark_unchanged();
        let answer = look(control, revision).await?;
        if answer.is_converged() && !answer.reissue_pending {
            return Ok(answer);
        }
        tokio::select! {
            changed = moved.changed() => if changed.is_err() { return Ok(answer) },
            () = control.clock.sleep_until(until) => return look(control, revision).await,
            () = control.stop.cancelled() => return Ok(answer),
        }
    }
}

async fn look(control: &Control, revision: Revision) -> Result<Convergence, Refused> {
    let (points, unaware) = control.roster.standings();
    let mut answer = Convergence {
        revision,
        live: 0,
        enforcing: 0,
        missing: Vec::new(),
        unaware,
        draining: points.iter().map(|point| point.draining).fold(0, u64::saturating_add),
        connections_cut: None,
        slowest_millis: None,
        reissued_millis: None,
        reissue_pending: false,
        exposure_ends: None,
    };
    let (enforcing, others): (Vec<_>, Vec<_>) =
        points.into_iter().partition(|point| Some(revision) <= point.revision);
    answer.enforcing = enforcing.len() as u64;
    let missing = living(control, others).await?;
    answer.live = answer.enforcing + missing.len() as u64;
    answer.missing = missing.into_iter().map(view).collect();
    control.converging.fill(&mut answer);
    if answer.missing.is_empty() && answer.unaware == 0 {
        answer.exposure_ends = None;
    } else if answer.exposure_ends.is_none() {
        answer.exposure_ends = exposure(control, revision).await?;
    }
    Ok(answer)
}

/// Leaves out those that are gone: nobody speaks for them any more, and the last credential that they can present has
/// expired. A lost stream alone does not make a point dead.
async fn living(control: &Control, points: Vec<Standing>) -> Result<Vec<Standing>, Refused> {
    if points.iter().all(|point| point.confirmed) {
        return Ok(points);
    }
    let now = control.clock.now();
    let ends = held(&*control.store, now).await?.last_ends();
    let lives = |point: &Standing| {
        let holder = (point.key.node, point.key.spiffe_id.clone());
        point.confirmed || ends.get(&holder).is_some_and(|end| now <= *end + SKEW_ALLOWED)
    };
    let (living, dead): (Vec<_>, Vec<_>) = points.into_iter().partition(lives);
    forget(control, dead.into_iter().map(|point| point.key).collect()).await;
    Ok(living)
}

/// Forgets points that are gone.
pub(crate) async fn forget(control: &Control, gone: Vec<PointKey>) {
    if gone.is_empty() {
        return;
    }
    control.roster.forget(&gone);
    let ops = gone.into_iter().map(Op::RemovePoint).collect();
    if let Err(error) = control.store.commit(Batch { ops, ..Batch::default() }).await {
        tracing::warn!(%error, "points that are gone are still on record; they are looked at again");
    }
}

fn view(point: Standing) -> MissingPoint {
    let PointKey { node, spiffe_id, name } = point.key;
    MissingPoint { point: name, spiffe_id, node, revision: point.revision, since: point.seen }
}

/// Until when what the rules of this very revision cover could be accepted by who does not know of them.
async fn exposure(control: &Control, revision: Revision) -> Result<Option<Timestamp>, Refused> {
    let state = control.feed.current();
    let prefix = format!("{revision}.");
    let rules = state.revocations();
    let of_revision = rules.iter().filter(|(name, _)| name.starts_with(&prefix));
    let of_revision: Vec<_> =
        of_revision.map(|(name, rule)| (name.clone(), rule.clone())).collect();
    if of_revision.is_empty() {
        return Ok(None);
    }
    let covered = held(&*control.store, control.clock.now()).await?;
    let covered = covered.covered(&Revocations::new(of_revision));
    Ok(covered.last_end().map(|end| end + SKEW_ALLOWED))
}
