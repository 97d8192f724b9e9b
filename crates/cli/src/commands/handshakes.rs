//! `countersign handshakes`: what is stored of handshakes, searched and counted.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use countersign_api::admin::{
    HandshakeBy, HandshakeCount, HandshakeDirection, HandshakeFilter, HandshakeGroup,
    HandshakeHistory, Outcome, OutcomeCounts,
};
use countersign_identity::{Clock as _, Code, Lifetime, SystemClock};

use super::when;
use crate::exit::Exit;
use crate::find::Find;
use crate::output::{self, Output, Table};

/// Search stored handshakes, or count them by what they have in common
///
/// All enforcement points report them; those alike and of one minute are one line with a count. `status --handshakes` shows
/// the latest one by one.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Dialled by this one: a workload's name or a SPIFFE ID; with a `*` at the end, any that begins so
    #[arg(long, value_name = "WHO")]
    from: Option<String>,

    /// To this one, likewise
    #[arg(long, value_name = "WHO")]
    to: Option<String>,

    /// At this service's door, dialling it, or seen by this enforcement point
    #[arg(long, value_name = "NAME")]
    at: Option<String>,

    /// `admitted` or `refused`
    #[arg(long)]
    outcome: Option<Outcome>,

    /// Refused for this reason, such as `no-certificate`
    #[arg(long, value_name = "CODE")]
    reason: Option<Code>,

    /// With this version of TLS, such as `1.3`
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,

    /// With this group of the key exchange, such as `X25519MLKEM768`
    #[arg(long, value_name = "NAME")]
    group: Option<String>,

    /// With this cipher suite, such as `TLS13_AES_128_GCM_SHA256`
    #[arg(long, value_name = "NAME")]
    suite: Option<String>,

    /// Only what was seen within this time
    #[arg(long, value_name = "SPAN", default_value = "1h")]
    since: Lifetime,

    /// Count them together: by `pair`, `outcome`, `version`, `group` or `suite`
    #[arg(long, value_name = "WHAT")]
    by: Option<HandshakeBy>,

    /// How many lines
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = super::named::count::<usize>)]
    limit: usize,

    /// Leave out so many of the newest, for the next page
    #[arg(long, value_name = "COUNT", default_value_t = 0, value_parser = super::named::count::<usize>)]
    skip: usize,

    #[command(flatten)]
    find: Find,
}

pub(crate) async fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    let filter = HandshakeFilter {
        from: arguments.from.clone(),
        to: arguments.to.clone(),
        at: arguments.at.clone(),
        outcome: arguments.outcome,
        reason: arguments.reason,
        version: arguments.version.clone(),
        group: arguments.group.clone(),
        suite: arguments.suite.clone(),
        since: Some(SystemClock.now() - arguments.since.duration()),
        until: None,
        by: arguments.by,
    };
    let client = arguments.find.client()?;
    let history = client.handshake_history(&filter, arguments.limit, arguments.skip).await?;
    match output {
        Output::Json => output::json(&history)?,
        Output::Human => output::write(describe(&history, arguments.by).as_bytes())?,
    }
    Ok(Exit::Done)
}

fn describe(history: &HandshakeHistory, by: Option<HandshakeBy>) -> String {
    let mut text = match by {
        Some(by) => groups(&history.groups, by),
        None => entries(&history.handshakes),
    };
    if by.is_none() && history.handshakes.len() < history.entries {
        let (shown, all) = (history.handshakes.len(), history.entries);
        text.push_str(&format!("{shown} of {all} lines: `--limit` and `--skip` show others\n"));
    }
    if !history.whole {
        text.push_str(&format!(
            "there was more than is looked through at once; this is since {}\n",
            history.since
        ));
    }
    if 0 < history.dropped {
        let dropped = history.dropped;
        text.push_str(&format!("{dropped} handshakes were not stored: too many at once\n"));
    }
    text
}

fn entries(handshakes: &[HandshakeCount]) -> String {
    let now = SystemClock.now();
    let mut table =
        Table::new(["last", "outcome", "from", "to", "at", "count", "took", "tls", "detail"]);
    for seen in handshakes {
        table.row([
            when::relative(seen.last, now),
            seen.code.map_or_else(|| "admitted".to_owned(), |code| format!("refused: {code}")),
            if seen.from.is_empty() { unknown(seen) } else { seen.from.clone() },
            seen.to.clone(),
            place(seen),
            seen.count.to_string(),
            took(Duration::from_micros(seen.micros)),
            format!("{} {}", seen.version, seen.group).trim().to_owned(),
            seen.detail.clone(),
        ]);
    }
    if table.is_empty() { NOTHING.to_owned() } else { table.render(0) }
}

