//! What must be true of the whole once everything is well.

use countersign_audit::Entry;
use countersign_identity::{SKEW_ALLOWED, Timestamp};
use countersign_store::PAGE_MAX;

use crate::messages::Records;
use crate::world::World;

impl World {
    /// Every agent knows what the server knows, and serves exactly what it should.
    pub fn check_converged(&mut self) {
        self.check_mesh_converged();
        for index in 0..self.machines.len() {
            let labels = self.machines[index].labels.clone();
            let (revision, records) = self.control.records(0, &labels);
            let machine = &self.machines[index];
            let life = machine.life.as_ref().expect("every agent lives");
            let state = &life.state;
            assert_eq!(state.replica().revision(), revision, "a{index} is behind");
            let held: Records = state
                .replica()
                .records()
                .map(|(key, value)| ((key.kind.to_string(), key.name.to_string()), value.to_vec()))
                .collect();
            assert!(held == *records, "a{index} holds another slice than the server's");
            let acknowledged = self.control.acknowledged(machine.disk.node.id);
            assert_eq!(acknowledged, Some(revision), "a{index} has not said so");
            for name in state.replica().workloads().keys() {
                // Of workloads elsewhere only the names are known here.
                let here = name.as_str().starts_with(&format!("w{index}-"))
                    || self.mesh_names(index).contains(name);
                let open = here && !self.suspended.contains(name.as_str());
                let served = life.svids.get(name).filter(|svid| {
                    state.holds(name, &svid.term.digest) && machine.now() <= svid.term.expires
                });
                assert_eq!(served.is_some(), open, "a{index} and `{name}`");
                let covered = served.is_some_and(|svid| {
                    self.covered_at(index, &svid.credential, Some(state.replica().revision()))
                });
                assert!(!covered, "a{index} serves `{name}`, which is revoked");
            }
            assert!(life.svids.keys().all(|name| state.replica().workloads().contains_key(name)));
            for point in machine.points.values() {
                assert_eq!(point.enforced, Some(revision), "point `{}` is behind", point.name);
            }
        }
    }

    /// Where no server's clock is far off, the log's times go back by no more than the allowed skew.
    pub fn check_log_times(&self) {
        if self.is_far_off() {
            return;
        }
        let (store, runtime) = (&self.control.store, self.control.runtime());
        let (mut latest, mut from) = (Timestamp::EPOCH, 0);
        loop {
            let page = runtime.block_on(store.events(from, PAGE_MAX)).expect("the store answers");
            let Some(last) = page.last() else { return };
            from = last.index + 1;
            for event in &page {
                let at = Entry::parse(&event.leaf).expect("our own leaves are understood").at;
                assert!(latest <= at + SKEW_ALLOWED, "the log goes back from {latest} to {at}");
                latest = latest.max(at);
            }
        }
    }

    /// How many SVIDs are held by all agents together, unexpired.
    pub fn held(&self) -> usize {
        let lives =
            self.machines.iter().filter_map(|machine| Some((machine, machine.life.as_ref()?)));
        let good = lives.flat_map(|(machine, life)| {
            life.svids.values().filter(|svid| machine.now() <= svid.term.expires)
        });
        good.count()
    }
}
