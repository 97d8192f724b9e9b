//! How far each enforcement point has come, and what that is of all of them together.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::PoisonError;
use std::time::Duration;

use countersign_api::v1;
use countersign_identity::{NodeId, Revision, SpiffeId, Timestamp};
use countersign_store::PointKey;

use super::{Point, Presence, Roster, key, read};

/// How far one enforcement point has come.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// Which.
    pub(crate) key: PointKey,
    /// What it has acknowledged.
    pub(crate) revision: Option<Revision>,
    /// Connections that a graceful revocation ends, and which are not closed yet.
    pub(crate) draining: u64,
    /// Whether its agent speaks for it now.
    pub(crate) confirmed: bool,
    /// When the agent was last heard of that spoke for it.
    pub(crate) seen: Option<Timestamp>,
    /// When the newest stream of its node was opened that is known here, by the node's own clock.
    pub(crate) opened_micros: i64,
    /// Since when the agent has run that is connected now and does not know it.
    pub(crate) left_out: Option<Timestamp>,
    /// What the latest trial has shown of it.
    pub(crate) tried: Option<v1::TrialResult>,
}

/// How far all points have come with one revision.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// How many have acknowledged it.
    pub(crate) enforcing: u64,
    /// Those that have not.
    pub(crate) others: Vec<Standing>,
    /// Connections that drain, of all of them.
    pub(crate) draining: u64,
}

/// All nodes together, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fleet {
    /// Agents whose stream is open.
    pub(crate) connected: usize,
    /// SVIDs that they hold.
    pub(crate) svids: u64,
    /// Those whose last renewal failed.
    pub(crate) in_trouble: u64,
    /// When the first of them ends that has not ended.
    pub(crate) first_expiry: Option<Timestamp>,
    /// The clock that is furthest from ours.
    pub(crate) skew: Duration,
}

/// What the other servers are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// The points that agents speak for now, by what they have acknowledged.
    pub(crate) reached: BTreeMap<Option<Revision>, Vec<PointKey>>,
    /// The nodes that are connected.
    pub(crate) nodes: Vec<ToldNode>,
    /// What trials have shown.
    pub(crate) trials: Vec<(PointKey, v1::TrialResult)>,
    /// Connections that drain.
    pub(crate) draining: u64,
}

/// What the other servers are told of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToldNode {
    pub(crate) id: NodeId,
    /// When its stream was opened, by its own clock.
    pub(crate) opened_micros: i64,
    /// How many of its processes cannot say what they enforce.
    pub(crate) unaware: u64,
    /// Since when its agent has run.
    pub(crate) runs_since: Option<Timestamp>,
    /// The points that this agent does not know.
    pub(crate) left_out: Vec<PointKey>,
}

impl Roster {
    /// How far all points have come with this revision. It costs less than to ask each.
    pub(crate) fn reach(&self, revision: Revision) -> Reach {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reach = Reach::default();
        for (node, presence) in &table.nodes {
            for point in presence.points.values() {
                reach.draining = reach.draining.saturating_add(point.ack.draining);
                if Some(revision) <= point.ack.revision.map(read) {
                    reach.enforcing += 1;
                } else {
                    reach.others.extend(standing(*node, presence, point));
                }
            }
        }
        reach
    }

    /// Whether a point that an agent speaks for now has not acknowledged this revision.
    pub(crate) fn lags(&self, revision: Revision) -> bool {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut points = table.nodes.values().flat_map(|presence| presence.points.values());
        points.any(|point| point.confirmed && point.ack.revision.map(read) < Some(revision))
    }

    /// How many points have not acknowledged this revision, dead ones among them. It costs less than to ask which.
    pub(crate) fn behind(&self, revision: Revision) -> usize {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let points = table.nodes.values().flat_map(|presence| presence.points.values());
        points.filter(|point| point.ack.revision.map(read) < Some(revision)).count()
    }

