//! Where attestation is done: off the async workers, a bounded number at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::SelectorKind;
use tokio::sync::Semaphore;

use super::{AttestRefused, Caller, Facts};

/// Reads facts for everybody, at most [`READINGS_MAX`] at once, so that a flood of callers cannot take every thread.
#[derive(Clone, Debug)]
pub struct Desk {
    readings: Arc<Semaphore>,
}

/// How many callers are looked at at once.
const READINGS_MAX: usize = 16;
/// How long one caller's facts may take, waiting included.
const READING_TIMEOUT: Duration = Duration::from_secs(5);

impl Default for Desk {
    fn default() -> Self {
        Self { readings: Arc::new(Semaphore::new(READINGS_MAX)) }
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
        let reading = async move {
            // The permit goes with the thread: a reading that outlives its caller's patience still counts.
            let permit =
                readings.acquire_owned().await.map_err(|_closed| AttestRefused::Slow { pid })?;
            let reading = tokio::task::spawn_blocking(move || {
                let facts = caller.facts(&kinds);
                drop(permit);
                facts
            });
            reading.await.map_err(|_panicked| AttestRefused::Slow { pid })?
        };
        match tokio::time::timeout(READING_TIMEOUT, reading).await {
            Ok(facts) => facts,
            Err(_elapsed) => Err(AttestRefused::Slow { pid }),
        }
    }
}
