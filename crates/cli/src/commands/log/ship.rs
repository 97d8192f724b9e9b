//! Events of the log on their way to where an organisation keeps its logs, each at least once.
//!
//! It reads the log as any operator does, page by page, so nothing that the server does ever waits for a receiver. Memory is bounded by one
//! page; how far it came is in a file, which moves on only when a receiver is known to have what was sent.

mod line;
mod record;
mod syslog;
mod to;
mod told;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use countersign_api::admin::{AdminClient, AdminError, EventFilter, EventView};
use countersign_identity::{
    Backoff, BackoffPolicy, Clock as _, Incarnation, SystemClock, SystemEntropy,
};
use countersign_program::exposition::{self, Format};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::syslog::Syslog;
use self::to::Way;
pub(super) use self::to::{Credentials, Destination, Enterprise, Named};
pub(crate) use self::told::METRICS;
use self::told::{End, Teller};
use super::read_file;
use crate::exit::{Exit, Failure};
use crate::find::Find;
use crate::out::{self, New};
use crate::output::{self, Output};

/// Events that are read and sent at once.
const PAGE_MAX: usize = 100;
/// How often it is looked for new events.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// The waits after a receiver or the server was away.
const BACKOFF: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(500), longest: Duration::from_secs(30) };
/// How long one page may take on its way, an answer included.
const DELIVER_TIMEOUT: Duration = Duration::from_secs(30);

/// What to send, and where to.
pub(super) struct Shipment<'a> {
    pub(super) find: &'a Find,
    pub(super) to: &'a Destination,
    pub(super) cursor: Option<&'a PathBuf>,
    pub(super) incarnation: Option<Incarnation>,
    pub(super) follow: bool,
    /// Where it tells scrapers how it stands.
    pub(super) metrics: Option<SocketAddr>,
}

/// How far a receiver is known to have the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cursor {
    /// Whose log it is: its public key.
    key: String,
    incarnation: Incarnation,
    /// The first event that the receiver may not have.
    next: u64,
}

