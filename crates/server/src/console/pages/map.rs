//! The services as a graph: what is granted, what is used, what is denied.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use countersign_api::admin::{Answer, FlowView, FlowsResponse};
use countersign_identity::{Mode, Timestamp};

use super::graph::{self, Drawing, Place};
use super::{end_table, table};
use crate::admin::policy as routes;
use crate::admin::problem::Problem;
use crate::console::Html;
use crate::console::frame::{Page, Section};
use crate::console::html::{Count, InUrl};
use crate::console::routes::Ask;

/// Arrows that one picture shows. Of more, one looks at one service at a time.
const ARROWS_MAX: usize = 80;
/// Names that are offered to choose from. Of more, one is typed.
const CHOICES_MAX: usize = 200;
/// Rows of the list below the picture.
const LISTED_MAX: usize = 200;

/// What is known of one pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known {
    granted: bool,
    allowed: u64,
    denied: u64,
}

impl Known {
    const fn class(self) -> &'static str {
        match (self.denied, self.allowed) {
            (1.., _) => "denied",
            (0, 1..) => "used",
            (0, 0) => "unused",
        }
    }
}

type Pairs = BTreeMap<(String, String), Known>;

fn pairs(flows: &FlowsResponse) -> Pairs {
    let mut pairs = Pairs::new();
    for flow in &flows.flows {
        let known = pairs.entry((flow.source.clone(), flow.service.to_string())).or_default();
        match flow.decision {
            Answer::Allow => {
                known.granted = true;
                known.allowed = known.allowed.saturating_add(flow.count);
            }
            Answer::Deny => known.denied = known.denied.saturating_add(flow.count),
        }
    }
    for grant in &flows.unused {
        for source in &grant.sources {
            for service in &grant.services {
                pairs.entry((source.clone(), service.clone())).or_default().granted = true;
            }
        }
    }
    pairs
}

pub(crate) async fn map(ask: &Ask) -> Result<Page, Problem> {
    let Json(flows) = routes::flows(ask.admin(), ask.query(&[], &[])).await?;
    let all = pairs(&flows);
    let chosen = (ask.field("from"), ask.field("to"));
    let of = ask.field("of");
    let near = |(from, to): &(String, String)| of.is_none_or(|of| from == of || to == of);
    let shown: Pairs = all
        .iter()
        .filter(|(pair, _)| near(pair))
        .take(ARROWS_MAX)
        .map(|(pair, known)| (pair.clone(), *known))
        .collect();
    let mut html = Html::default();
    html.fill("<div class=\"title\"><h1>Map</h1><p class=\"muted\">What was seen in the last {} days, and what is granted</p></div>", &[&flows.kept_days]);
    narrow(&mut html, &all, of);
    html.put(
        "<section class=\"panel\" id=\"picture\" aria-label=\"Map of the services\" data-live>",
    );
    if shown.is_empty() {
        html.put("<p class=\"empty\">Nobody has asked anybody for anything, and nothing is granted by name. A call that a proxy or the library decides on appears here.</p>");
    } else {
        picture(&mut html, &shown, chosen, of);
        html.put("<p class=\"legend\"><span class=\"item\"><span class=\"key used\"></span>granted and used</span> <span class=\"item\"><span class=\"key unused\"></span>granted, never used</span> <span class=\"item\"><span class=\"key denied\"></span>denied</span></p>");
        if shown.len() < all.len() {
            html.fill("<p class=\"muted\">{} of {} connections are drawn. Choose a service to see its own.</p>", &[&Count(shown.len()), &Count(all.len())]);
        }
    }
    html.put("</section>");
    let between: Vec<&FlowView> = match chosen {
        (Some(from), Some(to)) => flows
            .flows
            .iter()
            .filter(|flow| flow.source == from && flow.service.as_str() == to)
            .collect(),
        _ => flows
            .flows
            .iter()
            .filter(|flow| near(&(flow.source.clone(), flow.service.to_string())))
            .collect(),
    };
    html.put("<section class=\"panel\" id=\"operations\" aria-labelledby=\"operations-title\" data-live><h2 id=\"operations-title\">");
    match chosen {
        (Some(from), Some(to)) => html.name(from).put(" → ").name(to).put("</h2>"),
        _ => html.put("What was asked for</h2>"),
    };
    match between.is_empty() {
        true => _ = html.put("<p class=\"empty\">Nothing was seen between them.</p>"),
        false => flows_table(&mut html, &between, ask.now()),
    }
    html.put("</section>");
    let subject = of.map(str::to_owned).or_else(|| Some(format!("{} → {}", chosen.0?, chosen.1?)));
    Ok(Page { subject, ..Page::of(Section::Map, html) })
}