    /// How far every point has come.
    pub(crate) fn standings(&self) -> Vec<Standing> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut standings = Vec::new();
        for (node, presence) in &table.nodes {
            let points = presence.points.values();
            standings.extend(points.filter_map(|point| standing(*node, presence, point)));
        }
        standings
    }

    /// How many processes of each node cannot say what they enforce, and when the stream was opened that told it.
    pub(crate) fn unaware(&self) -> HashMap<NodeId, (i64, u64)> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |(node, presence): (&NodeId, &Presence)| {
            (*node, (presence.opened_micros, presence.unaware))
        };
        let heard = table.nodes.iter().filter(|(node, _)| !table.unheard.contains(node));
        heard.map(told).collect()
    }

    /// Since when the agent of each node has run that told what is known here, where it says so, and when the node's newest
    /// stream was opened.
    pub(crate) fn agents(&self) -> HashMap<NodeId, (i64, Option<Timestamp>)> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |(node, presence): (&NodeId, &Presence)| {
            (*node, (presence.opened_micros, presence.told_since))
        };
        table.nodes.iter().map(told).collect()
    }

    /// These nodes are registered, and nothing is known yet of what they run.
    pub(crate) fn expect(&self, nodes: impl IntoIterator<Item = NodeId>) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).unheard.extend(nodes);
    }

    /// Another server hears these nodes by streams that were opened then: what older ones told here is known no more.
    pub(crate) fn heard_elsewhere(&self, nodes: impl IntoIterator<Item = (NodeId, i64)>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        for (node, opened_micros) in nodes {
            let ours = table.nodes.get(&node);
            if ours.is_none_or(|ours| !ours.connected() && ours.opened_micros < opened_micros) {
                table.unheard.insert(node);
            }
        }
    }

    /// The nodes of whose processes nothing is known here.
    pub(crate) fn unheard(&self) -> BTreeSet<NodeId> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).unheard.clone()
    }

    /// These nodes hold nothing any more.
    pub(crate) fn hold_nothing(&self, nodes: &BTreeSet<NodeId>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.unheard.retain(|node| !nodes.contains(node));
    }

    /// What the other servers are told: of the nodes that are connected here, and the points that they speak for.
    pub(crate) fn told(&self) -> Told {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = Told::default();
        for (node, presence) in table.nodes.iter().filter(|(_, presence)| presence.connected()) {
            let points = presence.points.values();
            let left_out = points.filter(|point| presence.left_out_since(point).is_some());
            let told_of = ToldNode {
                id: *node,
                opened_micros: presence.opened_micros,
                unaware: presence.unaware,
                runs_since: presence.runs_since,
                left_out: left_out.filter_map(|point| key(*node, &point.ack)).collect(),
            };
            if !table.unheard.contains(node) {
                told.nodes.push(told_of);
            }
            for point in presence.points.values().filter(|point| point.confirmed) {
                let Some(key) = key(*node, &point.ack) else { continue };
                let tried = point.ack.tried.clone();
                told.trials.extend(tried.map(|tried| (key.clone(), tried)));
                let reached = told.reached.entry(point.ack.revision.map(read)).or_default();
                reached.push(key);
                told.draining = told.draining.saturating_add(point.ack.draining);
            }
        }
        told
    }

    /// The identities whose enforcement points agents speak for now.
    pub(crate) fn live(&self) -> BTreeSet<SpiffeId> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let points = table.nodes.values().flat_map(|presence| presence.points.values());
        // Of many points with one identity, its text is read once.
        let live = points.filter(|point| point.confirmed).map(|point| &*point.ack.spiffe_id);
        let live: HashSet<&str> = live.collect();
        live.into_iter().filter_map(|id| id.parse().ok()).collect()
    }

    /// What connected agents say, all together.
    pub(crate) fn fleet(&self, now: Timestamp) -> Fleet {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fleet = Fleet::default();
        for presence in table.nodes.values().filter(|presence| presence.connected()) {
            fleet.connected += 1;
            let skew = presence.skew_micros.map_or(0, i64::unsigned_abs);
            fleet.skew = fleet.skew.max(Duration::from_micros(skew));
            for held in &presence.credentials {
                let ends = Timestamp::from_micros(held.expires_micros);
                let first = fleet.first_expiry.into_iter().chain([ends]).filter(|end| now < *end);
                fleet.first_expiry = first.min();
                fleet.svids += u64::from(now < ends);
                fleet.in_trouble += u64::from(!held.trouble.is_empty());
            }
        }
        fleet
    }
}

fn standing(node: NodeId, presence: &Presence, point: &Point) -> Option<Standing> {
    Some(Standing {
        key: key(node, &point.ack)?,
        revision: point.ack.revision.map(read),
        draining: point.ack.draining,
        confirmed: point.confirmed,
        seen: if point.confirmed { presence.seen } else { point.seen },
        opened_micros: presence.opened_micros,
        left_out: presence.left_out_since(point),
        tried: point.ack.tried.clone(),
    })
}
