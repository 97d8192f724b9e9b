//! Who is connected, what they have acknowledged, and what they last said of themselves.

pub(super) mod standing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use countersign_api::{v1, wire};
use countersign_identity::{Code, NodeId, Revision, Timestamp};
use countersign_store::{NAME_BYTES_MAX, PointKey, PointRow};

use crate::publish::arrival::Arrival;
use crate::publish::leash::{Leash, Leashed, leash};
use crate::publish::slice::Slice;
use crate::refusal::Refused;
use crate::revoke::Advance;

/// Enforcement points that are remembered for one node.
const POINTS_MAX: usize = 1024;
/// Processes and credentials that are remembered for one node.
const STATUSES_MAX: usize = 4096;
/// The longest name or message in a status.
const TEXT_BYTES_MAX: usize = 2048;

/// Every node that has been heard of since the server started, and is still registered.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    table: Mutex<Table>,
    open: AtomicUsize,
}

#[derive(Debug, Default)]
struct Table {
    nodes: BTreeMap<NodeId, Presence>,
    /// Nodes that may run processes of which nothing is known here: registered before the server started, or since heard
    /// by another server, and not heard here after that.
    unheard: BTreeSet<NodeId>,
    /// The newest streams of nodes of whose agents it is not reckoned yet since when they have run.
    arrivals: BTreeMap<NodeId, (u64, Arrival)>,
    streams: u64,
}

/// What is known of one node's agent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Presence {
    stream: Option<(u64, Leash)>,
    /// When its newest stream was opened, by its own clock. Of the servers that speak of a node the one counts that has
    /// its newest stream, and the node's clock is the one that they all know.
    opened_micros: i64,
    /// Since when its agent has run, by our clock, where it says so.
    runs_since: Option<Timestamp>,
    /// The same of the agent that has told what is known here.
    told_since: Option<Timestamp>,
    /// The stream on which it did.
    told_by: u64,
    /// The points that the newest stream has told of and that do not count; none before it has told of any. An agent tells
    /// all its points at once, so it does not know those that are in neither list.
    unheard: Option<BTreeSet<(String, String)>>,
    /// The state that the agent serves.
    pub(crate) revision: Option<Revision>,
    /// How far its clock is ahead of ours.
    pub(crate) skew_micros: Option<i64>,
    /// When it was last heard of.
    pub(crate) seen: Option<Timestamp>,
    /// Its enforcement points, by identity and name: two programs may choose one name.
    /// In boxes of their own: of one point, the map would hold room for eleven.
    pub(crate) points: BTreeMap<(String, String), Box<Point>>,
    /// Its processes that hold an SVID and cannot acknowledge.
    pub(crate) unaware: u64,
    /// The processes that it reports.
    pub(crate) processes: Vec<v1::ProcessStatus>,
    /// The credentials that it holds.
    pub(crate) credentials: Vec<v1::CredentialStatus>,
}

/// An enforcement point, and what is known of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Point {
    /// What was told of it last; of what it has ended, only that which counted with a revision.
    pub(crate) ack: v1::PointAck,
    /// Whether its agent speaks for it now. What an agent does not speak of may have outlived a restart of the agent.
    pub(crate) confirmed: bool,
    /// When its agent was last heard of that spoke for it, once it does not any more.
    seen: Option<Timestamp>,
    /// Whether it is on record.
    registered: bool,
}

/// What came of an acknowledgement.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Points that have acknowledged more than before.
    pub(crate) advances: Vec<Advance>,
    /// Points that said goodbye.
    pub(crate) gone: Vec<PointKey>,
}

impl Presence {
    /// Whether its stream is open.
    pub(crate) fn connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Nobody speaks for its points now. They live on until somebody says that they are gone: a stream that was lost must
    /// not make fewer points of many.
    fn silence(&mut self) {
        self.unheard = None;
        for point in self.points.values_mut().filter(|point| point.confirmed) {
            point.confirmed = false;
            point.seen = self.seen;
        }
    }