fn narrow(html: &mut Html, all: &Pairs, of: Option<&str>) {
    let names: BTreeSet<&String> = all.keys().flat_map(|(from, to)| [from, to]).collect();
    if names.len() < 2 {
        return;
    }
    html.put("<form class=\"ask\" action=\"/map\"><label>Only what concerns");
    if CHOICES_MAX < names.len() {
        html.fill(
            "<input name=\"of\" value=\"{}\" maxlength=\"2048\">",
            &[&of.unwrap_or_default()],
        );
    } else {
        html.put("<select name=\"of\"><option value=\"\">everybody</option>");
        for name in names {
            html.put(if of == Some(name) { "<option selected>" } else { "<option>" });
            html.text(name).put("</option>");
        }
        html.put("</select>");
    }
    html.put("</label><button class=\"quiet\">Show</button></form>");
}

/// How large what is drawn is.
const WIDTH: usize = 168;
const HEIGHT: usize = 52;
const ACROSS: usize = 268;
const DOWN: usize = 84;
const EDGE: usize = 30;

fn picture(html: &mut Html, shown: &Pairs, chosen: (Option<&str>, Option<&str>), of: Option<&str>) {
    let Drawing { places, past, heights } = graph::drawing(&shown.keys().cloned().collect());
    let layers = heights.len().max(1);
    let tallest = heights.iter().copied().max().unwrap_or(1);
    let (width, height) =
        ((layers - 1) * ACROSS + WIDTH + 2 * EDGE, (tallest - 1) * DOWN + HEIGHT + 2 * EDGE);
    html.fill(
        "<div class=\"graph\"><svg width=\"{}\" height=\"{}\" viewBox=\"0 0 {} {}\" role=\"group\" aria-label=\"{} services and {} connections\"><defs>",
        &[&width, &height, &width, &height, &places.len(), &shown.len()],
    );
    for class in ["used", "unused", "denied"] {
        html.fill("<marker id=\"tip-{}\" class=\"tip-{}\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"10\" markerHeight=\"10\" markerUnits=\"userSpaceOnUse\" orient=\"auto-start-reverse\"><path d=\"M0 0 8 4 0 8z\"/></marker>", &[&class, &class]);
    }
    html.put("</defs>");
    let place = |(layer, row): Place| {
        let free = (tallest - heights.get(layer).copied().unwrap_or(tallest)) * DOWN / 2;
        (EDGE + layer * ACROSS, EDGE + free + row * DOWN)
    };
    let corner = |name: &str| place(places.get(name).copied().unwrap_or_default());
    for (pair, known) in shown {
        let (from, to) = pair;
        let past = past.get(pair).map(Vec::as_slice).unwrap_or_default();
        let way = way(corner(from), past.iter().map(|at| place(*at)), corner(to));
        arrow(html, (from, to), *known, chosen == (Some(from), Some(to)), &way);
    }
    for name in places.keys() {
        let (x, y) = corner(name);
        let class = if of == Some(name) { "node chosen" } else { "node" };
        let short: String = name.chars().take(19).collect();
        let more = if short.len() < name.len() { "…" } else { "" };
        html.fill(
            "<a href=\"/map?of={}\" aria-label=\"{}: show only what concerns it\"><g class=\"{}\"><title>{}</title><rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"10\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\" direction=\"ltr\" unicode-bidi=\"isolate-override\">{}{}</text></g></a>",
            &[&InUrl(name), name, &class, name, &x, &y, &WIDTH, &HEIGHT, &(x + WIDTH / 2), &(y + HEIGHT / 2 + 5), &short, &more],
        );
    }
    html.put("</svg></div>");
}

