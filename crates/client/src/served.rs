//! Requests that doors of ours answered: how many, how and how fast, on their way to the agent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_api::v1;
use countersign_api::wire::SERVED_WITHIN_MICROS;
use countersign_identity::{Name, Timestamp};

/// The first digits of a status, and none of them.
const CLASSES: usize = 6;
/// The bounds, and beyond all of them.
const BOUNDS: usize = SERVED_WITHIN_MICROS.len() + 1;
/// Services whose doors are counted. A process has few; those beyond are counted nowhere.
const SERVICES_MAX: usize = 256;

/// Counts of all doors. Counting takes no lock and never waits.
#[derive(Clone, Debug, Default)]
pub struct Served(Arc<Mutex<BTreeMap<Name, ServedAt>>>); // INVARIANT: at most SERVICES_MAX

/// The counts of the doors of one service.
#[derive(Clone, Debug, Default)]
pub struct ServedAt(Arc<[[Count; BOUNDS]; CLASSES]>);

#[derive(Debug, Default)]
struct Count {
    count: AtomicU64,
    micros: AtomicU64,
}

impl Served {
    /// Where the doors of this service count.
    pub fn at(&self, service: &Name) -> ServedAt {
        let mut doors = self.lock();
        match doors.get(service) {
            Some(known) => known.clone(),
            None if SERVICES_MAX <= doors.len() => ServedAt::default(),
            None => doors.entry(service.clone()).or_default().clone(),
        }
    }

    /// What was counted since it was taken last.
    pub(crate) fn take(&self, now: Timestamp) -> Vec<v1::Served> {
        let doors = self.lock();
        doors.iter().flat_map(|(service, at)| at.take(service, now)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, ServedAt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServedAt {
    /// Counts one answer, by its status and by how long its head took.
    pub fn count(&self, status: u16, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = usize::from(status / 100).min(CLASSES);
        let class = self.0.get(class).unwrap_or(&self.0[0]);
        let count = &class[SERVED_WITHIN_MICROS.partition_point(|bound| *bound < micros)];
        count.count.fetch_add(1, Ordering::Relaxed);
        count.micros.fetch_add(micros, Ordering::Relaxed);
    }

    fn take(&self, service: &Name, now: Timestamp) -> Vec<v1::Served> {
        let mut taken = Vec::new();
        for (class, bounds) in (0..).zip(self.0.iter()) {
            for (within, one) in (0..).zip(bounds.iter()) {
                let count = one.count.swap(0, Ordering::Relaxed);
                if 0 < count {
                    taken.push(v1::Served {
                        service: service.to_string(),
                        class,
                        within,
                        at_micros: now.micros(),
                        count,
                        micros: one.micros.swap(0, Ordering::Relaxed),
                    });
                }
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_class_and_bound_and_told_once() {
        let served = Served::default();
        let name: Name = "orders".parse().unwrap();
        let door = served.at(&name);
        for (status, micros) in [(200, 900), (204, 1000), (200, 1001), (503, 60_000_000), (999, 1)]
        {
            door.count(status, Duration::from_micros(micros));
        }
        served.at(&name).count(200, Duration::ZERO);
        let now = Timestamp::from_secs(7);
        let told: Vec<_> = served
            .take(now)
            .into_iter()
            .map(|one| (one.class, one.within, one.count, one.micros))
            .collect();
        assert_eq!(told, [(0, 0, 1, 1), (2, 0, 3, 1900), (2, 1, 1, 1001), (5, 13, 1, 60_000_000)]);
        assert!(served.take(now).is_empty());
    }
}
