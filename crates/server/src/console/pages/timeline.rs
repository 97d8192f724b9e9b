//! The last hour of a workload: what was asked of it and how it answered, who shook hands with it, and what happened to its
//! certificates, one below the other on one line of time.

use std::collections::BTreeMap;
use std::time::Duration;

use countersign_api::admin::{EventView, HandshakeDirection, HandshakeFilter, OutcomeCounts};
use countersign_identity::{Name, SpiffeId, Timestamp};

use super::handshakes::took;
use super::{end_table, table};
use crate::admin::ask as routes;
use crate::admin::problem::Problem;
use crate::console::Html;
use crate::console::html::Count;
use crate::console::routes::Ask;
use crate::watch::{Answers, SPAN, Sought, Wanted, answers, search, span_of};

/// Columns of the pictures, one a minute.
const MINUTES: u32 = 60;
/// Stored entries that are looked at for one page.
const LOOKED_AT_MAX: usize = 20_000;
/// Events that are told one by one.
const EVENTS_MAX: usize = 12;
/// Events that are marked.
const MARKS_MAX: usize = 500;
/// How high a picture is, in its own measure.
const HEIGHT: u64 = 96;

/// Everything of one hour.
struct Hour {
    begins: Timestamp,
    answers: BTreeMap<Timestamp, Answers>,
    handshakes: BTreeMap<Timestamp, OutcomeCounts>,
    events: Vec<EventView>,
    /// From when on requests and handshakes are all that there were.
    whole_since: Timestamp,
}

