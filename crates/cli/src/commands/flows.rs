//! `countersign flows`: who really talks to whom, and which grants nobody uses.

mod graph;

use anyhow::Result;
use clap::Args;
use countersign_api::admin::{Answer, FlowView, FlowsResponse};
use countersign_identity::{Clock as _, Lifetime, SystemClock};
use serde_json::json;

use super::when;
use crate::exit::Exit;
use crate::find::Find;
use crate::output::{self, Output, Table};

/// Show who has talked to whom, for what, and what was decided
///
/// Proxies and programs with our library report it, counted together. With `--unused`: the grants that no flow rests on.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only what was denied, or would have been where policies only observe
    #[arg(long)]
    denied: bool,

    /// The policies that permit something which nobody has asked for
    #[arg(long, conflicts_with_all = ["denied", "graph"])]
    unused: bool,

    /// Draw who is granted what against who uses what
    #[arg(long, value_enum, value_name = "FORM")]
    graph: Option<graph::Form>,

    /// Only what was seen within this time, such as `24h` [default: all that is remembered]
    #[arg(long, value_name = "SPAN")]
    since: Option<Lifetime>,

    #[command(flatten)]
    find: Find,
}

pub(crate) async fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    let since = arguments.since.map(Lifetime::duration);
    let mut response = arguments.find.client()?.flows(since).await?;
    if arguments.denied {
        response.flows.retain(|flow| flow.decision == Answer::Deny);
    }
    if let Some(form) = arguments.graph {
        output::write(graph::draw(&response, form).as_bytes())?;
        return Ok(Exit::Done);
    }
    match output {
        Output::Json if arguments.unused => output::json(&json!({ "unused": response.unused }))?,
        Output::Json => output::json(&response)?,
        Output::Human if arguments.unused => output::write(unused(&response).as_bytes())?,
        Output::Human => output::write(describe(&response).as_bytes())?,
    }
    Ok(Exit::Done)
}

fn describe(response: &FlowsResponse) -> String {
    let now = SystemClock::new().now();
    let mut table =
        Table::new(["source", "service", "what", "decision", "policies", "count", "last"]);
    for flow in &response.flows {
        table.row([
            flow.source.clone(),
            flow.service.to_string(),
            flow.what(),
            decision(flow),
            flow.policies.join(" "),
            flow.count.to_string(),
            when::relative(flow.last_seen, now),
        ]);
    }
    let mut text = if table.is_empty() { "no flow\n".to_owned() } else { table.render(0) };
    if 0 < response.dropped {
        text.push_str(&format!("{} more were counted in no flow\n", response.dropped));
    }
    text
}

fn decision(flow: &FlowView) -> String {
    match (flow.decision, flow.mode.is_usual()) {
        (Answer::Allow, true) => "allow".to_owned(),
        (Answer::Deny, true) => "deny".to_owned(),
        (Answer::Allow, false) => "allow (observe)".to_owned(),
        (Answer::Deny, false) => "deny (observe: let pass)".to_owned(),
    }
}

fn unused(response: &FlowsResponse) -> String {
    let some = |names: &[String], any: &str| match names {
        [] => any.to_owned(),
        names => names.join(" "),
    };
    let mut table = Table::new(["policy", "source", "service"]);
    for grant in &response.unused {
        let (sources, services) = (some(&grant.sources, "any"), some(&grant.services, "any"));
        table.row([grant.policy.clone(), sources, services]);
    }
    if table.is_empty() {
        return "every grant was used\n".to_owned();
    }
    table.render(0)
}
