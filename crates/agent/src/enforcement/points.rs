//! The enforcement points on this node: what each has acknowledged, and what its process costs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_api::{v1, wire};
use countersign_identity::{Clock, Code, Course, Revision, SpiffeId, Timestamp, Trial};
use tokio::sync::watch;

use super::POINTS_MAX;
use super::forgotten::Forgotten;
use super::holders::{Holders, Holding};
use crate::attest::Caller;

/// All points. A lost stream does not end one; the end of its process does.
#[derive(Clone)]
pub(crate) struct Points(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    course: Mutex<Course>,
    points: Mutex<BTreeMap<Key, Point>>,
    holders: Holders,
    forgotten: Forgotten,
    last_held: Mutex<Option<Trial>>,
    changed: watch::Sender<()>,
}

/// A point's identity on this node, and on the server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    spiffe_id: SpiffeId,
    name: String,
}

struct Point {
    caller: Arc<dyn Caller>,
    /// Tells the stream that speaks for the point now from the ones before, of this point and of others.
    stream: u64,
    open: bool,
    acknowledged: Option<Revision>,
    /// How many connections it has ended up to that revision.
    cut: u64,
    /// The same of what it had acknowledged before, the latest last.
    earlier: VecDeque<(Option<Revision>, u64)>,
    draining: u64,
    /// Until when it can present a credential that it was given here.
    presents_until: Timestamp,
    status: v1::ProcessStatus,
    /// Where it lets peers in; none before it has said so.
    doors: Option<Vec<SocketAddr>>,
    /// What the latest trial has shown of it.
    tried: Option<v1::TrialResult>,
    /// How long the clock had run when it had ended.
    gone: Option<Duration>,
}

impl Point {
    /// How many connections it has ended up to the last revision that it has acknowledged and that may be said. What it ended
    /// since is told with the revision that it ended it for, or would count for another.
    fn cut_by(&self, up_to: Option<Revision>) -> u64 {
        if self.acknowledged <= up_to {
            return self.cut;
        }
        let said = self.earlier.iter().rev().find(|(revision, _)| *revision <= up_to);
        said.or(self.earlier.front()).map_or(0, |(_, cut)| *cut)
    }
}

/// A point that a trial has still to be held at.
#[derive(Clone, Debug)]
pub(crate) struct Tryable {
    pub(crate) spiffe_id: SpiffeId,
    name: String,
    stream: u64,
    /// Where it lets peers in; none before it has said so.
    pub(crate) doors: Option<Vec<SocketAddr>>,
    /// Whether it has said that it enforces what the trial is about.
    pub(crate) enforces: bool,
}

/// One stream's right to speak for its point. Dropping it loses the stream, not the point.
pub(crate) struct Registered {
    points: Points,
    key: Key,
    stream: u64,
}

/// How many points one node may have.
const NODE_POINTS_MAX: usize = 4096;
/// For so long a point that ended is told as gone, so that also a server that was away hears it.
const GONE_KEPT: Duration = Duration::from_secs(120);
const NAME_BYTES_MAX: usize = 64;
/// How many acknowledgements of a point are remembered with what it had ended by then. Few wait for the disk at once.
const EARLIER_MAX: usize = 16;
/// Doors of one point that are tried.
const DOORS_MAX: usize = 4;

/// Why a point is not registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegisterRefused {
    #[error(
        "`{0}` is not the name of a point: expected 1 to {NAME_BYTES_MAX} printable characters"
    )]
    Name(String),
    #[error("process `{pid}` has {POINTS_MAX} points, the most that one may")]
    Process { pid: u32 },
    #[error("this node has {NODE_POINTS_MAX} points, the most that one may")]
    Node,
}

impl RegisterRefused {
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Name(_) => Code::NotUnderstood,
            Self::Process { .. } | Self::Node => Code::RateLimited,
        }
    }
}

impl Point {
    fn lives(&self) -> bool {
        self.gone.is_none() && self.caller.alive().is_ok()
    }
}

