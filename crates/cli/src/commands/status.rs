//! `countersign status`: who is alive, under which identity, until when.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use countersign_api::admin::{
    Handshake, HandshakeDirection, HandshakesResponse, NodeStatus, PointStatus, Status,
};
use countersign_identity::{Clock, SystemClock, Timestamp};

use super::when;
use crate::exit::Exit;
use crate::find::Find;
use crate::output::{self, Output, Table};
use crate::settings;

/// Show who is alive, which identity, age and next renewal, revision, and outage budget
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Show the latest handshakes instead, refused ones with their reason
    #[arg(long, conflicts_with = "config")]
    handshakes: bool,

    /// How many handshakes
    #[arg(long, default_value_t = 50, value_name = "COUNT", requires = "handshakes")]
    limit: usize,

    /// Show each setting of the programs on this data directory instead, and where it came from
    #[arg(long)]
    config: bool,

    /// Show it again every two seconds, until interrupted
    #[arg(long, conflicts_with = "config")]
    watch: bool,

    #[command(flatten)]
    find: Find,
}

/// How long `--watch` waits between two looks.
const WATCH_EVERY: Duration = Duration::from_secs(2);

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
    let client = arguments.find.client()?;
    if arguments.handshakes {
        let response = client.handshakes(arguments.limit, None).await?;
        return Ok(match output {
            Output::Json => serde_json::to_string(&response)? + "\n",
            Output::Human => handshakes(&response),
        });
    }
    let status = client.status().await?;
    Ok(match output {
        Output::Json => serde_json::to_string(&status)? + "\n",
        Output::Human => describe(&status, now),
    })
}

fn describe(status: &Status, now: Timestamp) -> String {
    let server = &status.server;
    let mut text = format!(
        "trust domain {}, revision {}\n\nserver {} at {}, up {}, {}, pid {}{}\n  log of {} events, root {}\n",
        status.trust_domain,
        status.revision,
        server.version,
        server.address,
        when::span(now.since(server.started_at)),
        when::mebibytes(server.resident_bytes),
        server.pid,
        if server.sealed { ", SEALED" } else { "" },
        server.log.size,
        server.log.root,
    );
    text.push_str(&budget(status, now));
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
    let mut processes = Table::new(["process", "kind", "pid", "memory", "connections"]);
    for process in &node.processes {
        processes.row([
            process.name.clone(),
            process.kind.clone(),
            process.pid.to_string(),
            when::mebibytes(process.resident_bytes),
            process.connections.to_string(),
        ]);
    }
    if !processes.is_empty() {
        text.push_str(&processes.render(2));
    }
    let mut credentials = Table::new(["identity", "age", "renews", "expires", "serial", "trouble"]);
    for credential in &node.credentials {
        credentials.row([
            credential.spiffe_id.to_string(),
            when::span(now.since(credential.issued_at)),
            when::relative(credential.renewal_at, now),
            when::relative(credential.expires_at, now),
            credential.serial.to_string(),
            credential.trouble.clone().unwrap_or_default(),
        ]);
    }
    if !credentials.is_empty() {
        text.push('\n');
        text.push_str(&credentials.render(2));
    }
    text
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

fn handshakes(response: &HandshakesResponse) -> String {
    let mut table =
        Table::new(["at", "at the door of", "peer", "outcome", "count", "took", "tls", "detail"]);
    for handshake in &response.handshakes {
        table.row([
            handshake.at.to_string(),
            place(handshake),
            peer(handshake),
            handshake.code.map_or_else(|| "admitted".to_owned(), |code| format!("refused: {code}")),
            handshake.count.to_string(),
            format!("{} µs", handshake.micros),
            format!("{} {}", handshake.version, handshake.group).trim().to_owned(),
            handshake.detail.clone(),
        ]);
    }
    if table.is_empty() {
        return "no handshake was seen yet\n".to_owned();
    }
    let lost = match response.dropped {
        0 => String::new(),
        dropped => {
            format!("\n{dropped} handshakes were not told, because there were too many at once\n")
        }
    };
    table.render(0) + &lost
}

fn place(handshake: &Handshake) -> String {
    let door = if handshake.service.is_empty() { &handshake.point } else { &handshake.service };
    match handshake.direction {
        HandshakeDirection::Inbound => door.clone(),
        HandshakeDirection::Outbound => format!("{door} (dialled)"),
    }
}

fn peer(handshake: &Handshake) -> String {
    let name = match handshake.direction {
        HandshakeDirection::Inbound => &handshake.peer_id,
        // For a dialled door, who dialled is what one looks for.
        HandshakeDirection::Outbound => &handshake.local_id,
    };
    if name.is_empty() { handshake.peer_address.clone() } else { name.clone() }
}

#[cfg(test)]
mod tests;
