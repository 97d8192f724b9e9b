//! `countersign review`: what policies grant against what was used, and who signed that it is as it should be.

mod unified;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use countersign_api::admin::{
    Observed, PermitView, Proposal, ReviewReport, ReviewState, ReviewSubject, ReviewView,
    SignReviewRequest, StartReviewRequest, Verdict,
};
use countersign_api::resource::{Resource, Tree};
use countersign_identity::{Clock as _, Lifetime, Name, SystemClock, Timestamp};
use serde_json::json;

use super::when;
use crate::exit::{Exit, Failure};
use crate::find::Find;
use crate::manifest;
use crate::output::{self, Output, Table, printable};

/// Flows that are shown of one permit.
const SHOWN_MAX: usize = 10;

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    Start(StartArguments),
    Show(ShowArguments),
    Sign(SignArguments),
}

/// Begin a review: of all policies, of one, or of what may be done with one service
#[derive(Debug, Args)]
pub(crate) struct StartArguments {
    /// `all`, `Policy/NAME` or `Service/NAME`
    #[arg(value_name = "SUBJECT", default_value = "all")]
    subject: ReviewSubject,

    /// Within which time it is to be signed
    #[arg(long, default_value = "14d", value_name = "SPAN")]
    due: Lifetime,

    /// How far back to look at what was used
    #[arg(long, default_value = "30d", value_name = "SPAN")]
    window: Lifetime,

    #[command(flatten)]
    find: Find,
}

/// Show who could, who did, and what would be enough; without a name, all reviews
///
/// The narrower text is a patch for a folder that `export` wrote, or written by `--out` as manifests for `plan`. It lets pass
/// all that was seen: what was not seen, it denies. Exit status 0, or 1 where a shown review is overdue.
#[derive(Debug, Args)]
pub(crate) struct ShowArguments {
    /// The review
    #[arg(value_name = "REVIEW")]
    id: Option<Name>,

    /// Print the patch and nothing else, for `patch -p1` in a folder that `export` wrote
    #[arg(long, requires = "id")]
    diff: bool,

    /// Write the narrower manifests into this folder
    #[arg(long, value_name = "DIR", requires = "id", conflicts_with = "diff")]
    out: Option<PathBuf>,

    #[command(flatten)]
    find: Find,
}

/// Sign a review, once
#[derive(Debug, Args)]
pub(crate) struct SignArguments {
    /// The review
    #[arg(value_name = "REVIEW")]
    id: Name,

    /// `keep`: it stays as it is; `narrowed` or `removed`: it was changed since the review began
    #[arg(long, value_name = "VERDICT")]
    verdict: Verdict,

    /// Who signs; your user id is recorded beside it
    #[arg(long, value_name = "NAME")]
    name: String,

    /// Why
    #[arg(long, value_name = "TEXT")]
    reason: String,

    /// Within which time the same is to be reviewed again
    #[arg(long, value_name = "SPAN")]
    again: Option<Lifetime>,

    #[command(flatten)]
    find: Find,
}

pub(crate) async fn run(what: &What, output: Output) -> Result<Exit> {
    match what {
        What::Start(arguments) => start(arguments, output).await,
        What::Show(arguments) => show(arguments, output).await,
        What::Sign(arguments) => sign(arguments, output).await,
    }
}

async fn start(arguments: &StartArguments, output: Output) -> Result<Exit> {
    let StartArguments { subject, due, window, find } = arguments;
    let request = StartReviewRequest { subject: subject.clone(), due: *due, window: *window };
    let review = find.client()?.start_review(&request).await?;
    match output {
        Output::Json => output::json(&review)?,
        Output::Human => output::line(&format!(
            "review {} of {} is due at {}\nnext: countersign review show {}",
            review.id, review.subject, review.due, review.id
        ))?,
    }
    Ok(Exit::Done)
}

async fn show(arguments: &ShowArguments, output: Output) -> Result<Exit> {
    let client = arguments.find.client()?;
    let Some(id) = &arguments.id else {
        let response = client.reviews().await?;
        match output {
            Output::Json => output::json(&response)?,
            Output::Human => output::write(list(&response.reviews).as_bytes())?,
        }
        return Ok(exit(&response.reviews));
    };
    let report = client.review(id).await?;
    let patches = report.proposals.iter().map(Patch::of).collect::<Result<Vec<_>>>()?;
    if arguments.diff {
        output::write(
            patches.iter().map(|patch| patch.text.as_str()).collect::<String>().as_bytes(),
        )?;
        return Ok(exit(std::slice::from_ref(&report.review)));
    }
    if let Some(folder) = &arguments.out {
        write(folder, &patches)?;
    }
    match output {
        Output::Json => {
            let mut value = serde_json::to_value(&report)?;
            for (index, patch) in patches.iter().enumerate() {
                value["proposals"][index]["file"] = json!(patch.file);
                value["proposals"][index]["diff"] = json!(patch.text);
            }
            output::json(&value)?;
        }
        Output::Human => output::write(describe(&report, &patches).as_bytes())?,
    }
    Ok(exit(std::slice::from_ref(&report.review)))
}

