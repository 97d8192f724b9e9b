//! What is out of service, and who enforces it.

use axum::Json;
use countersign_api::admin::{Convergence, RuleView};
use countersign_identity::{Suspended, Timestamp};

use super::{bar, end_table, page_of, pager, part, table};
use crate::admin::problem::Problem;
use crate::admin::revoke as routes;
use crate::console::Html;
use crate::console::frame::{Page, Section};
use crate::console::html::{Count, InUrl};
use crate::console::routes::Ask;
use crate::revoke::converged;

/// Revisions that took rights away whose progress is shown.
const WATCHED_MAX: usize = 6;
/// Points that are named as missing.
const MISSING_MAX: usize = 12;

pub(crate) async fn revocations(ask: &Ask) -> Result<Page, Problem> {
    let control = ask.console.admin.control()?;
    let Json(in_force) = routes::revocations(ask.admin()).await?;
    let now = ask.now();
    let mut html = Html::default();
    html.put("<div class=\"title\"><h1>Revocations</h1></div><section class=\"panel\" id=\"bars\" aria-labelledby=\"bars-title\" data-live><h2 id=\"bars-title\">Who enforces what was taken away</h2>");
    let watched = control.converging.latest(WATCHED_MAX);
    if watched.is_empty() {
        html.put("<p class=\"empty\">Nothing was taken out of service since this server started. When something is, a bar fills here as enforcement points acknowledge it.</p>");
    }
    for (revision, committed) in watched {
        let told = converged(control, revision, None, std::time::Duration::ZERO).await?;
        progress(&mut html, &told, committed, now);
    }
    html.put("</section><section class=\"panel\" id=\"rules\" aria-labelledby=\"rules-title\" data-live><h2 id=\"rules-title\">Rules in force</h2>");
    let total = in_force.rules.len();
    if total == 0 {
        html.put("<p class=\"empty\">None: every certificate that was issued and has not expired is accepted.</p>");
    } else {
        rules(&mut html, part(in_force.rules, page_of(ask)), now);
        pager(&mut html, ask, "/revocations", total);
    }
    html.put("</section><section class=\"panel\" id=\"suspensions\" aria-labelledby=\"suspensions-title\" data-live><h2 id=\"suspensions-title\">Suspended</h2>");
    if in_force.suspensions.is_empty() {
        html.put("<p class=\"empty\">Nothing is held back from being issued.</p>");
    } else {
        table(&mut html, "Suspensions", &["What", "Why", "Since"]);
        for one in in_force.suspensions.iter().take(super::ROWS_MAX) {
            html.put("<tr><td data-label=\"What\">")
                .name(&held_back(&one.target))
                .put("</td><td data-label=\"Why\">");
            html.text(&one.reason)
                .put("</td><td data-label=\"Since\">")
                .moment(one.at, now)
                .put("</td></tr>");
        }
        end_table(&mut html);
    }
    html.put("</section>");
    Ok(Page::of(Section::Revocations, html))
}

fn progress(html: &mut Html, told: &Convergence, committed: Timestamp, now: Timestamp) {
    html.fill("<div><p><strong>Revision {}</strong> <span class=\"muted\">", &[&told.revision]);
    html.moment(committed, now).put("</span></p>");
    bar(html, "Enforcement points that enforce it", told.enforcing, told.live);
    html.fill("<p>{} of {} enforcing", &[&Count(told.enforcing), &Count(told.live)]);
    if let Some(millis) = told.slowest_millis {
        html.fill(", the slowest after {} ms", &[&Count(millis)]);
    }
    if let Some(cut) = told.connections_cut {
        html.fill("; {} connections ended", &[&Count(cut)]);
    }
    if let Some(millis) = told.reissued_millis {
        html.fill("; issued anew after {} ms", &[&Count(millis)]);
    }
    if told.reissue_pending {
        html.put("; a new credential is still to come");
    }
    html.fill("; {} unaware.</p>", &[&Count(told.unaware)]);
    let open = 0 < told.unaware || !told.missing.is_empty();
    if let Some(ends) = told.exposure_ends.filter(|_| open) {
        html.put("<p class=\"muted\">Exposure ends ").moment(ends, now).put(".</p>");
    }
    if !told.missing.is_empty() {
        html.put("<p class=\"bad\">Missing: ");
        for (place, point) in told.missing.iter().take(MISSING_MAX).enumerate() {
            html.put(if place == 0 { "" } else { ", " }).name(&point.point);
        }
        if MISSING_MAX < told.missing.len() {
            html.fill(" and {} more", &[&Count(told.missing.len() - MISSING_MAX)]);
        }
        html.put("</p>");
    }
    html.put("</div>");
}

fn held_back(target: &Suspended) -> String {
    match target {
        Suspended::Identity(id) => id.to_string(),
        Suspended::Node(node) => format!("node {node}"),
    }
}

fn rules(html: &mut Html, rules: Vec<RuleView>, now: Timestamp) {
    table(html, "Rules in force", &["Covers", "Whose", "Why", "Made", "Kept until"]);
    for rule in rules {
        html.put("<tr><td data-label=\"Covers\">")
            .name(&rule.target)
            .put("</td><td data-label=\"Whose\">");
        match &rule.about {
            Some(id) => {
                html.fill("<a href=\"/log?subject={}\">", &[&InUrl(id)]).name(id).put("</a>")
            }
            None => html.put("<span class=\"muted\">several</span>"),
        };
        html.put("</td><td data-label=\"Why\">")
            .text(&rule.reason)
            .put("</td><td data-label=\"Made\">");
        html.moment(rule.at, now)
            .put("</td><td data-label=\"Kept until\">")
            .moment(rule.until, now)
            .put("</td></tr>");
    }
    end_table(html);
}
