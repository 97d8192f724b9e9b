//! A few connections that read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use super::seen::{Seen, past};
use super::session::{Fault, Session, Target};
use crate::queue::ended;
use crate::{Result, StoreError};

/// How many reads run at the same time; more wait for their turn.
const READERS_MAX: usize = 4;
/// How long a read may take; longer than the database gives itself for a statement.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a read is tried: a connection that was kept may have died meanwhile, and reading twice does no harm.
const ATTEMPTS_MAX: usize = 3;

/// Why a read gave nothing.
pub(super) enum Unread {
    /// The database said so, or did not answer.
    Fault(Fault),
    /// What it said does not fit.
    Store(StoreError),
}

impl From<Fault> for Unread {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<StoreError> for Unread {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The connections, opened when first needed.
pub(super) struct Readers {
    target: Target,
    seen: Arc<Seen>,
    idle: Mutex<Vec<Session>>,
    turns: Semaphore,
    /// Where the bytes of connections are moved.
    runtime: Handle,
}

impl Readers {
    pub(super) fn new(target: Target, seen: Arc<Seen>, runtime: Handle) -> Self {
        Self { target, seen, idle: Mutex::default(), turns: Semaphore::new(READERS_MAX), runtime }
    }

    /// Reads. `work` may run more than once.
    pub(super) async fn read<T: Send>(
        &self,
        work: impl for<'a> Fn(&'a Session) -> BoxFuture<'a, std::result::Result<T, Unread>>
        + Send
        + Sync,
    ) -> Result<T> {
        let _turn = self.turns.acquire().await.map_err(|_closed| ended())?;
        let mut attempt = 1;
        loop {
            let session = self.session().await?;
            let read = timeout(READ_TIMEOUT, work(&session)).await;
            match read {
                Ok(Ok(_old)) if self.seen.is_past(&session) => {
                    if attempt == ATTEMPTS_MAX {
                        return Err(past());
                    }
                }
                Ok(Ok(found)) => {
                    self.idle().push(session);
                    return Ok(found);
                }
                Ok(Err(Unread::Store(error))) => return Err(error),
                Ok(Err(Unread::Fault(fault))) => {
                    let again = matches!(fault, Fault::Lost { .. }) || fault.is_of_a_race();
                    if !again || attempt == ATTEMPTS_MAX {
                        return Err(fault.error());
                    }
                }
                Err(_late) => {
                    let why = format!("no answer in {READ_TIMEOUT:?}");
                    return Err(StoreError::Unavailable { why });
                }
            }
            // The session is not used again: a transaction may be open on it.
            attempt += 1;
        }
    }

    async fn session(&self) -> Result<Session> {
        loop {
            let kept = self.idle().pop();
            match kept {
                Some(session) if session.is_closed() || self.seen.is_past(&session) => {}
                Some(session) => return Ok(session),
                None => break,
            }
        }
        let (target, seen) = (self.target.clone(), Arc::clone(&self.seen));
        let connecting = async move { seen.connect(&target, Arc::new(Notify::new())).await };
        self.runtime.spawn(connecting).await.map_err(|_ended| ended())?
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
