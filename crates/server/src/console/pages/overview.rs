//! The first page: whether all is well, and what comes next.

use countersign_api::admin::{Convergence, CredentialView, NodeStatus, Status};
use countersign_identity::Timestamp;

use super::{bar, end_table, life, table};
use crate::admin::problem::Problem;
use crate::admin::{ask as routes, revoke};
use crate::console::Html;
use crate::console::frame::{Page, Section};
use crate::console::html::{Count, InUrl, Short, Span};
use crate::console::routes::Ask;
use crate::watch::Fact;

/// Rows of the short lists.
const SHOWN_MAX: usize = 8;
/// Columns of the picture of the last handshakes, and what one stands for.
const COLUMNS: u64 = 60;
const COLUMN_SECS: i64 = 15;

pub(crate) async fn overview(ask: &Ask) -> Result<Page, Problem> {
    let axum::Json(status) = routes::status(ask.admin()).await?;
    let axum::Json(convergence) = revoke::convergence(ask.admin(), ask.query(&[], &[])).await?;
    let control = ask.console.admin.control()?;
    let (now, facts) = (ask.now(), control.watch.facts.latest(usize::MAX));
    let pulse = Pulse::of(&facts, now);
    let mut html = Html::default();
    html.put("<div class=\"title\"><h1>Overview</h1><p class=\"muted\" id=\"revision\" data-live>Revision <code>");
    html.text(&status.revision).put("</code></p></div>");
    warnings(&mut html, &status);
    html.put("<section class=\"cards\" id=\"figures\" aria-label=\"Figures\" data-live>");
    figures(&mut html, &status, &convergence, &pulse, now);
    html.put("</section>");
    denials(&mut html, ask, now)?;
    html.put("<section class=\"panel\" id=\"handshakes\" aria-labelledby=\"handshakes-title\" data-live>");
    handshakes(&mut html, &pulse, &facts, now);
    html.put(
        "</section><section class=\"panel\" id=\"next\" aria-labelledby=\"next-title\" data-live>",
    );
    expiring(&mut html, &status, now);
    html.put("</section>");
    Ok(Page::of(Section::Overview, html))
}

fn warnings(html: &mut Html, status: &Status) {
    html.put("<div id=\"warnings\" data-live>");
    if !status.warnings.is_empty() {
        html.put("<section class=\"notice warn\" aria-labelledby=\"warnings-title\"><h2 id=\"warnings-title\">Needs attention</h2><ul>");
        for warning in status.warnings.iter().take(SHOWN_MAX) {
            html.put("<li>").name(warning).put("</li>");
        }
        if SHOWN_MAX < status.warnings.len() {
            html.fill("<li>and {} more</li>", &[&Count(status.warnings.len() - SHOWN_MAX)]);
        }
        html.put("</ul></section>");
    }
    html.put("</div>");
}

/// The handshakes of the last minutes.
struct Pulse {
    /// Admitted and refused, oldest first.
    columns: Vec<(u64, u64)>,
    minute: (u64, u64),
}

impl Pulse {
    fn of(facts: &[Fact], now: Timestamp) -> Self {
        let end = now.secs().div_euclid(COLUMN_SECS);
        let mut columns = vec![(0, 0); usize::try_from(COLUMNS).unwrap_or(0)];
        let mut minute = (0, 0);
        for fact in facts {
            let secs = Timestamp::from_micros(fact.handshake.at_micros).secs();
            let back = end - secs.div_euclid(COLUMN_SECS);
            let place =
                usize::try_from(back).ok().and_then(|back| columns.len().checked_sub(back + 1));
            let count = fact.handshake.count.max(1);
            let add = |pair: &mut (u64, u64)| match fact.handshake.code.is_empty() {
                true => pair.0 = pair.0.saturating_add(count),
                false => pair.1 = pair.1.saturating_add(count),
            };
            if let Some(column) = place.and_then(|place| columns.get_mut(place)) {
                add(column);
            }
            if now.secs() - secs < 60 {
                add(&mut minute);
            }
        }
        Self { columns, minute }
    }
}

