//! Who enforces a revision, by what is known here and on the other servers.

use std::sync::Arc;
use std::time::Duration;

use countersign_api::admin::{Convergence, MissingPoint};
use countersign_identity::{Code, Revision, Revocations, Serial, Timestamp};
use countersign_store::{PAGE_MAX, PointKey};
use tokio::sync::watch;

use crate::authority::internal;
use crate::control::Control;
use crate::incarnation::Life;
use crate::publish::{Reach, Standing, reckon};
use crate::refusal::Refused;
use crate::revoke::exposure::{exposure_ends, lost_until};
use crate::revoke::holdings::Out;
use crate::revoke::living::living;
use crate::revoke::replicas::{Heard, Replicas, trial_of};
use crate::revoke::trial::tried_out;
use crate::revoke::unaware::uncounted;
use crate::revoke::watched::LOOK_AGAIN;
use crate::state::State;

/// How often it is counted at most how many points are behind, while they acknowledge.
const COUNT_AGAIN: Duration = Duration::from_millis(5);
/// To hear one acknowledgement takes at least so long.
const HEARD_EACH: Duration = Duration::from_micros(10);

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

/// Says who enforces a revision; waits for at most so long until all do.
///
/// # Errors
/// When there is no such revision yet, or the store does not answer.
pub(crate) async fn converged(
    control: &Control,
    revision: Revision,
    trial: Option<Revision>,
    wait: Duration,
) -> Result<Convergence, Refused> {
    let mut moved = control.converging.moved.subscribe();
    let until = control.clock.now() + wait;
    made(control, revision).await?;
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
    let heard = listen(control).await?;
    listen_for_issued(control, revision).await?;
    reckon(control);
    let (reach, enforcing) = match (trial, &control.replicas) {
        (None, None) => (control.roster.reach(revision), Vec::new()),
        (Some(_), _) | (_, Some(_)) => one_by_one(control, revision, &heard),
    };
    let out = Out::of(control);
    let (unaware, unheard) = uncounted(control, &heard, &out).await?;
    let mut answer = Convergence {
        revision,
        live: 0,
        enforcing: reach.enforcing,
        missing: Vec::new(),
        unaware,
        unheard,
        draining: reach.draining.saturating_add(heard.draining()),
        connections_cut: None,
        slowest_millis: None,
        reissued_millis: None,
        reissue_pending: false,
        exposure_ends: None,
        trial: None,
    };
    let missing = living(control, &heard, &out, reach.others).await?;
    answer.live = answer.enforcing + missing.len() as u64;
    answer.trial = trial.map(|trial| tried_out(trial, enforcing.iter().chain(&missing)));
    answer.missing = missing.into_iter().map(view).collect();
    control.converging.fill(&mut answer);
    let cut = answer.connections_cut;
    answer.connections_cut = cut.map(|cut| cut.saturating_add(heard.cut(revision)));
    if answer.missing.is_empty() && answer.unaware == 0 {
        answer.exposure_ends = None;
    } else if answer.exposure_ends.is_none() {
        answer.exposure_ends = exposure(control, revision, &out).await?;
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

/// Goes on only with a revision that was made. One that another server made a moment ago may not have been read here.
async fn made(control: &Control, revision: Revision) -> Result<(), Refused> {
    if revision <= control.feed.current().revision {
        return Ok(());
    }
    let newest = control.store.head().await?.revision;
    if newest < revision {
        let why = format!("revision {revision} is not there yet: the current one is {newest}");
        return Err(Refused::new(Code::NotFound, why));
    }
    Ok(())
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
///
/// # Errors
/// When the store does not answer.
pub(super) async fn listen(control: &Control) -> Result<Arc<Heard>, Refused> {
    let Some(replicas) = &control.replicas else { return Ok(Arc::default()) };
    let now = control.clock.now();
    replicas.look(&*control.store, &control.roster, &control.converging, now).await?;
    Ok(replicas.heard())
}

/// Takes note of what other servers have issued, where it is waited for.
async fn listen_for_issued(control: &Control, revision: Revision) -> Result<(), Refused> {
    let now = control.clock.now();
    if control.replicas.is_some()
        && let Some(from) = control.converging.to_read(revision, now)
    {
        read_issued(control, from).await?;
        control.converging.read(revision, now);
    }
    Ok(())
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
    let point = Standing { left_out: heard.left_out(&point), ..point };
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

fn view(point: Standing) -> MissingPoint {
    let PointKey { node, spiffe_id, name } = point.key;
    MissingPoint { point: name, spiffe_id, node, revision: point.revision, since: point.seen }
}

/// Until when what the rules of this very revision cover could be accepted by who does not know of them.
async fn exposure(
    control: &Control,
    revision: Revision,
    out: &Out<'_>,
) -> Result<Option<Timestamp>, Refused> {
    let state = control.feed.current();
    let prefix = format!("{revision}.");
    let rules = state.revocations();
    let of_revision = rules.iter().filter(|(name, _)| name.starts_with(&prefix));
    let of_revision: Vec<_> =
        of_revision.map(|(name, rule)| (name.clone(), rule.clone())).collect();
    if of_revision.is_empty() {
        return Ok(None);
    }
    if let Some(ends) = control.remembered.exposure(revision, out) {
        return Ok(ends);
    }
    let rules = Revocations::new(of_revision);
    let covered = out.held().await?.covered(&rules);
    let ends = exposure_ends(&rules, &covered, lost_until(&state, out.now));
    control.remembered.remember_exposure(revision, ends, out);
    Ok(ends)
}
