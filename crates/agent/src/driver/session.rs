//! The session in use: opened, read, and handed what the server lacks.

use std::sync::Arc;
use std::time::Duration;

use countersign_api::v1;
use countersign_identity::{Clock, Code, Revision};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use super::{Driver, Happened};
use crate::core::SyncMessage;
use crate::lists;
use crate::server_link::{Calls, LinkFault, Session};
use crate::trial::Trials;

/// Rules that are handed back in one request.
const HAND_BACK_MAX: usize = 256;

/// A stream that says nothing at all for so long after it was opened is of no use.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A session in use. Dropping it ends its tasks and its connection.
pub(super) struct OpenSession {
    pub(super) calls: Arc<dyn Calls>,
    /// Nobody waits any more for what was asked on it.
    pub(super) ended: CancellationToken,
    _end: DropGuard,
    _tasks: [AbortOnDropHandle<()>; 5],
    _pump: AbortOnDropHandle<()>,
}

impl Driver {
    /// Hands rules back that the server's state lacks. What fails is handed back on the next session.
    pub(super) fn hand_back(&mut self, missing: Vec<v1::SignedRecord>) {
        let Some(session) = self.session.as_ref().filter(|_| !missing.is_empty()) else { return };
        let calls = Arc::clone(&session.calls);
        self.tasks.spawn(async move {
            for some in missing.chunks(HAND_BACK_MAX) {
                match calls.hand_back(some.to_vec()).await {
                    Ok(0) => {}
                    Ok(taken) => tracing::warn!(taken, "the server took back rules that it had lost"),
                    Err(fault) => {
                        tracing::warn!(code = %fault.code, why = %fault.why, "rules that the server lacks could not be handed back");
                        return;
                    }
                }
            }
        });
    }

    pub(super) fn open(&mut self, server: usize, have: Option<Revision>) {
        // The number tells this session's messages from those of the ones before.
        self.sessions += 1;
        let number = self.sessions;
        let (link, server) = (Arc::clone(&self.around.link), self.server(server));
        let tell = self.tell.clone();
        self.tasks.spawn(async move {
            let opened = link.open(&server, have).await;
            // Nobody hears it when the agent stops meanwhile.
            tell.send(Happened::Opened(number, opened)).await.ok();
        });
    }

    /// Puts a session to use: its messages come to this task, acknowledgements and reports go out.
    pub(super) fn take(&mut self, session: Session) {
        let Session { messages, acks, calls, quiet, pump } = session;
        let number = self.sessions;
        let forward = forward(number, messages, self.tell.clone(), Arc::clone(&self.around.clock));
        let reports = &self.around.reports;
        let acknowledge = reports.clone().acknowledge(acks, self.view.subscribe());
        let report = reports.clone().report(Arc::clone(&calls), self.view.subscribe(), quiet);
        let (clock, tell) = (Arc::clone(&self.around.clock), self.tell.clone());
        let views = self.view.subscribe();
        let lists = lists::follow(Arc::clone(&calls), views, clock, tell, Happened::Listed);
        let (clock, points) = (Arc::clone(&self.around.clock), reports.points.clone());
        let trials = Trials { clock, points }.run(Arc::clone(&calls), self.view.subscribe());
        let tasks = [
            AbortOnDropHandle::new(tokio::spawn(forward)),
            AbortOnDropHandle::new(tokio::spawn(acknowledge)),
            AbortOnDropHandle::new(tokio::spawn(report)),
            AbortOnDropHandle::new(tokio::spawn(lists)),
            AbortOnDropHandle::new(tokio::spawn(trials)),
        ];
        let ended = CancellationToken::new();
        let _end = ended.clone().drop_guard();
        self.session = Some(OpenSession { calls, ended, _end, _tasks: tasks, _pump: pump });
    }
}

/// Brings a session's messages to the driver, until it ends.
async fn forward(
    number: u64,
    mut messages: tokio_stream::wrappers::ReceiverStream<Result<SyncMessage, LinkFault>>,
    tell: mpsc::Sender<Happened>,
    clock: Arc<dyn Clock>,
) {
    let silent = || LinkFault::new(Code::TimedOut, "the server said nothing on its stream");
    let ended = || LinkFault::new(Code::Unavailable, "the server ended the stream");
    let deadline = clock.now() + FIRST_MESSAGE_TIMEOUT;
    let mut next = tokio::select! {
        biased;
        first = messages.next() => first.unwrap_or_else(|| Err(ended())),
        () = clock.sleep_until(deadline) => Err(silent()),
    };
    loop {
        let ends = next.is_err();
        if tell.send(Happened::Said(number, next)).await.is_err() || ends {
            return;
        }
        next = messages.next().await.unwrap_or_else(|| Err(ended()));
    }
}
