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
    let now = control.desk.time.trusted(control.clock.now())?;
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
    let now = control.desk.time.trusted(control.clock.now())?;
    let (actor, session) = (Operator(begun.operator).actor(), begun.session.to_string());
    let mut details = json!({ "link": begun.link.to_string() });
    if let Some(from) = from {
        details["from"] = json!(from.to_canonical().to_string());
    }
    let event = Event::new(EventKind::SessionBegan, now, actor, session).with_details(details);
    write(control, vec![event]).await
}

/// Writes ends and refusals, until stopped.
pub(super) async fn keep(console: Arc<Console>, stop: CancellationToken) {
    let Ok(control) = console.admin.control().map(Arc::clone) else { return };
    let (mut due, mut ended) = (Timestamp::EPOCH, Vec::new());
    loop {
        let now = control.clock.now();
        // What could not be written waits, with what comes after it, until it can.
        ended.extend(console.at.entrance.ended());
        let mut events: Vec<Event> = ended.iter().map(|ended| session_ended(ended, now)).collect();
        let refused = if due <= now { console.at.entrance.refused() } else { 0 };
        if 0 < refused {
            due = now + REFUSALS_EVERY;
            events.push(refusals(refused, now));
        }
        if !events.is_empty() {
            match write(&control, events).await {
                Ok(()) => ended.clear(),
                Err(refused) => {
                    tracing::warn!(why = %refused.why, "ends of sessions could not be written");
                    ended.truncate(WAITING_MAX);
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = control.clock.sleep_until(now + LOOK_EVERY) => {}
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
