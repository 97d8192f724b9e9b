//! `countersign status`: who is alive, under which identity, until when.

mod agent;
mod handshakes;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use countersign_api::admin::{
    AdminError, CredentialView, NodeStatus, PartView, PointStatus, ProcessView, Status,
};
use countersign_identity::{Clock, SystemClock, Timestamp};

use self::agent::AgentWord;
use self::handshakes::handshakes;
use super::when;
use crate::exit::{Exit, Failure};
use crate::find::{self, Find};
use crate::output::{self, Output, Table};
use crate::settings;

/// Show who is alive, which identity, age and next renewal, revision, and outage budget
///
/// The server is asked first. While it is away, or does not answer within two seconds, the agent beside it is asked instead:
/// it tells since when and why the server is away, what it holds for its own workloads, and the outage budget. Its word is an
/// answer too, so the exit status is 0; a warning says whose word it is, and so does `"source"` in JSON (`server` or
/// `agent`). The exit status is 3 when neither answers, and for `--handshakes` without the server, which alone knows them.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Show the latest handshakes instead, refused ones with their reason
    #[arg(long, conflicts_with = "config")]
    handshakes: bool,

    /// How many handshakes
    #[arg(long, default_value_t = 50, value_name = "COUNT", requires = "handshakes", value_parser = super::named::count::<usize>)]
    limit: usize,

    /// Show each setting of the programs on this data directory instead, and where it came from
    #[arg(long)]
    config: bool,

    /// Show it again every two seconds, until interrupted
    #[arg(long, conflicts_with = "config")]
    watch: bool,

    /// Ask this agent for its own node, `unix:///…`, and no server
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["data", "admin", "handshakes", "config"])]
    agent: Option<String>,

    #[command(flatten)]
    find: Find,
}

/// A server's status, and that it is a server's.
#[derive(serde::Serialize)]
struct ServerWord<'a> {
    source: &'static str,
    #[serde(flatten)]
    status: &'a Status,
}

/// How long `--watch` waits between two looks.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// How long the server alone is waited for. After that the agent beside it is asked too.
const SERVER_PATIENCE: Duration = Duration::from_secs(2);
/// How long the server is waited for where nobody else can answer.
const HANDSHAKES_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) async fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    if arguments.config {
        return settings::show(arguments.find.data_directory()?.as_deref(), output);
    }
    let clock = SystemClock::new();
    loop {
        let text = look(arguments, output, clock.now()).await?;
        if arguments.watch && output == Output::Human {
            // Home, then clear what is below: no flicker.
            output::write(format!("\x1b[H\x1b[J{text}").as_bytes())?;
        } else {
            output::write(text.as_bytes())?;
        }
        if !arguments.watch {
            return Ok(Exit::Done);
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Done),
            () = clock.sleep_until(clock.now() + WATCH_EVERY) => {}
        }
    }
}

async fn look(arguments: &Arguments, output: Output, now: Timestamp) -> Result<String> {
    if let Some(agent) = &arguments.agent {
        let word = agent::ask(&find::socket_path(agent)?).await?;
        return said(&word, output, now);
    }
    let client = arguments.find.client()?;
    if arguments.handshakes {
        let asked = client.handshakes(arguments.limit, None);
        let answer =
            tokio::time::timeout(HANDSHAKES_TIMEOUT, asked).await.unwrap_or_else(|_elapsed| {
                let path = client.socket().to_owned();
                Err(AdminError::TimedOut { path, limit: HANDSHAKES_TIMEOUT })
            });
        let response = answer.map_err(without_server)?;
        return Ok(match output {
            Output::Json => serde_json::to_string(&response)? + "\n",
            Output::Human => handshakes(&response),
        });
    }
    let mut asked = std::pin::pin!(client.status());
    let why = match tokio::time::timeout(SERVER_PATIENCE, &mut asked).await {
        Ok(Ok(status)) => return shown(&status, output, now),
        Ok(Err(error)) if is_away(&error) => Some(error),
        Ok(Err(error)) => return Err(error.into()),
        Err(_elapsed) => None,
    };
    let beside = arguments.find.agent_beside()?;
    match (instead(beside.as_deref(), why.as_ref()).await, why) {
        (Some(Ok(word)), _) => said(&word, output, now),
        (Some(Err(agent)), Some(error)) => {
            Err(Failure::unreachable(format!("{error}; {agent}")).into())
        }
        (None, Some(error)) => Err(error.into()),
        // Nobody else is there to ask, so a slow server has the rest of its time.
        (Some(Err(_)) | None, None) => shown(&asked.await?, output, now),
    }
}

