//! The processes that were given SVIDs, so that those among them are counted who cannot say what they enforce.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use countersign_identity::Timestamp;

use super::Points;
use crate::attest::Caller;

/// Who holds SVIDs, by process. A closed stream takes nothing back: a process holds what it was given until that ends.
#[derive(Default)]
pub(super) struct Holders(Mutex<BTreeMap<u32, Holder>>);

struct Holder {
    caller: Arc<dyn Caller>,
    /// Streams on which it was given something and which are open.
    streams: usize,
    /// The end of the last that it was given.
    until: Timestamp,
}

/// One stream of a process. Dropping it closes the stream.
pub(crate) struct Holding {
    points: Points,
    caller: Arc<dyn Caller>,
    counted: bool,
}

/// Processes that are remembered after they closed their streams. Of more, those whose SVIDs end first are forgotten.
const HOLDERS_MAX: usize = 65_536;

impl Holders {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, Holder>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are besides these processes.
    pub(super) fn without(&self, pids: &BTreeSet<u32>) -> u64 {
        let others = self.lock().keys().filter(|pid| !pids.contains(pid)).count();
        u64::try_from(others).unwrap_or(u64::MAX)
    }

    /// Forgets those that have ended, and those that hold nothing any more. True when there was one.
    pub(super) fn sweep(&self, now: Timestamp) -> bool {
        let mut holders = self.lock();
        let before = holders.len();
        holders.retain(|_, holder| {
            holder.caller.alive().is_ok() && (0 < holder.streams || now <= holder.until)
        });
        holders.len() < before
    }

    /// Makes room for one more.
    fn make_room(holders: &mut BTreeMap<u32, Holder>) {
        if HOLDERS_MAX <= holders.len() {
            let closed = holders.iter().filter(|(_, holder)| holder.streams == 0);
            let first = closed.min_by_key(|(_, holder)| holder.until).map(|(pid, _)| *pid);
            first.map(|pid| holders.remove(&pid));
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
        let mut holders = self.points.holders().lock();
        // A number is used again after its process has ended.
        if holders.get(&pid).is_some_and(|holder| holder.caller.alive().is_err()) {
            holders.remove(&pid);
            self.counted = false;
        }
        let new = !holders.contains_key(&pid);
        if new {
            Holders::make_room(&mut holders);
        }
        let caller = Arc::clone(&self.caller);
        let nothing = || Holder { caller, streams: 0, until: Timestamp::EPOCH };
        let holder = holders.entry(pid).or_insert_with(nothing);
        holder.until = holder.until.max(until.unwrap_or(Timestamp::EPOCH));
        holder.streams += usize::from(!std::mem::replace(&mut self.counted, true));
        drop(holders);
        if new {
            self.points.wake();
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let mut holders = self.points.holders().lock();
        if let Some(holder) = holders.get_mut(&self.caller.peer().pid).filter(|_| self.counted) {
            holder.streams = holder.streams.saturating_sub(1);
        }
    }
}
