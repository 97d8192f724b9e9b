//! Who enforces a revision: watched from its commit on, so that nothing that happens in between is missed.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_api::admin::{
    CanaryView, Convergence, MissingPoint, TrialView, UnverifiedPoint, VerifiedPoint,
};
use countersign_api::v1;
use countersign_identity::{
    Code, NodeId, Revision, Revocations, SKEW_ALLOWED, Serial, SpiffeId, Timestamp,
};
use countersign_store::{Batch, Op, PAGE_MAX, PointKey};
use tokio::sync::watch;

use crate::authority::internal;
use crate::control::Control;
use crate::incarnation::Life;
use crate::publish::{Reach, Standing};
use crate::refusal::Refused;
use crate::revoke::held;
use crate::revoke::replicas::{CutCount, Heard, Replicas, trial_of};
use crate::state::State;

/// Revisions that are watched at once; the oldest gives way.
const WATCHED_MAX: usize = 64;
/// New credentials that are remembered for one of them.
const ISSUED_MAX: usize = 100_000;
/// Ways from one revision to another on which connections were ended, and which are remembered.
const CUTS_MAX: usize = 64;
/// How often it is counted at most how many points are behind, while they acknowledge.
const COUNT_AGAIN: Duration = Duration::from_millis(5);
/// To hear one acknowledgement takes at least so long.
const HEARD_EACH: Duration = Duration::from_micros(10);
/// How often it is looked again what other servers have heard and issued, while somebody waits for it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The latest revisions that took rights away, and how far they have come.
#[derive(Debug)]
pub(crate) struct Converging {
    watched: Mutex<VecDeque<Watch>>,
    cuts: Mutex<VecDeque<CutCount>>,
    moved: watch::Sender<()>,
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
    fn to_read(&self, revision: Revision, now: Timestamp) -> Option<Timestamp> {
        let all = self.watched();
        let watch = all.iter().find(|watch| watch.revision == revision)?;
        let mut wanted = watch.watched.reissue.iter();
        let pending = wanted.any(|holder| !watch.issued.contains_key(holder));
        let again = watch.read + LOOK_AGAIN <= now;
        (pending && again).then(|| watch.read - SKEW_ALLOWED)
    }

    fn read(&self, revision: Revision, at: Timestamp) {
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

/// How many enforcement points on record have come how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// They enforce the newest change that takes rights away.
    pub(crate) enforcing: u64,
    /// They do not yet.
    pub(crate) behind: u64,
    /// They do not, and no agent speaks for them now.
    pub(crate) silent: u64,
}

/// How far the newest change has come that takes rights away, by what is known here without asking the store.
pub(crate) fn progress(control: &Control) -> Progress {
    let newest = control.converging.latest(1).first().map(|(revision, _)| *revision);
    let heard = control.replicas.as_ref().map(Replicas::heard).unwrap_or_default();
    let mut progress = Progress::default();
    for point in control.roster.standings() {
        let point = joined(point, &heard);
        let count = match (newest <= point.revision, point.confirmed) {
            (true, _) if newest.is_some() || point.confirmed => &mut progress.enforcing,
            (_, true) => &mut progress.behind,
            (_, false) => &mut progress.silent,
        };
        *count += 1;
    }
    progress
}

/// How many processes cannot say what they enforce, on all nodes.
pub(crate) fn unaware(control: &Control) -> u64 {
    let heard = control.replicas.as_ref().map(Replicas::heard).unwrap_or_default();
    heard.unaware(control.roster.unaware())
}

/// Says who enforces a revision; waits for at most so long until all do.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn converged(
    control: &Control,
    revision: Revision,
    trial: Option<Revision>,
    wait: Duration,
) -> Result<Convergence, Refused> {
    let mut moved = control.converging.moved.subscribe();
    let until = control.clock.now() + wait;
    known(&control.feed.current(), revision)?;
    loop {
        moved.mark_unchanged();
        let late = until <= control.clock.now() || control.stop.is_cancelled();
        // While one of ours is behind, it is not asked which: that would hold up those who are.
        if late || control.replicas.is_some() || !control.roster.lags(revision) {
            let answer = look(control, revision, trial).await?;
            let done =
                answer.is_converged() && !answer.reissue_pending && !answer.is_tried_out_later();
            if late || done {
                return Ok(answer);
            }
        }
        let pause = (control.clock.now() + LOOK_AGAIN).min(until);
        tokio::select! {
            () = may_be_done(control, revision, &mut moved), if control.replicas.is_none() => {}
            // Others may have heard, and who is dead is found out in time.
            () = control.clock.sleep_until(pause) => {}
            () = control.stop.cancelled() => {}
        }
    }
}

