//! Learning of what other replicas write: their notifications, and a poll on which alone it depends.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::Revision;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::rows;
use super::seen::{Seen, raise};
use super::session::{Target, command};
use super::text;
use super::writer::CHANNEL;
use crate::{Result, StoreError};

/// How often the head row is looked at while somebody waits for it.
const POLL: Duration = Duration::from_millis(50);
/// How long to wait before connecting again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

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
        let floor = seen.floor();
        let commands = [command!(text::TIP)];
        let read = timeout(ANSWER_TIMEOUT, session.together(None, &commands, None)).await;
        let late = |_| StoreError::Unavailable { why: format!("no answer in {ANSWER_TIMEOUT:?}") };
        let answers = read.map_err(late)?.map_err(super::session::Fault::error)?;
        let row = answers.first().and_then(|rows| rows.first());
        let tip = rows::tip(row.ok_or_else(|| rows::broken("there is no head row"))?)?;
        seen.check(&floor, &tip)?;
        raise(hint, tip.0.revision);
        // Early when notified, and in any case.
        let _polled = timeout(POLL, notified.notified()).await;
    }
}