    /// Since when the agent has run that is connected now, has told all its points, and does not know this one. Whatever it
    /// has given out since, it gave to others.
    fn left_out_since(&self, point: &Point) -> Option<Timestamp> {
        let unheard = self.unheard.as_ref().filter(|_| self.connected() && !point.confirmed)?;
        let place = (point.ack.spiffe_id.clone(), point.ack.point.clone());
        if unheard.contains(&place) { None } else { self.runs_since }
    }
}

impl Roster {
    /// A stream of this node opens. An older one of the same node ends: the newest is the one that lives.
    pub(crate) fn attend(
        &self,
        node: NodeId,
        hello: &v1::SyncHello,
        now: Timestamp,
    ) -> (u64, Leashed) {
        let (leash, leashed) = leash();
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.streams += 1;
        let number = table.streams;
        table.arrivals.remove(&node);
        let presence = table.nodes.entry(node).or_default();
        presence.silence();
        presence.seen = Some(now);
        presence.opened_micros = hello.clock_micros;
        presence.runs_since = None;
        presence.skew_micros = Some(hello.clock_micros.saturating_sub(now.micros()));
        match presence.stream.replace((number, leash)) {
            Some((_, older)) => older
                .end(Refused::new(Code::Unavailable, "a newer stream of the same node took over")),
            None => _ = self.open.fetch_add(1, Ordering::Relaxed),
        }
        (number, leashed)
    }

    /// How many streams are open.
    pub(crate) fn streams(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// The stream of this number has ended.
    pub(crate) fn leave(&self, node: NodeId, number: u64) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(presence) = table.nodes.get_mut(&node)
            && presence.stream.as_ref().is_some_and(|(current, _)| *current == number)
        {
            presence.stream = None;
            self.open.fetch_sub(1, Ordering::Relaxed);
            presence.silence();
        }
    }

    /// The agent whose stream this is has run since then, by our clock.
    #[cfg(test)]
    pub(crate) fn runs_since(&self, node: NodeId, number: u64, since: Timestamp) {
        self.came(node, number, Arrival::unknown());
        self.reckon(|_arrival| Some(since));
    }