/// What was seen just now is on its way yet.
const NOTHING: &str = "no handshake like that is stored; what was seen in the last seconds comes with the agents' next reports\n";

/// Somebody who proved nothing: all that is known is from where they came.
fn unknown(seen: &HandshakeCount) -> String {
    match seen.direction {
        HandshakeDirection::Inbound => format!("({})", seen.peer_address),
        HandshakeDirection::Outbound => String::new(),
    }
}

fn place(seen: &HandshakeCount) -> String {
    let door = if seen.service.is_empty() { &seen.point } else { &seen.service };
    match seen.direction {
        HandshakeDirection::Inbound => door.clone(),
        HandshakeDirection::Outbound => format!("{door} (dialling)"),
    }
}

fn took(time: Duration) -> String {
    match time.as_micros() {
        micros @ 0..10_000 => format!("{micros} µs"),
        micros => format!("{} ms", micros / 1000),
    }
}

fn groups(groups: &[HandshakeGroup], by: HandshakeBy) -> String {
    let now = SystemClock.now();
    let counts = |counts: &OutcomeCounts| format!("{} / {}", counts.admitted, counts.refused);
    let name = |text: &Option<String>| match text.as_deref().unwrap_or_default() {
        "" => "(none)".to_owned(),
        text => text.to_owned(),
    };
    let mut table = match by {
        HandshakeBy::Pair => Table::new(["from", "to", ACCEPTING, DIALLING, "last"]),
        by => Table::new([by.as_str(), ACCEPTING, DIALLING, "last"]),
    };
    for group in groups {
        let (accepting, dialling) = (counts(&group.accepting), counts(&group.dialling));
        let last = when::relative(group.last, now);
        match by {
            HandshakeBy::Pair => {
                table.row([name(&group.from), name(&group.to), accepting, dialling, last]);
            }
            _ => table.row([name(&group.value), accepting, dialling, last]),
        }
    }
    if table.is_empty() {
        return NOTHING.to_owned();
    }
    format!("{}Each number: admitted / refused, as told by that end.\n", table.render(0))
}

const ACCEPTING: &str = "accepting end";
const DIALLING: &str = "dialling end";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn history(more: &serde_json::Value) -> HandshakeHistory {
        let mut history = json!({
            "since": "2026-01-01T00:00:00Z", "until": "2026-01-01T01:00:00Z", "whole": true,
            "handshakes": [], "entries": 0, "groups": [], "dropped": 0,
        });
        history.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(history).unwrap()
    }

    #[test]
    fn refused_stranger_is_told_by_its_address_and_hostile_texts_stay_in_their_cells() {
        let seen = json!({
            "first": "2026-01-01T00:00:00Z", "last": "2026-01-01T00:00:00Z", "count": 3, "micros": 1200,
            "point": "p", "direction": "inbound", "service": "orders", "from": "", "to": "spiffe://shop.example/orders",
            "version": "", "group": "", "suite": "", "resumed": false, "code": "no-certificate",
            "peerAddress": "192.0.2.1:5", "peerSerial": "", "detail": "<script>\u{202e}\u{1b}[2J",
        });
        let text =
            describe(&history(&json!({ "handshakes": [seen], "entries": 9, "dropped": 4 })), None);
        for part in
            ["refused: no-certificate", "(192.0.2.1:5)", "1 of 9 lines", "4 handshakes were not"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains(['\u{202e}', '\u{1b}']), "{text:?}");
    }

    #[test]
    fn groups_tell_both_ends() {
        let group = json!({
            "from": "a", "to": "", "accepting": { "admitted": 5, "refused": 1 },
            "dialling": { "admitted": 4, "refused": 0 }, "last": "2026-01-01T00:00:00Z",
        });
        let text = describe(&history(&json!({ "groups": [group] })), Some(HandshakeBy::Pair));
        assert!(text.contains("a     (none)  5 / 1"), "{text}");
    }
}