fn figures(html: &mut Html, status: &Status, told: &Convergence, pulse: &Pulse, now: Timestamp) {
    let held: usize = status.nodes.iter().map(|node| node.credentials.len()).sum();
    let connected = status.nodes.iter().filter(|node| node.connected).count();
    html.fill(
        "<article class=\"card\"><h2>Identities</h2><p class=\"figure\">{}</p><p>{} certificates in use on {} of {} nodes</p></article>",
        &[&Count(status.workloads.len()), &Count(held), &Count(connected), &Count(status.nodes.len())],
    );
    html.put("<article class=\"card\"><h2>Convergence</h2><p class=\"figure\">");
    html.fill("{}<span> of {}</span></p>", &[&Count(told.enforcing), &Count(told.live)]);
    bar(html, "Enforcement points that enforce this revision", told.enforcing, told.live);
    html.fill("<p>enforce this revision; {} unaware</p></article>", &[&Count(told.unaware)]);
    html.put("<article class=\"card\"><h2>Outage budget</h2><p class=\"figure\">");
    let budget = std::time::Duration::from_secs(status.outage_budget.guaranteed_seconds);
    match status.outage_budget.ends_at {
        Some(ends) => {
            html.text(&Span(ends.since(now))).put("</p><p>without the server, until ");
            html.put("the first certificate in use ends, ").moment(ends, now);
        }
        None => _ = html.text(&Span(budget)).put("</p><p>no certificate is in use yet"),
    }
    html.fill("; {} guaranteed", &[&Span(budget)]);
    html.put("</p></article><article class=\"card\"><h2>Handshakes, last minute</h2><p class=\"figure\">");
    html.fill(
        "{}</p><p class=\"{}\">{} refused</p></article>",
        &[
            &Count(pulse.minute.0 + pulse.minute.1),
            &if pulse.minute.1 == 0 { "" } else { "bad" },
            &Count(pulse.minute.1),
        ],
    );
    html.fill(
        "<article class=\"card\"><h2>Audit log</h2><p class=\"figure\">{}</p><p>events; root <code>{}</code></p></article>",
        &[&Count(status.server.log.size), &Short(status.server.log.root)],
    );
}

fn handshakes(html: &mut Html, pulse: &Pulse, facts: &[Fact], now: Timestamp) {
    html.put("<div class=\"head\"><h2 id=\"handshakes-title\">Handshakes, last 15 minutes</h2><a href=\"/handshakes\">Search all</a></div>");
    let most = pulse.columns.iter().map(|(fine, bad)| fine + bad).max().unwrap_or(0);
    if most == 0 {
        html.put("<p class=\"empty\">Nobody has shaken hands in this time. The next one appears here by itself.</p>");
    } else {
        picture(html, pulse, most);
    }
    let refused: Vec<&Fact> =
        facts.iter().rev().filter(|fact| !fact.handshake.code.is_empty()).take(SHOWN_MAX).collect();
    html.put("<h3>Latest refusals</h3>");
    if refused.is_empty() {
        html.put("<p class=\"empty\">None since this server started.</p>");
        return;
    }
    table(html, "Latest refused handshakes", &["When", "Reason", "At", "Peer"]);
    for Fact { handshake, .. } in refused {
        html.put("<tr><td data-label=\"When\">");
        html.moment(Timestamp::from_micros(handshake.at_micros), now);
        html.fill("</td><td data-label=\"Reason\"><a class=\"tag bad\" href=\"/handshakes?outcome={}\">{}</a>", &[&InUrl(&handshake.code), &handshake.code]);
        if 1 < handshake.count {
            html.fill(" ×{}", &[&Count(handshake.count)]);
        }
        html.put("</td><td data-label=\"At\">")
            .name(&handshake.service)
            .put("</td><td data-label=\"Peer\">");
        let peer =
            if handshake.peer_id.is_empty() { &handshake.peer_address } else { &handshake.peer_id };
        html.name(peer).put("</td></tr>");
    }
    end_table(html);
}

