//! Where the state is kept: opened, made, moved and kept in order, whichever backend it is.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Clock, Entropy, SystemEntropy};
use countersign_store::{
    Copied, Duties, Duty, Place, PostgresStore, SqliteStore, Store, StoreError, Verification,
    verify_everything,
};
use tokio_util::sync::CancellationToken;

use crate::config::{StartError, StoreAt};
use crate::incarnation::Seen;
use crate::watch::{Pulse, TimeGuard};

/// How often rows that nobody can need any more are dropped.
const TRIM_PAUSE: Duration = Duration::from_secs(600);
/// The duty of one replica to do so.
const TRIM: Duty = Duty { name: "store/trim", ttl: TRIM_PAUSE };

/// Opens the state that is there; of a database's hosts, none that is an old primary by what was seen beside this data.
///
/// # Errors
/// When there is none, or it does not answer.
pub(crate) async fn open(
    at: &StoreAt,
    data: &Path,
    entropy: Arc<dyn Entropy>,
) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match at {
        StoreAt::Directory => Arc::new(SqliteStore::open(data, entropy)?),
        StoreAt::Postgres { url, password } => {
            let (url, password) = (url.clone(), password.clone());
            Arc::new(PostgresStore::open_after(url, password, Seen::reached(data), entropy).await?)
        }
    })
}

/// Makes an empty state.
///
/// # Errors
/// When there is one already, or it cannot be written.
pub(crate) async fn create(
    at: &StoreAt,
    data: &Path,
    entropy: Arc<dyn Entropy>,
) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match at {
        StoreAt::Directory => Arc::new(SqliteStore::create(data, entropy)?),
        StoreAt::Postgres { url, password } => {
            Arc::new(PostgresStore::create(url.clone(), password.clone(), entropy).await?)
        }
    })
}

/// Copies a state to a place that has none, and checks that both are the same.
///
/// # Errors
/// When there is a state at the new place, a server runs on the old one, or the two differ.
pub async fn copy_store(from: &Place, to: &Place) -> Result<Copied, StartError> {
    Ok(countersign_store::copy(from, to, Arc::new(SystemEntropy)).await?)
}

/// Checks a whole state against itself, also while servers run on it.
///
/// # Errors
/// When there is none, or something in it does not fit.
pub async fn verify_store(place: &Place) -> Result<Verification, StartError> {
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    Ok(match place {
        Place::Directory(path) => verify_everything(&*SqliteStore::observe(path)?).await?,
        Place::Database(url, password) => {
            let store = PostgresStore::open(url.clone(), password.clone(), entropy).await?;
            verify_everything(&store).await?
        }
    })
}

/// The periodic duties towards the store.
#[derive(Clone)]
pub(crate) struct Upkeep {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) duties: Arc<Duties>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) time: Arc<TimeGuard>,
    pub(crate) replica: String,
}

impl Upkeep {
    /// Keeps an eye on whether a shared store takes writes.
    pub(crate) async fn pulse(self, pulse: Arc<Pulse>, stop: CancellationToken) {
        pulse.look_at_promises(&*self.store).await;
        pulse.run(self.store, self.replica, self.clock, stop).await;
    }

    /// The same of a store that is this server's alone.
    pub(crate) async fn own_pulse(self, pulse: Arc<Pulse>, stop: CancellationToken) {
        pulse.follow(self.store, self.replica, self.clock, stop).await;
    }

    /// Drops what nobody can need any more, now and then; of several replicas one does it.
    pub(crate) async fn trim(self, stop: CancellationToken) {
        loop {
            let more = match self.trim_once().await {
                Ok(more) => more,
                Err(error) => {
                    tracing::warn!(%error, "could not trim the store");
                    false
                }
            };
            let pause = if more { Duration::from_secs(1) } else { TRIM_PAUSE };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn trim_once(&self) -> Result<bool, StoreError> {
        let now = self.clock.now();
        if !self.duties.is_ours(TRIM, now).await? {
            return Ok(false);
        }
        // A clock that may not be believed takes nothing away, nor one that was set ahead.
        let Ok(steady) = self.time.steady(&*self.clock) else { return Ok(false) };
        Ok(self.store.trim(steady).await?.more)
    }
}
