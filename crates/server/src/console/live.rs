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
use countersign_identity::Code;
use futures_util::{Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::console::Console;
use crate::console::gate::{plain, session_cookie};
use crate::refusal::Refused;

/// Pages that are open at once.
const STREAMS_MAX: usize = 64;
/// How often it is looked whether anything has changed.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// How many looks without a change pass until a page is told to look again all the same: certificates are renewed without
/// a revision.
const QUIET_MAX: u32 = 12;

/// Room for the streams of open pages.
pub(crate) struct Streams(Arc<Semaphore>);

impl Default for Streams {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS_MAX)))
    }
}

/// What pages are made from, in numbers that differ when it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    revision: countersign_identity::Revision,
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

/// The stream of one open page, for as long as its session lasts and the server serves.
pub(super) async fn live(Shared(console): Shared<Arc<Console>>, headers: HeaderMap) -> Response {
    let Ok(place) = Arc::clone(&console.live.0).try_acquire_owned() else {
        return plain(&Refused::new(Code::RateLimited, "too many pages are open"));
    };
    let secret = session_cookie(&console.at, &headers).unwrap_or_default().to_owned();
    let keep = KeepAlive::new().interval(Duration::from_secs(10));
    Sse::new(events(console, secret, place)).keep_alive(keep).into_response()
}

/// One open page.
struct Watching {
    console: Arc<Console>,
    secret: String,
    told: Option<Mark>,
    _place: OwnedSemaphorePermit,
}

fn events(
    console: Arc<Console>,
    secret: String,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let begin = Some(Watching { console, secret, told: None, _place: place });
    stream::unfold(begin, |watching| async move {
        let (event, watching) = watching?.next().await?;
        Some((Ok(event), watching))
    })
}

impl Watching {
    /// The next thing to tell, and whoever goes on watching after that.
    async fn next(mut self) -> Option<(Event, Option<Self>)> {
        let control = Arc::clone(self.console.admin.control().ok()?);
        for quiet in 0.. {
            let now = mark(&self.console).ok()?;
            if self.told != Some(now) || QUIET_MAX <= quiet {
                let what = if self.told.is_none() { "open" } else { "changed" };
                self.told = Some(now);
                let event = Event::default().event(what).data(now.revision.to_string());
                return Some((event, Some(self)));
            }
            tokio::select! {
                () = control.stop.cancelled() => return None,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if !self.console.at.entrance.lasts(&self.secret) {
                return Some((Event::default().event("over").data("the session is over"), None));
            }
        }
        None
    }
}
