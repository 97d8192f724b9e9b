//! The keys that sign: the chain as a picture, and the walk with its gates.

use axum::Json;
use countersign_api::admin::{
    AuthoritiesResponse, GateView, IssuerView, OrderView, RootState, RootView, StepView,
};
use countersign_identity::Timestamp;

use super::{bar, end_table, table};
use crate::admin::authority as routes;
use crate::admin::problem::Problem;
use crate::console::Html;
use crate::console::frame::{Page, Section};
use crate::console::html::{Count, Short};
use crate::console::routes::Ask;

pub(crate) async fn authorities(ask: &Ask) -> Result<Page, Problem> {
    let Json(all) = routes::authorities(ask.admin()).await?;
    let now = ask.now();
    let mut html = Html::default();
    html.put("<div class=\"title\"><h1>Authorities</h1></div><section class=\"panel\" id=\"chain\" aria-labelledby=\"chain-title\" data-live><h2 id=\"chain-title\">The chain</h2>");
    picture(&mut html, &all);
    html.put("</section><section class=\"panel\" id=\"walk\" aria-labelledby=\"walk-title\" data-live><h2 id=\"walk-title\">The walk</h2>");
    match (&all.order, &all.last) {
        (Some(order), _) => walk(&mut html, order, now),
        (None, Some(last)) => walk(&mut html, last, now),
        (None, None) => by_hand(&mut html, &all, now),
    }
    html.put("</section>");
    if let Some(ceremony) = &all.ceremony {
        html.put("<section class=\"notice warn\" id=\"ceremony\" aria-label=\"Ceremony\" data-live><p>The root is held outside.");
        if let Some(due) = ceremony.due {
            html.put(" A ceremony has been due since ").moment(due, now).put(".");
        }
        if let Some(ends) = ceremony.ends {
            html.put(" Without one, nothing can be issued ").moment(ends, now).put(".");
        }
        html.put("</p></section>");
    }
    html.put("<section class=\"panel\" id=\"roots\" aria-labelledby=\"roots-title\" data-live><h2 id=\"roots-title\">Roots and issuers</h2>");
    list(&mut html, &all, now);
    html.put("</section>");
    Ok(Page::of(Section::Authorities, html))
}

/// How large what is drawn is.
const WIDTH: usize = 210;
const HEIGHT: usize = 74;
const GAP: usize = 28;
const STEP: usize = 124;

/// Roots above, their issuers below, and what those have signed below that.
fn picture(html: &mut Html, all: &AuthoritiesResponse) {
    let under =
        |root: &RootView| all.issuers.iter().filter(|one| one.root == root.key).count().max(1);
    let columns: usize = all.roots.iter().map(under).sum::<usize>().max(1);
    let (width, height) = (columns * (WIDTH + GAP) + GAP, 2 * STEP + HEIGHT + 2 * GAP);
    html.fill(
        "<div class=\"graph\" tabindex=\"0\" role=\"group\" aria-label=\"Picture of the chain\"><svg width=\"{}\" height=\"{}\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{} roots and {} issuers; the table below says the same in words\">",
        &[&width, &height, &width, &height, &all.roots.len(), &all.issuers.len()],
    );
    let mut column = 0;
    for root in &all.roots {
        let x = GAP + column * (WIDTH + GAP) + (under(root) - 1) * (WIDTH + GAP) / 2;
        let class = match (root.tainted.is_some(), root.trusted, root.state.as_str()) {
            (true, _, _) => "stop",
            (false, _, "active") => "live",
            (false, true, _) => "",
            (false, false, _) => "faded",
        };
        let middle = x + WIDTH / 2;
        for (place, issuer) in all.issuers.iter().filter(|one| one.root == root.key).enumerate() {
            let at = GAP + (column + place) * (WIDTH + GAP);
            line(html, middle, GAP + HEIGHT, at + WIDTH / 2, GAP + STEP);
            line(html, at + WIDTH / 2, GAP + STEP + HEIGHT, at + WIDTH / 2, GAP + 2 * STEP);
            let (class, word) = of_issuer(issuer);
            shape(html, class, (at, GAP + STEP), "Issuer", word, &Short(issuer.key));
            shape(
                html,
                "",
                (at, GAP + 2 * STEP),
                "Certificates",
                "in use",
                &Count(issuer.credentials),
            );
        }
        shape(html, class, (x, GAP), "Root", root.state.as_str(), &Short(root.key));
        column += under(root);
    }
    html.put("</svg></div>");
}

fn of_issuer(issuer: &IssuerView) -> (&'static str, &'static str) {
    match (issuer.revoked, issuer.active) {
        (true, _) => ("stop", "revoked"),
        (false, true) => ("live", "signs now"),
        (false, false) => ("", "former"),
    }
}

fn line(html: &mut Html, x: usize, y: usize, to_x: usize, to_y: usize) {
    let half = usize::midpoint(y, to_y);
    html.fill(
        "<path class=\"chain\" d=\"M{} {} C{} {} {} {} {} {}\"/>",
        &[&x, &y, &x, &half, &to_x, &half, &to_x, &to_y],
    );
}

fn shape(
    html: &mut Html,
    class: &'static str,
    (x, y): (usize, usize),
    kind: &str,
    state: &str,
    id: &dyn std::fmt::Display,
) {
    html.fill(
        "<g class=\"node {}\"><rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"9\"/><text x=\"{}\" y=\"{}\">{}</text>\
         <text class=\"small\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><text class=\"small\" x=\"{}\" y=\"{}\">{}</text></g>",
        &[
            &class, &x, &y, &WIDTH, &HEIGHT, &(x + 14), &(y + 29), &kind,
            &(x + WIDTH - 14), &(y + 29), &state, &(x + 14), &(y + 53), id,
        ],
    );
}

