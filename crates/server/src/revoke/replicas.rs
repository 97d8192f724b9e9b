//! Several servers on one store: each tells the others what the enforcement points that it hears have acknowledged.
//!
//! A report is one row, replaced as a whole, and never more often than somebody can be waiting for. What a server said
//! once stays true when it dies: its points have acknowledged that, and nothing later, until another server hears of
//! them. How many points there are is never taken from reports, but from the record that all servers share.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_api::{v1, wire};
use countersign_identity::{NodeId, Revision, Timestamp};
use countersign_store::{PAGE_MAX, PointKey, PointRow, ReportRow, Store};
use tokio_util::sync::CancellationToken;

use crate::control::Control;
use crate::digest::sha256;
use crate::publish::{Roster, Standing, Told, reckon};
use crate::refusal::Refused;
use crate::revoke::watched::{Advance, Converging};

/// How often a report is written while a change that takes rights away is on its way; otherwise as often as `SLOW`.
const SOON: Duration = Duration::from_millis(100);
const SLOW: Duration = Duration::from_secs(1);
/// For how long after such a change.
const HURRY: Duration = Duration::from_secs(30);
/// The longest time between two reports, although nothing has changed: it says that the server is there.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// A server whose report has not changed for so long does not speak for its points any more.
const STALE: Duration = Duration::from_secs(30);
/// For so long a process may hold an SVID that a server which has died told of.
const HELD_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How much of the digest of a point's key names it in a report.
const NAME_BYTES: usize = 16;

type PointName = [u8; NAME_BYTES];

/// This server among the others.
pub(crate) struct Replicas {
    name: String,
    looking: tokio::sync::Mutex<Looking>,
    writing: tokio::sync::Mutex<Writing>,
    heard: Mutex<Arc<Heard>>,
}

/// What was read last.
#[derive(Default)]
struct Looking {
    at: Option<Timestamp>,
    reports: BTreeMap<String, Report>,
}

/// What was written last.
#[derive(Default)]
struct Writing {
    version: u64,
    at: Option<Timestamp>,
    told: Option<(Told, Vec<CutCount>)>,
}

/// Another server's report.
struct Report {
    version: u64,
    /// When it was found to have changed, by our clock.
    changed: Timestamp,
    body: v1::ReplicaReport,
}

/// How many connections points ended on their way from one revision to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CutCount {
    pub(crate) from: Option<Revision>,
    pub(crate) to: Revision,
    pub(crate) cut: u64,
}

impl CutCount {
    /// Whether the way led past this revision.
    pub(crate) fn passes(&self, revision: Revision) -> bool {
        self.from < Some(revision) && revision <= self.to
    }
}

/// All that the others say.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    points: HashMap<PointName, Spoken>,
    nodes: HashMap<NodeId, Newest>,
    cuts: Vec<CutCount>,
    trials: HashMap<PointName, v1::TrialResult>,
    /// Points that the agent does not know which is connected to a server that lives: when its stream was opened, and since
    /// when it has run.
    left_out: HashMap<PointName, (i64, Timestamp)>,
    draining: u64,
}

/// What the server says of a node that has its newest stream, of the others.
#[derive(Clone, Copy, Debug)]
struct Newest {
    /// When that stream was opened, by the node's own clock.
    opened_micros: i64,
    /// How many of its processes cannot say what they enforce.
    unaware: u64,
    /// Since when its agent has run, where it says so.
    since: Option<Timestamp>,
}

/// What another server says of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spoken {
    /// What it has acknowledged there.
    pub(crate) revision: Option<Revision>,
    /// When that server was last heard of.
    pub(crate) seen: Timestamp,
    /// Whether it speaks for it now.
    pub(crate) now: bool,
}

impl Heard {
    /// What the others say of this point, if any of them does.
    pub(crate) fn of(&self, key: &PointKey) -> Option<Spoken> {
        self.points.get(&name(key)).copied()
    }

    /// Since when the agent has run that is connected now and does not know a point, by the server that has the node's newest
    /// stream.
    pub(crate) fn left_out(&self, point: &Standing) -> Option<Timestamp> {
        let Some(newest) = self.newer(point) else { return point.left_out };
        let told = self.left_out.get(&name(&point.key));
        told.filter(|(by, _)| *by == newest.opened_micros).map(|(_, since)| *since)
    }

