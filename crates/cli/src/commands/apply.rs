//! `countersign apply`: manifests become the desired state, as one revision or not at all.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use countersign_api::admin::{
    AdminClient, AdminError, ApplyRequest, ApplyResponse, ResourcesResponse,
};
use countersign_api::resource::{API_VERSION, Resource, Tree};
use countersign_identity::Revision;

use crate::exit::Exit;
use crate::find::Find;
use crate::manifest::{Manifests, Problems};
use crate::output::{self, Output};

/// Make manifests the desired state, as one revision or not at all
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A folder of manifests, one file, or `-` for standard input
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Also remove what is declared now and not in the manifests
    #[arg(long)]
    prune: bool,

    /// Only say what would change
    #[arg(long)]
    dry_run: bool,

    /// Only if this is still the revision in force, such as `1.412`
    #[arg(long, value_name = "REVISION")]
    base: Option<Revision>,

    #[command(flatten)]
    find: Find,
}

pub(crate) async fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    let manifests = Manifests::read(&arguments.path)?;
    let client = arguments.find.client()?;
    let problems = problems(&manifests, &client, arguments.prune).await?;
    if !problems.is_empty() {
        return Err(Problems::from(problems).into());
    }
    let request = ApplyRequest {
        resources: manifests.resources.iter().map(Resource::manifest).collect(),
        base: arguments.base,
        prune: arguments.prune,
        dry_run: arguments.dry_run,
    };
    let response = client.apply(&request).await.map_err(|error| located(error, &manifests))?;
    match output {
        Output::Json => output::json(&response)?,
        Output::Human => output::write(describe(&response, arguments.dry_run).as_bytes())?,
    }
    Ok(Exit::Done)
}

/// What is wrong with the manifests together with what is in force. Problems of the manifests alone are told
/// even if no server answers.
async fn problems(
    manifests: &Manifests,
    client: &AdminClient,
    prune: bool,
) -> Result<Vec<countersign_api::resource::Problem>> {
    let asked = async { Ok::<_, AdminError>((client.status().await?, client.resources().await?)) };
    match asked.await {
        Ok((status, resources)) => {
            let others = if prune { Vec::new() } else { in_force(&resources) };
            Ok(manifests.problems_of_set(&others, Some(&status.trust_domain)))
        }
        Err(error) if manifests.own_problems().is_empty() => Err(error.into()),
        Err(_unreachable) => Ok(manifests.own_problems().to_vec()),
    }
}

/// The resources in force. One that this version does not understand is left to the server.
fn in_force(response: &ResourcesResponse) -> Vec<Resource> {
    let manifest = |view: &countersign_api::admin::ResourceView| {
        serde_json::json!({
            "apiVersion": API_VERSION,
            "kind": view.kind,
            "metadata": { "name": view.name },
            "spec": view.spec,
        })
    };
    let read = |view| Resource::read(&Tree::from_value(&manifest(view))).ok();
    response.resources.iter().filter_map(read).collect()
}

fn located(error: AdminError, manifests: &Manifests) -> AdminError {
    match error {
        AdminError::Refused(mut refusal) => {
            let problems = std::mem::take(&mut refusal.problems);
            refusal.problems =
                problems.into_iter().map(|problem| manifests.locate(problem)).collect();
            AdminError::Refused(refusal)
        }
        other => other,
    }
}

fn describe(response: &ApplyResponse, dry_run: bool) -> String {
    let mut text = String::new();
    for change in &response.changes {
        text.push_str(&format!("{} {}/{}\n", change.action, change.kind, change.name));
    }
    let count = response.changes.len();
    text.push_str(&match (count, dry_run) {
        (0, _) => format!("nothing to change, revision {}\n", response.revision),
        (_, true) => format!("nothing was changed: revision {} stays\n", response.revision),
        (_, false) => format!("revision {}\n", response.revision),
    });
    text
}