/// Nobody has ordered a walk. Somebody may take its steps one by one all the same.
fn by_hand(html: &mut Html, all: &AuthoritiesResponse, now: Timestamp) {
    let next = |root: &&RootView| match root.state {
        RootState::Prepared | RootState::Published => true,
        RootState::Active | RootState::Retiring | RootState::Retired => false,
    };
    let Some(root) = all.roots.iter().find(next) else {
        html.put("<p class=\"empty\">Nothing is under way. <code>countersign rotate root</code> puts a new root in the place of the old one, step by step.</p>");
        return;
    };
    html.fill("<p>Step by step, by hand: <code>{}</code> is {} ", &[&Short(root.key), &root.state]);
    html.moment(root.since, now).put(if root.state == RootState::Prepared {
        ". <code>countersign authority publish</code> puts it into every bundle.</p>"
    } else {
        ". <code>countersign authority activate</code> lets it sign, once every live enforcement point trusts it.</p>"
    });
}

fn walk(html: &mut Html, order: &OrderView, now: Timestamp) {
    html.fill(
        "<p><strong>{}</strong> of <code>{}</code>, ordered by ",
        &[&order.goal, &Short(order.from)],
    );
    html.name(&order.actor).put(" ").moment(order.begun, now);
    if let Some(ended) = order.ended {
        html.put(", ended ").moment(ended, now);
    }
    html.put(".");
    if let Some(reason) = &order.reason {
        html.put(" Why: ").name(reason);
    }
    if let Some(step) = order.revocable_until {
        html.fill(" It can be taken back until <code>{}</code>.", &[&step]);
    }
    html.put("</p><ol class=\"walk\">");
    let next =
        order.steps.iter().position(|step| step.at.is_none()).filter(|_| order.ended.is_none());
    for (place, step) in order.steps.iter().enumerate() {
        let class = match (step.at.is_some(), next == Some(place)) {
            (true, _) => "done",
            (false, true) => "now",
            (false, false) => "later",
        };
        html.fill("<li class=\"{}\"><div><p><strong>{}</strong> ", &[&class, &step.step]);
        taken(html, step, now);
        html.put("</p>");
        if let Some(gate) = &step.gate {
            waits(html, gate, now);
        }
        html.put("</div></li>");
    }
    html.put("</ol>");
    if let Some(proof) = &order.proof {
        html.fill(
            "<p class=\"notice good\">{} of {} live points enforce revision {}; {} unaware.</p>",
            &[&Count(proof.enforcing), &Count(proof.live), &proof.revision, &Count(proof.unaware)],
        );
    }
}

fn taken(html: &mut Html, step: &StepView, now: Timestamp) {
    if let Some(at) = step.at {
        html.put("<span class=\"muted\">").moment(at, now);
        if let Some(revision) = step.revision {
            html.fill(", revision <code>{}</code>", &[&revision]);
        }
        html.put("</span>");
    }
    if let Some(words) = &step.forced {
        html.put(" <span class=\"tag warn\">forced</span> ").name(words);
    }
}

fn waits(html: &mut Html, gate: &GateView, now: Timestamp) {
    html.put("<p>").name(&gate.why).put("</p>");
    bar(html, "How much of what it waits for has happened", gate.done, gate.of);
    html.fill("<p class=\"muted\">{} of {}", &[&Count(gate.done), &Count(gate.of)]);
    if let Some(until) = gate.until {
        html.put("; opens by itself ").moment(until, now);
    }
    html.put("</p>");
    if !gate.missing.is_empty() {
        html.put("<p class=\"muted\">Missing: ");
        for (place, name) in gate.missing.iter().take(12).enumerate() {
            html.put(if place == 0 { "" } else { ", " }).name(name);
        }
        html.put(if 12 < gate.missing.len() { " and more</p>" } else { "</p>" });
    }
}

fn list(html: &mut Html, all: &AuthoritiesResponse, now: Timestamp) {
    table(html, "Roots and issuers", &["What", "Key", "State", "Ends", "Certificates in use"]);
    for root in &all.roots {
        html.fill("<tr><td data-label=\"What\">Root</td><td data-label=\"Key\"><code title=\"{}\">{}</code></td><td data-label=\"State\">", &[&root.key, &Short(root.key)]);
        html.fill("{}", &[&root.state]);
        if let Some(cause) = root.tainted {
            html.fill(" <span class=\"tag bad\">{}</span>", &[&cause]);
        }
        html.put("</td><td data-label=\"Ends\">").moment(root.expires, now);
        html.fill("</td><td data-label=\"Certificates\">{}</td></tr>", &[&Count(root.credentials)]);
    }
    for issuer in &all.issuers {
        html.fill("<tr><td data-label=\"What\">Issuer</td><td data-label=\"Key\"><code title=\"{}\">{}</code></td><td data-label=\"State\">", &[&issuer.key, &Short(issuer.key)]);
        html.text(of_issuer(issuer).1)
            .put("</td><td data-label=\"Ends\">")
            .moment(issuer.expires, now);
        html.fill(
            "</td><td data-label=\"Certificates\">{}</td></tr>",
            &[&Count(issuer.credentials)],
        );
    }
    end_table(html);
}
