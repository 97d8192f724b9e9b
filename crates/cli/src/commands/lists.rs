//! Lists and single changes over the admin socket.

use std::net::SocketAddr;

use anyhow::Result;
use countersign_api::admin::{CreateTokenRequest, LIST_MAX};
use countersign_api::resource::Kind;
use countersign_identity::{Clock as _, Lifetime, Name, NodeEvidence, NodeId, SystemClock};
use serde_json::json;

use super::when;
use crate::exit::{Exit, Failure};
use crate::find::Find;
use crate::output::{self, Output, Table, printable};

/// How many pages of nodes are asked for: a million nodes.
const PAGES_MAX: usize = 1000;

pub(crate) async fn create_token(
    find: &Find,
    ttl: Lifetime,
    labels: Vec<Name>,
    output: Output,
) -> Result<Exit> {
    let client = find.client()?;
    let response = client.create_token(&CreateTokenRequest { ttl, labels }).await?;
    match output {
        Output::Json => output::json(&response)?,
        Output::Human => {
            // The token is made: that a server does not say where it is dialled is no reason not to print it.
            let status = client.status().await.ok();
            let server = status.map(|status| status.server.address);
            let server = server.as_deref().filter(|at| is_dialled(at)).unwrap_or("ADDRESS");
            output::line(&format!(
                "On the machine that joins, before {} (the token works once):\n\n  \
                 COUNTERSIGN_JOIN={} countersign agent --data DIR --server {} --trust {}",
                response.expires,
                response.token,
                printable(server),
                response.trust
            ))?;
            if is_of_this_machine(server) {
                output::line(&format!(
                    "\n{} is this machine for whoever dials it: for agents elsewhere, the server is told \
                     `--listen` and `--advertise HOST:PORT`",
                    printable(server)
                ))?;
            }
        }
    }
    Ok(Exit::Done)
}

/// Whether an agent elsewhere can dial it, and not only a listener be there: all addresses of a machine are none.
fn is_dialled(address: &str) -> bool {
    let all = address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified());
    !address.is_empty() && !all
}

/// Whether the same address is another machine elsewhere.
fn is_of_this_machine(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _port)| host);
    let loopback = address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    loopback || host.eq_ignore_ascii_case("localhost")
}

