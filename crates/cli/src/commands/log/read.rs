//! Events, as people and scripts read them.

use std::time::Duration;

use anyhow::Result;
use countersign_api::admin::{AdminClient, EventFilter, EventView, LIST_MAX};
use countersign_audit::EventKind;
use countersign_identity::{
    Clock as _, Code, DurationText, Incarnation, Serial, SystemClock, Timestamp,
};

use super::Target;
use crate::exit::{Exit, Failure};
use crate::find::Find;
use crate::output::{self, Output, Table, printable};

/// How often it is looked for new events.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// Print the latest events, and with `-f` go on with those that come
#[derive(Debug, clap::Args)]
pub(crate) struct TailArguments {
    #[command(flatten)]
    find: Find,
    /// How many of the latest events
    #[arg(short = 'n', long = "lines", default_value_t = 20, value_name = "COUNT", value_parser = crate::commands::named::count::<u64>)]
    lines: u64,
    /// Wait for more, until interrupted
    #[arg(short, long)]
    follow: bool,
}

/// Find events by what they are about, who did it, and when
///
/// Every condition that is given has to hold. A `*` at the end of `--subject` or `--actor` stands for anything.
#[derive(Debug, clap::Args)]
pub(crate) struct SearchArguments {
    #[command(flatten)]
    find: Find,
    /// Of this kind, such as `svid-issued`; docs/reference/events.md lists them
    #[arg(long, value_name = "KIND", value_parser = crate::commands::named::event_kind)]
    kind: Option<EventKind>,
    /// About this: a SPIFFE ID, a node, or `Kind/name`
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
    /// Done by this: a SPIFFE ID, `operator:uid:1000`, or `server`
    #[arg(long, value_name = "ACTOR")]
    actor: Option<String>,
    /// About the certificate with this serial
    #[arg(long, value_name = "SERIAL", value_parser = crate::commands::named::serial)]
    serial: Option<Serial>,
    /// From this time on: a time such as `2026-11-21T12:00:00Z`, or how long ago, such as `2h`
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// In the log of an earlier incarnation
    #[arg(long, value_name = "NUMBER")]
    incarnation: Option<Incarnation>,
    /// How many at most
    #[arg(long, default_value_t = 100, value_name = "COUNT", value_parser = crate::commands::named::count::<usize>)]
    limit: usize,
    /// Only those after this index
    #[arg(long, value_name = "INDEX")]
    after: Option<u64>,
}

/// Print one event with its details and its leaf
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArguments {
    #[command(flatten)]
    find: Find,
    /// The index of the event, or the serial of the certificate whose issue it tells
    #[arg(value_name = "INDEX|SERIAL")]
    target: Target,
}

/// A time, or how long ago it was.
fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago: DurationText = text.parse().map_err(|_bad| {
        format!("`{text}` is neither a time such as `2026-11-21T12:00:00Z` nor a span such as `2h`")
    })?;
    Ok(SystemClock::new().now() - ago.0)
}

pub(crate) async fn tail(arguments: &TailArguments, output: Output) -> Result<Exit> {
    let client = arguments.find.client()?;
    let log = client.log(None).await?;
    let mut incarnation = log.incarnation;
    let mut next = log.counted.unwrap_or(0).saturating_sub(arguments.lines);
    loop {
        let after = next.checked_sub(1);
        let filter = EventFilter { incarnation: Some(incarnation), ..EventFilter::default() };
        let page = client.search(&filter, LIST_MAX, after).await?;
        for event in &page.events {
            print(event, output)?;
            next = event.index + 1;
        }
        if !page.events.is_empty() {
            continue;
        }
        if !arguments.follow {
            return Ok(Exit::Done);
        }
        tokio::select! {
            _interrupted = tokio::signal::ctrl_c() => return Ok(Exit::Done),
            () = tokio::time::sleep(LOOK_PAUSE) => {}
        }
        let present = client.log(None).await?.incarnation;
        if present != incarnation {
            // The log of the one before is over, and was read to its end.
            (incarnation, next) = (present, 0);
        }
    }
}

/// One event as a line.
fn print(event: &EventView, output: Output) -> Result<()> {
    if output == Output::Json {
        return output::json(event);
    }
    let EventView { index, at, kind, actor, subject, serial, .. } = event;
    let serial = serial.map(|serial| format!(" serial {serial}")).unwrap_or_default();
    let (actor, subject) = (printable(actor), printable(subject));
    output::line(&format!("{index:>8}  {at}  {kind:<19} {subject}{serial}  by {actor}"))
}

pub(crate) async fn search(arguments: &SearchArguments, output: Output) -> Result<Exit> {
    let filter = EventFilter {
        kind: arguments.kind.map(|kind| kind.as_str().to_owned()),
        subject: arguments.subject.clone(),
        actor: arguments.actor.clone(),
        serial: arguments.serial,
        since: arguments.since,
        until: arguments.until,
        incarnation: arguments.incarnation,
    };
    let found = find(&arguments.find.client()?, &filter, arguments.limit, arguments.after).await?;
    for event in &found {
        print(event, output)?;
    }
    if found.is_empty() && output == Output::Human {
        output::line("no event fits")?;
    }
    Ok(if found.is_empty() { Exit::No } else { Exit::Done })
}

/// All events that fit, up to a number; asks for page after page.
async fn find(
    client: &AdminClient,
    filter: &EventFilter,
    limit: usize,
    mut after: Option<u64>,
) -> Result<Vec<EventView>> {
    let mut found = Vec::new();
    while found.len() < limit {
        let page = client.search(filter, (limit - found.len()).min(LIST_MAX), after).await?;
        found.extend(page.events);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    Ok(found)
}

pub(crate) async fn show(arguments: &ShowArguments, output: Output) -> Result<Exit> {
    let client = arguments.find.client()?;
    let (index, incarnation) = match arguments.target {
        Target::Index(index) => (index, None),
        Target::Serial(serial) => {
            let proof = client.proof_of(serial).await?;
            (proof.index, Some(proof.incarnation))
        }
    };
    let log = client.log(incarnation).await?;
    let filter = EventFilter { incarnation: Some(log.incarnation), ..EventFilter::default() };
    let page = client.search(&filter, 1, index.checked_sub(1)).await?;
    let event = page.events.into_iter().next().filter(|event| event.index == index);
    let missing = || {
        Failure::new(
            Code::NotFound,
            format!("the log has no event {index}: `countersign log tail` shows the latest"),
        )
    };
    let event = event.ok_or_else(missing)?;
    if output == Output::Json {
        output::json(&event)?;
        return Ok(Exit::Done);
    }
    let leaves = client.leaves(log.incarnation, index, 1).await?.leaves;
    let leaf = leaves.first().map(|leaf| printable(&leaf.leaf)).unwrap_or_default();
    let mut table = Table::new(["event", &index.to_string()]);
    for (name, value) in [
        ("kind", event.kind),
        ("at", event.at.to_string()),
        ("revision", event.revision.to_string()),
        ("actor", event.actor),
        ("subject", event.subject),
        ("serial", event.serial.map(|serial| serial.to_string()).unwrap_or_default()),
        ("leaf hash", event.leaf.to_string()),
    ] {
        if !value.is_empty() {
            table.row([name.to_owned(), value]);
        }
    }
    let details = match event.details {
        serde_json::Value::Null => "trimmed; the leaf still binds them".to_owned(),
        details => printable(&details.to_string()),
    };
    table.row(["details".to_owned(), details]);
    table.row(["leaf".to_owned(), leaf]);
    output::write(table.render(0).as_bytes())?;
    Ok(Exit::Done)
}