/// Why something was not delivered.
#[derive(Debug, thiserror::Error)]
enum Undelivered {
    /// It may be later, when this end is there again.
    #[error("{1}")]
    Away(End, String),
    /// It will not be.
    #[error(transparent)]
    Never(#[from] anyhow::Error),
}

/// An open way to a receiver.
enum Line {
    Syslog(Syslog),
    Otlp,
}

pub(super) async fn run(shipment: Shipment<'_>, output: Output) -> Result<Exit> {
    let (teller, told) = Teller::new();
    let Some(address) = shipment.metrics else { return go(&shipment, teller, output).await };
    let listener = exposition::listen(address)
        .await
        .with_context(|| format!("metrics cannot be served at `{address}`"))?;
    say_where(listener.local_addr()?, output)?;
    let stop = CancellationToken::new();
    let page = move || std::future::ready(told::page(&told.borrow()));
    let serving = exposition::serve(listener, Format::Prometheus, page, stop.clone());
    let going = async {
        let exit = go(&shipment, teller, output).await;
        stop.cancel();
        exit
    };
    tokio::join!(going, serving).0
}

fn say_where(metrics: SocketAddr, output: Output) -> Result<()> {
    match output {
        Output::Json => output::json(&json!({ "event": "started", "metrics": metrics }))?,
        Output::Human => output::line(&format!("metrics at http://{metrics}/metrics"))?,
    }
    Ok(())
}

async fn go(shipment: &Shipment<'_>, mut teller: Teller, output: Output) -> Result<Exit> {
    let client = shipment.find.client()?;
    let mut cursor = begin(&client, shipment).await?;
    let mut backoff = Backoff::new(BACKOFF);
    let (mut line, mut trouble) = (None, None);
    loop {
        let before = cursor.clone();
        let turn = async {
            count(&client, &cursor, &mut teller).await?;
            deliver(&client, shipment, &mut cursor, &mut line).await
        };
        let turned = tokio::select! {
            turned = turn => turned,
            _interrupted = tokio::signal::ctrl_c() => return end(line, shipment, cursor, output).await,
        };
        if cursor != before {
            backoff.reset();
            keep(shipment, &cursor)?;
            teller.good(cursor.past(&before));
        }
        let wait = match turned {
            Ok(true) => continue,
            Ok(false) if !shipment.follow => return end(line, shipment, cursor, output).await,
            Ok(false) => {
                if sent(&line, &cursor) == cursor.next {
                    teller.good(0);
                }
                trouble = None;
                LOOK_PAUSE
            }
            Err(Undelivered::Away(at, why)) if shipment.follow => {
                teller.failed(at);
                // Said once, and not at each try.
                if trouble.as_ref() != Some(&why) {
                    output::aside(&format!("countersign: {}", output::printable(&why)));
                    trouble = Some(why);
                }
                line = None;
                let now = SystemClock::new().now();
                backoff.failed(now, &SystemEntropy).since(now)
            }
            Err(Undelivered::Away(_, why)) => return Err(Failure::unreachable(why).into()),
            Err(Undelivered::Never(why)) => return Err(why),
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _interrupted = tokio::signal::ctrl_c() => return end(line, shipment, cursor, output).await,
        }
    }
}

impl Cursor {
    /// How many events lie between an earlier place and this one, as far as it can be known.
    fn past(&self, before: &Self) -> u64 {
        match self.incarnation == before.incarnation {
            true => self.next.saturating_sub(before.next),
            false => self.next,
        }
    }
}

/// Counts, every so often, what the receiver is not known to have.
async fn count(
    client: &AdminClient,
    cursor: &Cursor,
    teller: &mut Teller,
) -> Result<(), Undelivered> {
    if teller.count_is_due() {
        let log = client.log(None).await.map_err(unread)?;
        let counted = log.counted.unwrap_or_default();
        let had = if log.incarnation == cursor.incarnation { cursor.next } else { 0 };
        teller.lacks(counted.saturating_sub(had));
    }
    Ok(())
}

/// The log could not be read.
fn unread(error: AdminError) -> Undelivered {
    let told = crate::exit::Told::of(&anyhow::Error::from(error), crate::known);
    match told.exit {
        Exit::Unreachable => Undelivered::Away(End::Server, told.message),
        _ => Undelivered::Never(Failure::new(told.code, told.message).into()),
    }
}

/// Up to where events were sent.
fn sent(line: &Option<Line>, cursor: &Cursor) -> u64 {
    match line {
        Some(Line::Syslog(syslog)) => syslog.sent_to().unwrap_or(cursor.next).max(cursor.next),
        Some(Line::Otlp) | None => cursor.next,
    }
}

/// From where to go on.
async fn begin(client: &AdminClient, shipment: &Shipment<'_>) -> Result<Cursor> {
    let log = client.log(shipment.incarnation).await?;
    let key = log.key.unwrap_or_default();
    let first = Cursor { key, incarnation: log.incarnation, next: 0 };
    let Some(path) = shipment.cursor.filter(|path| path.exists()) else { return Ok(first) };
    let refuse = |why: String| {
        Failure::not_understood(format!("`{}` cannot be gone on from: {why}", path.display()))
    };
    let bytes = read_file(path)?;
    let cursor: Cursor =
        serde_json::from_slice(&bytes).map_err(|bad| refuse(format!("it is no cursor: {bad}")))?;
    if cursor.key != first.key {
        return Err(refuse("it is of another trust domain's log".to_owned()).into());
    }
    if shipment.incarnation.is_some_and(|asked| asked != cursor.incarnation) {
        let why = format!("it is of the log of incarnation {}", cursor.incarnation);
        return Err(refuse(why).into());
    }
    Ok(cursor)
}

/// Sends one page, and says whether there may be more at once.
async fn deliver(
    client: &AdminClient,
    shipment: &Shipment<'_>,
    cursor: &mut Cursor,
    line: &mut Option<Line>,
) -> Result<bool, Undelivered> {
    let sent = sent(line, cursor);
    let filter = EventFilter { incarnation: Some(cursor.incarnation), ..EventFilter::default() };
    let page = client.search(&filter, PAGE_MAX, sent.checked_sub(1)).await.map_err(unread)?;
    let events: Vec<EventView> = page.events;
    if events.is_empty() {
        return idle(client, shipment, cursor, line).await;
    }
    let expected = sent;
    if events.first().is_some_and(|event| event.index != expected) {
        let why = format!(
            "event {expected} is not in the log any more: `countersign log verify` says what was done"
        );
        return Err(Undelivered::Never(
            Failure::new(countersign_identity::Code::NotFound, why).into(),
        ));
    }
    let next = events.last().map_or(sent, |event| event.index + 1);
    let sending = send(shipment, cursor, line, &events);
    tokio::time::timeout(DELIVER_TIMEOUT, sending).await.unwrap_or_else(|_late| {
        Err(Undelivered::Away(End::Receiver, format!("`{}` takes nothing", shipment.to)))
    })?;
    settle(line, cursor, next);
    Ok(true)
}

async fn send(
    shipment: &Shipment<'_>,
    cursor: &Cursor,
    line: &mut Option<Line>,
    events: &[EventView],
) -> Result<(), Undelivered> {
    let to = shipment.to;
    let away = |error: std::io::Error| Undelivered::Away(End::Receiver, format!("`{to}`: {error}"));
    let open = match line.take() {
        Some(open) => open,
        None => match to.way {
            Way::Syslog => Line::Syslog(Syslog::open(to).await.map_err(away)?),
            Way::Otlp => Line::Otlp,
        },
    };
    let open = line.insert(open);
    let origin = to::Origin { incarnation: cursor.incarnation, domain: domain(&cursor.key) };
    match open {
        Line::Syslog(syslog) => syslog.send(&origin, events).await.map_err(away),
        Line::Otlp => record::send(to, &origin, events).await.map_err(away),
    }
}

/// The trust domain in the name of its log's key, `DOMAIN/log+…`.
fn domain(key: &str) -> String {
    key.split_once("/log+").map_or(key, |(domain, _)| domain).to_owned()
}

/// Moves the cursor over what the receiver has.
fn settle(line: &mut Option<Line>, cursor: &mut Cursor, sent: u64) {
    cursor.next = match line {
        Some(Line::Syslog(syslog)) => syslog.settled().unwrap_or(cursor.next).max(cursor.next),
        Some(Line::Otlp) | None => sent,
    };
}

/// Nothing new is in this log: whether another one has begun, and what the receiver has by now.
async fn idle(
    client: &AdminClient,
    shipment: &Shipment<'_>,
    cursor: &mut Cursor,
    line: &mut Option<Line>,
) -> Result<bool, Undelivered> {
    if let Some(Line::Syslog(syslog)) = line {
        let away = |error| Undelivered::Away(End::Receiver, format!("`{}`: {error}", shipment.to));
        syslog.look().map_err(away)?;
        let sent = syslog.sent_to().unwrap_or(cursor.next);
        settle(line, cursor, sent);
        if cursor.next < sent {
            return Ok(false);
        }
    }
    if shipment.incarnation.is_some() {
        return Ok(false);
    }
    let log = client.log(None).await.map_err(unread)?;
    let all = log.past.iter().copied().chain([log.incarnation]);
    let Some(later) = all.filter(|later| cursor.incarnation < *later).min() else {
        return Ok(false);
    };
    // The log of the one before is over, and was read to its end.
    *cursor = Cursor { incarnation: later, next: 0, ..cursor.clone() };
    *line = None;
    Ok(true)
}

fn keep(shipment: &Shipment<'_>, cursor: &Cursor) -> Result<()> {
    let Some(path) = shipment.cursor else { return Ok(()) };
    let text = serde_json::to_string(cursor)?;
    out::write(path, New::Public, format!("{text}\n").as_bytes())?;
    Ok(())
}

/// Ends the line in order, so that it is known what the receiver has.
async fn end(
    line: Option<Line>,
    shipment: &Shipment<'_>,
    mut cursor: Cursor,
    output: Output,
) -> Result<Exit> {
    if let Some(Line::Syslog(syslog)) = line
        && let Some(sent) = syslog.sent_to()
    {
        let ended = syslog.end().await;
        ended.map_err(|error| Failure::unreachable(format!("`{}`: {error}", shipment.to)))?;
        cursor.next = cursor.next.max(sent);
        keep(shipment, &cursor)?;
    }
    let Cursor { incarnation, next, .. } = cursor;
    match output {
        Output::Json => {
            output::json(
                &json!({ "event": "delivered", "incarnation": incarnation, "next": next }),
            )?;
        }
        Output::Human => {
            output::line(&format!("{next} events of log {incarnation} are at `{}`", shipment.to))?;
        }
    }
    Ok(Exit::Done)
}

/// A file of certificates or keys.
fn pem(path: &Path) -> Result<Vec<u8>, Failure> {
    read_file(&path.to_owned())
}