pub(crate) async fn nodes(find: &Find, output: Output) -> Result<Exit> {
    let client = find.client()?;
    let mut nodes = Vec::new();
    let mut after = None;
    for _page in 0..PAGES_MAX {
        let page = client.nodes(after).await?;
        nodes.extend(page.nodes);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    if output == Output::Json {
        output::json(&json!({ "nodes": nodes }))?;
        return Ok(Exit::Done);
    }
    let now = SystemClock::new().now();
    let mut table = Table::new(["node", "host", "connected", "seen", "joined", "by", "labels"]);
    for node in nodes {
        let labels: Vec<&str> = node.labels.iter().map(Name::as_str).collect();
        table.row([
            node.id.to_string(),
            node.host,
            if node.connected { "yes" } else { "no" }.to_owned(),
            when::relative(node.seen_at, now),
            node.attested_at.to_string(),
            node.attested_by.map_or("unknown", NodeEvidence::as_str).to_owned(),
            labels.join(" "),
        ]);
    }
    show(&table, "no machine has joined yet: `countersign token create` makes a token for one")
}

fn show(table: &Table, empty: &str) -> Result<Exit> {
    if table.is_empty() {
        output::line(empty)?;
    } else {
        output::write(table.render(0).as_bytes())?;
    }
    Ok(Exit::Done)
}

pub(crate) async fn remove_node(find: &Find, node: NodeId, output: Output) -> Result<Exit> {
    let not_in_journal = find.client()?.remove_node(node).await?;
    match (output, &not_in_journal) {
        (Output::Json, None) => output::json(&json!({ "removed": node }))?,
        (Output::Json, Some(why)) => {
            output::json(&json!({ "removed": node, "notInJournal": why }))?;
        }
        (Output::Human, why) => {
            let lacking = super::revoke::lacking(why.as_deref(), "what it held is revoked");
            output::write(format!("node {node} is removed\n{lacking}").as_bytes())?;
        }
    }
    Ok(if not_in_journal.is_none() { Exit::Done } else { Exit::No })
}

pub(crate) async fn resources(find: &Find, kind: Option<Kind>, output: Output) -> Result<Exit> {
    let mut response = find.client()?.resources().await?;
    response.resources.retain(|resource| kind.is_none_or(|kind| resource.kind == kind));
    if output == Output::Json {
        output::json(&response)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(["kind", "name", "what"]);
    for resource in &response.resources {
        let text = |field: &str| resource.spec[field].as_str().unwrap_or_default().to_owned();
        let what = match resource.kind {
            Kind::TrustDomain => text("trustDomain"),
            Kind::Authority => {
                format!("roots of {}, issuers of {}", text("rootLifetime"), text("issuerLifetime"))
            }
            Kind::Workload => match text("spiffeId") {
                id if id.is_empty() => format!("the trust domain's /{}", resource.name),
                id => id,
            },
            Kind::Service => format!("of workload {}", text("workload")),
            Kind::TlsProfile => {
                let list = |field: &str| match resource.spec[field].as_array() {
                    Some(items) => {
                        items.iter().filter_map(|item| item.as_str()).collect::<Vec<_>>()
                    }
                    None => Vec::new(),
                };
                let weak = if resource.spec["weak"] == true { ", weak" } else { "" };
                format!("TLS {}, {}{weak}", list("versions").join(" "), list("groups").join(" "))
            }
            Kind::Role => {
                let of = |field: &str| resource.spec[field].as_array().map_or(0, Vec::len);
                let listed = of("workloads") + of("spiffeIds");
                let asked = [("labels", "labels"), ("selectors", "selectors")];
                let asked = asked.map(|(field, word)| (of(field), word));
                let asked = asked.iter().filter(|(count, _)| 0 < *count);
                let asked = asked.map(|(count, word)| format!(", those with {count} {word}"));
                format!("{listed} listed{}", asked.collect::<String>())
            }
            Kind::Policy => text("cedar").trim().lines().next().unwrap_or_default().to_owned(),
        };
        table.row([resource.kind.to_string(), resource.name.to_string(), what]);
    }
    show(&table, "nothing is declared: `countersign apply PATH` declares manifests")
}

pub(crate) async fn remove_resource(
    find: &Find,
    kind: Kind,
    name: &Name,
    output: Output,
) -> Result<Exit> {
    let response = find.client()?.remove_resource(kind, name).await?;
    match output {
        Output::Json => output::json(&response)?,
        Output::Human => {
            output::line(&format!("{kind}/{name} is removed, revision {}", response.revision))?;
        }
    }
    Ok(Exit::Done)
}

pub(crate) async fn events(
    find: &Find,
    limit: usize,
    after: Option<u64>,
    output: Output,
) -> Result<Exit> {
    if limit == 0 || LIST_MAX < limit {
        let message = format!("`--limit {limit}` is out of range: expected 1 to {LIST_MAX}");
        return Err(Failure::not_understood(message).into());
    }
    let response = find.client()?.events(limit, after).await?;
    if output == Output::Json {
        output::json(&response)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(["index", "at", "kind", "actor", "subject", "revision"]);
    for event in &response.events {
        table.row([
            event.index.to_string(),
            event.at.to_string(),
            event.kind.clone(),
            event.actor.clone(),
            event.subject.clone(),
            event.revision.to_string(),
        ]);
    }
    show(&table, "no event")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leads_to_the_server_from_elsewhere_is_said_without_a_word() {
        for nowhere in ["", "0.0.0.0:8443", "[::]:8443"] {
            assert!(!is_dialled(nowhere), "{nowhere}");
        }
        for here in ["127.0.0.1:8443", "127.9.9.9:1", "[::1]:8443", "localhost:8443", "LOCALHOST"] {
            assert!(is_dialled(here) && is_of_this_machine(here), "{here}");
        }
        for elsewhere in ["one.example:8443", "192.0.2.1:8443", "localhost.example:1", "ADDRESS"] {
            assert!(is_dialled(elsewhere) && !is_of_this_machine(elsewhere), "{elsewhere}");
        }
    }
}