async fn sign(arguments: &SignArguments, output: Output) -> Result<Exit> {
    let SignArguments { id, verdict, name, reason, again, find } = arguments;
    let (verdict, again) = (*verdict, *again);
    let request = SignReviewRequest { verdict, name: name.clone(), reason: reason.clone(), again };
    let review = find.client()?.sign_review(id, &request).await?;
    match output {
        Output::Json => output::json(&review)?,
        Output::Human => {
            let next = review.signed.as_ref().and_then(|signed| signed.next.as_ref());
            let next = next.map(|next| format!("; the next one is {next}")).unwrap_or_default();
            output::line(&format!("review {id} is signed: {}{next}", verdict.as_str()))?;
        }
    }
    Ok(Exit::Done)
}

fn exit(reviews: &[ReviewView]) -> Exit {
    let overdue = reviews.iter().any(|review| review.state == ReviewState::Overdue);
    if overdue { Exit::No } else { Exit::Done }
}

/// A narrower manifest, and how a file of `export` becomes it.
struct Patch {
    file: String,
    text: String,
    /// The manifest; `None` when it goes.
    after: Option<String>,
}

impl Patch {
    fn of(proposal: &Proposal) -> Result<Self> {
        let read = |manifest: &serde_json::Value| {
            let resource = Resource::read(&Tree::from_value(manifest));
            let resource = resource.map_err(manifest::Problems::from);
            resource.map(|resource| manifest::write(&resource))
        };
        let file = format!("policy-{}.yaml", proposal.policy);
        let before = read(&proposal.before)?;
        let after = proposal.after.as_ref().map(read).transpose()?;
        let text = unified::diff(&file, &before, after.as_deref());
        Ok(Self { file, text, after })
    }
}

fn write(folder: &Path, patches: &[Patch]) -> Result<()> {
    let failed = |path: &Path| format!("`{}` cannot be written", path.display());
    std::fs::create_dir_all(folder)
        .map_err(|error| Failure::not_understood(format!("{}: {error}", failed(folder))))?;
    for patch in patches {
        let Some(after) = &patch.after else { continue };
        let path = folder.join(&patch.file);
        std::fs::write(&path, after).with_context(|| failed(&path))?;
    }
    Ok(())
}

fn list(reviews: &[ReviewView]) -> String {
    let now = SystemClock::new().now();
    let mut table = Table::new(["review", "subject", "state", "due", "signed"]);
    for review in reviews {
        let signed = review.signed.as_ref().map(|signed| {
            format!("{} by {} ({})", signed.verdict.as_str(), printable(&signed.name), signed.by)
        });
        let state = review.state.as_str().to_owned();
        let due = when::relative(review.due, now);
        let (id, subject) = (review.id.to_string(), review.subject.to_string());
        table.row([id, subject, state, due, signed.unwrap_or_default()]);
    }
    if table.is_empty() { "no review\n".to_owned() } else { table.render(0) }
}

fn describe(report: &ReviewReport, patches: &[Patch]) -> String {
    let now = SystemClock::new().now();
    let ReviewReport { review, revision, observed, permits, proposals: _, withheld } = report;
    let mut text = format!(
        "review {} of {}, revision {revision}: {}, due {}\n{}\n",
        review.id,
        review.subject,
        review.state.as_str(),
        when::relative(review.due, now),
        seen(observed),
    );
    if let Some(signed) = &review.signed {
        text.push_str(&format!(
            "signed {} by {} ({}) at {}: {}\n",
            signed.verdict.as_str(),
            printable(&signed.name),
            signed.by,
            signed.at,
            printable(&signed.reason)
        ));
    }
    for permit in permits {
        text.push_str(&described(permit, now));
    }
    for why in withheld {
        text.push_str(&format!("{}\n", printable(why)));
    }
    for patch in patches {
        text.push_str(&format!("\n{}", patch.text));
    }
    if !patches.is_empty() {
        text.push_str(&format!(
            "\nto apply it: countersign export DIR; countersign review show {} --diff | patch -p1 -d DIR; countersign plan DIR\n",
            review.id
        ));
    }
    text
}

fn seen(observed: &Observed) -> String {
    match &observed.caution {
        Some(caution) => printable(caution),
        None => format!("seen since {}", observed.since),
    }
}

fn described(permit: &PermitView, now: Timestamp) -> String {
    let some = |names: &[String], all: &str| match names {
        [] => all.to_owned(),
        names => printable(&names.join(", ")),
    };
    let PermitView { policy, sources, role, actions, resources, used, idle, outcome, .. } = permit;
    let whom = match role {
        None => some(sources, "any workload"),
        Some(role) => format!("role {} ({})", printable(role), some(sources, "nobody is in it")),
    };
    let mut text = format!(
        "\n{policy}: {outcome}\n  could: {} → {}, {}\n",
        whom,
        some(resources, "any service"),
        some(actions, "anything"),
    );
    if used.is_empty() {
        text.push_str("  did: nobody\n");
    }
    for flow in used.iter().take(SHOWN_MAX) {
        let last = when::relative(flow.last_seen, now);
        let what = printable(&flow.what());
        let (source, service, count) = (&flow.source, &flow.service, flow.count);
        text.push_str(&format!("  did: {source} → {service}, {what} ({count}×, last {last})\n"));
    }
    if SHOWN_MAX < used.len() {
        text.push_str(&format!("  did: {} more\n", used.len() - SHOWN_MAX));
    }
    if !idle.is_empty() {
        text.push_str(&format!("  did not: {}\n", printable(&idle.join(", "))));
    }
    text
}