    /// The agent whose stream this is has come. Until it is reckoned since when it has run, that may be since any moment.
    pub(crate) fn came(&self, node: NodeId, number: u64, arrival: Arrival) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Table { nodes, arrivals, .. } = &mut *table;
        if let Some(presence) = nodes.get_mut(&node)
            && presence.stream.as_ref().is_some_and(|(current, _)| *current == number)
        {
            presence.runs_since = Some(Timestamp::LAST);
            arrivals.insert(node, (number, arrival));
        }
    }

    /// Reckons since when agents have run of which that is not known yet; what gives none is reckoned again another time.
    pub(crate) fn reckon(&self, since: impl Fn(&Arrival) -> Option<Timestamp>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Table { nodes, arrivals, .. } = &mut *table;
        arrivals.retain(|node, (number, arrival)| {
            let Some(presence) = nodes.get_mut(node) else { return false };
            let Some(since) = since(arrival) else { return true };
            presence.runs_since = Some(since);
            if presence.told_by == *number {
                presence.told_since = Some(since);
            }
            false
        });
    }

    /// The node's key has a successor: a stream that the older one opened ends.
    pub(crate) fn succeed(&self, node: NodeId) {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Presence { stream: Some((_, leash)), .. }) = table.nodes.get(&node) {
            leash.end(Refused::new(
                Code::StaleGeneration,
                "the node's key has a successor: come with the certificate of that one",
            ));
        }
    }

    /// The node was removed: its stream ends, and what it said is forgotten.
    pub(crate) fn remove(&self, node: NodeId) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.unheard.remove(&node);
        table.arrivals.remove(&node);
        if let Some(Presence { stream: Some((_, leash)), .. }) = table.nodes.remove(&node) {
            self.open.fetch_sub(1, Ordering::Relaxed);
            leash.end(Refused::new(Code::UnknownNode, "the node was removed"));
        }
    }

    /// Remembers points that are on record, from before this server started or by another one.
    pub(crate) fn recall(&self, rows: Vec<PointRow>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        for PointRow { key: PointKey { node, spiffe_id, name }, .. } in rows {
            let presence = table.nodes.entry(node).or_default();
            let id = spiffe_id.to_string();
            let ack =
                v1::PointAck { point: name.clone(), spiffe_id: id.clone(), ..Default::default() };
            let point = Point { ack, registered: true, ..Point::default() };
            presence.points.entry((id, name)).or_insert(Box::new(point)).registered = true;
        }
    }

    /// The points of an acknowledgement that are not on record yet.
    pub(crate) fn unregistered(
        &self,
        node: NodeId,
        ack: &v1::SyncAck,
        told: Option<&Slice>,
    ) -> Vec<PointKey> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(presence) = table.nodes.get(&node) else { return Vec::new() };
        let room = POINTS_MAX.saturating_sub(presence.points.len());
        let new = ack.points.iter().filter(|point| !point.gone && is_fine(point, told));
        let new = new.filter(|point| {
            let known = presence.points.get(&(point.spiffe_id.clone(), point.point.clone()));
            known.is_none_or(|known| !known.registered)
        });
        new.filter_map(|point| key(node, point)).take(room.max(1)).collect()
    }

    /// These points are on record.
    pub(crate) fn registered(&self, keys: &[PointKey]) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        for PointKey { node, spiffe_id, name } in keys {
            let Some(presence) = table.nodes.get_mut(node) else { continue };
            if let Some(point) = presence.points.get_mut(&(spiffe_id.to_string(), name.clone())) {
                point.registered = true;
            }
        }
    }

    /// These points are gone, but for those whose agent has spoken for them since. Gives those that are.
    pub(crate) fn forget(&self, mut keys: Vec<PointKey>) -> Vec<PointKey> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|PointKey { node, spiffe_id, name }| {
            let Some(presence) = table.nodes.get_mut(node) else { return true };
            let place = (spiffe_id.to_string(), name.clone());
            let gone = presence.points.get(&place).is_none_or(|point| !point.confirmed);
            if gone {
                presence.points.remove(&place);
            }
            gone
        });
        keys
    }

    /// Takes an acknowledgement of what a stream was told. Acknowledgements are cumulative: an older one changes nothing;
    /// one of what was not told, or for an identity that does not belong to the node, is none.
    pub(crate) fn acknowledge(
        &self,
        node: NodeId,
        ack: v1::SyncAck,
        told: Option<&Slice>,
        now: Timestamp,
    ) -> Heard {
        let was_told = |revision: &Revision| told.is_some_and(|told| *revision <= told.revision);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut heard = Heard::default();
        let Table { nodes, unheard, .. } = &mut *table;
        let Some(presence) = nodes.get_mut(&node) else { return heard };
        unheard.remove(&node);
        presence.silence();
        presence.seen = Some(now);
        presence.unaware = ack.unaware;
        presence.told_since = presence.runs_since;
        presence.told_by = presence.stream.as_ref().map_or(0, |(number, _)| *number);
        let revision = ack.revision.map(read).filter(was_told);
        presence.revision = presence.revision.max(revision);
        let mut unheard = BTreeSet::new();
        for mut ack in ack.points {
            let place = (ack.spiffe_id.clone(), ack.point.clone());
            if !is_fine(&ack, told) {
                unheard.insert(place);
                continue;
            }
            ack.revision = ack.revision.filter(|revision| was_told(&read(*revision)));
            if ack.gone {
                if presence.points.remove(&place).is_some() {
                    heard.gone.extend(key(node, &ack));
                }
                continue;
            }
            if POINTS_MAX <= presence.points.len() && !presence.points.contains_key(&place) {
                unheard.insert(place);
                continue;
            }
            let point = presence.points.entry(place).or_default();
            let (from, cut) = (point.ack.revision.map(read), point.ack.cut);
            let to = ack.revision.map(read).max(from);
            match to.filter(|to| from < Some(*to)) {
                Some(to) => {
                    heard.advances.push(Advance { from, to, cut: ack.cut.saturating_sub(cut) });
                }
                // An agent says what its points have ended before it may say at which revision: that has to be on its disk
                // first. It counts with the advance. One that starts anew counts from nothing.
                None => ack.cut = ack.cut.min(cut),
            }
            ack.revision = to.map(Into::into);
            if let Some(tried) = &mut ack.tried {
                tried.door = wire::clip(&tried.door, TEXT_BYTES_MAX);
                tried.why = wire::clip(&tried.why, TEXT_BYTES_MAX);
            }
            point.ack = ack;
            point.confirmed = true;
        }
        // Of an agent that tells of more than can be kept it is not known whom it leaves out.
        presence.unheard = Some(unheard).filter(|unheard| unheard.len() <= STATUSES_MAX);
        heard
    }

    /// The points that were put on record.
    pub(crate) fn on_record(&self) -> BTreeSet<PointKey> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let points = table.nodes.iter().flat_map(|(node, presence)| {
            let registered = presence.points.values().filter(|point| point.registered);
            registered.filter_map(|point| key(*node, &point.ack))
        });
        points.collect()
    }

    /// Learns what others have put on record, and taken off. `before` are those that were on record before `rows` were
    /// read: of what came later, they say nothing.
    pub(crate) fn reconcile(&self, before: BTreeSet<PointKey>, rows: Vec<PointRow>) {
        let kept: BTreeSet<&PointKey> = rows.iter().map(|row| &row.key).collect();
        let gone: Vec<PointKey> = before.into_iter().filter(|key| !kept.contains(key)).collect();
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        for PointKey { node, spiffe_id, name } in gone {
            let Some(presence) = table.nodes.get_mut(&node) else { continue };
            let place = (spiffe_id.to_string(), name);
            match presence.points.get_mut(&place) {
                // Its agent speaks for it here: it is put on record again with its next acknowledgement.
                Some(point) if point.confirmed => point.registered = false,
                Some(_) => drop(presence.points.remove(&place)),
                None => {}
            }
        }
        drop(table);
        self.recall(rows);
    }

    /// Takes what an agent says of its processes, credentials and clock. It replaces what it said before.
    pub(crate) fn report(&self, node: NodeId, report: v1::ReportRequest, now: Timestamp) {
        let v1::ReportRequest { mut processes, mut credentials, clock_micros, .. } = report;
        processes.truncate(STATUSES_MAX);
        processes.shrink_to_fit();
        processes.retain(|process| {
            process.name.len().max(process.kind.len()).max(process.version.len()) <= TEXT_BYTES_MAX
        });
        for process in &mut processes {
            process.parts = wire::bounded_parts(&process.parts);
        }
        credentials.truncate(STATUSES_MAX);
        credentials.shrink_to_fit();
        credentials.retain(|credential| {
            credential.workload.len().max(credential.spiffe_id.len()).max(credential.trouble.len())
                <= TEXT_BYTES_MAX
                && credential.serial.len() <= 32
        });
        for credential in &mut credentials {
            credential.serial = bytes::Bytes::copy_from_slice(&credential.serial);
        }
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        // Only of a node whose stream was opened: one that was removed meanwhile stays gone.
        let Some(presence) = table.nodes.get_mut(&node) else { return };
        presence.seen = Some(now);
        presence.processes = processes;
        presence.credentials = credentials;
        // A clock may be set while the stream is open; an older agent tells its clock only when it opens one.
        if clock_micros != 0 {
            presence.skew_micros = Some(clock_micros.saturating_sub(now.micros()));
        }
    }

    /// What is known of each node.
    pub(crate) fn snapshot(&self) -> BTreeMap<NodeId, Presence> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).nodes.clone()
    }
}

/// Whether a point's name is one, and its identity may be held on the node.
fn is_fine(point: &v1::PointAck, told: Option<&Slice>) -> bool {
    point.point.len() <= NAME_BYTES_MAX && told.is_some_and(|told| told.is_own(&point.spiffe_id))
}

fn key(node: NodeId, point: &v1::PointAck) -> Option<PointKey> {
    let spiffe_id = point.spiffe_id.parse().ok()?;
    Some(PointKey { node, spiffe_id, name: point.point.clone() })
}

fn read(revision: v1::Revision) -> Revision {
    Revision { incarnation: revision.incarnation, number: revision.number }
}

#[cfg(test)]
mod tests;
