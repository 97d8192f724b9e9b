//! `countersign console`: the way into the operators' web pages.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::exit::Exit;
use crate::find::Find;
use crate::out::New;
use crate::output::{self, Output};

/// Print a link to the console, which lets one browser in, once, within five minutes
///
/// The console is served over TLS with a certificate of the trust domain's own issuer. A browser trusts it when it trusts the
/// root, which `--root` writes; docs/console.md says where browsers take it. Whoever has the link may look at everything, and
/// change nothing.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Write the trust domain's root, PEM, for browsers to trust
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,

    #[command(flatten)]
    find: Find,
}

pub(crate) async fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    let link = arguments.find.client()?.console_link().await?;
    if let Some(path) = &arguments.root {
        crate::out::write(path, New::Public, link.root.as_bytes())?;
    }
    match output {
        Output::Json => output::json(&link)?,
        Output::Human => output::line(&link.url)?,
    }
    Ok(Exit::Done)
}
