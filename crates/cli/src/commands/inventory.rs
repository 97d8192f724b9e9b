//! `countersign inventory`: what is declared, against what is seen.

use anyhow::Result;
use clap::Args;
use countersign_api::admin::{InventoryResponse, ServiceView};
use countersign_identity::{Clock as _, Lifetime, SystemClock};

use super::when;
use crate::exit::Exit;
use crate::find::Find;
use crate::output::{self, Output, Table, printable};

/// Show the services, and endpoints that nobody declared, that nobody serves, and that are spoken to in plain text
///
/// Exit status 0 when what is declared is what is seen, 1 when it differs.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How far back to look at who asked for what
    #[arg(long, default_value = "90d", value_name = "SPAN")]
    since: Lifetime,

    #[command(flatten)]
    find: Find,
}

pub(crate) async fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    let response = arguments.find.client()?.inventory(arguments.since.duration()).await?;
    match output {
        Output::Json => output::json(&response)?,
        Output::Human => output::write(describe(&response).as_bytes())?,
    }
    Ok(if response.findings.is_empty() { Exit::Done } else { Exit::No })
}

fn describe(response: &InventoryResponse) -> String {
    let now = SystemClock::new().now();
    let seen = |at: Option<countersign_identity::Timestamp>| {
        at.map_or_else(|| "never".to_owned(), |at| when::relative(at, now))
    };
    let mut table = Table::new(["service", "what", "data", "tls", "served", "last asked"]);
    for view in &response.services {
        let ServiceView { service, protocol, mutual_tls, tls_profile, classification, .. } = view;
        let tls = match mutual_tls.as_str() {
            "required" => tls_profile.clone(),
            _ => "plain".to_owned(),
        };
        let served = if view.served { "yes" } else { "no" };
        let data = classification.clone().unwrap_or_default();
        let (name, last) = (service.to_string(), seen(view.last_seen));
        table.row([name, protocol.clone(), data, tls, served.to_owned(), last]);
        for operation in &view.operations {
            let sets = operation.data_sets.iter().map(ToString::to_string).collect::<Vec<_>>();
            let (name, last) =
                (format!("{service}/{}", operation.operation), seen(operation.last_seen));
            let none = String::new;
            table.row([name, operation.what.clone(), sets.join(" "), none(), none(), last]);
        }
    }
    let mut text = if table.is_empty() { "no service\n".to_owned() } else { table.render(0) };
    for finding in &response.findings {
        let by = match finding.sources.as_slice() {
            [] => String::new(),
            sources => format!(" ({}×, by {})", finding.count, printable(&sources.join(", "))),
        };
        let (kind, service) = (finding.kind.as_str(), &finding.service);
        text.push_str(&format!("{kind}: {service}: {}{by}\n", printable(&finding.what)));
    }
    text
}