    /// Whether another server has the newest stream of a point's node, so that a point which comes back is heard there first.
    pub(crate) fn is_elsewhere(&self, point: &Standing) -> bool {
        self.newer(point).is_some()
    }

    fn newer(&self, point: &Standing) -> Option<&Newest> {
        let newest = self.nodes.get(&point.key.node)?;
        (point.opened_micros < newest.opened_micros).then_some(newest)
    }

    /// What the latest trial has shown of this point elsewhere.
    pub(crate) fn tried(&self, key: &PointKey) -> Option<&v1::TrialResult> {
        self.trials.get(&name(key))
    }

    /// How many connections the others' points have ended on their way past this revision.
    pub(crate) fn cut(&self, revision: Revision) -> u64 {
        let passing = self.cuts.iter().filter(|count| count.passes(revision));
        passing.map(|count| count.cut).fold(0, u64::saturating_add)
    }

    /// How many of their connections drain.
    pub(crate) fn draining(&self) -> u64 {
        self.draining
    }

    /// How many processes cannot say what they enforce: of each node, what the server says that has its newest stream.
    pub(crate) fn unaware(&self, mut local: HashMap<NodeId, (i64, u64)>) -> u64 {
        for (node, told) in &self.nodes {
            let told = (told.opened_micros, told.unaware);
            let newest = local.entry(*node).or_insert(told);
            *newest = if newest.0 < told.0 { told } else { *newest };
        }
        local.values().map(|(_opened, unaware)| *unaware).fold(0, u64::saturating_add)
    }

    /// Since when each node's agent has run, where that is known: what the server says that has the node's newest stream.
    pub(crate) fn agents(
        &self,
        mut local: HashMap<NodeId, (i64, Option<Timestamp>)>,
    ) -> HashMap<NodeId, Timestamp> {
        for (node, told) in &self.nodes {
            let told = (told.opened_micros, told.since);
            let newest = local.entry(*node).or_insert(told);
            *newest = if newest.0 < told.0 { told } else { *newest };
        }
        local.into_iter().filter_map(|(node, (_opened, since))| Some((node, since?))).collect()
    }

    /// The nodes that others tell of, and when the streams were opened by which they do.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (NodeId, i64)> {
        self.nodes.iter().map(|(node, newest)| (*node, newest.opened_micros))
    }

    fn gather(reports: &BTreeMap<String, Report>, now: Timestamp) -> Self {
        let mut all = Self::default();
        for report in reports.values() {
            // By our own clock, so that nobody's other clock matters; one that was set back makes nothing stale.
            all.add(report, now.since(report.changed));
        }
        all
    }

    fn add(&mut self, report: &Report, silent: Duration) {
        let Report { body, changed, .. } = report;
        let lives = silent < STALE;
        for reached in &body.reached {
            let revision = reached.revision.map(Revision::from);
            for name in reached.points.as_chunks::<NAME_BYTES>().0 {
                let spoken = Spoken { revision, seen: *changed, now: lives };
                let best = self.points.entry(*name).or_insert(spoken);
                best.revision = best.revision.max(revision);
                best.seen = best.seen.max(*changed);
                best.now |= lives;
            }
        }
        for node in body.nodes.iter().filter(|_node| silent < HELD_MAX) {
            let Ok(id) = wire::node_id(&node.node_id) else { continue };
            let since = Some(Timestamp::from_micros(node.runs_since_micros));
            let since = since.filter(|since| *since != Timestamp::EPOCH);
            let (opened_micros, unaware) = (node.opened_micros, node.unaware);
            let told = Newest { opened_micros, unaware, since };
            let newest = self.nodes.entry(id).or_insert(told);
            *newest = if newest.opened_micros < opened_micros { told } else { *newest };
            let Some(since) = since.filter(|_since| lives) else { continue };
            for name in node.left_out.as_chunks::<NAME_BYTES>().0 {
                let of_newest = self.left_out.entry(*name).or_insert((opened_micros, since));
                *of_newest = (*of_newest).max((opened_micros, since));
            }
        }
        for trial in &body.trials {
            let (Ok(name), Some(tried)) = (PointName::try_from(&*trial.point), &trial.tried) else {
                continue;
            };
            let newest = self.trials.entry(name).or_insert_with(|| tried.clone());
            if trial_of(newest) < trial_of(tried) {
                newest.clone_from(tried);
            }
        }
        let counts = body.cuts.iter().filter_map(|count| {
            let to = count.to?.into();
            Some(CutCount { from: count.from.map(Into::into), to, cut: count.cut })
        });
        self.cuts.extend(counts);
        // What drains is cut soon, with or without the server that told of it.
        if lives {
            self.draining = self.draining.saturating_add(body.draining);
        }
    }

    /// Who has come further than before, by what any server says, ours among them.
    fn advances(&self, before: &Self, ours: &HashMap<PointName, Option<Revision>>) -> Vec<Advance> {
        let known = |name: &PointName| {
            let theirs = before.points.get(name).and_then(|spoken| spoken.revision);
            theirs.max(ours.get(name).copied().flatten())
        };
        let advance = |(name, spoken): (&PointName, &Spoken)| {
            let (from, to) = (known(name), spoken.revision?);
            // What they cut on the way is told apart.
            (from < Some(to)).then_some(Advance { from, to, cut: 0 })
        };
        self.points.iter().filter_map(advance).collect()
    }
}