/// A part of a column: how it is drawn, and how much it is.
type Part = (&'static str, u64);

/// The pictures, and the events below them.
pub(super) async fn timeline(
    html: &mut Html,
    ask: &Ask,
    workload: &Name,
    id: &SpiffeId,
) -> Result<(), Problem> {
    let now = ask.now();
    let hour = Hour::of(ask, workload, id, now).await?;
    html.put("<section class=\"panel\" id=\"hour\" aria-labelledby=\"hour-title\" data-live><h2 id=\"hour-title\">The last hour</h2>");
    let mut whole = Answers::default();
    hour.answers.values().for_each(|minute| whole.add(minute));
    requests(html, &hour, &whole);
    latency(html, &hour, &whole);
    handshakes(html, &hour);
    html.put("<p class=\"axis\" aria-hidden=\"true\"><span>1 h ago</span><span>30 min ago</span><span>now</span></p><p class=\"legend\">");
    for (class, word) in [
        ("fine", "answered or admitted"),
        ("warn", "the caller’s fault (4xx)"),
        ("bad", "failed (5xx) or refused"),
        ("mark", "something happened to a certificate"),
    ] {
        html.fill(
            "<span class=\"item\"><span class=\"key {}\"></span>{}</span> ",
            &[&class, &word],
        );
    }
    html.put("</p>");
    if hour.begins < hour.whole_since {
        html.put("<p class=\"muted\">There was more than a page looks through: requests and handshakes are those since ");
        html.moment(hour.whole_since, now).put(".</p>");
    }
    events(html, &hour, now);
    html.put("</section>");
    Ok(())
}

impl Hour {
    async fn of(
        ask: &Ask,
        workload: &Name,
        id: &SpiffeId,
        now: Timestamp,
    ) -> Result<Self, Problem> {
        let control = ask.console.admin.control()?;
        let state = control.feed.current();
        let begins = span_of(now) - SPAN * (MINUTES - 1);
        let services = state.services_of(workload.as_str()).to_vec();
        let (answers, since) = match services.is_empty() {
            true => (BTreeMap::new(), begins),
            false => answers(&*control.store, &services, begins, (now, LOOKED_AT_MAX)).await?,
        };
        let filter = HandshakeFilter {
            to: Some(id.to_string()),
            since: Some(begins),
            ..HandshakeFilter::default()
        };
        let sought = Sought::of(&filter, &state, now);
        let wanted = Wanted { skip: 0, limit: LOOKED_AT_MAX, looked_at_max: LOOKED_AT_MAX };
        let mut handshakes: BTreeMap<Timestamp, OutcomeCounts> = BTreeMap::new();
        let found = search(&*control.store, &sought, wanted).await?;
        let whole_since = if found.whole { since } else { since.max(found.since + SPAN) };
        for seen in
            found.entries.iter().filter(|seen| seen.direction == HandshakeDirection::Inbound)
        {
            let counts = handshakes.entry(span_of(seen.last)).or_default();
            match seen.code {
                None => counts.admitted = counts.admitted.saturating_add(seen.count),
                Some(_) => counts.refused = counts.refused.saturating_add(seen.count),
            }
        }
        let query = ask.query(
            &[],
            &[
                ("subject", id.to_string()),
                ("since", begins.to_string()),
                ("limit", MARKS_MAX.to_string()),
            ],
        );
        let events = routes::events(ask.admin(), query).await?.0.events;
        Ok(Self { begins, answers, handshakes, events, whole_since })
    }

    /// The columns of a picture, oldest first.
    fn columns(&self, of: impl Fn(Timestamp) -> Vec<Part>) -> Vec<Vec<Part>> {
        (0..MINUTES).map(|minute| of(self.begins + SPAN * minute)).collect()
    }
}

fn requests(html: &mut Html, hour: &Hour, whole: &Answers) {
    let of = |at| match hour.answers.get(&at) {
        None => Vec::new(),
        Some(minute) => {
            let [strange, info, fine, moved, client, failed] = minute.classes;
            let fine = info.saturating_add(fine).saturating_add(moved);
            vec![("fine", fine), ("warn", client), ("bad", failed.saturating_add(strange))]
        }
    };
    let failed = whole.classes[5].saturating_add(whole.classes[0]);
    let told = format!(
        "{} answered, {} of them 4xx, {} failed",
        Count(whole.all()),
        Count(whole.classes[4]),
        Count(failed)
    );
    lane(html, hour, ("Requests a minute", told.as_str()), &hour.columns(of));
}

fn latency(html: &mut Html, hour: &Hour, whole: &Answers) {
    let micros = |time: Option<Duration>| {
        time.map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
    };
    let of = |at| match hour.answers.get(&at) {
        None => Vec::new(),
        Some(minute) => {
            let (half, most) = (micros(minute.within(50)), micros(minute.within(99)));
            vec![("fine", half), ("soft", most.saturating_sub(half))]
        }
    };
    let told = match (whole.within(50), whole.within(99)) {
        (Some(half), Some(most)) => format!(
            "half within {}, 99 of 100 within {}",
            took(micros(Some(half))),
            took(micros(Some(most)))
        ),
        (Some(half), None) => format!("half within {}", took(micros(Some(half)))),
        (None, _) => "nothing was answered".to_owned(),
    };
    lane(html, hour, ("Latency: half, and 99 of 100", told.as_str()), &hour.columns(of));
}

fn handshakes(html: &mut Html, hour: &Hour) {
    let of = |at| match hour.handshakes.get(&at) {
        None => Vec::new(),
        Some(counts) => vec![("fine", counts.admitted), ("bad", counts.refused)],
    };
    let sum = |of: fn(&OutcomeCounts) -> u64| {
        hour.handshakes.values().map(of).fold(0, u64::saturating_add)
    };
    let told = format!(
        "{} admitted, {} refused",
        Count(sum(|counts| counts.admitted)),
        Count(sum(|counts| counts.refused))
    );
    lane(html, hour, ("Handshakes a minute", told.as_str()), &hour.columns(of));
}

/// One picture of the hour, with what happened to certificates drawn through it.
fn lane(html: &mut Html, hour: &Hour, (title, told): (&'static str, &str), columns: &[Vec<Part>]) {
    let height =
        |parts: &Vec<Part>| parts.iter().map(|(_, much)| *much).fold(0, u64::saturating_add);
    let most = columns.iter().map(height).max().unwrap_or(0).max(1);
    html.put("<div class=\"lane\"><h3>").put(title).put("</h3><p class=\"muted\">");
    html.text(told);
    html.fill(
        "</p></div><svg class=\"columns low\" viewBox=\"0 0 {} {}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}: {}\">",
        &[&(MINUTES * 10), &HEIGHT, &title, &told],
    );
    for (place, parts) in columns.iter().enumerate() {
        let mut top = HEIGHT;
        for (class, much) in parts.iter().filter(|(_, much)| 0 < *much) {
            let scaled = u128::from(*much) * u128::from(HEIGHT) / u128::from(most);
            let high = u64::try_from(scaled).unwrap_or(HEIGHT).max(2).min(top);
            top -= high;
            html.fill(
                "<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"8\" height=\"{}\"/>",
                &[class, &(place * 10 + 1), &top, &high],
            );
        }
    }
    for event in &hour.events {
        let tenths = event.at.since(hour.begins).as_secs() / 6;
        html.fill(
            "<rect class=\"mark\" x=\"{}\" y=\"0\" width=\"2\" height=\"{}\"/>",
            &[&tenths.min(u64::from(MINUTES) * 10), &HEIGHT],
        );
    }
    html.put("</svg>");
}

fn events(html: &mut Html, hour: &Hour, now: Timestamp) {
    if hour.events.is_empty() {
        html.put("<p class=\"empty\">Nothing happened to its certificates in this time.</p>");
        return;
    }
    table(html, "What happened in this hour, latest first", &["When", "What", "By"]);
    for event in hour.events.iter().rev().take(EVENTS_MAX) {
        html.put("<tr><td data-label=\"When\">").moment(event.at, now);
        html.fill(
            "</td><td data-label=\"What\"><a class=\"tag\" href=\"/log/{}\">{}</a></td><td data-label=\"By\">",
            &[&event.index, &event.kind],
        );
        html.name(&event.actor).put("</td></tr>");
    }
    end_table(html);
}