/// The word of the agent beside a server that is away for this reason, or is late.
async fn instead(agent: Option<&Path>, why: Option<&AdminError>) -> Option<Result<AgentWord>> {
    let socket = agent?;
    let why = match why {
        Some(error) => error.to_string(),
        None => format!("the server did not answer within {} s", SERVER_PATIENCE.as_secs()),
    };
    let warning = format!(
        "{why}; so this is the word of the agent at `unix://{}`: of other machines, and of what is enforced, it knows nothing",
        socket.display()
    );
    Some(agent::ask(socket).await.map(|word| word.because(warning)))
}

/// Whether the server is not there to be asked. One that refuses is.
fn is_away(error: &AdminError) -> bool {
    match error {
        AdminError::Unreachable { .. }
        | AdminError::Broken { .. }
        | AdminError::TimedOut { .. } => true,
        AdminError::NotAdmitted { .. }
        | AdminError::NotUnderstood { .. }
        | AdminError::Refused(_) => false,
    }
}

fn without_server(error: AdminError) -> anyhow::Error {
    if !is_away(&error) {
        return error.into();
    }
    Failure::unreachable(format!(
        "{error}; handshakes are told to the server and kept by it alone, so they are shown when it is back; \
         `countersign status` without `--handshakes` tells what the agent knows meanwhile"
    ))
    .into()
}

fn shown(status: &Status, output: Output, now: Timestamp) -> Result<String> {
    Ok(match output {
        Output::Json => serde_json::to_string(&ServerWord { source: "server", status })? + "\n",
        Output::Human => describe(status, now),
    })
}

fn said(word: &AgentWord, output: Output, now: Timestamp) -> Result<String> {
    Ok(match output {
        Output::Json => serde_json::to_string(word)? + "\n",
        Output::Human => word.describe(now),
    })
}

fn describe(status: &Status, now: Timestamp) -> String {
    let server = &status.server;
    let mut text = format!(
        "trust domain {}, revision {}\n\nserver {}{}, up {}, {}, pid {}{}\n  log of {} events, root {}\n",
        status.trust_domain,
        status.revision,
        server.version,
        place_of(&server.address),
        when::span(now.since(server.started_at)),
        when::mebibytes(server.resident_bytes),
        server.pid,
        if server.sealed { ", SEALED" } else { "" },
        server.log.size,
        server.log.root,
    );
    text.push_str(&budget(status, now));
    text.push_str(&parts(&server.parts, now));
    for node in &status.nodes {
        text.push_str(&describe_node(node, now));
    }
    if status.nodes.is_empty() {
        text.push_str(
            "\nno machine has joined yet: `countersign token create` makes a token for one\n",
        );
    }
    text.push_str(&points(&status.points));
    text.push_str(&workloads(status));
    for warning in &status.warnings {
        text.push_str(&format!("\nwarning: {}\n", output::printable(warning)));
    }
    text
}

fn budget(status: &Status, now: Timestamp) -> String {
    let budget = &status.outage_budget;
    let guaranteed = when::span(Duration::from_secs(budget.guaranteed_seconds));
    match budget.ends_at {
        Some(ends) => format!(
            "  outage budget {}: the first credential in use expires at {ends} if the server stays away; {guaranteed} are guaranteed at any moment\n",
            when::span(ends.since(now))
        ),
        None => "  outage budget: no credential is in use\n".to_owned(),
    }
}