/// Resolves when something has moved and no point is behind: to find out who is, is work for every point that there is, and
/// is not done for each of ten thousand acknowledgements.
async fn may_be_done(control: &Control, revision: Revision, moved: &mut watch::Receiver<()>) {
    while moved.changed().await.is_ok() {
        let behind = control.roster.behind(revision);
        if behind == 0 {
            return;
        }
        // Before that they cannot all have been heard, and to count them holds up those who are.
        let heard = HEARD_EACH.saturating_mul(u32::try_from(behind).unwrap_or(u32::MAX));
        control.clock.sleep_until(control.clock.now() + COUNT_AGAIN.max(heard)).await;
    }
    // Nobody is left who could move anything.
    std::future::pending::<()>().await;
}

/// Says who enforces a revision, now, and what a trial has shown.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn look(
    control: &Control,
    revision: Revision,
    trial: Option<Revision>,
) -> Result<Convergence, Refused> {
    known(&control.feed.current(), revision)?;
    let heard = listen(control, revision).await?;
    let (reach, enforcing) = match (trial, &control.replicas) {
        (None, None) => (control.roster.reach(revision), Vec::new()),
        (Some(_), _) | (_, Some(_)) => one_by_one(control, revision, &heard),
    };
    let mut answer = Convergence {
        revision,
        live: 0,
        enforcing: reach.enforcing,
        missing: Vec::new(),
        unaware: heard.unaware(control.roster.unaware()),
        draining: reach.draining.saturating_add(heard.draining()),
        connections_cut: None,
        slowest_millis: None,
        reissued_millis: None,
        reissue_pending: false,
        exposure_ends: None,
        trial: None,
    };
    let missing = living(control, reach.others).await?;
    answer.live = answer.enforcing + missing.len() as u64;
    answer.trial = trial.map(|trial| tried_out(trial, enforcing.iter().chain(&missing)));
    answer.missing = missing.into_iter().map(view).collect();
    control.converging.fill(&mut answer);
    let cut = answer.connections_cut;
    answer.connections_cut = cut.map(|cut| cut.saturating_add(heard.cut(revision)));
    if answer.missing.is_empty() && answer.unaware == 0 {
        answer.exposure_ends = None;
    } else if answer.exposure_ends.is_none() {
        answer.exposure_ends = exposure(control, revision).await?;
    }
    Ok(answer)
}

/// How far all points have come with a revision by what any server has heard, and those that enforce it.
fn one_by_one(control: &Control, revision: Revision, heard: &Heard) -> (Reach, Vec<Standing>) {
    let points = control.roster.standings().into_iter().map(|point| joined(point, heard));
    let (enforcing, others): (Vec<_>, Vec<_>) =
        points.partition(|point| Some(revision) <= point.revision);
    let all = enforcing.iter().chain(&others);
    let draining = all.map(|point| point.draining).fold(0, u64::saturating_add);
    (Reach { enforcing: enforcing.len() as u64, others, draining }, enforcing)
}

/// Goes on only with a revision whose contents are known here: who has come beyond one that a restored store has lost
/// need never have heard of it.
fn known(state: &State, revision: Revision) -> Result<(), Refused> {
    let Some(life) = state.life().filter(|life| life.has_lost(revision)) else { return Ok(()) };
    let Life { began, cause, from, .. } = &*life;
    let why = format!(
        "revision `{revision}` is not in the store, which goes on from {} since {began} ({}): who enforces it is not known; \
         what agents handed back of it has a revision of its own",
        from.revision,
        cause.sentence()
    );
    Err(Refused::new(Code::NotConverged, why))
}

/// What other servers have heard and done, where there are any.
async fn listen(control: &Control, revision: Revision) -> Result<Arc<Heard>, Refused> {
    let Some(replicas) = &control.replicas else { return Ok(Arc::default()) };
    let now = control.clock.now();
    replicas.look(&*control.store, &control.roster, &control.converging, now).await?;
    if let Some(from) = control.converging.to_read(revision, now) {
        read_issued(control, from).await?;
        control.converging.read(revision, now);
    }
    Ok(replicas.heard())
}

