//! Who may do what to whom: the text, whom it hits, and a form to try it out.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Bytes;
use countersign_api::admin::{
    Answer, ExplainRequest, ExplainResponse, FlowView, FlowsResponse, UnusedGrant,
};
use countersign_api::resource::{PolicySpec, Spec};
use countersign_identity::{Code, Mode, Name, Timestamp};

use countersign_policy::TopicAct;

use super::{end_table, page_of, pager, part, search, table};
use crate::admin::policy as routes;
use crate::admin::problem::Problem;
use crate::console::Html;
use crate::console::frame::{Page, Section};
use crate::console::html::{Count, InUrl};
use crate::console::routes::Ask;

/// Flows that one page of a policy shows.
const FLOWS_MAX: usize = 100;

/// The list, and the form.
pub(crate) async fn policies(ask: &Ask) -> Result<Page, Problem> {
    let state = ask.console.admin.control()?.feed.current();
    let sought = ask.shown("q").to_lowercase();
    let declared = state.resources().filter_map(|resource| match resource.spec {
        Spec::Policy(spec) => Some((resource.name, spec)),
        _ => None,
    });
    let fits = |(name, spec): &(Name, PolicySpec)| {
        sought.is_empty()
            || name.as_str().contains(&sought)
            || spec.cedar.as_str().to_lowercase().contains(&sought)
    };
    let found: Vec<(Name, PolicySpec)> = declared.filter(fits).collect();
    let total = found.len();
    let Json(flows) = routes::flows(ask.admin(), ask.query(&[], &[])).await?;
    let used = uses(&flows);
    let mut html = Html::default();
    html.put("<div class=\"title\"><h1>Policies</h1><p class=\"muted\">Nothing is allowed that none of them permits</p></div>");
    try_it(&mut html, ask).await?;
    search(&mut html, ask, "/policies", "Name, or a piece of the text");
    html.put("<section class=\"panel\" id=\"list\" aria-label=\"Policies\" data-live>");
    if total == 0 {
        html.put(match sought.is_empty() {
            true => "<p class=\"empty\">No policy is in force, so nobody may talk to anybody.</p>",
            false => "<p class=\"empty\">No policy is called that or says that.</p>",
        });
    } else {
        table(&mut html, "Policies", &["Name", "Mode", "Flows", "Used", "Text"]);
        for (name, spec) in part(found, page_of(ask)) {
            html.fill("<tr><td data-label=\"Name\"><a href=\"/policies/{}\">", &[&InUrl(&name)]);
            html.name(&name).put("</a></td><td data-label=\"Mode\">");
            standing(&mut html, &spec, ask.now());
            let (flows, count) = used.get(name.as_str()).copied().unwrap_or_default();
            html.fill("</td><td data-label=\"Flows\">{}</td><td data-label=\"Used\">{}</td><td data-label=\"Text\"><code>", &[&Count(flows), &Count(count)]);
            let text = spec.cedar.as_str().trim();
            let begins: String = text.chars().take(90).collect();
            let more = if begins.len() < text.len() { "…" } else { "" };
            html.name(&format!("{begins}{more}")).put("</code></td></tr>");
        }
        end_table(&mut html);
        pager(&mut html, ask, "/policies", total);
    }
    html.put("</section>");
    Ok(Page::of(Section::Policies, html))
}

/// The manifest of a policy's name, `web-asks-orders#connect`.
fn manifest(policy: &str) -> &str {
    policy.split('#').next().unwrap_or(policy)
}

/// How many flows rest on each manifest, and how often they were seen.
fn uses(flows: &FlowsResponse) -> BTreeMap<&str, (u64, u64)> {
    let mut uses: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for flow in &flows.flows {
        let mut rests: Vec<&str> = flow.policies.iter().map(|policy| manifest(policy)).collect();
        rests.dedup();
        for name in rests {
            let use_ = uses.entry(name).or_default();
            *use_ = (use_.0 + 1, use_.1.saturating_add(flow.count));
        }
    }
    uses
}

/// Whether it counts now, and until when.
fn standing(html: &mut Html, spec: &PolicySpec, now: Timestamp) {
    match spec.until {
        Some(until) if until <= now => {
            html.put("<span class=\"tag\">ended</span> ").moment(until, now);
        }
        Some(until) => {
            mode(html, spec.mode);
            html.put(" ends ").moment(until, now);
        }
        None => mode(html, spec.mode),
    }
}

fn mode(html: &mut Html, mode: Mode) {
    html.put(match mode {
        Mode::Enforce => "<span class=\"tag good\">enforce</span>",
        Mode::Observe => "<span class=\"tag warn\">observe</span>",
    });
}

