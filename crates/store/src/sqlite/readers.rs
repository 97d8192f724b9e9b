//! A few connections that read, each on a blocking thread, never on an async worker.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::files;
use super::tables::Open;
use crate::Result;
use crate::queue::ended;

/// How many reads run at the same time; more wait for their turn.
const READERS_MAX: usize = 4;

/// The connections, opened when first needed.
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    turns: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        let turns = Arc::new(Semaphore::new(READERS_MAX));
        Self { path, idle: Mutex::default(), turns }
    }

    /// Reads one committed state.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_closed| ended())?;
        let readers = Arc::clone(self);
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            readers.in_transaction(work)
        });
        // It is never cancelled; a panic in it is a defect that the caller cannot mend.
        reading.await.map_err(|_panic| ended())?
    }

    fn in_transaction<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let connection = kept.map_or_else(|| files::open_reader(&self.path), Ok)?;
        // All statements of one read see the same state, also while the writer commits.
        let open = Open(&connection);
        open.bracket("BEGIN")?;
        let found = work(&connection)?;
        open.bracket("COMMIT")?;
        // One that failed is not used again.
        idle().push(connection);
        Ok(found)
    }
}
