//! What is stored of handshakes: who, with whom, how, and why not; searched, and counted by what they have in common.

use std::time::Duration;

use countersign_api::admin::{
    HandshakeBy, HandshakeCount, HandshakeDirection, HandshakeFilter, HandshakeGroup, Outcome,
    OutcomeCounts,
};
use countersign_identity::{Code, Timestamp};
use countersign_store::TallyOf;

use super::{ROWS_MAX, end_table, page_of, pager, table};
use crate::admin::problem::Problem;
use crate::console::Html;
use crate::console::frame::{Page, Section};
use crate::console::html::Count;
use crate::console::routes::Ask;
use crate::watch::{Found, Sought, Wanted, search};

/// Stored entries that a page looks through, so that it comes at once.
const LOOKED_AT_MAX: usize = 20_000;
/// Groups that are shown.
const GROUPS_MAX: usize = 100;
/// The spans that are offered, by their words.
const SPANS: [(&str, &str, u64); 4] = [
    ("15m", "last 15 minutes", 15 * 60),
    ("1h", "last hour", 3600),
    ("1d", "last day", 86_400),
    ("7d", "last week", 7 * 86_400),
];
/// Which of them holds when nothing is said.
const SPAN: &str = "1h";

/// The search and what it finds.
pub(crate) async fn handshakes(ask: &Ask) -> Result<Page, Problem> {
    let control = ask.console.admin.control()?;
    let now = ask.now();
    let filter = filter_of(ask, now);
    let sought = Sought::of(&filter, &control.feed.current(), now);
    let skip = (page_of(ask) - 1) * ROWS_MAX;
    let wanted = Wanted { skip, limit: ROWS_MAX, looked_at_max: LOOKED_AT_MAX };
    let found = search(&*control.store, &sought, wanted).await?;
    let mut html = Html::default();
    html.put("<div class=\"title\"><h1>Handshakes</h1><p class=\"muted\">What all enforcement points told of; those alike and of one minute are one line</p></div>");
    form(&mut html, ask, &filter);
    html.put("<section class=\"panel\" id=\"list\" aria-label=\"Handshakes\" data-live>");
    totals(&mut html, ask, &found, control.watch.tallies.dropped(TallyOf::Handshakes));
    match filter.by {
        _ if found.total == 0 => {
            _ = html.put("<p class=\"empty\">No handshake like that is stored.</p>");
        }
        Some(by) => groups(&mut html, ask, by, &found.groups, now),
        None => {
            table(
                &mut html,
                "Handshakes, newest first",
                &["Last", "Outcome", "At", "From", "To", "How"],
            );
            for seen in &found.entries {
                row(&mut html, seen, now);
            }
            end_table(&mut html);
            pager(&mut html, ask, "/handshakes", found.total);
        }
    }
    html.put("</section>");
    Ok(Page::of(Section::Handshakes, html))
}

/// What is asked for. Words that mean nothing ask for nothing.
fn filter_of(ask: &Ask, now: Timestamp) -> HandshakeFilter {
    let text = |name| ask.field(name).map(str::to_owned);
    let outcome = ask.field("outcome");
    let span = SPANS.iter().find(|(word, ..)| *word == ask.shown("since"));
    let span = span.or_else(|| SPANS.iter().find(|(word, ..)| *word == SPAN));
    HandshakeFilter {
        from: text("from"),
        to: text("to"),
        at: text("at"),
        outcome: outcome.and_then(|word| word.parse::<Outcome>().ok()),
        reason: outcome.and_then(|word| word.parse::<Code>().ok()),
        version: text("version"),
        group: text("group"),
        suite: text("suite"),
        since: span.map(|(.., secs)| now - Duration::from_secs(*secs)),
        until: None,
        by: ask.field("by").and_then(|word| word.parse().ok()),
    }
}

