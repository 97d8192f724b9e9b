//! `countersign history`, `show`, `diff`, `rollback`, `drift`: what was declared when, by whom, and going back.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use countersign_api::admin::{
    Action, AdminClient, ApplyRequest, LIST_MAX, PlannedChange, RollbackRequest, Touched,
};
use countersign_api::resource::Resource;
use countersign_identity::{Clock as _, Lifetime, Revision, SystemClock};
use serde_json::json;

use super::{changes, plan, when};
use crate::exit::{Exit, Failure};
use crate::find::Find;
use crate::manifest::{Manifests, Problems};
use crate::output::{self, Output, Table, printable};

/// A revision as people name it: `1.412`, or `412` of the present incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    incarnation: Option<u64>,
    number: u64,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Ok(number) = text.parse() {
            return Ok(Self { incarnation: None, number });
        }
        match text.parse::<Revision>() {
            Ok(Revision { incarnation, number }) => {
                Ok(Self { incarnation: Some(incarnation), number })
            }
            Err(bad) => Err(format!("{bad}, or `412`; `countersign history` lists them")),
        }
    }
}

impl Named {
    pub(super) async fn resolve(self, client: &AdminClient) -> Result<Revision> {
        let incarnation = match self.incarnation {
            Some(incarnation) => incarnation,
            None => client.resources().await?.revision.incarnation,
        };
        Ok(Revision { incarnation, number: self.number })
    }
}

/// List the revisions, newest first: when, by whom, what
#[derive(Debug, Args)]
pub(crate) struct HistoryArguments {
    /// How many at most
    #[arg(long, default_value_t = 20, value_name = "COUNT", value_parser = super::named::count::<usize>)]
    limit: usize,

    /// Only revisions before this one
    #[arg(long, value_name = "REVISION")]
    before: Option<Named>,

    /// Also those that changed nothing which manifests declare, such as a revocation
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    find: Find,
}

/// Show what a revision changed
#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    /// Which, `1.412` or `412`
    #[arg(value_name = "REVISION")]
    revision: Named,

    #[command(flatten)]
    find: Find,
}

/// Show what differs between what was declared at two revisions
#[derive(Debug, Args)]
pub(crate) struct DiffArguments {
    /// The earlier one, `1.412` or `412`
    #[arg(value_name = "FROM")]
    from: Named,

    /// The later one
    #[arg(value_name = "TO")]
    to: Named,

    #[command(flatten)]
    find: Find,
}

/// Go back to what was declared at a revision, as a new revision; revocations and suspensions stay
#[derive(Debug, Args)]
pub(crate) struct RollbackArguments {
    /// To which, `1.412` or `412`
    #[arg(value_name = "REVISION")]
    to: Named,

    /// Only say what would change
    #[arg(long)]
    dry_run: bool,

    /// Only if this is still the revision in force
    #[arg(long, value_name = "REVISION", value_parser = super::named::revision)]
    base: Option<Revision>,

    /// Wait until every live enforcement point enforces it
    #[arg(long)]
    wait: bool,

    /// How long to wait
    #[arg(long, default_value = "30s", value_name = "SPAN", requires = "wait")]
    timeout: Lifetime,

    #[command(flatten)]
    find: Find,
}

/// Say what in force differs from a folder of manifests: who changed it, and when
///
/// Exit status: 0 nothing differs, 1 something does.
#[derive(Debug, Args)]
pub(crate) struct DriftArguments {
    /// A folder of manifests, or one file
    #[arg(value_name = "PATH")]
    path: PathBuf,

    #[command(flatten)]
    find: Find,
}

pub(crate) async fn history(arguments: &HistoryArguments, output: Output) -> Result<Exit> {
    let limit = arguments.limit;
    if limit == 0 || LIST_MAX < limit {
        let message = format!("`--limit {limit}` is out of range: expected 1 to {LIST_MAX}");
        return Err(Failure::not_understood(message).into());
    }
    let client = arguments.find.client()?;
    let before = match arguments.before {
        Some(before) => Some(before.resolve(&client).await?),
        None => None,
    };
    let response = client.history(limit, before, arguments.all).await?;
    if output == Output::Json {
        output::json(&response)?;
        return Ok(Exit::Done);
    }
    let now = SystemClock::new().now();
    let mut table = Table::new(["revision", "when", "who", "what"]);
    for entry in &response.entries {
        let what = entry.put.iter().cloned();
        let what = what.chain(entry.removed.iter().map(|name| format!("-{name}")));
        let what: Vec<String> = what.collect();
        let shown = match what.as_slice() {
            [first, second, third, rest @ ..] if !rest.is_empty() => {
                format!("{first}, {second}, {third} and {} more", rest.len())
            }
            all => all.join(", "),
        };
        let Touched { revision, at, actor } = &entry.touched;
        let at = at.map(|at| when::relative(at, now)).unwrap_or_default();
        table.row([revision.to_string(), at, actor.clone().unwrap_or_default(), shown]);
    }
    let mut text = table.render(0);
    if response.cut {
        text.push_str(
            "older ones are no longer kept here; the audit log has them (`countersign events`)\n",
        );
    }
    output::write(text.as_bytes())?;
    Ok(Exit::Done)
}

