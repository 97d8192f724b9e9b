//! What was observed of handshakes: who, with whom, how, and why not.

use countersign_identity::{Code, Timestamp};

use super::{end_table, page_of, pager, part, table};
use crate::admin::problem::Problem;
use crate::console::Html;
use crate::console::frame::{Page, Section};
use crate::console::html::Count;
use crate::console::routes::Ask;
use crate::watch::Fact;

/// What is looked for.
struct Sought<'a> {
    outcome: &'a str,
    peer: &'a str,
    at: &'a str,
}

impl Sought<'_> {
    fn fits(&self, fact: &Fact) -> bool {
        let seen = &fact.handshake;
        let outcome = match self.outcome {
            "" => true,
            "admitted" => seen.code.is_empty(),
            "refused" => !seen.code.is_empty(),
            code => seen.code == code,
        };
        let within = |sought: &str, texts: [&str; 3]| {
            sought.is_empty() || texts.iter().any(|text| text.contains(sought))
        };
        outcome
            && within(self.peer, [&seen.peer_id, &seen.peer_address, &seen.local_id])
            && within(self.at, [&seen.service, &seen.point, ""])
    }
}

/// The search and what it finds.
pub(crate) async fn handshakes(ask: &Ask) -> Result<Page, Problem> {
    let control = ask.console.admin.control()?;
    let sought =
        Sought { outcome: ask.shown("outcome"), peer: ask.shown("peer"), at: ask.shown("at") };
    let found: Vec<Fact> = control
        .watch
        .facts
        .latest(usize::MAX)
        .into_iter()
        .rev()
        .filter(|fact| sought.fits(fact))
        .collect();
    let (total, now) = (found.len(), ask.now());
    let mut html = Html::default();
    html.put("<div class=\"title\"><h1>Handshakes</h1><p class=\"muted\">The latest that all enforcement points told of</p></div>");
    form(&mut html, ask, &sought);
    html.put("<section class=\"panel\" id=\"list\" aria-label=\"Handshakes\" data-live>");
    totals(&mut html, &control.watch.facts.totals());
    if total == 0 {
        html.put("<p class=\"empty\">Nothing that is remembered is like that.</p>");
    } else {
        table(&mut html, "Handshakes, newest first", &["When", "Outcome", "At", "Peer", "How"]);
        for fact in part(found, page_of(ask)) {
            row(&mut html, &fact, now);
        }
        end_table(&mut html);
        pager(&mut html, ask, "/handshakes", total);
    }
    html.put("</section>");
    Ok(Page::of(Section::Handshakes, html))
}

fn form(html: &mut Html, ask: &Ask, sought: &Sought<'_>) {
    html.put("<form class=\"ask\" role=\"search\" action=\"/handshakes\"><label>Outcome<select name=\"outcome\">");
    let words = ["admitted", "refused"].into_iter();
    html.put("<option value=\"\">any</option>");
    for word in words.chain(Code::ALL.iter().map(|code| code.as_str())) {
        let chosen = word == sought.outcome;
        html.put(if chosen { "<option selected>" } else { "<option>" }).text(word).put("</option>");
    }
    html.fill(
        "</select></label><label>Peer, its id or address<input name=\"peer\" value=\"{}\" maxlength=\"512\"></label>\
         <label>Service or point<input name=\"at\" value=\"{}\" maxlength=\"512\"></label><button>Search</button></form>",
        &[&ask.shown("peer"), &ask.shown("at")],
    );
}

fn totals(html: &mut Html, (outcomes, dropped): &(Vec<(crate::watch::Outcome, u64)>, u64)) {
    html.put("<p class=\"legend\">Since this server started:");
    for (outcome, count) in outcomes {
        let word = outcome.as_str();
        let tone = if word == "admitted" { "good" } else { "bad" };
        html.fill(
            " <a class=\"tag {}\" href=\"/handshakes?outcome={}\">{} {}</a>",
            &[&tone, &word, &word, &Count(*count)],
        );
    }
    if 0 < *dropped {
        html.fill(" {} of them not kept one by one", &[&Count(*dropped)]);
    }
    html.put("</p>");
}

fn row(html: &mut Html, fact: &Fact, now: Timestamp) {
    let seen = &fact.handshake;
    html.put("<tr><td data-label=\"When\">").moment(Timestamp::from_micros(seen.at_micros), now);
    html.put("</td><td data-label=\"Outcome\"><div>");
    match seen.code.is_empty() {
        true => html.put("<span class=\"tag good\">admitted</span>"),
        false => html.fill("<span class=\"tag bad\">{}</span>", &[&seen.code]),
    };
    if 1 < seen.count {
        html.fill(" ×{}", &[&Count(seen.count)]);
    }
    if !seen.detail.is_empty() {
        html.put("<p class=\"muted\">").name(&seen.detail).put("</p>");
    }
    html.put("</div></td><td data-label=\"At\"><div>").name(&seen.service);
    html.put("<p class=\"muted\">")
        .name(&seen.point)
        .put("</p></div></td><td data-label=\"Peer\"><div>");
    html.name(if seen.peer_id.is_empty() { "not authenticated" } else { &seen.peer_id });
    html.put("<p class=\"muted\">")
        .name(&seen.peer_address)
        .put("</p></div></td><td data-label=\"How\"><div>");
    if !seen.version.is_empty() {
        html.fill("TLS {}, {}", &[&seen.version, &seen.group]);
    }
    html.fill("<p class=\"muted\">{}</p></div></td></tr>", &[&took(seen.micros)]);
}

/// How long something took, to three digits or so.
fn took(micros: u64) -> String {
    match micros {
        0..10_000 => format!("{micros} µs"),
        _ => format!("{} ms", Count(micros / 1000)),
    }
}