fn form(html: &mut Html, ask: &Ask, filter: &HandshakeFilter) {
    html.put("<form class=\"ask\" role=\"search\" action=\"/handshakes\">");
    let reasons = Code::ALL.iter().map(|code| (code.as_str(), code.as_str()));
    let outcomes = [("", "any"), ("admitted", "admitted"), ("refused", "refused")];
    let outcomes = outcomes.into_iter().chain(reasons);
    choice(html, ("Outcome", "outcome"), outcomes, ask.shown("outcome"));
    html.fill(
        "<label>From<input name=\"from\" value=\"{}\" maxlength=\"2048\"></label>\
         <label>To<input name=\"to\" value=\"{}\" maxlength=\"2048\"></label>\
         <label>Service or point<input name=\"at\" value=\"{}\" maxlength=\"512\"></label>",
        &[&ask.shown("from"), &ask.shown("to"), &ask.shown("at")],
    );
    // Whoever came here from a count by these goes on to ask for them, until they are taken out.
    for (label, name) in [("TLS version", "version"), ("Group", "group"), ("Suite", "suite")] {
        if let Some(value) = ask.field(name) {
            html.fill(
                "<label>{}<input name=\"{}\" value=\"{}\" maxlength=\"64\"></label>",
                &[&label, &name, &value],
            );
        }
    }
    let spans = SPANS.iter().map(|(word, text, _)| (*word, *text));
    choice(html, ("Within", "since"), spans, ask.field("since").unwrap_or(SPAN));
    let ways = HandshakeBy::ALL.into_iter().map(|by| (by.as_str(), by.as_str()));
    let ways = std::iter::once(("", "nothing")).chain(ways);
    choice(html, ("Counted by", "by"), ways, filter.by.map_or("", HandshakeBy::as_str));
    html.put("<button>Search</button></form>");
}

fn choice<'a>(
    html: &mut Html,
    (label, name): (&'static str, &'static str),
    options: impl Iterator<Item = (&'a str, &'a str)>,
    chosen: &str,
) {
    html.put("<label>").put(label).put("<select name=\"").put(name).put("\">");
    for (value, text) in options {
        html.fill("<option value=\"{}\"", &[&value]);
        html.put(if value == chosen { " selected>" } else { ">" }).text(text).put("</option>");
    }
    html.put("</select></label>");
}

fn totals(html: &mut Html, ask: &Ask, found: &Found, dropped: u64) {
    let OutcomeCounts { admitted, refused } = found.counts;
    let to = |outcome: &str| {
        let changed = [("outcome", Some(outcome.to_owned())), ("page", None)];
        ask.with("/handshakes", &changed)
    };
    html.fill(
        "<p class=\"legend\"><a class=\"tag good\" href=\"{}\">admitted {}</a> <a class=\"tag bad\" href=\"{}\">refused {}</a>",
        &[&to("admitted"), &Count(admitted), &to("refused"), &Count(refused)],
    );
    if !found.whole {
        html.put(" There were more than a page looks through: these are since ");
        html.moment(found.since, ask.now()).put(".");
    }
    if 0 < dropped {
        html.fill(
            " {} more were not stored, because there were too many at once.",
            &[&Count(dropped)],
        );
    }
    html.put("</p>");
}

fn row(html: &mut Html, seen: &HandshakeCount, now: Timestamp) {
    html.put("<tr><td data-label=\"Last\">").moment(seen.last, now);
    html.put("</td><td data-label=\"Outcome\"><div>");
    match seen.code {
        None => html.put("<span class=\"tag good\">admitted</span>"),
        Some(code) => html.fill("<span class=\"tag bad\">{}</span>", &[&code]),
    };
    if 1 < seen.count {
        html.fill(" ×{}", &[&Count(seen.count)]);
    }
    if !seen.detail.is_empty() {
        html.put("<p class=\"muted\">").name(&seen.detail).put("</p>");
    }
    html.put("</div></td><td data-label=\"At\"><div>").name(&seen.service);
    html.put("<p class=\"muted\">").name(&seen.point).put("</p></div></td>");
    let peer_is_from = seen.direction == HandshakeDirection::Inbound;
    who(
        html,
        "<td data-label=\"From\"><div>",
        &seen.from,
        peer_is_from.then_some(&seen.peer_address),
    );
    who(
        html,
        "<td data-label=\"To\"><div>",
        &seen.to,
        (!peer_is_from).then_some(&seen.peer_address),
    );
    html.put("<td data-label=\"How\"><div>");
    if !seen.version.is_empty() {
        html.fill("TLS {}, {}", &[&seen.version, &seen.group]);
    }
    html.fill("<p class=\"muted\">{}</p></div></td></tr>", &[&took(seen.micros)]);
}

