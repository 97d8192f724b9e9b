//! What the log says of sign-ins: who made a link, who came in by it, who was refused, and how each session ended.
//!
//! A link is handed out, and a session begins, only once that is on record. Refusals are what anybody can cause, so they are
//! counted, and written at most once a minute.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_audit::{Event, EventKind};
use countersign_identity::{Sha256, Timestamp};
use countersign_store::Batch;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::admin::change::Operator;
use crate::console::Console;
use crate::console::entrance::{Begun, Ended};
use crate::control::Control;
use crate::refusal::Refused;

/// How often it is looked whether sessions have ended.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often refusals are written, at the most.
const REFUSALS_EVERY: Duration = Duration::from_secs(60);
/// Ends of sessions that wait while the store is away.
const WAITING_MAX: usize = 1024;
/// How long a server that stops waits for the store to take the ends of its sessions.
const LAST_TIMEOUT: Duration = Duration::from_secs(5);

/// A link was made, for this operator.
///
/// # Errors
/// When that cannot be written; then nobody may get the link.
pub(crate) async fn link_created(
    control: &Control,
    operator: Operator,
    link: Sha256,
    expires: Timestamp,
) -> Result<(), Refused> {
    let now = control.desk.now().await?;
    let event = Event::new(EventKind::ConsoleLinkCreated, now, operator.actor(), link.to_string())
        .with_details(json!({ "expires": expires }));
    write(control, vec![event]).await
}

/// A session begins.
///
/// # Errors
/// When that cannot be written; then nobody may get the session.
pub(super) async fn session_began(
    control: &Control,
    begun: &Begun,
    from: Option<IpAddr>,
) -> Result<(), Refused> {
    let now = control.desk.now().await?;
    let (actor, session) = (Operator(begun.operator).actor(), begun.session.to_string());
    let mut details = json!({ "link": begun.link.to_string() });
    if let Some(from) = from {
        details["from"] = json!(from.to_canonical().to_string());
    }
    let event = Event::new(EventKind::SessionBegan, now, actor, session).with_details(details);
    write(control, vec![event]).await
}

/// Writes ends and refusals, until stopped: then every session that is left has ended too. Nobody may be let in any more by then.
pub(super) async fn keep(console: Arc<Console>, stop: CancellationToken) {
    let Ok(control) = console.admin.control().map(Arc::clone) else { return };
    let mut book = Book { console, control, due: Timestamp::EPOCH, ended: Vec::new() };
    while !stop.is_cancelled() {
        let now = book.control.clock.now();
        let refused = if book.due <= now { book.console.at.entrance.refused() } else { 0 };
        if 0 < refused {
            book.due = now + REFUSALS_EVERY;
        }
        book.write(refused, now).await;
        tokio::select! {
            () = stop.cancelled() => {}
            () = book.control.clock.sleep_until(book.control.clock.about(LOOK_EVERY)) => {}
        }
    }
    book.close().await;
}

/// What is not written yet.
struct Book {
    console: Arc<Console>,
    control: Arc<Control>,
    /// When refusals may be written again.
    due: Timestamp,
    ended: Vec<Ended>, // INVARIANT: at most WAITING_MAX and what the entrance holds
}

impl Book {
    /// Writes the ends that came, and so many refusals. What cannot be written waits, with what comes after it, until it can.
    async fn write(&mut self, refused: u64, now: Timestamp) {
        self.ended.extend(self.console.at.entrance.ended());
        let ended = self.ended.iter().map(|ended| session_ended(ended, now));
        let refused = (0 < refused).then(|| refusals(refused, now));
        let events: Vec<Event> = ended.chain(refused).collect();
        if events.is_empty() {
            return;
        }
        match write(&self.control, events).await {
            Ok(()) => self.ended.clear(),
            Err(refused) => {
                tracing::warn!(why = %refused.why, "ends of sessions could not be written");
                self.ended.truncate(WAITING_MAX);
            }
        }
    }

    /// The last that is written.
    async fn close(mut self) {
        self.ended.extend(self.console.at.entrance.ended());
        self.console.at.entrance.close();
        let (refused, now) = (self.console.at.entrance.refused(), self.control.clock.now());
        if tokio::time::timeout(LAST_TIMEOUT, self.write(refused, now)).await.is_err() {
            tracing::warn!("ends of sessions could not be written before the server stopped");
        }
    }
}

fn session_ended(Ended { session, operator, how }: &Ended, now: Timestamp) -> Event {
    let actor = Operator(*operator).actor();
    Event::new(EventKind::SessionEnded, now, actor, session.to_string())
        .with_details(json!({ "how": how.as_str() }))
}

fn refusals(count: u64, now: Timestamp) -> Event {
    Event::new(EventKind::SessionRefused, now, "server", "console")
        .with_details(json!({ "count": count }))
}

async fn write(control: &Control, events: Vec<Event>) -> Result<(), Refused> {
    control.store.commit(Batch { events, ..Batch::default() }).await?;
    Ok(())
}
