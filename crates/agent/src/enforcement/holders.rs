//! The processes that were given SVIDs, so that those among them are counted who cannot say what they enforce, and those
//! to whom they may have handed on what they were given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use countersign_identity::Timestamp;

use super::Points;
use crate::attest::Caller;

/// Who holds SVIDs. A closed stream takes nothing back: a process holds what it was given until that ends.
#[derive(Default)]
pub(super) struct Holders(Mutex<Table>);

#[derive(Default)]
struct Table {
    live: BTreeMap<u32, Holder>,
    /// The end of what each process was given that has ended itself: others may go on with it, as a server does with the
    /// files that `countersign fetch --write` wrote. The number tells those apart that end at one moment.
    ended: BTreeSet<(Timestamp, u64)>,
    /// How many there were of those.
    endings: u64,
}

struct Holder {
    caller: Arc<dyn Caller>,
    /// Streams on which it was given something and which are open.
    streams: usize,
    /// The end of the last that it was given.
    until: Timestamp,
    /// It has or had a point, and so a library that keeps what it is given in memory: that ends with the process.
    speaks: bool,
}

/// One stream of a process. Dropping it closes the stream.
pub(crate) struct Holding {
    points: Points,
    caller: Arc<dyn Caller>,
    counted: bool,
}

/// Processes that are remembered after they closed their streams, or ended. Of more, those whose SVIDs end first are forgotten.
const HOLDERS_MAX: usize = 65_536;

impl Holders {
    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are besides these processes.
    pub(super) fn without(&self, pids: &BTreeSet<u32>) -> u64 {
        let table = self.lock();
        let others = table.live.keys().filter(|pid| !pids.contains(pid)).count();
        u64::try_from(others + table.ended.len()).unwrap_or(u64::MAX)
    }

    /// A process has a point.
    pub(super) fn speaks(&self, pid: u32) {
        if let Some(holder) = self.lock().live.get_mut(&pid) {
            holder.speaks = true;
        }
    }

    /// Looks who has ended, and forgets what has. True when somebody else counts than before.
    pub(super) fn sweep(&self, now: Timestamp) -> bool {
        let mut table = self.lock();
        let before = (table.live.len(), table.ended.len());
        let live = std::mem::take(&mut table.live);
        for (pid, holder) in live {
            if holder.caller.alive().is_err() {
                table.end(&holder);
            } else if 0 < holder.streams || now <= holder.until {
                table.live.insert(pid, holder);
            }
        }
        table.ended.retain(|(until, _)| now <= *until);
        before != (table.live.len(), table.ended.len())
    }
}

impl Table {
    /// A process has ended, and what it was given has not.
    fn end(&mut self, holder: &Holder) {
        if !holder.speaks {
            self.endings += 1;
            self.ended.insert((holder.until, self.endings));
        }
    }

    /// Makes room for one more.
    fn make_room(&mut self) {
        if self.live.len() + self.ended.len() < HOLDERS_MAX {
            return;
        }
        let closed = self.live.iter().filter(|(_, holder)| holder.streams == 0);
        let first = closed.map(|(pid, holder)| (holder.until, *pid)).min();
        match (first, self.ended.first()) {
            (Some((until, pid)), ended) if ended.is_none_or(|(end, _)| until < *end) => {
                self.live.remove(&pid);
            }
            _ => _ = self.ended.pop_first(),
        }
    }
}

impl Holding {
    pub(super) fn begin(points: Points, caller: &Arc<dyn Caller>) -> Self {
        Self { points, caller: Arc::clone(caller), counted: false }
    }