/// What policies have denied last: connections, and requests on connections that they allow.
fn denials(html: &mut Html, ask: &Ask, now: Timestamp) -> Result<(), Problem> {
    let control = ask.console.admin.control()?;
    let denied = control.watch.flows.denied();
    html.put("<section class=\"panel\" id=\"denials\" aria-labelledby=\"denials-title\" data-live><div class=\"head\"><h2 id=\"denials-title\">Denied lately</h2><a href=\"/map\">Map</a></div>");
    if denied.is_empty() {
        html.put("<p class=\"empty\">Policies have denied nothing since this server started.</p></section>");
        return Ok(());
    }
    table(html, "What policies denied last", &["From", "To", "What", "Times", "Last"]);
    for flow in denied.iter().take(SHOWN_MAX) {
        html.put("<tr><td data-label=\"From\">").name(&flow.source).put("</td>");
        let to = InUrl(&flow.service);
        html.fill("<td data-label=\"To\"><a href=\"/map?of={}\">", &[&to]);
        html.name(&flow.service)
            .put("</a></td><td data-label=\"What\"><code>")
            .name(&flow.what())
            .put("</code>");
        if !flow.mode.is_usual() {
            html.put(" <span class=\"tag warn\">let pass</span>");
        }
        html.fill("</td><td data-label=\"Times\">{}</td>", &[&Count(flow.count)]);
        html.put("<td data-label=\"Last\">").moment(flow.last_seen, now).put("</td></tr>");
    }
    end_table(html);
    html.put("</section>");
    Ok(())
}

fn picture(html: &mut Html, pulse: &Pulse, most: u64) {
    const HEIGHT: u64 = 96;
    let total: u64 = pulse.columns.iter().map(|(fine, bad)| fine + bad).sum();
    let bad: u64 = pulse.columns.iter().map(|(_, bad)| bad).sum();
    html.fill(
        "<svg class=\"columns\" viewBox=\"0 0 {} {}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{} handshakes, {} of them refused; at most {} in 15 seconds\">",
        &[&(COLUMNS * 10), &HEIGHT, &total, &bad, &most],
    );
    for (place, (fine, bad)) in pulse.columns.iter().enumerate() {
        let x = place * 10 + 1;
        let scaled = |count: u64| if count == 0 { 0 } else { (count * HEIGHT / most).max(2) };
        let (fine, bad) = (scaled(*fine), scaled(*bad));
        let fine = fine.min(HEIGHT - bad);
        html.fill(
            "<rect class=\"fine\" x=\"{}\" y=\"{}\" width=\"8\" height=\"{}\"/>",
            &[&x, &(HEIGHT - fine), &fine],
        );
        html.fill(
            "<rect class=\"bad\" x=\"{}\" y=\"{}\" width=\"8\" height=\"{}\"/>",
            &[&x, &(HEIGHT - fine - bad), &bad],
        );
    }
    html.put("</svg><p class=\"legend\"><span class=\"item\"><span class=\"key fine\"></span>admitted</span> <span class=\"item\"><span class=\"key bad\"></span>refused</span></p>");
}

fn expiring(html: &mut Html, status: &Status, now: Timestamp) {
    html.put("<div class=\"head\"><h2 id=\"next-title\">What expires next</h2><a href=\"/workloads\">All workloads</a></div>");
    let held =
        status.nodes.iter().flat_map(|node| node.credentials.iter().map(move |one| (node, one)));
    let mut held: Vec<(&NodeStatus, &CredentialView)> = held.collect();
    let shown = held.len().min(SHOWN_MAX);
    if held.is_empty() {
        html.put("<p class=\"empty\">No agent holds a certificate for a workload yet. It gets one when a process matches the workload’s selectors.</p>");
        return;
    }
    if shown < held.len() {
        held.select_nth_unstable_by_key(shown, |(_, one)| one.expires_at);
        held.truncate(shown);
    }
    held.sort_by_key(|(_, one)| one.expires_at);
    table(html, "Certificates that expire next", &["Workload", "On", "Renews", "Expires", "Life"]);
    for (node, one) in held {
        html.fill(
            "<tr><td data-label=\"Workload\"><a href=\"/workloads/{}\">",
            &[&InUrl(&one.workload)],
        );
        html.name(&one.workload).put("</a></td><td data-label=\"On\">");
        html.fill("<a href=\"/nodes/{}\">", &[&node.id]);
        let host = if node.host.is_empty() { node.id.to_string() } else { node.host.clone() };
        html.name(&host).put("</a></td><td data-label=\"Renews\">").moment(one.renewal_at, now);
        html.put("</td><td data-label=\"Expires\">").moment(one.expires_at, now);
        html.put("</td><td data-label=\"Life\">");
        life(html, "Part of its life that is over", one.issued_at, one.expires_at, now);
        html.put("</td></tr>");
    }
    end_table(html);
}
