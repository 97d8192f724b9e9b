//! `countersign address`: where a service of the running trust domain is reached.

use std::path::Path;

use anyhow::{Context, Result, bail};
use countersign_identity::Code;
use serde_json::json;

use super::layout::Whereabouts;
use crate::exit::{Exit, Failure};
use crate::output::{self, Output};

/// Print where a service is reached: the front door's URL, or the address of its mutual-TLS door.
#[derive(Debug, clap::Args)]
pub(crate) struct AddressArguments {
    /// The service's name
    #[arg(value_name = "SERVICE")]
    pub(crate) service: String,
}

pub(crate) fn address(
    arguments: &AddressArguments,
    up_json: &Path,
    output: Output,
) -> Result<Exit> {
    let found = find(arguments, up_json).map_err(|error| {
        let code = if up_json.exists() { Code::NotFound } else { Code::Unavailable };
        Failure::new(code, format!("{error:#}"))
    })?;
    match output {
        Output::Json => {
            output::json(&json!({ "service": arguments.service, "address": found }))?;
        }
        Output::Human => output::line(&found)?,
    }
    Ok(Exit::Done)
}

/// Looks the service up in what `up` wrote.
fn find(arguments: &AddressArguments, up_json: &Path) -> Result<String> {
    let text = std::fs::read(up_json).with_context(|| {
        format!(
            "cannot read {}: is `countersign up` running? else name its state with `--data DIR`",
            up_json.display()
        )
    })?;
    let whereabouts: Whereabouts = serde_json::from_slice(&text)
        .with_context(|| format!("{} was not written by `countersign up`", up_json.display()))?;
    match whereabouts.services.get(&arguments.service) {
        Some(url) => Ok(url.strip_prefix("https://").unwrap_or(url).to_owned()),
        None => {
            let known: Vec<_> =
                whereabouts.services.keys().map(|name| format!("`{name}`")).collect();
            bail!(
                "no service `{}` has an address: expected one of {}",
                arguments.service,
                known.join(", ")
            )
        }
    }
}