async fn try_it(html: &mut Html, ask: &Ask) -> Result<(), Problem> {
    html.put("<section class=\"panel\" aria-labelledby=\"try-title\"><h2 id=\"try-title\">Try it</h2><form class=\"ask\" action=\"/policies\">");
    html.fill(
        "<label>Who asks<input name=\"from\" required value=\"{}\" maxlength=\"2048\"></label><label>Which service<input name=\"to\" required value=\"{}\" maxlength=\"2048\"></label>\
         <label>Method (none: a connection)<input name=\"method\" value=\"{}\" maxlength=\"16\"></label><label>Path<input name=\"path\" value=\"{}\" maxlength=\"2048\"></label><button>Ask</button></form>",
        &[&ask.shown("from"), &ask.shown("to"), &ask.shown("method"), &ask.shown("path")],
    );
    if let (Some(from), Some(to)) = (ask.field("from"), ask.field("to")) {
        let text = |name: &str| ask.field(name).map(str::to_owned);
        let written = |method: String| match method.to_lowercase().parse::<TopicAct>() {
            Ok(act) => act.to_string(),
            Err(_of_http) => method.to_uppercase(),
        };
        let method = text("method").map(written);
        let path = text("path").filter(|_| method.is_some());
        let (from, to) = (from.to_owned(), to.to_owned());
        let request = ExplainRequest { from, to, method, path, ..ExplainRequest::default() };
        let body = serde_json::to_vec(&request).unwrap_or_default();
        html.put("<div id=\"answer\" role=\"status\" data-live>");
        match routes::explain(ask.admin(), Ok(Bytes::from(body))).await {
            Ok(Json(answer)) => explained(html, &answer),
            Err(problem) if problem.details().code == Code::NotUnderstood => {
                html.put("<p class=\"notice bad\">").name(&problem.details().detail).put("</p>");
            }
            Err(problem) => return Err(problem),
        }
        html.put("</div>");
    }
    html.put("</section>");
    Ok(())
}

fn explained(html: &mut Html, answer: &ExplainResponse) {
    let allowed = answer.decision == Answer::Allow;
    html.put(if allowed {
        "<div class=\"notice good\"><p><strong>Allowed</strong> "
    } else {
        "<div class=\"notice bad\"><p><strong>Denied</strong> "
    });
    mode(html, answer.mode);
    html.put("</p><p>").name(&answer.why).put("</p>");
    if let Some(remedy) = &answer.remedy {
        html.put("<p>What would allow it:</p><pre tabindex=\"0\"><bdi>")
            .text(remedy)
            .put("</bdi></pre>");
    }
    if !answer.assumed.is_empty() {
        html.put("<p>Assumed, since policies read it: ").name(&answer.assumed.join("; "));
        html.put(". <code>explain</code> asks about other times and addresses.</p>");
    }
    if !answer.policies.is_empty() {
        html.put("<p>By ");
        for (place, policy) in answer.policies.iter().enumerate() {
            html.put(if place == 0 { "" } else { ", " });
            html.fill("<a href=\"/policies/{}\">", &[&InUrl(manifest(policy))])
                .name(policy)
                .put("</a>");
        }
        html.put("</p>");
    }
    html.put("</div>");
}

/// One of them, and whom it hits.
pub(crate) async fn policy(ask: &Ask, name: &str) -> Result<Page, Problem> {
    let state = ask.console.admin.control()?.feed.current();
    let found = state.resources().find_map(|resource| match resource.spec {
        Spec::Policy(spec) if resource.name.as_str() == name => Some(spec),
        _ => None,
    });
    let spec =
        found.ok_or_else(|| Problem::new(Code::NotFound, "no policy of that name is in force"))?;
    let Json(flows) = routes::flows(ask.admin(), ask.query(&[], &[])).await?;
    let mut html = Html::default();
    html.put("<div class=\"title\"><h1>").text(name).put("</h1><p>");
    standing(&mut html, &spec, ask.now());
    html.put("</p></div><section class=\"panel\" aria-labelledby=\"text-title\"><h2 id=\"text-title\">The text</h2><pre tabindex=\"0\"><bdi>");
    html.text(spec.cedar.as_str().trim()).put("</bdi></pre></section><section class=\"panel\" id=\"hit\" aria-labelledby=\"hit-title\" data-live><h2 id=\"hit-title\">Whom it hits</h2>");
    let rests = |policies: &[String]| policies.iter().any(|policy| manifest(policy) == name);
    let hit: Vec<&FlowView> =
        flows.flows.iter().filter(|flow| rests(&flow.policies)).take(FLOWS_MAX).collect();
    if hit.is_empty() {
        html.fill(
            "<p class=\"empty\">Nothing that was seen in the last {} days rests on it.</p>",
            &[&flows.kept_days],
        );
    } else {
        super::map::flows_table(&mut html, &hit, ask.now());
    }
    let unused: Vec<&UnusedGrant> =
        flows.unused.iter().filter(|grant| manifest(&grant.policy) == name).collect();
    if !unused.is_empty() {
        html.put("<h3>Granted, and never used</h3><ul>");
        for grant in unused {
            html.put("<li>").name(&grant.policy).put(": ");
            html.name(&or_any(&grant.sources))
                .put(" → ")
                .name(&or_any(&grant.services))
                .put("</li>");
        }
        html.put("</ul>");
    }
    html.put("</section>");
    Ok(Page { subject: Some(name.to_owned()), ..Page::of(Section::Policies, html) })
}

fn or_any(names: &[String]) -> String {
    if names.is_empty() { "anybody".to_owned() } else { names.join(", ") }
}
