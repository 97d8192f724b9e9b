//! Who there is, and what each holds.

use countersign_api::admin::WorkloadStatus;
use countersign_identity::Code;

use super::{credentials, end_table, page_of, pager, part, points, search, table};
use crate::admin::ask as routes;
use crate::admin::problem::Problem;
use crate::console::Html;
use crate::console::frame::{Page, Section};
use crate::console::html::{Count, InUrl, Span};
use crate::console::routes::Ask;

/// The list.
pub(crate) async fn workloads(ask: &Ask) -> Result<Page, Problem> {
    let axum::Json(status) = routes::status(ask.admin()).await?;
    let sought = ask.shown("q").to_lowercase();
    let fits = |one: &WorkloadStatus| {
        sought.is_empty()
            || one.name.as_str().contains(&sought)
            || one.spiffe_id.as_str().to_lowercase().contains(&sought)
    };
    let found: Vec<WorkloadStatus> = status.workloads.into_iter().filter(fits).collect();
    let total = found.len();
    let mut html = Html::default();
    html.put("<div class=\"title\"><h1>Workloads</h1></div>");
    search(&mut html, ask, "/workloads", "Name or SPIFFE ID");
    html.put("<section class=\"panel\" id=\"list\" aria-label=\"Workloads\" data-live>");
    if total == 0 {
        html.put("<p class=\"empty\">");
        html.put(match sought.is_empty() {
            true => "No workload is declared yet. Write a manifest of kind Workload, and apply it with <code>countersign apply</code>.",
            false => "No workload has that in its name or in its SPIFFE ID.",
        });
        html.put("</p>");
    } else {
        table(
            &mut html,
            "Workloads",
            &["Name", "SPIFFE ID", "Lifetime", "Outage budget", "In use"],
        );
        for one in part(found, page_of(ask)) {
            html.fill(
                "<tr><td data-label=\"Name\"><a href=\"/workloads/{}\">",
                &[&InUrl(&one.name)],
            );
            html.name(&one.name).put("</a></td><td data-label=\"SPIFFE ID\">").name(&one.spiffe_id);
            let budget = std::time::Duration::from_secs(one.guaranteed_budget_seconds);
            html.fill(
                "</td><td data-label=\"Lifetime\">{}</td><td data-label=\"Outage budget\">{}</td><td data-label=\"In use\">",
                &[&one.lifetime, &Span(budget)],
            );
            match one.held {
                0 => html.put("<span class=\"muted\">none</span>"),
                held => html.text(&Count(held)),
            };
            html.put("</td></tr>");
        }
        end_table(&mut html);
        pager(&mut html, ask, "/workloads", total);
    }
    html.put("</section>");
    Ok(Page::of(Section::Workloads, html))
}

/// One of them.
pub(crate) async fn workload(ask: &Ask, name: &str) -> Result<Page, Problem> {
    let axum::Json(status) = routes::status(ask.admin()).await?;
    let state = ask.console.admin.control()?.feed.current();
    let missing = || Problem::new(Code::NotFound, "no workload of that name is declared");
    let (name, spec) = state.workload(name).ok_or_else(missing)?;
    let one = status.workloads.iter().find(|one| one.name == *name).ok_or_else(missing)?;
    let (mut html, now) = (Html::default(), ask.now());
    html.put("<div class=\"title\"><h1>").name(name).put("</h1></div>");
    html.put("<section class=\"panel\" id=\"facts\" aria-label=\"What is declared\" data-live><dl class=\"facts\"><dt>SPIFFE ID</dt><dd>");
    html.name(&one.spiffe_id).put("</dd><dt>A process must be</dt><dd>");
    for selector in &spec.selectors {
        html.put("<code>").name(selector).put("</code> ");
    }
    html.fill(
        "</dd><dt>Certificates live</dt><dd>{}</dd><dt>Outage budget</dt><dd>",
        &[&one.lifetime],
    );
    let budget = std::time::Duration::from_secs(one.guaranteed_budget_seconds);
    html.fill("{}, guaranteed</dd>", &[&Span(budget)]);
    if !spec.nodes.is_empty() {
        html.put("<dt>Only on nodes that are</dt><dd>");
        for label in &spec.nodes {
            html.put("<code>").name(label).put("</code> ");
        }
        html.put("</dd>");
    }
    html.fill("<dt>On record</dt><dd><a href=\"/log?subject={}\">All events about it</a></dd></dl></section>", &[&InUrl(&one.spiffe_id)]);
    super::timeline::timeline(&mut html, ask, name, &one.spiffe_id).await?;
    html.put("<section class=\"panel\" id=\"held\" aria-labelledby=\"held-title\" data-live><h2 id=\"held-title\">Certificates in use</h2>");
    let held: Vec<_> = status
        .nodes
        .iter()
        .flat_map(|node| node.credentials.iter().map(move |one| (node, one)))
        .filter(|(_, held)| held.workload == name.as_str())
        .take(super::ROWS_MAX)
        .collect();
    if held.is_empty() {
        html.put("<p class=\"empty\">None. An agent asks for one when a process shows all of these selectors.</p>");
    } else {
        let rows = held.iter().map(|(node, one)| {
            let host = if node.host.is_empty() { "(no name)" } else { node.host.as_str() };
            (host, format!("/nodes/{}", node.id), *one)
        });
        credentials(&mut html, rows, now);
    }
    html.put("</section><section class=\"panel\" id=\"points\" aria-labelledby=\"points-title\" data-live><h2 id=\"points-title\">Where it is enforced</h2>");
    let enforced: Vec<_> = status
        .points
        .iter()
        .filter(|point| point.spiffe_id == one.spiffe_id)
        .take(super::ROWS_MAX)
        .collect();
    match enforced.is_empty() {
        true => {
            _ = html.put(
                "<p class=\"empty\">No proxy and no library enforces for this identity now.</p>",
            );
        }
        false => points(&mut html, enforced.into_iter()),
    }
    html.put("</section>");
    Ok(Page { subject: Some(name.to_string()), ..Page::of(Section::Workloads, html) })
}
