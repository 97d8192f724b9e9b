//! The processes that had more points than are kept of one, so that what is forgotten of them counts all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use countersign_identity::Timestamp;

use crate::attest::Caller;

/// Of whom a point was forgotten. Such a point may still let peers in, and nobody hears what it enforces: its process counts as
/// unaware, whatever its other points say, until the forgotten one has nothing to present any more.
#[derive(Default)]
pub(super) struct Forgotten(Mutex<BTreeMap<u32, Process>>); // INVARIANT: at most FORGOTTEN_MAX

struct Process {
    caller: Arc<dyn Caller>,
    /// The end of the last that a forgotten point can present.
    until: Timestamp,
}

/// Of so many processes points may be forgotten; no other gets one more instead of one that it has.
const FORGOTTEN_MAX: usize = 4096;

impl Forgotten {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Process>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note that a point of this process is forgotten, which can present something until then. False where there is
    /// no room to: it must not be forgotten.
    #[must_use]
    pub(super) fn note(&self, caller: &Arc<dyn Caller>, until: Timestamp) -> bool {
        let pid = caller.peer().pid;
        let mut processes = self.lock();
        if FORGOTTEN_MAX <= processes.len() && !processes.contains_key(&pid) {
            return false;
        }
        // A number is used again after its process has ended.
        let earlier = processes.get(&pid).filter(|process| process.caller.alive().is_ok());
        let until = earlier.map_or(until, |earlier| earlier.until.max(until));
        processes.insert(pid, Process { caller: Arc::clone(caller), until });
        true
    }

    /// Their numbers.
    pub(super) fn pids(&self) -> BTreeSet<u32> {
        self.lock().keys().copied().collect()
    }

    /// Leaves out those that have ended, or have nothing to present any more. True when somebody else counts than before.
    pub(super) fn sweep(&self, now: Timestamp) -> bool {
        let mut processes = self.lock();
        let before = processes.len();
        processes.retain(|_, process| now <= process.until && process.caller.alive().is_ok());
        before != processes.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use countersign_api::v1;
    use countersign_identity::{Clock as _, SimClock};

    use super::super::Points;
    use super::*;
    use crate::attest::{Peer, SimulatedProcess};

    const NOON: Timestamp = Timestamp::from_secs(1_795_262_400);

    fn process(pid: u32) -> (SimulatedProcess, Arc<dyn Caller>) {
        let process = SimulatedProcess::new(Peer { pid, uid: 1000, gid: 1000 }, []);
        (process.clone(), Arc::new(process))
    }

    fn at(secs: u64) -> Timestamp {
        NOON + Duration::from_secs(secs)
    }

    /// A process that opens these points, each of which can present something for a minute more than the one before, and
    /// closes them.
    fn opens(points: &Points, caller: &Arc<dyn Caller>, names: std::ops::Range<u64>) -> bool {
        let web = "spiffe://shop.example/web".parse().unwrap();
        names.into_iter().all(|number| {
            let register = v1::Register { point: format!("door-{number}"), ..Default::default() };
            let registered = points.register(caller, &web, &register).ok();
            registered.map(|point| point.presents(Some(at(60 * number)))).is_some()
        })
    }

    fn told(points: &Points) -> Vec<String> {
        let told = points.acknowledgements(None).into_iter().filter(|point| !point.gone);
        told.map(|point| point.point).collect()
    }

    #[test]
    fn process_of_whose_points_one_was_forgotten_counts_until_that_one_presents_nothing() {
        let clock = Arc::new(SimClock::new(NOON));
        let points = Points::new(Arc::clone(&clock) as _);
        let (_lives, caller) = process(7);
        assert!(opens(&points, &caller, 1..9));
        assert_eq!((points.unaware(), told(&points).len()), (0, 8));
        assert!(opens(&points, &caller, 9..11));
        assert_eq!((points.unaware(), told(&points).len()), (1, 8));
        assert!(!told(&points).contains(&"door-2".to_owned()));
        for (secs, unaware) in [(120, 1), (121, 0)] {
            clock.advance(at(secs).since(clock.now()));
            points.sweep();
            assert_eq!(points.unaware(), unaware, "after {secs} s");
        }
    }

    #[test]
    fn process_counts_once_that_holds_an_svid_and_has_no_point_but_a_forgotten_one() {
        let points = Points::new(Arc::new(SimClock::new(NOON)));
        let (_lives, caller) = process(7);
        points.holding(&caller).given(Some(at(60)));
        assert_eq!(points.unaware(), 1);
        assert!(points.forgotten().note(&caller, at(90)));
        assert_eq!(points.unaware(), 1);
    }

    #[test]
    fn process_of_whose_points_one_was_forgotten_counts_no_longer_than_it_lives() {
        let points = Points::new(Arc::new(SimClock::new(NOON)));
        let (lives, caller) = process(7);
        assert!(opens(&points, &caller, 1..10));
        assert_eq!(points.unaware(), 1);
        lives.end();
        // Another that has its number takes nothing over.
        let (_another, caller) = process(7);
        assert!(opens(&points, &caller, 1..2));
        points.sweep();
        assert_eq!((points.unaware(), told(&points)), (0, vec!["door-1".to_owned()]));
    }

    #[test]
    fn nothing_is_forgotten_that_there_is_no_room_to_count() {
        let points = Points::new(Arc::new(SimClock::new(NOON)));
        let forgotten = points.forgotten();
        let others = (8..).take(FORGOTTEN_MAX);
        let noted = others.map(|pid| forgotten.note(&process(pid).1, at(60)));
        assert!(noted.into_iter().all(|noted| noted));
        let (_lives, caller) = process(7);
        assert!(opens(&points, &caller, 1..9));
        let before = told(&points);
        assert!(!opens(&points, &caller, 9..10), "it is refused");
        assert_eq!(told(&points), before);
        assert!(forgotten.note(&process(8).1, at(90)), "it counts already");
        assert_eq!(points.unaware(), FORGOTTEN_MAX as u64);
    }
}
