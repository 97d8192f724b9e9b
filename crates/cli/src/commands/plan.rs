//! `countersign plan`: what manifests would change, and whom that would hit; nothing is changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};
use countersign_api::admin::{
    Action, ApplyRequest, PlanApproval, PlanResponse, PlannedChange, differences,
};
use countersign_api::resource::{Kind, Resource};
use countersign_identity::{Clock as _, Name, SystemClock};
use serde::{Deserialize, Serialize};

use super::changes;
use crate::exit::{Exit, Failure};
use crate::find::Find;
use crate::manifest::{Manifests, Problems};
use crate::out::New;
use crate::output::{self, Output, printable};

/// Say what manifests would change, and which flows that would deny or allow; change nothing
///
/// The flows are those of the last 24 hours, decided by the very code that the proxies run. Exit status 0, whether
/// something would change or not.
///
/// Where others have to approve (`changes` of the TrustDomain): `plan DIR --out FILE`, `plan approve FILE` by each of them,
/// `apply --plan FILE`. A folder of the name of a command is written `./approve`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: Option<What>,

    /// A folder of manifests, one file, or `-` for standard input
    #[arg(value_name = "PATH", required = true)]
    path: Option<PathBuf>,

    /// As `apply --prune`: what is declared now and not in the manifests would be removed
    #[arg(long)]
    prune: bool,

    /// Ask no server: check the manifests, and compare them with nothing, or with `--against`
    #[arg(long)]
    offline: bool,

    /// The folder of manifests to compare with, such as one that `export` wrote
    #[arg(long, value_name = "DIR", requires = "offline")]
    against: Option<PathBuf>,

    /// Write the plan to a file, which `apply --plan` carries out if nothing has moved
    #[arg(long, value_name = "FILE", conflicts_with = "offline")]
    out: Option<PathBuf>,

    #[command(flatten)]
    find: Find,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Say what a plan would change that was written to a file, as the server finds it now, and who has approved it
    Show(FileArguments),
    /// Approve a plan, as one of those whom the TrustDomain names
    ///
    /// It is approved for the revision that it was made for, as the server finds it, and for no other. Whoever applies it does
    /// not count as one who has approved it.
    Approve(FileArguments),
}

#[derive(Debug, Args)]
struct FileArguments {
    /// What `plan --out` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    find: Find,
}

/// A plan as a file: what is to be approved, and what is then applied.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PlanFile {
    /// The form of the file.
    version: u32,
    pub(super) prune: bool,
    pub(super) resources: Vec<serde_json::Value>,
    pub(super) plan: PlanResponse,
}

const VERSION: u32 = 1;
/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

pub(crate) async fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    if let Some(what) = &arguments.what {
        return of_file(what, output).await;
    }
    let path = arguments.path.as_deref().unwrap_or_else(|| Path::new("-"));
    let manifests = Manifests::read(path)?;
    let plan = if arguments.offline {
        offline(arguments, &manifests, path).await?
    } else {
        let client = arguments.find.client()?;
        if arguments.prune {
            super::apply::whole(&manifests, path, || super::apply::in_force_at(&client)).await?;
        }
        let problems = super::apply::problems(&manifests, &client, arguments.prune).await?;
        if !problems.is_empty() {
            return Err(Problems::from(problems).into());
        }
        let request = ApplyRequest {
            resources: manifests.resources.iter().map(Resource::manifest).collect(),
            base: None,
            prune: arguments.prune,
            dry_run: true,
        };
        let located = |error| super::apply::located(error, &manifests);
        let plan = client.plan(&request).await.map_err(located)?;
        if let Some(out) = &arguments.out {
            let (prune, resources) = (arguments.prune, request.resources);
            let file = PlanFile { version: VERSION, prune, resources, plan: plan.clone() };
            // What programs are told in their environment is in it.
            crate::out::write(out, New::Private, &file.bytes()?)?;
        }
        plan
    };
    match output {
        Output::Json => output::json(&plan)?,
        Output::Human => output::write(describe(&plan, arguments.out.as_deref()).as_bytes())?,
    }
    Ok(Exit::Done)
}

/// What a plan comes to that was written before, as the server finds it: what the file says of that is not looked at.
async fn of_file(what: &What, output: Output) -> Result<Exit> {
    let (What::Show(FileArguments { file, find }) | What::Approve(FileArguments { file, find })) =
        what;
    let PlanFile { resources, prune, plan: PlanResponse { base, .. }, .. } = read(file)?;
    let request = ApplyRequest { resources, base, prune, dry_run: true };
    let client = find.client()?;
    let plan = match what {
        What::Show(_) => client.plan(&request).await?,
        What::Approve(_) => client.approve_plan(&request).await?,
    };
    match output {
        Output::Json => output::json(&plan)?,
        Output::Human => output::write(describe(&plan, None).as_bytes())?,
    }
    Ok(Exit::Done)
}

/// Reads a plan that was written before.
pub(super) fn read(path: &Path) -> Result<PlanFile> {
    let bytes = super::read_file(&path.to_owned(), FILE_BYTES_MAX)?;
    Ok(PlanFile::parse(path, &bytes)?)
}

