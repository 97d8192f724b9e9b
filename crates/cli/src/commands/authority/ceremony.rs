//! `countersign authority prepare --root-key external` and `authority import`: what a root outside signs.

use std::path::Path;

use anyhow::Result;
use countersign_api::admin::{CeremonyRequest, ImportRequest, ImportResponse, RequestView};

use super::arguments::{PrepareArguments, Waiting};
use super::{follow, print};
use crate::commands::read_file;
use crate::exit::{Exit, Failure};
use crate::find::Find;
use crate::out::New;
use crate::output::{self, Output};

/// The longest chain that is read.
const CHAIN_BYTES_MAX: u64 = 1024 * 1024;

/// Gives the request that an authority outside is to sign.
pub(super) async fn request(arguments: &PrepareArguments, output: Output) -> Result<Exit> {
    if arguments.step.force.is_some() {
        let why =
            "there is no gate before a request: `--force` does not go with `--root-key external`";
        return Err(Failure::not_understood(why).into());
    }
    let client = arguments.step.find.client()?;
    let request = client.request_issuer(&CeremonyRequest { anew: arguments.anew }).await?;
    let RequestView { key, at, csr, .. } = &request;
    if let Some(path) = &arguments.out {
        crate::out::write(path, New::Public, csr.as_bytes())?;
    }
    match (output, &arguments.out) {
        (Output::Json, _) => output::json(&request)?,
        (Output::Human, None) => output::write(csr.as_bytes())?,
        (Output::Human, Some(path)) => output::line(&format!(
            "the request of {at} for key {key} is in {}: have it signed by the authority outside, with the extensions that it \
             asks for\nnext: countersign authority import CHAIN.pem",
            path.display()
        ))?,
    }
    Ok(Exit::Done)
}

/// Brings what it has signed.
pub(super) async fn import(
    chain: &Path,
    wait: &Waiting,
    find: &Find,
    output: Output,
) -> Result<Exit> {
    let chain = if chain.as_os_str() == "-" { Path::new("/dev/stdin") } else { chain };
    let text =
        String::from_utf8_lossy(&read_file(&chain.to_owned(), CHAIN_BYTES_MAX)?).into_owned();
    let client = find.client()?;
    let response = client.import_issuer(&ImportRequest { chain: text }).await?;
    if response.walks && wait.wait {
        return follow(&client, wait.timeout(), output).await;
    }
    print(output, &response, || said(&response))?;
    Ok(Exit::Done)
}

fn said(response: &ImportResponse) -> String {
    let ImportResponse { revision, issuer, expires, root, walks } = response;
    match walks {
        true => format!(
            "root {root} is new here: the walk is under way from revision {revision} on, and its issuer {issuer} signs when the \
             gate opens; `countersign authority list` shows it\n"
        ),
        false => format!("issuer {issuer} signs from revision {revision} on, until {expires}\n"),
    }
}