impl Replicas {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            looking: tokio::sync::Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            heard: Mutex::default(),
        }
    }

    /// What the others said when they were last listened to.
    pub(crate) fn heard(&self) -> Arc<Heard> {
        Arc::clone(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Heard>> {
        // Replaced as a whole, so a panic elsewhere does not spoil it.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens to the others, and learns which points there are, unless that was done a moment ago.
    ///
    /// # Errors
    /// When the store does not answer. What is known stays.
    pub(crate) async fn look(
        &self,
        store: &dyn Store,
        roster: &Roster,
        converging: &Converging,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let mut looking = self.looking.lock().await;
        if looking.at.is_some_and(|at| at <= now && now < at + SOON) {
            return Ok(());
        }
        let before = roster.on_record();
        roster.reconcile(before, points(store).await?);
        for (replica, version) in store.report_versions().await? {
            let known = looking.reports.get(&replica).map(|report| report.version);
            if replica == self.name || known == Some(version) {
                continue;
            }
            let Some(row) = store.report_of(&replica).await? else { continue };
            match wire::replica_report(&row.body) {
                Ok(body) => {
                    let report = Report { version: row.version, changed: now, body };
                    looking.reports.insert(replica, report);
                }
                // Of a newer version: its points are missing here, which errs on the safe side.
                Err(bad) => {
                    tracing::warn!(%replica, %bad, "another server's report is not understood");
                }
            }
        }
        looking.at = Some(now);
        let heard = Arc::new(Heard::gather(&looking.reports, now));
        roster.heard_elsewhere(heard.nodes());
        let before = std::mem::replace(&mut *self.lock(), Arc::clone(&heard));
        let ours = roster.standings();
        let ours = ours.iter().map(|point| (name(&point.key), point.revision)).collect();
        converging.advanced(&heard.advances(&before, &ours), now);
        Ok(())
    }

    /// Tells the others what is heard here, if that has changed, or they have not heard from us for long.
    ///
    /// # Errors
    /// When the store does not take it.
    pub(crate) async fn tell(
        &self,
        store: &dyn Store,
        roster: &Roster,
        converging: &Converging,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let mut writing = self.writing.lock().await;
        let told = (roster.told(), converging.cuts());
        let silent = writing.at.is_none_or(|at| now < at || SILENCE_MAX <= now.since(at));
        if !silent && writing.told.as_ref() == Some(&told) {
            return Ok(());
        }
        if writing.version == 0 {
            // This server's report of before its restart, whatever its clock said then.
            let before = store.report_of(&self.name).await?;
            writing.version = before.map_or(0, |row| row.version);
        }
        writing.version += 1;
        let body = wire::replica_report_bytes(&report(&told.0, &told.1));
        let row = ReportRow { replica: self.name.clone(), version: writing.version, body };
        if !store.report(row).await? {
            // Somebody else uses our name, which the pulse tells; or an answer was lost.
            writing.version = 0;
            return Ok(());
        }
        writing.at = Some(now);
        writing.told = Some(told);
        Ok(())
    }
}

/// The points on record.
async fn points(store: &dyn Store) -> Result<Vec<PointRow>, Refused> {
    let mut rows: Vec<PointRow> = Vec::new();
    loop {
        let page = store.points(rows.last().map(|row| row.key.clone()), PAGE_MAX).await?;
        let last = page.len() < PAGE_MAX;
        rows.extend(page);
        if last {
            return Ok(rows);
        }
    }
}

fn report(told: &Told, cuts: &[CutCount]) -> v1::ReplicaReport {
    let reached = told.reached.iter().map(|(revision, points)| v1::ReachedPoints {
        revision: revision.map(Into::into),
        points: points.iter().flat_map(name).collect::<Vec<u8>>().into(),
    });
    let nodes = told.nodes.iter().map(|node| v1::ReportedNode {
        node_id: node.id.as_bytes().to_vec().into(),
        opened_micros: node.opened_micros,
        unaware: node.unaware,
        runs_since_micros: node.runs_since.map_or(0, |since| since.micros()),
        left_out: node.left_out.iter().flat_map(name).collect::<Vec<u8>>().into(),
    });
    let cuts = cuts.iter().map(|CutCount { from, to, cut }| v1::CutCount {
        from: from.map(Into::into),
        to: Some((*to).into()),
        cut: *cut,
    });
    let trials = told.trials.iter().map(|(key, tried)| v1::ReportedTrial {
        point: name(key).to_vec().into(),
        tried: Some(tried.clone()),
    });
    v1::ReplicaReport {
        reached: reached.collect(),
        nodes: nodes.collect(),
        cuts: cuts.collect(),
        trials: trials.collect(),
        draining: told.draining,
    }
}

/// Of which trial it is.
pub(super) fn trial_of(tried: &v1::TrialResult) -> Option<Revision> {
    tried.trial.map(Into::into)
}

/// By which a report names a point. A node chooses the rest of the key, but speaks for none of another node.
fn name(PointKey { node, spiffe_id, name }: &PointKey) -> PointName {
    let id = spiffe_id.as_str();
    let length = u32::try_from(id.len()).unwrap_or(u32::MAX).to_be_bytes();
    let key = [node.as_bytes().as_slice(), &length, id.as_bytes(), name.as_bytes()].concat();
    *sha256(&key).as_bytes().first_chunk().expect("32 bytes begin with 16")
}

/// Tells the others and listens to them until stopped. Only where there can be others.
pub(crate) async fn talk(control: Arc<Control>, stop: CancellationToken) {
    let Some(replicas) = &control.replicas else { return };
    let mut states = control.feed.watch();
    let mut revocations = states.borrow_and_update().revocations();
    let mut hurry_until = Timestamp::EPOCH;
    loop {
        let now = control.clock.now();
        let latest = states.borrow_and_update().revocations();
        if !Arc::ptr_eq(&revocations, &latest) {
            revocations = latest;
            hurry_until = now + HURRY;
        }
        let hurry = now < hurry_until;
        reckon(&control);
        let (store, roster, converging) = (&*control.store, &control.roster, &control.converging);
        let mut done = replicas.tell(store, roster, converging, now).await;
        if hurry && done.is_ok() {
            done = replicas.look(store, roster, converging, now).await;
        }
        if let Err(refused) = done {
            // The pulse says so, once.
            tracing::debug!(why = %refused.why, "the other servers are not reached");
        }
        let again = control.clock.about(if hurry { SOON } else { SLOW });
        tokio::select! {
            () = stop.cancelled() => return,
            changed = states.changed(), if !hurry => if changed.is_err() { return },
            () = control.clock.sleep_until(again) => {}
        }
    }
}

#[cfg(test)]
mod tests;
