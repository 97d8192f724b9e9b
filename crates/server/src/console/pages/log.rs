//! The audit log: what is in it, and a proof that the page itself checks.

use axum::Json;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use countersign_api::admin::{EventView, LeafView};
use countersign_audit::EventKind;
use countersign_identity::{Code, Timestamp};

use super::{ROWS_MAX, end_table, table};
use crate::admin::problem::Problem;
use crate::admin::{ask as routes, log};
use crate::console::Html;
use crate::console::frame::{Page, Section};
use crate::console::html::{Count, InUrl, Short};
use crate::console::routes::Ask;

/// What narrows the search down.
const FILTERS: [&str; 6] = ["kind", "subject", "actor", "serial", "since", "until"];

/// The search and what it finds: the newest first when nothing is sought, and otherwise in the order in which it happened.
pub(crate) async fn events(ask: &Ask) -> Result<Page, Problem> {
    let sought = FILTERS.iter().any(|name| ask.field(name).is_some());
    let size = ask.console.admin.control()?.store.head().await?.log_size;
    let limit = ("limit", ROWS_MAX.to_string());
    let rows = u64::try_from(ROWS_MAX).unwrap_or(u64::MAX);
    let before =
        ask.field("before").and_then(|before| before.parse().ok()).unwrap_or(size).min(size);
    let (query, newest_first) = match sought {
        true => (ask.query(&[&FILTERS[..], &["after"]].concat(), &[limit]), false),
        false => {
            let first = before.saturating_sub(rows);
            let limit = ("limit", (before - first).max(1).to_string());
            let after = first.checked_sub(1).map(|after| ("after", after.to_string()));
            let more: Vec<_> = std::iter::once(limit).chain(after).collect();
            (ask.query(&[], &more), true)
        }
    };
    let Json(found) = routes::events(ask.admin(), query).await?;
    let (now, mut events) = (ask.now(), found.events);
    if newest_first {
        events.reverse();
    }
    let mut html = Html::default();
    html.fill(
        "<div class=\"title\"><h1>Log</h1><p class=\"muted\" id=\"size\" data-live>{} events, each of which can be proven</p></div>",
        &[&Count(size)],
    );
    form(&mut html, ask);
    html.put("<section class=\"panel\" id=\"list\" aria-label=\"Events\" data-live>");
    if events.is_empty() {
        html.put("<p class=\"empty\">No event is like that");
        html.put(if found.next.is_some() {
            " among those that were looked through.</p>"
        } else {
            ".</p>"
        });
    } else {
        table(&mut html, "Events of the audit log", &["Index", "When", "What", "About", "By"]);
        for event in &events {
            row(&mut html, event, now);
        }
        end_table(&mut html);
    }
    html.put("<nav class=\"pager\" aria-label=\"Pages of the list\">");
    if newest_first && before < size {
        html.put("<a href=\"/log\">Newest</a>");
    }
    if newest_first && rows < before {
        let older = before - rows;
        html.fill("<a rel=\"next\" href=\"/log?before={}\">Older</a>", &[&older]);
    }
    if let (false, Some(next)) = (newest_first, found.next) {
        let later = ask.with("/log", &[("after", Some(next.to_string()))]);
        html.fill("<a rel=\"next\" href=\"{}\">Go on after {}</a>", &[&later, &next]);
    }
    html.put("</nav></section>");
    Ok(Page::of(Section::Log, html))
}

fn form(html: &mut Html, ask: &Ask) {
    html.put("<form class=\"ask\" role=\"search\" action=\"/log\"><label>What<select name=\"kind\"><option value=\"\">anything</option>");
    for kind in EventKind::ALL {
        let chosen = ask.field("kind") == Some(kind.as_str());
        html.put(if chosen { "<option selected>" } else { "<option>" })
            .text(kind.as_str())
            .put("</option>");
    }
    html.fill(
        "</select></label><label>About (a * at the end: begins so)<input name=\"subject\" value=\"{}\" maxlength=\"2048\"></label>\
         <label>By<input name=\"actor\" value=\"{}\" maxlength=\"512\"></label>\
         <label>Serial<input name=\"serial\" value=\"{}\" maxlength=\"64\"></label><button>Search</button></form>",
        &[&ask.shown("subject"), &ask.shown("actor"), &ask.shown("serial")],
    );
}

fn row(html: &mut Html, event: &EventView, now: Timestamp) {
    html.fill(
        "<tr><td data-label=\"Index\"><a href=\"/log/{}\">{}</a></td><td data-label=\"When\">",
        &[&event.index, &event.index],
    );
    html.moment(event.at, now).fill(
        "</td><td data-label=\"What\"><span class=\"tag\">{}</span></td><td data-label=\"About\">",
        &[&event.kind],
    );
    html.name(&event.subject)
        .put("</td><td data-label=\"By\">")
        .name(&event.actor)
        .put("</td></tr>");
}

