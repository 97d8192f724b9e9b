//! What agents gave out before the ones that run now began. An agent remembers in memory alone whom it gave what, so the one that
//! begins after it counts from nothing; but what was issued to the node is on record here.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use countersign_identity::{NodeId, SKEW_ALLOWED, SpiffeId, Timestamp};

use crate::control::Control;
use crate::refusal::Refused;
use crate::revoke::converge::joined;
use crate::revoke::exposure::lost_until;
use crate::revoke::holdings::Out;
use crate::revoke::remembered::{Estate, Known};
use crate::revoke::replicas::Heard;

/// The nodes on which an agent before these gave out what workloads can present, and nobody knows to whom: no point is heard of
/// that has the identity.
///
/// # Errors
/// When the store does not answer.
pub(super) async fn inherited(
    control: &Control,
    heard: &Heard,
    agents: HashMap<NodeId, Timestamp>,
    out: &Out<'_>,
) -> Result<BTreeSet<NodeId>, Refused> {
    let state = control.feed.current();
    // Of what was issued in a span that the store has lost there are no rows.
    if lost_until(&state, out.now).is_some()
        && let Some(life) = state.life()
    {
        let longest = life.until.since(life.began);
        let young = agents.into_iter().filter(|(_, since)| may_follow(longest, *since, out.now));
        return Ok(young.map(|(node, _since)| node).collect());
    }
    let Known { mut estates, unsettled, mut unread } = control.remembered.before(&agents, out.now);
    if !unsettled.is_empty() && control.remembered.is_read_now(out) {
        estates.extend(read(control, unsettled, out).await?);
        unread.clear();
    }
    if estates.is_empty() {
        return Ok(unread);
    }
    let points = control.roster.standings().into_iter().map(|point| joined(point, heard));
    let spoken_for: HashSet<(NodeId, SpiffeId)> = points
        .filter(|point| point.confirmed && estates.contains_key(&point.key.node))
        .map(|point| (point.key.node, point.key.spiffe_id))
        .collect();
    let unknown = |(node, estate): &(NodeId, Estate)| {
        estate.ends.keys().any(|id| !spoken_for.contains(&(*node, id.clone())))
    };
    let unknown = estates.into_iter().filter(unknown).map(|(node, _estate)| node);
    Ok(unknown.chain(unread).collect())
}

/// Whether something that is lost, and lives so long at most, could be valid still of what an agent before this one had.
fn may_follow(longest: Duration, since: Timestamp, now: Timestamp) -> bool {
    now <= since + SKEW_ALLOWED + longest + SKEW_ALLOWED
}

/// What was issued to the nodes of these agents before they began. It is remembered.
async fn read(
    control: &Control,
    agents: HashMap<NodeId, Timestamp>,
    out: &Out<'_>,
) -> Result<HashMap<NodeId, Estate>, Refused> {
    let domain = control.feed.current().domain().trust_domain.clone();
    let estate = |(node, since)| (node, Estate::of(since, out.now));
    let mut estates: HashMap<NodeId, Estate> = agents.into_iter().map(estate).collect();
    for (node, row) in out.held().await?.of_workloads(&domain) {
        let Some(Estate { since, ends, .. }) = estates.get_mut(&node) else { continue };
        if out.may_precede(row.serial.drawn_for(), *since) {
            let end = ends.entry(row.spiffe_id.clone()).or_insert(row.validity.not_after);
            *end = row.validity.not_after.max(*end);
        }
    }
    control.remembered.remember_estates(&estates);
    estates.retain(|_node, estate| !estate.ends.is_empty());
    Ok(estates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_that_is_older_than_all_that_could_be_lost_follows_none() {
        let since = Timestamp::from_secs(1_795_262_400);
        let follows = |secs| may_follow(Duration::from_secs(900), since, since + secs);
        assert!(follows(Duration::from_secs(900) + 2 * SKEW_ALLOWED));
        assert!(!follows(Duration::from_secs(901) + 2 * SKEW_ALLOWED));
    }
}
