//! The writing thread: it opens the store, and serves it until the last job.

use std::sync::Arc;

use countersign_identity::{Entropy, Revision};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot, watch};
use tokio_postgres::Row;

use super::feed::READ_ONLY;
use super::seen::{Seen, Tip};
use super::session::{self, Session, Target, command};
use super::writer::Writer;
use super::{follow, hosts, rows, schema, text};
use crate::queue::Queue;
use crate::{Result, StoreError, sql};

/// Whether a store is to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    Create,
    Open,
}

/// What the writing thread tells once it serves.
pub(super) struct Served {
    pub(super) runtime: Handle,
    pub(super) seen: Arc<Seen>,
    pub(super) hint: watch::Receiver<Revision>,
}

/// The writing thread: its runtime moves the bytes of every connection, so that they all end with it.
pub(super) fn serve(
    target: &Target,
    queue: Arc<Queue>,
    entropy: Arc<dyn Entropy>,
    opening: Opening,
    tell: oneshot::Sender<Result<Served>>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => {
            // Whoever opens the store may have given up waiting.
            let _ = tell.send(Err(StoreError::Unavailable { why: why.to_string() }));
            return;
        }
    };
    runtime.block_on(async {
        let (session, tip) = match prepare(target, opening).await {
            Ok(prepared) => prepared,
            Err(error) => {
                let _ = tell.send(Err(error));
                return;
            }
        };
        let seen = Arc::new(Seen::new(tip, target.known(), target.place()));
        seen.uses(target.reached.and_then(|reached| reached.primary));
        seen.uses(session.server.map(|server| server.primary));
        let (hint, hinted) = watch::channel(tip.head.revision);
        let following = follow::follow(target.clone(), hint.clone(), Arc::clone(&seen));
        // Ends with the runtime, which ends with this thread.
        let _following = tokio::spawn(following);
        let served = Served { runtime: Handle::current(), seen: Arc::clone(&seen), hint: hinted };
        if tell.send(Ok(served)).is_err() {
            return;
        }
        let (target, session) = (target.clone(), Some(session));
        Writer { target, session, queue, hint, seen, entropy, wary: 0 }.run().await;
    });
}

/// Connects, brings the schema to this version, and checks that the log has exactly the leaves that the head row counts.
async fn prepare(target: &Target, opening: Opening) -> Result<(Session, Tip)> {
    // Nothing is written to a host that was not compared with the others.
    let reached = target.reached.as_ref();
    let session = hosts::connect(target, reached, &Arc::new(Notify::new())).await?;
    let made = match opening {
        Opening::Create => schema::create(&session, target).await,
        Opening::Open => schema::migrate(&session, target).await.map(drop),
    };
    let existed = match made {
        Err(StoreError::AlreadyExists { .. }) => {
            schema::migrate(&session, target).await?;
            true
        }
        other => other.map(|()| opening == Opening::Open)?,
    };
    let commands = [command!(text::TIP), command!(sql::LAST_LEAF)];
    let read = session.together(Some(READ_ONLY), &commands, Some("COMMIT")).await;
    let answers = read.map_err(session::Fault::error)?;
    let row = |answer: usize| answers.get(answer).and_then(|rows: &Vec<Row>| rows.first());
    let tip = rows::tip(row(0).ok_or_else(|| rows::broken("there is no head row"))?)?;
    let head = tip.head;
    let leaves = row(1).map(|row| rows::number(row, 0)).transpose()?.map_or(0, |last| last + 1);
    if leaves != head.log_size {
        let size = head.log_size;
        let what = format!("the log has {leaves} leaves, the head row counts {size}");
        return Err(StoreError::Broken { what });
    }
    if existed && opening == Opening::Create && (0 < head.log_size || 0 < head.revision.number) {
        return Err(StoreError::AlreadyExists { what: format!("store `{}`", target.url) });
    }
    Ok((session, tip))
}