/// One event, with all that is kept of it.
pub(crate) async fn event(ask: &Ask, index: u64) -> Result<Page, Problem> {
    let one = ("limit", "1".to_owned());
    let query = ask.query(&[], &[("from", index.to_string()), one.clone()]);
    let Json(leaves) = log::leaves(ask.admin(), query).await?;
    let missing = || Problem::new(Code::NotFound, format!("the log has no event {index}"));
    let leaf = leaves.leaves.into_iter().find(|leaf| leaf.index == index).ok_or_else(missing)?;
    let after = index.checked_sub(1).map(|after| ("after", after.to_string()));
    let more: Vec<_> = std::iter::once(one).chain(after).collect();
    let Json(found) = routes::events(ask.admin(), ask.query(&[], &more)).await?;
    let event = found.events.into_iter().find(|event| event.index == index).ok_or_else(missing)?;
    let mut html = Html::default();
    html.fill(
        "<div class=\"title\"><h1>Event {}</h1><p><span class=\"tag\">{}</span></p></div>",
        &[&index, &event.kind],
    );
    facts(&mut html, &event, ask.now());
    proof_panel(&mut html, index, &leaf);
    html.put("<section class=\"split\"><div class=\"panel\"><h2>The leaf, as it is hashed</h2><pre tabindex=\"0\"><bdi>");
    html.text(&leaf.leaf)
        .put("</bdi></pre></div><div class=\"panel\"><h2>Details, which the leaf binds</h2>");
    match &leaf.details {
        Some(_) => {
            let details = serde_json::to_string_pretty(&event.details).unwrap_or_default();
            html.put("<pre tabindex=\"0\"><bdi>").text(&details).put("</bdi></pre>");
        }
        None => _ = html.put("<p class=\"empty\">They were trimmed after their time; the leaf and every proof stay.</p>"),
    }
    html.put("</div></section>");
    let subject = Some(index.to_string());
    Ok(Page { subject, script: Some("proof.js"), ..Page::of(Section::Log, html) })
}

fn facts(html: &mut Html, event: &EventView, now: Timestamp) {
    html.put("<section class=\"panel\" aria-label=\"What happened\"><dl class=\"facts\"><dt>About</dt><dd>");
    html.name(&event.subject)
        .put("</dd><dt>By</dt><dd>")
        .name(&event.actor)
        .put("</dd><dt>When</dt><dd>");
    html.moment(event.at, now)
        .fill(" · {}</dd><dt>Revision</dt><dd><code>{}</code></dd>", &[&event.at, &event.revision]);
    if let Some(serial) = event.serial {
        html.fill(
            "<dt>Serial</dt><dd><a href=\"/log?serial={}\"><code>{}</code></a></dd>",
            &[&serial, &serial],
        );
    }
    html.fill(
        "<dt>More about it</dt><dd><a href=\"/log?subject={}\">All events about the same</a></dd></dl></section>",
        &[&InUrl(&event.subject)],
    );
}

fn proof_panel(html: &mut Html, index: u64, leaf: &LeafView) {
    html.fill(
        "<section class=\"panel\" id=\"proof\" aria-labelledby=\"proof-title\" data-from=\"/log/{}/proof\" data-index=\"{}\" data-leaf=\"{}\">",
        &[&index, &index, &leaf.hash],
    );
    html.fill(
        "<div class=\"head\"><h2 id=\"proof-title\">Proof that it is in the log</h2><button class=\"quiet\" type=\"button\">Check again</button></div>\
         <p class=\"muted\">This browser computes it, from the leaf <code>{}</code> to the signed root.</p>\
         <p id=\"verdict\" class=\"notice\" role=\"status\">Scripts are off, so nothing was checked.</p><ol class=\"checks\"></ol>\
         <p class=\"muted\">To keep: <code>countersign log prove</code> writes the same proof to a file, which verifies on any machine.</p></section>",
        &[&Short(leaf.hash)],
    );
}

/// The proof itself, for the page's script.
pub(crate) async fn proof(ask: &Ask, index: u64) -> Response {
    let query = ask.query(&[], &[("index", index.to_string())]);
    match log::proof(ask.admin(), query).await {
        Ok(proof) => proof.into_response(),
        Err(problem) => {
            let details = problem.details();
            let status = axum::http::StatusCode::from_u16(details.status);
            let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
            (status.unwrap_or_default(), kind, details.detail.clone()).into_response()
        }
    }
}