fn who(html: &mut Html, begin: &'static str, id: &str, address: Option<&String>) {
    html.put(begin);
    match id.is_empty() {
        true => _ = html.put("<span class=\"muted\">not authenticated</span>"),
        false => _ = html.name(id),
    }
    if let Some(address) = address {
        html.put("<p class=\"muted\">").name(address).put("</p>");
    }
    html.put("</div></td>");
}

fn groups(html: &mut Html, ask: &Ask, by: HandshakeBy, groups: &[HandshakeGroup], now: Timestamp) {
    match by {
        HandshakeBy::Pair => {
            table(html, "Handshakes by pair", &["From", "To", ACCEPTING, DIALLING, "Last"]);
        }
        by => {
            let (caption, column) = titles(by);
            table(html, caption, &[column, ACCEPTING, DIALLING, "Last"]);
        }
    }
    for group in groups.iter().take(GROUPS_MAX) {
        html.put("<tr>");
        in_common(html, ask, by, group);
        html.put("</td><td data-label=\"Accepting end\">");
        counts(html, &group.accepting);
        html.put("</td><td data-label=\"Dialling end\">");
        counts(html, &group.dialling);
        html.put("</td><td data-label=\"Last\">").moment(group.last, now).put("</td></tr>");
    }
    end_table(html);
    if GROUPS_MAX < groups.len() {
        html.fill(
            "<p class=\"muted\">The {} most frequent of {}.</p>",
            &[&GROUPS_MAX, &Count(groups.len())],
        );
    }
}

/// The caption of a table, and what its first column is called.
fn titles(by: HandshakeBy) -> (&'static str, &'static str) {
    match by {
        HandshakeBy::Pair => ("Handshakes by pair", "From"),
        HandshakeBy::Outcome => ("Handshakes by outcome", "Outcome"),
        HandshakeBy::Version => ("Handshakes by version", "Version"),
        HandshakeBy::Group => ("Handshakes by group", "Group"),
        HandshakeBy::Suite => ("Handshakes by suite", "Suite"),
    }
}

/// What the handshakes of a row have in common, with the way to them one by one.
fn in_common(html: &mut Html, ask: &Ask, by: HandshakeBy, group: &HandshakeGroup) {
    let known = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let mut changed = vec![("by", None), ("page", None)];
    match by {
        HandshakeBy::Pair => {
            changed.extend([("from", known(&group.from)), ("to", known(&group.to))]);
        }
        by => changed.push((by.as_str(), known(&group.value))),
    }
    let first = if by == HandshakeBy::Pair { &group.from } else { &group.value };
    html.fill(
        "<td data-label=\"{}\"><a href=\"{}\">",
        &[&titles(by).1, &ask.with("/handshakes", &changed)],
    );
    let nobody = if by == HandshakeBy::Pair { "not authenticated" } else { "none" };
    html.name(known(first).as_deref().unwrap_or(nobody)).put("</a>");
    if by == HandshakeBy::Pair {
        html.put("</td><td data-label=\"To\">");
        html.name(known(&group.to).as_deref().unwrap_or(nobody));
    }
}

const ACCEPTING: &str = "Accepting end";
const DIALLING: &str = "Dialling end";

fn counts(html: &mut Html, counts: &OutcomeCounts) {
    html.fill("<span class=\"tag good\">{}</span>", &[&Count(counts.admitted)]);
    if 0 < counts.refused {
        html.fill(" <span class=\"tag bad\">{} refused</span>", &[&Count(counts.refused)]);
    }
}

/// How long something took, to three digits or so.
pub(super) fn took(micros: u64) -> String {
    match micros {
        0..10_000 => format!("{micros} µs"),
        _ => format!("{} ms", Count(micros / 1000)),
    }
}
