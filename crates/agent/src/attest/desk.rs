//! Where attestation is done: off the async workers, a bounded number at a time.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use countersign_identity::SelectorKind;
use tokio::sync::Semaphore;

use super::{AttestRefused, Caller, Facts};

/// Reads facts for everybody, at most 16 at once and 4 for one user, so that neither a
/// flood of callers nor programs that take long to read can keep it from others.
#[derive(Clone, Debug)]
pub struct Desk {
    readings: Arc<Semaphore>,
    users: Arc<Mutex<HashMap<u32, Weak<Semaphore>>>>,
}

/// How many callers are looked at at once.
const READINGS_MAX: usize = 16;
/// How many of one user's.
const USER_READINGS_MAX: usize = 4;
/// Users without a reading under way are forgotten when there are more than this.
const USERS_KEPT: usize = 64;
/// How long one caller's facts may take, waiting included.
const READING_TIMEOUT: Duration = Duration::from_secs(5);

impl Default for Desk {
    fn default() -> Self {
        Self { readings: Arc::new(Semaphore::new(READINGS_MAX)), users: Arc::default() }
    }
}

impl Desk {
    /// Reads facts of these kinds about a caller.
    ///
    /// # Errors
    /// When they cannot be read, the caller is gone, or it takes too long.
    pub async fn facts(
        &self,
        caller: &Arc<dyn Caller>,
        kinds: BTreeSet<SelectorKind>,
    ) -> Result<Facts, AttestRefused> {
        let pid = caller.peer().pid;
        let caller = Arc::clone(caller);
        let readings = Arc::clone(&self.readings);
        let of_user = self.of_user(caller.peer().uid);
        let reading = async move {
            // The permit goes with the thread: a reading that outlives its caller's patience still counts.
            let slow = |_closed| AttestRefused::Slow { pid };
            let of_user = of_user.acquire_owned().await.map_err(slow)?;
            let permit = readings.acquire_owned().await.map_err(slow)?;
            let reading = tokio::task::spawn_blocking(move || {
                let facts = caller.facts(&kinds);
                drop((permit, of_user));
                facts
            });
            reading.await.map_err(|_panicked| AttestRefused::Slow { pid })?
        };
        match tokio::time::timeout(READING_TIMEOUT, reading).await {
            Ok(facts) => facts,
            Err(_elapsed) => Err(AttestRefused::Slow { pid }),
        }
    }

    fn of_user(&self, uid: u32) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(readings) = users.get(&uid).and_then(Weak::upgrade) {
            return readings;
        }
        if USERS_KEPT <= users.len() {
            users.retain(|_, readings| 0 < readings.strong_count());
        }
        let readings = Arc::new(Semaphore::new(USER_READINGS_MAX));
        users.insert(uid, Arc::downgrade(&readings));
        readings
    }
}
