//! The machines.

use countersign_api::admin::NodeStatus;
use countersign_identity::{Code, NodeEvidence};

use super::{credentials, end_table, page_of, pager, part, points, search, table};
use crate::admin::ask as routes;
use crate::admin::problem::Problem;
use crate::console::Html;
use crate::console::frame::{Page, Section};
use crate::console::html::{Count, InUrl, Short};
use crate::console::routes::Ask;

fn named(node: &NodeStatus) -> &str {
    if node.host.is_empty() { "(no name)" } else { &node.host }
}

fn joined_by(node: &NodeStatus) -> &'static str {
    match node.attested_by {
        Some(NodeEvidence::JoinToken) => "join token",
        Some(NodeEvidence::X509) => "its certificate",
        None => "unknown",
    }
}

fn presence(html: &mut Html, node: &NodeStatus) {
    html.put(match node.connected {
        true => "<span class=\"tag good\">connected</span>",
        false => "<span class=\"tag warn\">away</span>",
    });
}

/// The list.
pub(crate) async fn nodes(ask: &Ask) -> Result<Page, Problem> {
    let axum::Json(status) = routes::status(ask.admin()).await?;
    let (sought, now) = (ask.shown("q").to_lowercase(), ask.now());
    let fits = |one: &NodeStatus| {
        sought.is_empty()
            || one.host.to_lowercase().contains(&sought)
            || one.id.to_string().starts_with(&sought)
    };
    let found: Vec<NodeStatus> = status.nodes.into_iter().filter(fits).collect();
    let total = found.len();
    let mut html = Html::default();
    html.put("<div class=\"title\"><h1>Nodes</h1></div>");
    search(&mut html, ask, "/nodes", "Host, or the beginning of an id");
    html.put("<section class=\"panel\" id=\"list\" aria-label=\"Nodes\" data-live>");
    if total == 0 {
        html.put("<p class=\"empty\">");
        html.put(match sought.is_empty() {
            true => "No machine has joined yet. <code>countersign token create</code> prints what to run on one.",
            false => "No machine is called that.",
        });
        html.put("</p>");
    } else {
        table(
            &mut html,
            "Nodes",
            &["Host", "Id", "Joined by", "State", "Heard of", "Serves", "Certificates"],
        );
        for node in part(found, page_of(ask)) {
            html.fill("<tr><td data-label=\"Host\"><a href=\"/nodes/{}\">", &[&node.id]);
            html.name(named(&node)).fill("</a></td><td data-label=\"Id\"><code title=\"{}\">{}</code></td><td data-label=\"Joined by\">{}</td><td data-label=\"State\">", &[&node.id, &Short(node.id), &joined_by(&node)]);
            presence(&mut html, &node);
            html.put("</td><td data-label=\"Heard of\">")
                .moment(node.seen_at, now)
                .put("</td><td data-label=\"Serves\">");
            match node.revision {
                Some(revision) => html.fill("<code>{}</code>", &[&revision]),
                None => html.put("<span class=\"muted\">unknown</span>"),
            };
            html.fill(
                "</td><td data-label=\"Certificates\">{}</td></tr>",
                &[&Count(node.credentials.len())],
            );
        }
        end_table(&mut html);
        pager(&mut html, ask, "/nodes", total);
    }
    html.put("</section>");
    Ok(Page::of(Section::Nodes, html))
}

/// One of them.
pub(crate) async fn node(ask: &Ask, id: &str) -> Result<Page, Problem> {
    let axum::Json(status) = routes::status(ask.admin()).await?;
    let missing = || Problem::new(Code::NotFound, "no machine with that id is registered");
    let node = status.nodes.iter().find(|node| node.id.to_string() == id).ok_or_else(missing)?;
    let (mut html, now) = (Html::default(), ask.now());
    html.put("<div class=\"title\"><h1>").name(named(node)).put("</h1><p>");
    presence(&mut html, node);
    html.put("</p></div><section class=\"panel\" id=\"facts\" aria-label=\"What is known of it\" data-live><dl class=\"facts\"><dt>Id</dt><dd><code>");
    html.text(&node.id).put("</code></dd><dt>Its agent</dt><dd>").name(&node.spiffe_id);
    html.fill("</dd><dt>Joined by</dt><dd>{}</dd><dt>Heard of", &[&joined_by(node)]);
    html.put("</dt><dd>").moment(node.seen_at, now).put("</dd><dt>Its clock</dt><dd>");
    match node.clock_skew_millis {
        Some(skew) => html.fill("{} ms off the server’s", &[&skew]),
        None => html.put("not known"),
    };
    html.fill("</dd><dt>On record</dt><dd><a href=\"/log?subject={}\">All events about its agent</a></dd></dl></section>", &[&InUrl(&node.spiffe_id)]);
    html.put("<section class=\"panel\" id=\"held\" aria-labelledby=\"held-title\" data-live><h2 id=\"held-title\">Certificates it holds</h2>");
    if node.credentials.is_empty() {
        html.put("<p class=\"empty\">None: no process on it has matched a workload.</p>");
    } else {
        let rows = node.credentials.iter().take(super::ROWS_MAX).map(|one| {
            (one.workload.as_str(), format!("/workloads/{}", InUrl(&one.workload)), one)
        });
        credentials(&mut html, rows, now);
    }
    html.put("</section><section class=\"panel\" id=\"points\" aria-labelledby=\"points-title\" data-live><h2 id=\"points-title\">Enforcement points on it</h2>");
    let here: Vec<_> =
        status.points.iter().filter(|point| point.node == node.id).take(super::ROWS_MAX).collect();
    match here.is_empty() {
        true => _ = html.put("<p class=\"empty\">None has subscribed.</p>"),
        false => points(&mut html, here.into_iter()),
    }
    html.put("</section>");
    Ok(Page { subject: Some(named(node).to_owned()), ..Page::of(Section::Nodes, html) })
}
