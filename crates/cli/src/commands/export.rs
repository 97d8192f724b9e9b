//! `countersign export`: what is declared, as manifests; applying them again changes nothing.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::history::Named;
use crate::exit::{Exit, Failure};
use crate::find::Find;
use crate::manifest;
use crate::output::{self, Output};

/// Write what is declared as a folder of manifests, which `apply` takes as no change
///
/// What programs are told in their environment is in them, so only you may read the files.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The folder, which is made, or must be empty
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// What was declared at this revision [default: the one in force]
    #[arg(long, value_name = "REVISION")]
    revision: Option<Named>,

    #[command(flatten)]
    find: Find,
}

pub(crate) async fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    let client = arguments.find.client()?;
    let response = match arguments.revision {
        Some(revision) => client.resources_at(revision.resolve(&client).await?).await?,
        None => client.resources().await?,
    };
    let resources = super::apply::in_force(&response);
    if resources.len() != response.resources.len() {
        let message = "the server declares something that this version does not understand";
        return Err(Failure::not_understood(message).into());
    }
    make(&arguments.folder)?;
    for resource in &resources {
        let kind = resource.kind().as_str().to_ascii_lowercase();
        let path = arguments.folder.join(format!("{kind}-{}.yaml", resource.name));
        write(&path, &manifest::write(resource))?;
    }
    let (count, revision) = (resources.len(), response.revision);
    match output {
        Output::Json => output::json(&json!({ "revision": revision, "resources": count }))?,
        Output::Human => output::line(&format!(
            "{count} manifests of revision {revision} are in `{}`",
            arguments.folder.display()
        ))?,
    }
    Ok(Exit::Done)
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    let why = manifest::plain(error);
    Failure::not_understood(format!("`{}` cannot be written: {why}", path.display()))
}

fn make(folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
    let mut entries = std::fs::read_dir(folder).map_err(|error| failed(folder, &error))?;
    if entries.next().is_some() {
        let folder = folder.display();
        return Err(Failure::new(
            countersign_identity::Code::AlreadyExists,
            format!("`{folder}` is not empty: name another folder, or empty it"),
        ));
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    use std::io::Write as _;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| failed(path, &error))
}