/// The way of an arrow, from one corner to another: to the right in a swing, through the room that it has in each layer between; back, or
/// to itself, around below.
fn way(
    (x, y): (usize, usize),
    past: impl Iterator<Item = (usize, usize)>,
    (to_x, to_y): (usize, usize),
) -> String {
    if to_x <= x {
        let below = y.max(to_y) + HEIGHT / 2 + DOWN / 2 + 6;
        let (middle, to_middle) = (x + WIDTH / 2 + 24, to_x + WIDTH / 2 - 24);
        let (y, to_y) = (y + HEIGHT, to_y + HEIGHT + 2);
        return format!("M{middle} {y} C{middle} {below} {to_middle} {below} {to_middle} {to_y}");
    }
    let (mut x, mut y) = (x + WIDTH, y + HEIGHT / 2);
    let mut way = format!("M{x} {y}");
    let ends = past.map(|(at, row)| (at, row, at + WIDTH)).chain([(to_x - 2, to_y, to_x - 2)]);
    for (to_x, to_y, goes_to) in ends {
        let (half, to_y) = (usize::midpoint(x, to_x), to_y + HEIGHT / 2);
        way.push_str(&format!(" C{half} {y} {half} {to_y} {to_x} {to_y}"));
        if to_x < goes_to {
            way.push_str(&format!(" H{goes_to}"));
        }
        (x, y) = (goes_to, to_y);
    }
    way
}

fn arrow(html: &mut Html, (from, to): (&str, &str), known: Known, chosen: bool, way: &str) {
    let class = known.class();
    let word = match class {
        "used" => "granted and used",
        "denied" => "denied",
        _ => "granted and never used",
    };
    let weight = if chosen { " chosen" } else { "" };
    html.fill(
        "<a href=\"/map?from={}&amp;to={}\" aria-label=\"{} to {}: {}, {} allowed, {} denied\"><title>{} → {}: {}</title>\
         <path class=\"thick\" d=\"{}\"/><path class=\"edge {}{}\" d=\"{}\" marker-end=\"url(#tip-{})\"/></a>",
        &[
            &InUrl(from), &InUrl(to), &from, &to, &word, &Count(known.allowed), &Count(known.denied), &from, &to, &word,
            &way, &class, &weight, &way, &class,
        ],
    );
}

/// What was asked for, row by row.
pub(super) fn flows_table(html: &mut Html, flows: &[&FlowView], now: Timestamp) {
    table(
        html,
        "What was asked for",
        &["From", "To", "Operation", "Decision", "Policies", "Times", "Last"],
    );
    for flow in flows.iter().take(LISTED_MAX) {
        html.put("<tr><td data-label=\"From\">")
            .name(&flow.source)
            .put("</td><td data-label=\"To\">")
            .name(&flow.service);
        html.put("</td><td data-label=\"Operation\"><code>")
            .name(&flow.what())
            .put("</code></td><td data-label=\"Decision\">");
        html.put(match (flow.decision, flow.mode) {
            (Answer::Allow, _) => "<span class=\"tag good\">allowed</span>",
            (Answer::Deny, Mode::Enforce) => "<span class=\"tag bad\">denied</span>",
            (Answer::Deny, Mode::Observe) => "<span class=\"tag warn\">would be denied</span>",
        });
        html.put("</td><td data-label=\"Policies\">").name(&flow.policies.join(", "));
        html.fill(
            "</td><td data-label=\"Times\">{}</td><td data-label=\"Last\">",
            &[&Count(flow.count)],
        );
        html.moment(flow.last_seen, now).put("</td></tr>");
    }
    end_table(html);
    if LISTED_MAX < flows.len() {
        html.fill("<p class=\"muted\">and {} more</p>", &[&Count(flows.len() - LISTED_MAX)]);
    }
}