    /// The process is given SVIDs, the last of which ends then.
    pub(crate) fn given(&mut self, until: Option<Timestamp>) {
        let pid = self.caller.peer().pid;
        let mut table = self.points.holders().lock();
        // A number is used again after its process has ended.
        let is_another =
            |holder: &Holder| holder.caller.alive().is_err() && self.caller.alive().is_ok();
        if table.live.get(&pid).is_some_and(is_another)
            && let Some(other) = table.live.remove(&pid)
        {
            table.end(&other);
            self.counted = false;
        }
        let new = !table.live.contains_key(&pid);
        if new {
            table.make_room();
        }
        let caller = Arc::clone(&self.caller);
        let nothing = || Holder { caller, streams: 0, until: Timestamp::EPOCH, speaks: false };
        let holder = table.live.entry(pid).or_insert_with(nothing);
        holder.until = holder.until.max(until.unwrap_or(Timestamp::EPOCH));
        holder.streams += usize::from(!std::mem::replace(&mut self.counted, true));
        drop(table);
        // Whoever of this and the registration of a point comes second sees the other.
        if new && self.points.have(pid) {
            self.points.holders().speaks(pid);
        }
        if new {
            self.points.wake();
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let mut table = self.points.holders().lock();
        let pid = self.caller.peer().pid;
        if let Some(holder) = table.live.get_mut(&pid).filter(|_| self.counted) {
            holder.streams = holder.streams.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use countersign_api::v1;
    use countersign_identity::SimClock;

    use super::*;
    use crate::attest::{Peer, SimulatedProcess};

    const NOON: Timestamp = Timestamp::from_secs(1_795_262_400);

    fn points() -> Points {
        Points::new(Arc::new(SimClock::new(NOON)))
    }

    fn process(pid: u32) -> (SimulatedProcess, Arc<dyn Caller>) {
        let process = SimulatedProcess::new(Peer { pid, uid: 1000, gid: 1000 }, []);
        (process.clone(), Arc::new(process))
    }

    fn at(secs: u64) -> Timestamp {
        NOON + Duration::from_secs(secs)
    }

    fn given(points: &Points, caller: &Arc<dyn Caller>, until: Timestamp) -> Holding {
        let mut holding = points.holding(caller);
        holding.given(Some(until));
        holding
    }

    /// How many count at a moment.
    fn counted(points: &Points, now: Timestamp) -> u64 {
        points.holders().sweep(now);
        points.unaware()
    }

    #[test]
    fn process_of_a_number_that_is_used_again_takes_nothing_over_from_the_one_before() {
        let points = points();
        let (first, caller) = process(7);
        given(&points, &caller, at(60));
        first.end();
        let (second, caller) = process(7);
        let _open = given(&points, &caller, at(90));
        assert_eq!(counted(&points, at(1)), 2);
        assert_eq!(counted(&points, at(61)), 1);
        second.end();
        assert_eq!((counted(&points, at(90)), counted(&points, at(91))), (1, 0));
    }

    #[test]
    fn what_a_program_with_a_point_was_given_ends_with_it_whichever_came_first() {
        let register = v1::Register { point: "door".to_owned(), ..v1::Register::default() };
        let web = "spiffe://shop.example/web".parse().unwrap();
        for is_given_first in [true, false] {
            let points = points();
            let (process, caller) = process(7);
            let before = is_given_first.then(|| given(&points, &caller, at(60)));
            let registered = points.register(&caller, &web, &register).unwrap();
            let after = (!is_given_first).then(|| given(&points, &caller, at(60)));
            drop((before, after, registered));
            process.end();
            points.sweep();
            assert_eq!(points.unaware(), 0, "given first: {is_given_first}");
        }
    }

    #[test]
    fn of_more_than_can_be_remembered_those_are_forgotten_whose_svids_end_first() {
        let points = points();
        let mut table = points.holders().lock();
        for number in 0..HOLDERS_MAX as u64 {
            table.ended.insert((at(60 + number), number));
        }
        drop(table);
        let (_live, caller) = process(7);
        let open = given(&points, &caller, at(59));
        assert_eq!(points.unaware(), HOLDERS_MAX as u64);
        assert_eq!(points.holders().lock().ended.first(), Some(&(at(61), 1)));
        drop(open);
        let (_other, caller) = process(8);
        given(&points, &caller, at(600));
        assert!(!points.holders().lock().live.contains_key(&7), "it ends before all others");
        assert_eq!(points.unaware(), HOLDERS_MAX as u64);
    }

    /// A process that has ended and one that lives, both without a point, and a point whose stream is closed: all of them
    /// have something for two hours.
    fn two_hours(clock: &Arc<SimClock>) -> (Points, SimulatedProcess) {
        let points = Points::new(Arc::clone(clock) as _);
        let (ended, caller) = process(7);
        given(&points, &caller, at(7200));
        ended.end();
        given(&points, &process(8).1, at(7200));
        let (lives, caller) = process(9);
        let register = v1::Register { point: "door".to_owned(), ..v1::Register::default() };
        let web = "spiffe://shop.example/web".parse().unwrap();
        points.register(&caller, &web, &register).unwrap().presents(Some(at(7200)));
        (points, lives)
    }

    /// How many count, and which of the points is told, as gone or not.
    fn told(points: &Points) -> (u64, Vec<bool>) {
        points.sweep();
        let points_told = points.acknowledgements(None);
        (points.unaware(), points_told.into_iter().map(|point| point.gone).collect())
    }

    #[test]
    fn clock_that_jumps_ahead_ends_nothing_that_time_has_not_ended() {
        const HOUR: Duration = Duration::from_secs(3600);
        let clock = Arc::new(SimClock::new(NOON));
        let (points, _lives) = two_hours(&clock);
        assert_eq!(told(&points), (2, vec![false]));
        clock.set(at(5 * 86_400));
        assert_eq!(told(&points), (2, vec![false]));
        clock.advance(HOUR / 2);
        assert_eq!(told(&points), (2, vec![false]));
        clock.set(NOON + HOUR / 2);
        clock.advance(HOUR);
        assert_eq!(told(&points), (2, vec![false]), "it was set right");
        clock.advance(HOUR / 2 + Duration::from_secs(1));
        assert_eq!(told(&points), (0, vec![true]));
        // Nor is it told as gone for less time than a server may be away.
        clock.set(at(5 * 86_400));
        clock.advance(Duration::from_secs(119));
        assert_eq!(told(&points), (0, vec![true]));
        clock.advance(Duration::from_secs(1));
        assert_eq!(told(&points), (0, vec![]));
    }

    #[test]
    fn clock_that_goes_on_ahead_for_an_hour_is_one_of_a_machine_that_was_suspended() {
        let clock = Arc::new(SimClock::new(NOON));
        let (points, _lives) = two_hours(&clock);
        clock.set(at(86_400));
        assert_eq!(told(&points), (2, vec![false]));
        clock.advance(Duration::from_secs(3599));
        assert_eq!(told(&points), (2, vec![false]));
        clock.advance(Duration::from_secs(1));
        assert_eq!(told(&points), (0, vec![true]));
    }
}
