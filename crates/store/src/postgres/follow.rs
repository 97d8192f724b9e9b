//! Learning of what other replicas write: their notifications, and a poll on which alone it depends.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::Revision;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::seen::{Seen, raise};
use super::session::Target;
use super::writer::CHANNEL;
use crate::Result;

/// How often the head row is looked at while somebody waits for it.
const POLL: Duration = Duration::from_millis(50);
/// How long to wait before connecting again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);

/// Follows the head row, on a connection of its own, for as long as it runs.
pub(super) async fn follow(target: Target, hint: watch::Sender<Revision>, seen: Arc<Seen>) {
    let mut told = None;
    loop {
        if let Err(error) = listen(&target, &hint, &seen).await
            && told.as_ref() != Some(&error)
        {
            tracing::warn!(%error, "the database is not followed for now");
            told = Some(error);
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn listen(target: &Target, hint: &watch::Sender<Revision>, seen: &Seen) -> Result<()> {
    let notified = Arc::new(Notify::new());
    let session = seen.connect(target, Arc::clone(&notified)).await?;
    if let Err(fault) = session.run(&format!("LISTEN {CHANNEL}")).await {
        tracing::info!(?fault, "the database does not notify; it is polled only");
    }
    loop {
        raise(hint, seen.look(&session).await?.revision);
        // Early when notified, and in any case.
        let _polled = timeout(POLL, notified.notified()).await;
    }
}