impl PlanFile {
    /// Reads what was written to a file of this name.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Failure> {
        let bad = |why: String| {
            Failure::not_understood(format!(
                "`{}` is not a plan of `countersign plan --out`: {why}",
                path.display()
            ))
        };
        let file: Self = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
        if file.version != VERSION {
            return Err(bad(format!("version {}, expected {VERSION}", file.version)));
        }
        if file.plan.base.is_none() {
            return Err(bad("it was made for no revision".to_owned()));
        }
        Ok(file)
    }

    /// What is written to a file.
    pub(super) fn bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec_pretty(self)
    }
}

/// The difference between two sets of manifests.
async fn offline(
    arguments: &Arguments,
    manifests: &Manifests,
    path: &Path,
) -> Result<PlanResponse> {
    let before = match &arguments.against {
        Some(folder) => Manifests::read(folder)?.resources,
        None => Vec::new(),
    };
    if arguments.prune {
        super::apply::whole(manifests, path, || async { Ok(before.clone()) }).await?;
    }
    let kept = if arguments.prune { Vec::new() } else { before.clone() };
    let problems = manifests.problems_of_set(&kept, None);
    if !problems.is_empty() {
        return Err(Problems::from(problems).into());
    }
    let changes = between(&before, &manifests.resources);
    let (gone, changes): (Vec<_>, Vec<_>) =
        changes.into_iter().partition(|change| change.action == Action::Remove);
    let kept = gone.iter().map(|change| format!("{}/{}", change.kind, change.name)).collect();
    let (changes, kept) = match arguments.prune {
        true => (changes.into_iter().chain(gone).collect(), Vec::new()),
        false => (changes, kept),
    };
    let (newly_denied, newly_allowed) = (Vec::new(), Vec::new());
    let (assumed, consequences) = (Vec::new(), Vec::new());
    Ok(PlanResponse {
        base: None,
        changes,
        kept,
        newly_denied,
        newly_allowed,
        assumed,
        consequences,
        approval: None,
    })
}

/// What differs between two sets of resources.
pub(super) fn between(before: &[Resource], after: &[Resource]) -> Vec<PlannedChange> {
    let by_key = |set: &[Resource]| -> BTreeMap<(Kind, Name), serde_json::Value> {
        set.iter().map(|one| ((one.kind(), one.name.clone()), one.spec.json())).collect()
    };
    let (before, after) = (by_key(before), by_key(after));
    let mut keys: Vec<_> = before.keys().chain(after.keys()).collect();
    keys.sort();
    keys.dedup();
    let mut changes = Vec::new();
    for key in keys {
        let (action, fields) = match (before.get(key), after.get(key)) {
            (Some(before), Some(after)) if before == after => continue,
            (Some(before), Some(after)) => (Action::Update, differences(before, after)),
            (Some(_), None) => (Action::Remove, Vec::new()),
            (None, _) => (Action::Create, Vec::new()),
        };
        let (kind, name) = key.clone();
        changes.push(PlannedChange { action, kind, name, fields, last: None });
    }
    changes
}

fn describe(plan: &PlanResponse, out: Option<&Path>) -> String {
    let base = plan.base.map(|base| format!(" to revision {base}")).unwrap_or_default();
    let mut text = match plan.changes.len() {
        0 => format!("nothing would change{base}\n"),
        1 => format!("1 change{base}\n"),
        count => format!("{count} changes{base}\n"),
    };
    text.push_str(&changes::describe(&plan.changes));
    text.push_str(&impact(plan));
    if !plan.kept.is_empty() {
        text.push_str(&format!(
            "stays, since it is not named (`--prune` would remove it): {}\n",
            plan.kept.join(", ")
        ));
    }
    if let Some(approval) = &plan.approval {
        text.push_str(&format!("plan {}: {}\n", approval.digest, approvals(approval)));
    }
    if let Some(out) = out {
        text.push_str(&format!(
            "written to `{}`: `countersign apply --plan` carries it out\n",
            out.display()
        ));
    }
    text
}

fn approvals(approval: &PlanApproval) -> String {
    let PlanApproval { digest: _, needed, among, given } = approval;
    let given: Vec<_> = given.iter().map(|given| printable(&given.actor)).collect();
    let by = if given.is_empty() { String::new() } else { format!(" ({})", given.join(", ")) };
    format!(
        "{} of {needed} have approved it{by}, among {}; who applies it does not count",
        given.len(),
        printable(&among.join(", "))
    )
}

/// Whom it hits.
pub(super) fn impact(plan: &PlanResponse) -> String {
    let now = SystemClock::new().now();
    let mut text = String::new();
    for (flows, what) in [(&plan.newly_denied, "denied"), (&plan.newly_allowed, "allowed")] {
        if !flows.is_empty() {
            let plural = if flows.len() == 1 { "flow" } else { "flows" };
            let count = flows.len();
            text.push_str(&format!("  {count} {plural} of the last 24 h would be {what}:\n"));
            text.push_str(&changes::flows(flows, now));
        }
    }
    if !plan.assumed.is_empty() {
        let assumed = printable(&plan.assumed.join("; "));
        text.push_str(&format!("  of flows it is assumed, since policies read it: {assumed}\n"));
    }
    for said in &plan.consequences {
        text.push_str(&format!("  {}\n", printable(said)));
    }
    text
}