/// Takes note of what was issued since, by whichever server.
async fn read_issued(control: &Control, from: Timestamp) -> Result<(), Refused> {
    let mut after = Some(Serial::draw(from, &*control.entropy).map_err(internal)?);
    loop {
        let page = control.store.issued_after(after, PAGE_MAX).await?;
        let now = control.clock.now();
        for row in page.iter().map(|issued| &issued.row) {
            if let Some(node) = row.node {
                control.converging.issued(&row.spiffe_id, node, row.revision, now);
            }
        }
        after = page.last().map(|issued| issued.row.serial);
        if page.len() < PAGE_MAX {
            return Ok(());
        }
    }
}

/// What is known of a point, here and elsewhere.
pub(super) fn joined(point: Standing, heard: &Heard) -> Standing {
    let Some(spoken) = heard.of(&point.key) else { return point };
    let elsewhere = heard.tried(&point.key);
    let newer = elsewhere.filter(|tried| point.tried.as_ref().and_then(trial_of) < trial_of(tried));
    Standing {
        tried: newer.cloned().or(point.tried),
        revision: point.revision.max(spoken.revision),
        confirmed: point.confirmed || spoken.now,
        seen: point.seen.max(Some(spoken.seen)),
        ..point
    }
}

/// Leaves out those that are gone: nobody speaks for them any more, and the last credential that they can present has
/// expired. A lost stream alone does not make a point dead.
async fn living(control: &Control, points: Vec<Standing>) -> Result<Vec<Standing>, Refused> {
    if points.iter().all(|point| point.confirmed) {
        return Ok(points);
    }
    let now = control.clock.now();
    // Of what was issued in a span that the store has lost there are no rows.
    let state = control.feed.current();
    if state.life().is_some_and(|life| now <= life.until + SKEW_ALLOWED) {
        return Ok(points);
    }
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

/// What a trial has shown of these points, and of which of them it has shown nothing. A newer trial shows no less: revisions
/// are enforced in order.
fn tried_out<'a>(trial: Revision, points: impl Iterator<Item = &'a Standing>) -> TrialView {
    let mut view =
        TrialView { revision: trial, verified: Vec::new(), unverified: Vec::new(), pending: false };
    for Standing { key, revision, tried, .. } in points {
        let PointKey { node, spiffe_id, name } = key.clone();
        let unverified = |why: &str, pending| UnverifiedPoint {
            point: name.clone(),
            spiffe_id: spiffe_id.clone(),
            node,
            why: why.to_owned(),
            pending,
        };
        let latest = tried.as_ref().filter(|tried| Some(trial) <= trial_of(tried));
        match latest.map(|tried| (tried, seen(tried))) {
            None if *revision < Some(trial) => {
                view.unverified
                    .push(unverified("it has not said that it enforces the trial's rule", true));
            }
            None => view.unverified.push(unverified("its agent has not tried it yet", true)),
            Some((tried, Some((covered, uncovered)))) => view.verified.push(VerifiedPoint {
                point: name,
                spiffe_id,
                node,
                door: tried.door.clone(),
                covered,
                uncovered,
                former: outcome(tried.former()),
                why: (!tried.why.is_empty()).then(|| tried.why.clone()),
            }),
            Some((tried, None)) => view.unverified.push(unverified(&tried.why, false)),
        }
    }
    view.pending = view.unverified.iter().any(|point| point.pending);
    view
}

/// What became of the two canaries that every trial has; nothing when that proves neither that the point does what it says
/// nor that it does not.
fn seen(tried: &v1::TrialResult) -> Option<(CanaryView, CanaryView)> {
    let as_former = outcome(tried.former()) == Some(CanaryView::Accepted);
    match (outcome(tried.covered()), outcome(tried.uncovered())) {
        (Some(covered), Some(uncovered)) => Some((covered, uncovered)),
        (Some(CanaryView::Accepted), None) => Some((CanaryView::Accepted, CanaryView::Unclear)),
        (covered, uncovered) if as_former => {
            let or_unclear = |view: Option<_>| view.unwrap_or(CanaryView::Unclear);
            Some((or_unclear(covered), or_unclear(uncovered)))
        }
        (Some(_) | None, _) => None,
    }
}

fn outcome(outcome: v1::CanaryOutcome) -> Option<CanaryView> {
    match outcome {
        v1::CanaryOutcome::Revoked => Some(CanaryView::Refused),
        v1::CanaryOutcome::Untrusted => Some(CanaryView::Untrusted),
        v1::CanaryOutcome::Alive => Some(CanaryView::Accepted),
        v1::CanaryOutcome::Unspecified => None,
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