fn describe_node(node: &NodeStatus, now: Timestamp) -> String {
    let state = if node.connected {
        "connected".to_owned()
    } else {
        format!("AWAY, seen {}", when::relative(node.seen_at, now))
    };
    let revision =
        node.revision.map(|revision| format!(", revision {revision}")).unwrap_or_default();
    let skew = match node.clock_skew_millis {
        Some(millis) if 5000 < millis.unsigned_abs() => format!(", its clock is {millis} ms off"),
        Some(_) | None => String::new(),
    };
    let mut text = format!(
        "\nnode {} ({}), {state}{revision}{skew}\n",
        node.id,
        output::printable(&node.host)
    );
    text.push_str(&processes(&node.processes));
    text.push_str(&wanting(&node.processes, now));
    text.push_str(&credentials(&node.credentials, now));
    text
}

/// A sealed server has no door for agents.
fn place_of(address: &str) -> String {
    if address.is_empty() { String::new() } else { format!(" at {address}") }
}

fn processes(processes: &[ProcessView]) -> String {
    let mut table = Table::new(["process", "kind", "pid", "memory", "connections"]);
    for process in processes {
        table.row([
            process.name.clone(),
            process.kind.clone(),
            process.pid.to_string(),
            when::mebibytes(process.resident_bytes),
            process.connections.to_string(),
        ]);
    }
    if table.is_empty() { String::new() } else { table.render(2) }
}

/// How the parts stand that a process cannot do without.
fn parts(parts: &[PartView], now: Timestamp) -> String {
    let mut table = Table::new(["part", "last good", "last failure", "ends", "why it failed"]);
    for part in parts {
        let moment = |at: Option<Timestamp>, never: &str| {
            at.map_or_else(|| never.to_owned(), |at| when::relative(at, now))
        };
        table.row([
            part.part.clone(),
            moment(part.last_good_at, "never"),
            moment(part.last_failure_at, "never"),
            moment(part.ends_at, "-"),
            part.last_failure.clone().unwrap_or_default(),
        ]);
    }
    if table.is_empty() { String::new() } else { format!("\n{}", table.render(2)) }
}

/// Of the processes of a machine, the parts that they want and do not have.
fn wanting(processes: &[ProcessView], now: Timestamp) -> String {
    let mut text = String::new();
    for process in processes {
        let wanting = process.parts.iter().filter(|part| part.last_good_at < part.last_failure_at);
        for part in wanting {
            let since = part.last_failure_at.map(|at| when::relative(at, now)).unwrap_or_default();
            let why = part.last_failure.as_deref().unwrap_or_default();
            let why = output::printable(why);
            let (name, part) = (output::printable(&process.name), output::printable(&part.part));
            text.push_str(&format!(
                "  {name} wanted its {part} {since}, and did not get it: {why}\n"
            ));
        }
    }
    text
}

fn credentials(credentials: &[CredentialView], now: Timestamp) -> String {
    let mut table = Table::new(["identity", "age", "renews", "expires", "serial", "trouble"]);
    for credential in credentials {
        table.row([
            credential.spiffe_id.to_string(),
            when::span(now.since(credential.issued_at)),
            when::relative(credential.renewal_at, now),
            when::relative(credential.expires_at, now),
            credential.serial.to_string(),
            credential.trouble.clone().unwrap_or_default(),
        ]);
    }
    if table.is_empty() { String::new() } else { format!("\n{}", table.render(2)) }
}

fn points(points: &[PointStatus]) -> String {
    let mut table = Table::new(["enforcement point", "for", "live", "enforces", "connections"]);
    for point in points {
        let revision = point.revision.map(|revision| revision.to_string());
        table.row([
            point.name.clone(),
            point.spiffe_id.to_string(),
            if point.live { "yes" } else { "no" }.to_owned(),
            revision.unwrap_or_else(|| "nothing yet".to_owned()),
            point.connections.to_string(),
        ]);
    }
    if table.is_empty() { String::new() } else { format!("\n{}", table.render(0)) }
}

fn workloads(status: &Status) -> String {
    let mut table = Table::new(["workload", "identity", "lifetime", "guaranteed budget", "held"]);
    for workload in &status.workloads {
        table.row([
            workload.name.to_string(),
            workload.spiffe_id.to_string(),
            workload.lifetime.to_string(),
            when::span(Duration::from_secs(workload.guaranteed_budget_seconds)),
            workload.held.to_string(),
        ]);
    }
    if table.is_empty() { String::new() } else { format!("\n{}", table.render(0)) }
}

#[cfg(test)]
mod tests;
