//! Where the state is kept: opened, made, moved and kept in order, whichever backend it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Clock, Entropy, SystemEntropy};
use countersign_seal::{Kek, OpenRefused};
use countersign_store::{
    Copied, Duties, Duty, PAGE_MAX, Place, PostgresStore, Snapshot, SqliteStore, Store, StoreError,
    Verification, verify_with,
};
use tokio_util::sync::CancellationToken;

use crate::config::{StartError, StoreAt};
use crate::incarnation::Seen;
use crate::refusal::Refused;
use crate::state::State;
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
/// When there is a state at the new place, a server runs on the old one, that is not in order, or the two differ.
pub async fn copy_store(from: &Place, to: &Place) -> Result<Copied, StartError> {
    if let Place::Directory(path) = from {
        Seen::check(&*SqliteStore::observe(path)?, path).await?;
    }
    countersign_store::copy(from, to, Arc::new(SystemEntropy), check_records).await
}

/// What was found to be in order.
#[derive(Debug)]
pub struct Verified {
    /// The state.
    pub state: Verification,
    /// How many sealed secrets open, or that the key is for none of them; nothing when there was no key to open them with.
    pub opened: Option<Result<usize, StartError>>,
}

/// A key that opens sealed secrets, and the file that it is from.
#[derive(Debug)]
pub struct KeyAt {
    /// The file.
    pub path: PathBuf,
    /// The key.
    pub kek: Kek,
}

/// Checks a whole state against itself, also while servers run on it: all that the store knows of it, whether each record says
/// something, and, with a key, whether each sealed secret opens. That a key is for none of them says nothing of the state.
///
/// # Errors
/// When there is none, or something in it does not fit.
pub async fn verify_store(place: &Place, key: Option<&KeyAt>) -> Result<Verified, StartError> {
    match place {
        Place::Directory(path) => {
            let store = SqliteStore::observe(path)?;
            let verified = verify(&*store, key).await?;
            Seen::check(&*store, path).await?;
            Ok(verified)
        }
        Place::Database(url, password) => {
            let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
            verify(&PostgresStore::open(url.clone(), password.clone(), entropy).await?, key).await
        }
    }
}

async fn verify(store: &dyn Store, key: Option<&KeyAt>) -> Result<Verified, StartError> {
    let state = verify_with(store, check_records).await?;
    let opened = match key {
        Some(key) => Some(open_secrets(store, key).await?),
        None => None,
    };
    Ok(Verified { state, opened })
}

/// Goes on only with records that a server would take.
fn check_records(snapshot: Snapshot) -> Result<(), StartError> {
    if snapshot.revision.number == 0 {
        return Err(StartError::Nothing);
    }
    State::from_snapshot(snapshot).map_err(Refused::from)?;
    Ok(())
}

/// Opens each sealed secret, and says how many there are, or that the key is for none. Of one that was destroyed nothing is left.
async fn open_secrets(
    store: &dyn Store,
    key: &KeyAt,
) -> Result<Result<usize, StartError>, StartError> {
    let (mut after, mut opened, mut foreign) = (None, 0, None);
    loop {
        let page = store.secrets(after, PAGE_MAX).await?;
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        for (name, sealed) in page.iter().filter(|(_, sealed)| !sealed.is_empty()) {
            match countersign_seal::open(&key.kek, name, sealed) {
                Ok(_secret) => opened += 1,
                Err(other @ OpenRefused::OtherKey { .. }) => foreign = Some(other),
                Err(other) => {
                    let what = format!("the sealed secret `{name}` does not open: {other}");
                    return Err(StoreError::Broken { what }.into());
                }
            }
        }
    }
    let Some(why) = foreign else { return Ok(Ok(opened)) };
    let wrong = StartError::WrongKek { path: key.path.clone(), why: why.to_string() };
    // A key that opens some of them is the state's own.
    if opened == 0 { Ok(Err(wrong)) } else { Err(wrong) }
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