pub(crate) async fn show(arguments: &ShowArguments, output: Output) -> Result<Exit> {
    let client = arguments.find.client()?;
    let revision = arguments.revision.resolve(&client).await?;
    let next = Revision { number: revision.number + 1, ..revision };
    let told = client.history(1, Some(next), true).await?;
    let entry = told.entries.into_iter().find(|entry| entry.touched.revision == revision);
    let entry = entry.ok_or_else(|| {
        Failure::new(
            countersign_identity::Code::NotFound,
            format!(
                "revision {revision} is not there, or no longer kept: `countersign history` lists those that are"
            ),
        )
    })?;
    let before = Revision { number: revision.number.saturating_sub(1), ..revision };
    let changes = match revision.number {
        // Before the first there was nothing.
        0 | 1 => plan::between(&[], &declared(&client, revision).await?),
        _ => plan::between(&declared(&client, before).await?, &declared(&client, revision).await?),
    };
    if output == Output::Json {
        let (at, actor) = (&entry.touched.at, &entry.touched.actor);
        output::json(&json!({
            "revision": revision, "at": at, "actor": actor, "changes": changes,
            "put": entry.put, "removed": entry.removed,
        }))?;
        return Ok(Exit::Done);
    }
    let mut text = format!("revision {}\n", described(&entry.touched));
    text.push_str(&changes::describe(&changes));
    let declared: Vec<String> =
        changes.iter().map(|change| format!("{}/{}", change.kind, change.name)).collect();
    let others = entry.put.iter().chain(&entry.removed).filter(|name| !declared.contains(name));
    let others: Vec<String> = others.cloned().collect();
    if !others.is_empty() {
        text.push_str(&format!("  also {}\n", printable(&others.join(", "))));
    }
    output::write(text.as_bytes())?;
    Ok(Exit::Done)
}

pub(crate) async fn diff(arguments: &DiffArguments, output: Output) -> Result<Exit> {
    let client = arguments.find.client()?;
    let (from, to) = (arguments.from.resolve(&client).await?, arguments.to.resolve(&client).await?);
    let changes = plan::between(&declared(&client, from).await?, &declared(&client, to).await?);
    match output {
        Output::Json => output::json(&json!({ "from": from, "to": to, "changes": changes }))?,
        Output::Human if changes.is_empty() => output::line("nothing differs")?,
        Output::Human => output::write(changes::describe(&changes).as_bytes())?,
    }
    Ok(Exit::Done)
}

pub(crate) async fn rollback(arguments: &RollbackArguments, output: Output) -> Result<Exit> {
    let client = arguments.find.client()?;
    let to = arguments.to.resolve(&client).await?;
    let request = RollbackRequest { to, base: arguments.base, dry_run: arguments.dry_run };
    let response = client.rollback(&request).await?;
    let wait = arguments.wait.then_some(arguments.timeout.duration());
    super::apply::tell(&client, &response, arguments.dry_run, wait, output).await
}

pub(crate) async fn drift(arguments: &DriftArguments, output: Output) -> Result<Exit> {
    let manifests = Manifests::read(&arguments.path)?;
    let client = arguments.find.client()?;
    let problems = super::apply::problems(&manifests, &client, true).await?;
    if !problems.is_empty() {
        return Err(Problems::from(problems).into());
    }
    let request = ApplyRequest {
        resources: manifests.resources.iter().map(Resource::manifest).collect(),
        base: None,
        prune: true,
        dry_run: true,
    };
    let plan = client.plan(&request).await?;
    let exit = if plan.changes.is_empty() { Exit::Done } else { Exit::No };
    match output {
        Output::Json => output::json(&json!({ "base": plan.base, "drift": plan.changes }))?,
        Output::Human if plan.changes.is_empty() => output::line("nothing differs")?,
        Output::Human => output::write(drifted(&plan.changes).as_bytes())?,
    }
    Ok(exit)
}

/// Seen from the folder, so the signs are those of what is in force.
fn drifted(changes: &[PlannedChange]) -> String {
    let mut text = String::new();
    for change in changes {
        let what = match change.action {
            Action::Create => "is in the folder, and not in force",
            Action::Remove => "is in force, and not in the folder",
            Action::Update => "differs (in force → folder)",
        };
        let by = change
            .last
            .as_ref()
            .map(described)
            .map(|by| format!("; changed last at revision {by}"));
        text.push_str(&format!(
            "{} {} {what}{}\n",
            change.kind,
            change.name,
            by.unwrap_or_default()
        ));
        if change.action == Action::Update {
            let described = changes::describe(std::slice::from_ref(change));
            text.push_str(&described.replacen("  ~ ", "    ", 1));
        }
    }
    text
}

fn described(touched: &Touched) -> String {
    let Touched { revision, at, actor } = touched;
    let at = at.map(|at| format!(", {at}")).unwrap_or_default();
    let by = actor.as_ref().map(|actor| format!(", by {}", printable(actor))).unwrap_or_default();
    format!("{revision}{at}{by}")
}

/// What was declared at a revision, as resources.
async fn declared(client: &AdminClient, at: Revision) -> Result<Vec<Resource>> {
    Ok(super::apply::in_force(&client.resources_at(at).await?))
}