/// Sees to it that a process may have one more point under this key. Points whose stream it has closed count as long as
/// it lives, or it could fill the node's; its oldest closed one makes room. That one is told no more, and as what it was
/// given may still be presented, its process counts for it.
fn make_room(
    points: &mut BTreeMap<Key, Point>,
    forgotten: &Forgotten,
    key: &Key,
    pid: u32,
) -> Result<(), RegisterRefused> {
    let others = points.iter().filter(|(other, point)| {
        *other != key && point.gone.is_none() && point.caller.peer().pid == pid
    });
    let others: Vec<(&Key, &Point)> = others.collect();
    if others.len() < POINTS_MAX {
        return Ok(());
    }
    let closed = others.iter().filter(|(_, point)| !point.open);
    let oldest = closed.min_by_key(|(_, point)| point.stream);
    let &(oldest, point) = oldest.ok_or(RegisterRefused::Process { pid })?;
    if !forgotten.note(&point.caller, point.presents_until) {
        return Err(RegisterRefused::Process { pid });
    }
    let oldest = oldest.clone();
    points.remove(&oldest);
    Ok(())
}

impl Points {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let changed = watch::channel(()).0;
        let (holders, forgotten) = (Holders::default(), Forgotten::default());
        let course = Mutex::new(Course::begin(clock.now(), clock.ran()));
        let (points, last_held) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Shared { clock, course, points, holders, forgotten, last_held, changed }))
    }

    /// One stream of a process that is given SVIDs.
    pub(crate) fn holding(&self, caller: &Arc<dyn Caller>) -> Holding {
        Holding::begin(self.clone(), caller)
    }

    pub(super) fn holders(&self) -> &Holders {
        &self.0.holders
    }

    pub(super) fn forgotten(&self) -> &Forgotten {
        &self.0.forgotten
    }

    /// Whether there is a point of the live process of this number, or was until a moment ago.
    pub(super) fn have(&self, pid: u32) -> bool {
        let points = self.lock();
        let mut of_number = points.values().filter(|point| point.caller.peer().pid == pid);
        of_number.any(|point| point.caller.alive().is_ok())
    }

    pub(super) fn wake(&self) {
        self.0.changed.send_replace(());
    }

    /// How many processes hold SVIDs and have no point, or had one that was forgotten, or have ended and may have handed
    /// them on: who has them verifies as it pleases, and nobody hears of it.
    pub(crate) fn unaware(&self) -> u64 {
        let points = self.lock();
        let live = points.values().filter(|point| point.gone.is_none());
        let mut pids: BTreeSet<u32> = live.map(|point| point.caller.peer().pid).collect();
        let mut forgotten = self.forgotten().pids();
        drop(points);
        let count = u64::try_from(forgotten.len()).unwrap_or(u64::MAX);
        pids.append(&mut forgotten);
        self.0.holders.without(&pids).saturating_add(count)
    }

    /// Registers a point of this caller. A stream of the same process under the same name takes over; of another live
    /// process, the name gets that process's number, so that neither speaks for the other.
    pub(crate) fn register(
        &self,
        caller: &Arc<dyn Caller>,
        spiffe_id: &SpiffeId,
        register: &v1::Register,
    ) -> Result<Registered, RegisterRefused> {
        let name = &register.point;
        let fine = (1..=NAME_BYTES_MAX).contains(&name.len());
        if !fine || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(RegisterRefused::Name(wire::clip(name, NAME_BYTES_MAX)));
        }
        let pid = caller.peer().pid;
        let mut points = self.lock();
        let mut key = Key { spiffe_id: spiffe_id.clone(), name: name.clone() };
        if let Some(point) = points.get(&key)
            && point.caller.peer().pid != pid
            && point.caller.alive().is_ok()
        {
            key.name = format!("{name}#{pid}");
        }
        make_room(&mut points, self.forgotten(), &key, pid)?;
        if !points.contains_key(&key) && NODE_POINTS_MAX <= points.len() {
            return Err(RegisterRefused::Node);
        }
        let stream = points.values().map(|point| point.stream).max().unwrap_or(0) + 1;
        let before = points.remove(&key);
        // The same process goes on; a later one of the same number starts from nothing.
        let same = before.filter(|point| point.caller.peer().pid == pid && point.lives());
        let status = v1::ProcessStatus {
            name: key.name.clone(),
            kind: wire::clip(&register.kind, NAME_BYTES_MAX),
            pid,
            version: wire::clip(&register.version, NAME_BYTES_MAX),
            ..v1::ProcessStatus::default()
        };
        let point = Point {
            caller: Arc::clone(caller),
            stream,
            open: true,
            // It may run another program by now, which enforces nothing yet.
            acknowledged: None,
            cut: same.as_ref().map_or(0, |point| point.cut),
            earlier: VecDeque::new(),
            draining: 0,
            presents_until: Timestamp::LAST,
            status: same.map_or(status, |point| point.status),
            doors: None,
            tried: None,
            gone: None,
        };
        points.insert(key.clone(), point);
        drop(points);
        self.0.holders.speaks(pid);
        self.0.changed.send_replace(());
        Ok(Registered { points: self.clone(), key, stream })
    }

    /// Wakes whoever passes acknowledgements on.
    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// What every point has acknowledged, up to what may be said of this node: a point enforces it now, but with the machine
    /// it would come back on what is on the disk.
    pub(crate) fn acknowledgements(&self, up_to: Option<Revision>) -> Vec<v1::PointAck> {
        let of = |(key, point): (&Key, &Point)| v1::PointAck {
            point: key.name.clone(),
            spiffe_id: key.spiffe_id.to_string(),
            revision: point.acknowledged.min(up_to).map(Into::into),
            cut: point.cut_by(up_to),
            gone: point.gone.is_some(),
            draining: point.draining,
            tried: point.tried.clone(),
        };
        self.lock().iter().map(of).collect()
    }

    /// What the processes of live points cost.
    pub(crate) fn statuses(&self) -> Vec<v1::ProcessStatus> {
        let points = self.lock();
        points
            .values()
            .filter(|point| point.gone.is_none())
            .map(|point| point.status.clone())
            .collect()
    }

    /// The newest trial that was held to its end.
    pub(crate) fn last_held(&self) -> Option<Trial> {
        *self.0.last_held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This trial was held to its end.
    pub(crate) fn held(&self, trial: Trial) {
        *self.0.last_held.lock().unwrap_or_else(PoisonError::into_inner) = Some(trial);
    }

    /// The points with a stream at which this trial is still to be held.
    pub(crate) fn to_try(&self, trial: Trial) -> Vec<Tryable> {
        let held = Some(v1::Revision::from(trial.0));
        let points = self.lock();
        let open = points.iter().filter(|(_, point)| point.open && point.gone.is_none());
        let left =
            open.filter(|(_, point)| point.tried.as_ref().is_none_or(|tried| tried.trial != held));
        let tryable = left.map(|(key, point)| Tryable {
            spiffe_id: key.spiffe_id.clone(),
            name: key.name.clone(),
            stream: point.stream,
            doors: point.doors.clone(),
            enforces: Some(trial.0) <= point.acknowledged,
        });
        tryable.collect()
    }

    /// What a trial has shown of a point, if it is still the one that was tried.
    pub(crate) fn tried(&self, tryable: &Tryable, result: v1::TrialResult) {
        let key = Key { spiffe_id: tryable.spiffe_id.clone(), name: tryable.name.clone() };
        let mut points = self.lock();
        if let Some(point) = points.get_mut(&key).filter(|point| point.stream == tryable.stream) {
            point.tried = Some(result);
        }
        drop(points);
        self.wake();
    }

    /// How many points have a stream.
    pub(crate) fn open(&self) -> usize {
        self.lock().values().filter(|point| point.open).count()
    }

    /// Looks for points whose process has ended, or can present nothing any more, and forgets those that were told long
    /// enough; and likewise for those who hold SVIDs. By a clock that jumps ahead nothing has ended: once it is set right,
    /// processes present again what they have, and who was forgotten would not count.
    pub(crate) fn sweep(&self) {
        let (now, ran) = (self.steady(), self.0.clock.ran());
        let mut changed = self.0.holders.sweep(now) | self.forgotten().sweep(now);
        let ended = |point: &Point| point.presents_until < now || point.caller.alive().is_err();
        self.lock().retain(|_, point| {
            if point.gone.is_none() && !point.open && ended(point) {
                point.gone = Some(ran);
                changed = true;
            }
            point.gone.is_none_or(|gone| ran < gone + GONE_KEPT)
        });
        if changed {
            self.0.changed.send_replace(());
        }
    }

    /// How far time has certainly come.
    fn steady(&self) -> Timestamp {
        let (now, ran) = (self.0.clock.now(), self.0.clock.ran());
        self.0.course.lock().unwrap_or_else(PoisonError::into_inner).look(now, ran)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Point>> {
        self.0.points.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registered {
    /// The name under which the point is known.
    pub(crate) fn name(&self) -> &str {
        &self.key.name
    }

    /// Takes an acknowledgement. It only grows.
    pub(crate) fn acknowledge(&self, revision: Revision, cut: u64, draining: u64) {
        self.change(|point| {
            if point.acknowledged < Some(revision) {
                if EARLIER_MAX <= point.earlier.len() {
                    point.earlier.pop_front();
                }
                point.earlier.push_back((point.acknowledged, point.cut));
                point.acknowledged = Some(revision);
            }
            point.cut = point.cut.max(cut);
            point.draining = draining;
        });
        self.points.0.changed.send_replace(());
    }

    /// Its process has SVIDs until then; none: what it was given before stays.
    pub(crate) fn presents(&self, until: Option<Timestamp>) {
        let Some(until) = until else { return };
        self.change(|point| point.presents_until = until);
    }

    /// The point said that it enforces nothing any more and lets nothing in.
    pub(crate) fn goodbye(&self) {
        let ran = self.points.0.clock.ran();
        self.change(|point| {
            point.open = false;
            point.gone = Some(ran);
        });
        self.points.wake();
    }

    /// Takes what the process costs. Who it is was attested, not told.
    pub(crate) fn status(&self, status: &v1::ProcessStatus) {
        self.change(|point| {
            point.status.resident_bytes = status.resident_bytes;
            point.status.connections = status.connections;
            point.status.parts = wire::bounded_parts(&status.parts);
            let doors = status.doors.iter().filter_map(|door| door.parse().ok());
            point.doors = Some(doors.take(DOORS_MAX).collect());
        });
    }

    fn change(&self, change: impl FnOnce(&mut Point)) {
        let mut points = self.points.lock();
        if let Some(point) = points.get_mut(&self.key).filter(|point| point.stream == self.stream) {
            change(point);
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.change(|point| point.open = false);
        self.points.sweep();
    }
}

#[cfg(test)]
mod tests {
    use countersign_identity::SimClock;

    use super::*;
    use crate::attest::{Peer, SimulatedProcess};

    fn revision(number: u64) -> Revision {
        Revision { incarnation: 1, number }
    }

    #[test]
    fn what_a_point_has_ended_is_told_with_the_revision_that_it_ended_it_for() {
        let points = Points::new(Arc::new(SimClock::new(Timestamp::from_secs(1_795_262_400))));
        let process = SimulatedProcess::new(Peer { pid: 7, uid: 1000, gid: 1000 }, []);
        let caller: Arc<dyn Caller> = Arc::new(process);
        let id = "spiffe://shop.example/web".parse().unwrap();
        let register = v1::Register { point: "web".to_owned(), ..Default::default() };
        let registered = points.register(&caller, &id, &register).unwrap();
        let told = |up_to: u64| {
            let told = points.acknowledgements(Some(revision(up_to))).remove(0);
            (told.revision.map(|revision| revision.number), told.cut)
        };
        registered.acknowledge(revision(3), 1, 0);
        registered.acknowledge(revision(4), 1, 0);
        registered.acknowledge(revision(5), 4, 0);
        assert_eq!(
            [3, 4, 5, 6].map(told),
            [(Some(3), 1), (Some(4), 1), (Some(5), 4), (Some(5), 4)]
        );
        // However many wait for the disk.
        for later in 6..60 {
            registered.acknowledge(revision(later), later, 0);
        }
        assert_eq!([58, 59].map(told), [(Some(58), 58), (Some(59), 59)]);
        assert_eq!(points.lock().values().next().unwrap().earlier.len(), EARLIER_MAX);
    }
}
