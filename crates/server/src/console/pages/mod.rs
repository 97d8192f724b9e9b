//! The pages. Each shows what is true now; what there is nothing of says so in a sentence.

mod authorities;
mod graph;
mod handshakes;
mod log;
mod map;
mod nodes;
mod overview;
mod policies;
mod revocations;
mod timeline;
mod workloads;

pub(super) use authorities::authorities;
pub(super) use handshakes::handshakes;
pub(super) use log::{event, events, proof};
pub(super) use map::map;
pub(super) use nodes::{node, nodes};
pub(super) use overview::overview;
pub(super) use policies::{policies, policy};
pub(super) use revocations::revocations;
pub(super) use workloads::{workload, workloads};

use countersign_api::admin::{CredentialView, PointStatus};
use countersign_identity::Timestamp;

use crate::console::Html;
use crate::console::html::{Count, Short};
use crate::console::routes::Ask;

/// Rows of one page of a list.
const ROWS_MAX: usize = 50;

/// The head of a table.
fn table(html: &mut Html, caption: &'static str, columns: &[&'static str]) {
    html.put("<table><caption class=\"unseen\">").put(caption).put("</caption><thead><tr>");
    for column in columns {
        html.put("<th scope=\"col\">").put(column).put("</th>");
    }
    html.put("</tr></thead><tbody>");
}

fn end_table(html: &mut Html) {
    html.put("</tbody></table>");
}

/// A bar that is full when all of it has happened.
fn bar(html: &mut Html, label: &str, done: u64, of: u64) {
    let tone = if of <= done { "good" } else { "warn" };
    html.fill(
        "<progress class=\"{}\" max=\"{}\" value=\"{}\" aria-label=\"{}\">{} of {}</progress>",
        &[&tone, &of.max(1), &if of == 0 { 1 } else { done }, &label, &done, &of],
    );
}

/// How much of a life is over.
fn life(html: &mut Html, label: &str, from: Timestamp, to: Timestamp, now: Timestamp) {
    let (whole, gone) = (to.since(from).as_secs().max(1), now.since(from).as_secs());
    html.fill(
        "<progress class=\"life\" max=\"{}\" value=\"{}\" aria-label=\"{}\"></progress>",
        &[&whole, &gone.min(whole), &label],
    );
}

/// Which page of a list is asked for, from 1.
fn page_of(ask: &Ask) -> usize {
    ask.field("page").and_then(|page| page.parse().ok()).unwrap_or(1).clamp(1, 1_000_000)
}

/// The part of a list that is on a page.
fn part<T>(rows: Vec<T>, page: usize) -> Vec<T> {
    rows.into_iter().skip((page - 1) * ROWS_MAX).take(ROWS_MAX).collect()
}

/// The ways to the pages before and after.
fn pager(html: &mut Html, ask: &Ask, path: &str, total: usize) {
    let page = page_of(ask);
    let pages = total.div_ceil(ROWS_MAX).max(1);
    html.put("<nav class=\"pager\" aria-label=\"Pages of the list\">");
    if 1 < page {
        let before = ask.with(path, &[("page", Some((page - 1).to_string()))]);
        html.fill("<a rel=\"prev\" href=\"{}\">Previous</a>", &[&before]);
    }
    html.fill("<span>{} in all, page {} of {}</span>", &[&Count(total), &page, &pages]);
    if page < pages {
        let after = ask.with(path, &[("page", Some((page + 1).to_string()))]);
        html.fill("<a rel=\"next\" href=\"{}\">Next</a>", &[&after]);
    }
    html.put("</nav>");
}

/// The form that narrows a list down by one text.
fn search(html: &mut Html, ask: &Ask, path: &str, label: &'static str) {
    html.fill(
        "<form class=\"ask\" role=\"search\" action=\"{}\"><label>{}<input type=\"search\" name=\"q\" value=\"{}\" maxlength=\"512\"></label><button>Search</button></form>",
        &[&path, &label, &ask.shown("q")],
    );
}

/// Certificates that an agent holds.
fn credentials<'a>(
    html: &mut Html,
    held: impl Iterator<Item = (&'a str, String, &'a CredentialView)>,
    now: Timestamp,
) {
    table(html, "Certificates in use", &["Where", "Serial", "Renews", "Expires", "Life"]);
    for (word, href, one) in held {
        html.fill("<tr><td data-label=\"Where\"><a href=\"{}\">", &[&href]).name(word);
        html.fill(
            "</a></td><td data-label=\"Serial\"><a href=\"/log?serial={}\"><code title=\"{}\">{}</code></a></td><td data-label=\"Renews\">",
            &[&one.serial, &one.serial, &Short(one.serial)],
        );
        html.moment(one.renewal_at, now).put("</td><td data-label=\"Expires\">");
        html.moment(one.expires_at, now).put("</td><td data-label=\"Life\">");
        life(html, "Part of its life that is over", one.issued_at, one.expires_at, now);
        if let Some(trouble) = &one.trouble {
            html.put("<p class=\"bad\">").name(trouble).put("</p>");
        }
        html.put("</td></tr>");
    }
    end_table(html);
}

/// Enforcement points.
fn points<'a>(html: &mut Html, points: impl Iterator<Item = &'a PointStatus>) {
    table(html, "Enforcement points", &["Point", "For", "Enforces", "Connections", "State"]);
    for point in points {
        html.put("<tr><td data-label=\"Point\">")
            .name(&point.name)
            .put("</td><td data-label=\"For\">");
        html.name(&point.spiffe_id).put("</td><td data-label=\"Enforces\">");
        match point.revision {
            Some(revision) => html.fill("<code>{}</code>", &[&revision]),
            None => html.put("nothing yet"),
        };
        html.fill(
            "</td><td data-label=\"Connections\">{}</td><td data-label=\"State\">",
            &[&Count(point.connections)],
        );
        html.put(if point.live {
            "<span class=\"tag good\">live</span>"
        } else {
            "<span class=\"tag warn\">not heard of</span>"
        });
        html.put("</td></tr>");
    }
    end_table(html);
}
