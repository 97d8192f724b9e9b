//! How many processes cannot say what they enforce, and of which nodes that is not known.

use std::collections::BTreeSet;

use countersign_identity::NodeId;

use crate::control::Control;
use crate::publish::reckon;
use crate::refusal::Refused;
use crate::revoke::exposure::lost_until;
use crate::revoke::holdings::Out;
use crate::revoke::inherited::inherited;
use crate::revoke::replicas::{Heard, Replicas};

/// How many processes cannot say what they enforce, on all nodes; of a node on which that is not known, one. It is counted
/// now and then, and with each look at who enforces a revision; in between, and while the store is away, what was counted last
/// counts.
pub(crate) async fn unaware(control: &Control) -> u64 {
    let heard = control.replicas.as_ref().map(Replicas::heard).unwrap_or_default();
    if control.remembered.count_is_due(control.clock.now()) {
        reckon(control);
        // What it comes to is remembered.
        if let Err(refused) = uncounted(control, &heard, &Out::of(control)).await {
            tracing::debug!(why = %refused.why, "it is not counted who is unaware");
        }
    }
    control.remembered.unaware().unwrap_or_else(|| {
        // Which nodes hold nothing is in the store, which has not answered yet.
        let unheard = never_heard(control, &heard).len() as u64;
        heard.unaware(control.roster.unaware()).saturating_add(unheard)
    })
}

/// How many processes cannot say what they enforce. The nodes of which that is not known count as one each, and are named: nobody
/// has heard of them, or an agent that has ended knew it.
///
/// # Errors
/// When the store does not answer.
pub(super) async fn uncounted(
    control: &Control,
    heard: &Heard,
    out: &Out<'_>,
) -> Result<(u64, Vec<NodeId>), Refused> {
    // In this order: a node that is heard of in between, or by another agent than before, counts twice at worst.
    let never_heard = never_heard(control, heard);
    let unaware = heard.unaware(control.roster.unaware());
    let agents = heard.agents(control.roster.agents());
    let mut unheard = hold_something(control, never_heard, out).await?;
    unheard.extend(inherited(control, heard, agents, out).await?);
    let count = unaware.saturating_add(unheard.len() as u64);
    control.remembered.counted(count, out.shown);
    Ok((count, unheard.into_iter().collect()))
}

/// The nodes of whose processes no server knows anything.
fn never_heard(control: &Control, heard: &Heard) -> BTreeSet<NodeId> {
    let mut unheard = control.roster.unheard();
    heard.nodes().for_each(|(node, _opened)| _ = unheard.remove(&node));
    unheard
}

/// Those among these nodes that hold what workloads can present. Until it is read again, all of them: the last read has taken
/// off those that held nothing.
async fn hold_something(
    control: &Control,
    nodes: BTreeSet<NodeId>,
    out: &Out<'_>,
) -> Result<BTreeSet<NodeId>, Refused> {
    let state = control.feed.current();
    // Of what was issued in a span that the store has lost there are no rows.
    let lost = lost_until(&state, out.now).is_some();
    if nodes.is_empty() || lost || !control.remembered.is_read_now(out) {
        return Ok(nodes);
    }
    let of_workloads = out.held().await?.of_workloads(&state.domain().trust_domain);
    let holders: BTreeSet<NodeId> = of_workloads.map(|(node, _row)| node).collect();
    let (unheard, done) = nodes.into_iter().partition(|node| holders.contains(node));
    control.roster.hold_nothing(&done);
    Ok(unheard)
}
