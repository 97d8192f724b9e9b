//! What tells open pages that something has changed: server-sent events.
//!
//! An event says that a page is not true any more, and nothing else; the page then fetches itself anew, with the same
//! rights and the same escaping as the first time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use countersign_identity::{Code, Revision};
use futures_util::{Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::console::Console;
use crate::console::gate::{plain, session_cookie};
use crate::refusal::Refused;

/// Pages that are open at once.
const STREAMS_MAX: usize = 64;
/// How often it is looked whether anything has changed.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// After how long without a change a page is told to look again all the same: certificates are renewed without a revision.
const QUIET_MAX: Duration = Duration::from_secs(5);

/// The streams of open pages: room for them, and the mark that they all watch. It is made once, however many watch.
pub(crate) struct Streams {
    room: Arc<Semaphore>,
    mark: watch::Sender<Option<Mark>>,
}

impl Default for Streams {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(STREAMS_MAX)), mark: watch::Sender::new(None) }
    }
}

/// What pages are made from, in numbers that differ when it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    revision: Revision,
    facts: u64,
    behind: usize,
    streams: usize,
}

fn mark(console: &Console) -> Result<Mark, Refused> {
    let control = console.admin.control()?;
    let revision = control.feed.current().revision;
    Ok(Mark {
        revision,
        facts: control.watch.facts.reached(),
        behind: control.roster.behind(revision),
        streams: control.roster.streams(),
    })
}

/// Looks whether anything has changed while somebody watches, until stopped.
pub(super) async fn look(console: Arc<Console>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if 0 < console.live.mark.receiver_count() {
            let now = mark(&console).ok();
            console.live.mark.send_if_modified(|told| {
                let changed = *told != now;
                *told = now;
                changed
            });
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// The stream of one open page, for as long as its session lasts and the server serves.
pub(super) async fn live(Shared(console): Shared<Arc<Console>>, headers: HeaderMap) -> Response {
    let Ok(place) = Arc::clone(&console.live.room).try_acquire_owned() else {
        return plain(&Refused::new(Code::RateLimited, "too many pages are open"));
    };
    let secret = session_cookie(&console.at, &headers).unwrap_or_default().to_owned();
    let keep = KeepAlive::new().interval(Duration::from_secs(10));
    let marks = console.live.mark.subscribe();
    let watching = Watching { console, secret, marks, is_open: false, _place: place };
    Sse::new(events(watching)).keep_alive(keep).into_response()
}

/// One open page.
struct Watching {
    console: Arc<Console>,
    secret: String,
    marks: watch::Receiver<Option<Mark>>,
    /// Whether it was told anything yet.
    is_open: bool,
    _place: OwnedSemaphorePermit,
}

fn events(watching: Watching) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some(watching), |watching| async move {
        let (event, watching) = watching?.next().await?;
        Some((Ok(event), watching))
    })
}

impl Watching {
    /// The next thing to tell, and whoever goes on watching after that.
    async fn next(mut self) -> Option<(Event, Option<Self>)> {
        let control = Arc::clone(self.console.admin.control().ok()?);
        if !self.is_open {
            self.is_open = true;
            self.marks.borrow_and_update();
            return Some((told("open", control.feed.current().revision), Some(self)));
        }
        let quiet = tokio::time::Instant::now() + QUIET_MAX;
        loop {
            let changed = tokio::select! {
                () = control.stop.cancelled() => return None,
                changed = self.marks.changed() => changed.is_ok(),
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            if !self.console.at.entrance.lasts(&self.secret) {
                return Some((Event::default().event("over").data("the session is over"), None));
            }
            if changed || quiet <= tokio::time::Instant::now() {
                return Some((told("changed", control.feed.current().revision), Some(self)));
            }
        }
    }
}

fn told(what: &str, revision: Revision) -> Event {
    Event::default().event(what).data(revision.to_string())
}
