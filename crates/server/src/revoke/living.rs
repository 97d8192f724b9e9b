//! Which points still count, and which are taken off record.

use countersign_identity::{SKEW_ALLOWED, Timestamp};
use countersign_store::{Batch, Op, PointKey};

use crate::control::Control;
use crate::publish::{Standing, reckon};
use crate::refusal::Refused;
use crate::revoke::converge::{joined, listen};
use crate::revoke::exposure::lost_until;
use crate::revoke::holdings::{Ends, Out};
use crate::revoke::replicas::Heard;

/// What is to be done with a point of which it is asked whether it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Counts,
    /// It does not count, and whether it stays on record is for another server to say, which hears it first if it lives.
    Passed,
    Gone,
}

/// Leaves out those that are gone: nobody speaks for them any more, and the last credential that they can present has
/// expired. A lost stream alone does not make a point dead.
///
/// # Errors
/// When the store does not answer.
pub(super) async fn living(
    control: &Control,
    heard: &Heard,
    out: &Out<'_>,
    points: Vec<Standing>,
) -> Result<Vec<Standing>, Refused> {
    if points.iter().all(|point| point.confirmed) {
        return Ok(points);
    }
    // Of what was issued in a span that the store has lost there are no rows.
    if lost_until(&control.feed.current(), out.now).is_some() {
        return Ok(points);
    }
    let known = |point| control.remembered.fate(point, out.now);
    let mut fates: Vec<Option<Fate>> = points.iter().map(known).collect();
    if fates.contains(&None) {
        let ends = out.held().await?.ends();
        fates = points.iter().map(|point| Some(fate(point, &ends, out, heard))).collect();
        remember(control, &points, &fates, &ends, out);
    }
    let (mut living, mut gone) = (Vec::new(), Vec::new());
    for (point, fate) in points.into_iter().zip(fates) {
        match fate {
            Some(Fate::Counts) | None => living.push(point),
            Some(Fate::Passed) => {}
            Some(Fate::Gone) => gone.push(point.key),
        }
    }
    forget(control, gone).await;
    Ok(living)
}

fn remember(
    control: &Control,
    points: &[Standing],
    fates: &[Option<Fate>],
    ends: &Ends,
    out: &Out<'_>,
) {
    let silent = points.iter().zip(fates).filter(|(point, _)| !point.confirmed);
    let decided = silent.filter_map(|(point, fate)| match fate {
        Some(Fate::Counts) => Some((point, last_end(ends, point, point.left_out, out))),
        Some(Fate::Passed) => Some((point, None)),
        Some(Fate::Gone) | None => None,
    });
    control.remembered.remember_points(decided, out.now);
}

/// Takes points off record that are gone, whoever asks for them or not. Those of another server's nodes that one takes off.
///
/// # Errors
/// When the store does not answer.
pub(super) async fn drop_gone(control: &Control) -> Result<(), Refused> {
    let heard = listen(control).await?;
    reckon(control);
    let points = control.roster.standings().into_iter().map(|point| joined(point, &heard));
    living(control, &heard, &Out::of(control), points.collect()).await.map(drop)
}

pub(super) fn fate(point: &Standing, ends: &Ends, out: &Out<'_>, heard: &Heard) -> Fate {
    // By a clock that is ahead nobody is gone: a step that waits for all would not wait for who is silent.
    let is_over = |end: Option<Timestamp>| end.is_none_or(|end| end + SKEW_ALLOWED < out.now);
    if point.confirmed || !is_over(last_end(ends, point, point.left_out, out)) {
        return Fate::Counts;
    }
    // What another server's agent has not known may have come back there, and is as old here as that server's last report.
    if heard.is_elsewhere(point) && !is_over(last_end(ends, point, None, out)) {
        return Fate::Passed;
    }
    Fate::Gone
}

/// The end of the last credential that a point can present: of its identity on its node, issued before the agent began, if
/// there is one, that is connected now and does not know it. A process gets credentials only over the socket of its node's
/// agent, and an agent has only those that it asked for itself; so a point that an agent has never known has none of them.
/// Of one that it has forgotten for want of room, the process counts among the unaware.
/// While no agent is connected, it is not known to whom the last one gave what it had: everything counts.
fn last_end(
    ends: &Ends,
    point: &Standing,
    left_out: Option<Timestamp>,
    out: &Out<'_>,
) -> Option<Timestamp> {
    let of_holder = ends.get(&(point.key.node, point.key.spiffe_id.clone()))?;
    let began = left_out.unwrap_or(Timestamp::LAST);
    let its = of_holder.iter().filter(|(issued, _)| out.may_precede(*issued, began));
    its.map(|(_, end)| *end).max()
}

/// Forgets points that are gone.
pub(crate) async fn forget(control: &Control, gone: Vec<PointKey>) {
    if gone.is_empty() {
        return;
    }
    let gone = control.roster.forget(gone);
    let ops = gone.into_iter().map(Op::RemovePoint).collect();
    if let Err(error) = control.store.commit(Batch { ops, ..Batch::default() }).await {
        tracing::warn!(%error, "points that are gone are still on record; they are looked at again");
    }
}
