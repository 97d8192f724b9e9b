//! What agents gave out before the ones that run now began. An agent remembers in memory alone whom it gave what, so the one that
//! begins after it counts from nothing; but what was issued to the node is on record here.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_identity::{NodeId, SKEW_ALLOWED, SpiffeId, Timestamp};

use crate::control::Control;
use crate::refusal::Refused;
use crate::revoke::converge::joined;
use crate::revoke::exposure::lost_until;
use crate::revoke::holdings::Out;
use crate::revoke::replicas::Heard;

/// So long after an agent began, by our clock, nothing more is recorded as issued before, or in the minute after.
const SETTLED: Duration = Duration::from_secs(2 * SKEW_ALLOWED.as_secs());

/// What is known already, so that it is not read again with each look.
#[derive(Debug, Default)]
pub(crate) struct Inherited(Mutex<HashMap<NodeId, Estate>>);

/// What the agents of one node before its present one may have given out.
#[derive(Clone, Debug)]
struct Estate {
    /// Since when the present one runs.
    since: Timestamp,
    /// When the last of each identity ends.
    ends: BTreeMap<SpiffeId, Timestamp>,
}

impl Inherited {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Estate>> {
        // Each statement leaves it whole, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of these agents that are known and not over; and the agents of which nothing is known.
    fn known(
        &self,
        mut agents: HashMap<NodeId, Timestamp>,
        now: Timestamp,
    ) -> (HashMap<NodeId, Estate>, HashMap<NodeId, Timestamp>) {
        let mut table = self.lock();
        table.retain(|node, estate| agents.get(node) == Some(&estate.since));
        for (node, estate) in table.iter_mut() {
            agents.remove(node);
            estate.ends.retain(|_id, end| now <= *end + SKEW_ALLOWED);
        }
        let known = table.iter().filter(|(_, estate)| !estate.ends.is_empty());
        (known.map(|(node, estate)| (*node, estate.clone())).collect(), agents)
    }

    fn remember(&self, node: NodeId, estate: &Estate) {
        self.lock().insert(node, estate.clone());
    }
}

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
    let (mut estates, unknown) = control.inherited.known(agents, out.now);
    if !unknown.is_empty() {
        estates.extend(read(control, unknown, out).await?);
    }
    if estates.is_empty() {
        return Ok(BTreeSet::new());
    }
    let points = control.roster.standings().into_iter().map(|point| joined(point, heard));
    let spoken_for: HashSet<(NodeId, SpiffeId)> = points
        .filter(|point| point.confirmed && estates.contains_key(&point.key.node))
        .map(|point| (point.key.node, point.key.spiffe_id))
        .collect();
    let unknown = |(node, estate): &(NodeId, Estate)| {
        estate.ends.keys().any(|id| !spoken_for.contains(&(*node, id.clone())))
    };
    Ok(estates.into_iter().filter(unknown).map(|(node, _estate)| node).collect())
}

/// Whether something that is lost, and lives so long at most, could be valid still of what an agent before this one had.
fn may_follow(longest: Duration, since: Timestamp, now: Timestamp) -> bool {
    now <= since + SKEW_ALLOWED + longest + SKEW_ALLOWED
}

/// What was issued to the nodes of these agents before they began. What cannot change any more is remembered.
async fn read(
    control: &Control,
    agents: HashMap<NodeId, Timestamp>,
    out: &Out<'_>,
) -> Result<HashMap<NodeId, Estate>, Refused> {
    let domain = control.feed.current().domain().trust_domain.clone();
    let estate = |(node, since): (&NodeId, &Timestamp)| {
        (*node, Estate { since: *since, ends: BTreeMap::new() })
    };
    let mut estates: HashMap<NodeId, Estate> = agents.iter().map(estate).collect();
    for (node, row) in out.held().await?.of_workloads(&domain) {
        let Some(Estate { since, ends }) = estates.get_mut(&node) else { continue };
        if out.may_precede(row.serial.drawn_for(), *since) {
            let end = ends.entry(row.spiffe_id.clone()).or_insert(row.validity.not_after);
            *end = row.validity.not_after.max(*end);
        }
    }
    for (node, estate) in &estates {
        if estate.since + SETTLED < out.now {
            control.inherited.remember(*node, estate);
        }
    }
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
