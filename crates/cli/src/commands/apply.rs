//! `countersign apply`: manifests become the desired state, as one revision or not at all.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use countersign_api::admin::{
    AdminClient, AdminError, ApplyRequest, ApplyResponse, ResourcesResponse,
};
use countersign_api::resource::{API_VERSION, Kind, Resource, Tree};
use countersign_identity::{Lifetime, Revision};

use super::plan;
use crate::exit::{Exit, Failure};
use crate::find::Find;
use crate::manifest::{Manifests, Problems};
use crate::output::{self, Output};

/// Make manifests the desired state, as one revision or not at all
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A folder of manifests, one file, or `-` for standard input
    #[arg(value_name = "PATH", required_unless_present = "plan", conflicts_with = "plan")]
    path: Option<PathBuf>,

    /// Carry out a plan that `plan --out` wrote, if nothing has moved since
    #[arg(long, value_name = "FILE", conflicts_with_all = ["base", "prune"])]
    plan: Option<PathBuf>,

    /// Also remove what is declared now and not in the manifests, which are all there are: the TrustDomain's has to be among them
    #[arg(long)]
    prune: bool,

    /// Only say what would change
    #[arg(long)]
    dry_run: bool,

    /// Only if this is still the revision in force, such as `1.412`
    #[arg(long, value_name = "REVISION", value_parser = super::named::revision)]
    base: Option<Revision>,

    /// Wait until every live enforcement point enforces it
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,

    /// How long to wait
    #[arg(long, default_value = "30s", value_name = "SPAN", requires = "wait")]
    timeout: Lifetime,

    #[command(flatten)]
    find: Find,
}

pub(crate) async fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    let client = arguments.find.client()?;
    let (manifests, request) = match (&arguments.plan, &arguments.path) {
        (Some(file), _) => {
            let file = plan::read(file)?;
            let (resources, prune, base) = (file.resources, file.prune, file.plan.base);
            let dry_run = arguments.dry_run;
            (None, ApplyRequest { resources, base, prune, dry_run })
        }
        (None, path) => {
            let path = path.as_deref().unwrap_or_else(|| Path::new("-"));
            let manifests = Manifests::read(path)?;
            if arguments.prune {
                whole(&manifests, path, || in_force_at(&client)).await?;
            }
            // What else is wrong the server finds, which looks at the whole anyway.
            if !manifests.own_problems().is_empty() {
                let problems = problems(&manifests, &client, arguments.prune).await?;
                return Err(Problems::from(problems).into());
            }
            let request = ApplyRequest {
                resources: manifests.resources.iter().map(Resource::manifest).collect(),
                base: arguments.base,
                prune: arguments.prune,
                dry_run: arguments.dry_run,
            };
            (Some(manifests), request)
        }
    };
    let manifests = manifests.as_ref();
    if request.prune && output == Output::Human {
        // What goes with what is removed is said before it is done.
        match client.plan(&request).await {
            Ok(plan) => output::write(plan::impact(&plan).as_bytes())?,
            Err(error) => return Err(explained(error, manifests, &client, true).await),
        }
    }
    let response = match client.apply(&request).await {
        Ok(response) => response,
        Err(error) => return Err(explained(error, manifests, &client, request.prune).await),
    };
    let wait = arguments.wait.then_some(arguments.timeout.duration());
    tell(&client, &response, arguments.dry_run, wait, output).await
}

/// Says what was changed, and waits until it is enforced, if that is wanted.
pub(super) async fn tell(
    client: &AdminClient,
    response: &ApplyResponse,
    dry_run: bool,
    wait: Option<Duration>,
    output: Output,
) -> Result<Exit> {
    if output == Output::Human {
        // Said before anything is waited for: it is durable, whatever comes next.
        output::write(describe(response, dry_run).as_bytes())?;
    }
    let Some(wait) = wait else {
        if output == Output::Json {
            output::json(response)?;
        }
        let done = response.not_in_journal.is_none();
        return Ok(if done { Exit::Done } else { Exit::No });
    };
    let convergence = super::revoke::enforced(client, response.revision, wait, output).await?;
    let (live, enforcing) = (convergence.live, convergence.enforcing);
    match output {
        Output::Json => output::json(&serde_json::json!({
            "revision": response.revision, "changes": response.changes,
            "live": live, "enforcing": enforcing, "missing": convergence.missing,
            "notInJournal": response.not_in_journal,
        }))?,
        Output::Human => {
            output::line(&format!("{enforcing} of {live} enforcement points enforce it"))?;
        }
    }
    let done = convergence.is_converged() && response.not_in_journal.is_none();
    Ok(if done { Exit::Done } else { Exit::No })
}

/// Why nothing was applied: where it is the manifests, with the places in the files, which the server does not know.
async fn explained(
    error: AdminError,
    manifests: Option<&Manifests>,
    client: &AdminClient,
    prune: bool,
) -> anyhow::Error {
    let Some(manifests) = manifests else { return error.into() };
    if let AdminError::Refused(_) = &error
        && let Ok(problems) = problems(manifests, client, prune).await
        && !problems.is_empty()
    {
        return Problems::from(problems).into();
    }
    located(error, manifests).into()
}

/// Makes sure that manifests beside which everything else is to be removed are meant as all there are. A file or a folder of a
/// part of them does not hold the trust domain's own, or nothing of what runs in it.
pub(super) async fn whole<F>(
    manifests: &Manifests,
    path: &Path,
    in_force: impl FnOnce() -> F,
) -> Result<()>
where
    F: Future<Output = Result<Vec<Resource>>>,
{
    let domain = |one: &Resource| one.kind() == Kind::TrustDomain;
    let runs = |one: &Resource| matches!(one.kind(), Kind::Workload | Kind::Service);
    let (given, is_folder) = (&manifests.resources, path.is_dir());
    // What is wrong with manifests that cannot be read is told first.
    if !manifests.own_problems().is_empty() {
        return Ok(());
    }
    let lacks_domain = !given.iter().any(domain);
    let lacking = if lacks_domain && !is_folder {
        "the manifest of kind `TrustDomain`"
    } else {
        let in_force = in_force().await?;
        // A trust domain that was never declared is in no folder that `export` wrote.
        if lacks_domain && in_force.iter().any(domain) {
            "the manifest of kind `TrustDomain`"
        } else if in_force.iter().any(runs) && !given.iter().any(runs) {
            "any `Workload` or `Service`, though there are some"
        } else {
            return Ok(());
        }
    };
    let shown = match path.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => format!("`{}`", path.display()),
    };
    Err(Failure::not_understood(format!(
        "`--prune` would remove all that is not in {shown}, which does not hold {lacking}, so it seems to be a part: \
         give the folder of all manifests, such as one that `countersign export DIR` writes, or leave `--prune` out; one \
         resource alone is removed by `countersign resource remove KIND NAME`"
    ))
    .into())
}

/// What is declared at a server.
pub(super) async fn in_force_at(client: &AdminClient) -> Result<Vec<Resource>> {
    Ok(in_force(&client.resources().await?))
}

/// What is wrong with the manifests together with what is in force. Problems of the manifests alone are told
/// even if no server answers.
pub(super) async fn problems(
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
pub(super) fn in_force(response: &ResourcesResponse) -> Vec<Resource> {
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

pub(super) fn located(error: AdminError, manifests: &Manifests) -> AdminError {
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
    let what = "what was removed is revoked";
    text.push_str(&super::revoke::lacking(response.not_in_journal.as_deref(), what));
    text
}
