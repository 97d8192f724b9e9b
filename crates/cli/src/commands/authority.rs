//! `countersign authority`, `rotate` and `recover`: the keys that sign are succeeded, in time or because one leaked.

mod arguments;
mod ceremony;
mod shown;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use countersign_api::admin::{
    AdminClient, ApproveRequest, AuthoritiesResponse, Goal, OrderView, REPORT_TYPE, RecoverRequest,
    RotateRequest, Step, StepRequest,
};
use countersign_identity::{Clock as _, Code, KeyId, SystemClock};
use countersign_pki::{Chain, Jws};

pub(crate) use arguments::{RecoverArguments, Rotate, What};

use crate::commands::read_file;
use crate::commands::revoke::bar::Bar;
use crate::exit::{Exit, Failure};
use crate::find::Find;
use crate::out::New;
use crate::output::{self, Output};
use arguments::{Named, NextKeyWord, PrepareArguments, RootKeyWord, StepArguments, Waiting};

/// How often a walk that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// The longest report or bundle that is read.
const REPORT_BYTES_MAX: u64 = 1024 * 1024;

/// Lists the authorities, or takes one step of the roots' walk.
pub(crate) async fn authority(what: &What, output: Output) -> Result<Exit> {
    match what {
        What::List { find } => {
            let response = find.client()?.authorities().await?;
            let now = SystemClock::new().now();
            print(output, &response, || shown::listing(&response, now))?;
            Ok(Exit::Done)
        }
        What::Prepare(arguments) => prepare(arguments, output).await,
        What::Import { chain, wait, find } => ceremony::import(chain, wait, find, output).await,
        What::Publish(step) => take(&step.find, Step::Publish, None, &step.force, output).await,
        What::Activate(step) => take(&step.find, Step::Activate, None, &step.force, output).await,
        What::Approve { authority, find } => approve(authority, find, output).await,
        What::Rollback(step) => take(&step.find, Step::Rollback, None, &step.force, output).await,
        What::Report { out, find } => {
            let report = find.client()?.report().await?;
            match out {
                Some(path) => crate::out::write(path, New::Public, &report)?,
                None => output::line(&String::from_utf8_lossy(&report))?,
            }
            Ok(Exit::Done)
        }
        What::CheckReport { report, bundle } => check_report(report, bundle, output),
        What::Retire { authority, step, wait } => {
            let request = request(&step.find, authority.as_ref(), &step.force).await?;
            walk(&step.find, Step::Retire, &request, wait, output).await
        }
        What::Taint { authority, cause, step, wait } => {
            let request = request(&step.find, Some(authority), &step.force).await?;
            let request = StepRequest { cause: Some(cause.cause()), ..request };
            walk(&step.find, Step::Taint, &request, wait, output).await
        }
    }
}

/// Says what a report says, if one of these authorities signed it.
fn check_report(report: &Path, bundle: &PathBuf, output: Output) -> Result<Exit> {
    let report = if report.as_os_str() == "-" { Path::new("/dev/stdin") } else { report };
    let report = report.to_owned();
    let signed = Jws::parse(&read_file(&report, REPORT_BYTES_MAX)?).map_err(|refused| {
        Failure::new(refused.code, format!("`{}`: {}", report.display(), refused.why))
    })?;
    let pem = String::from_utf8(read_file(bundle, REPORT_BYTES_MAX)?)
        .map_err(|_| Failure::not_understood(format!("`{}` is not UTF-8", bundle.display())))?;
    let trusted = Chain::from_pem(&pem)
        .map_err(|bad| Failure::not_understood(format!("`{}`: {bad}", bundle.display())))?;
    match signed.verify(REPORT_TYPE, trusted.certificates()) {
        Ok(document) => {
            let document: serde_json::Value = serde_json::from_slice(&document)?;
            print(output, &document, || format!("{document:#}\n"))?;
            Ok(Exit::Done)
        }
        Err(refused) => Err(Failure::new(refused.code, refused.why).into()),
    }
}

/// A new root, or a request for one that is held outside.
async fn prepare(arguments: &PrepareArguments, output: Output) -> Result<Exit> {
    let root_key = match &arguments.root_key {
        Some(RootKeyWord::External) => return ceremony::request(arguments, output).await,
        Some(RootKeyWord::Here) => Some("here".to_owned()),
        Some(RootKeyWord::Token(uri)) => Some(uri.clone()),
        None => None,
    };
    if arguments.out.is_some() || arguments.anew {
        let why = "`--out` and `--anew` are about a request: they go with `--root-key external`";
        return Err(Failure::not_understood(why).into());
    }
    let StepArguments { find, force } = &arguments.step;
    let request = StepRequest { root_key, force: force.clone(), ..StepRequest::default() };
    walk(find, Step::Prepare, &request, &Waiting::no(), output).await
}

/// One operator's word for a new root.
async fn approve(named: &Named, find: &Find, output: Output) -> Result<Exit> {
    let client = find.client()?;
    let authority = resolve(&client, named).await?;
    let response = client.approve(&ApproveRequest { authority }).await?;
    print(output, &response, || {
        format!("approved at revision {}: root {authority} may sign\n", response.revision)
    })?;
    Ok(Exit::Done)
}

async fn request(
    find: &Find,
    authority: Option<&Named>,
    force: &Option<String>,
) -> Result<StepRequest> {
    let authority = match authority {
        Some(named) => Some(resolve(&find.client()?, named).await?),
        None => None,
    };
    Ok(StepRequest { authority, force: force.clone(), ..StepRequest::default() })
}

async fn take(
    find: &Find,
    step: Step,
    authority: Option<KeyId>,
    force: &Option<String>,
    output: Output,
) -> Result<Exit> {
    let request = StepRequest { authority, force: force.clone(), ..StepRequest::default() };
    walk(find, step, &request, &Waiting::no(), output).await
}

async fn walk(
    find: &Find,
    step: Step,
    request: &StepRequest,
    waiting: &Waiting,
    output: Output,
) -> Result<Exit> {
    let client = find.client()?;
    let response = client.walk(step, request).await?;
    if !waiting.wait {
        print(output, &response, || format!("{step}: done at revision {}\n", response.revision))?;
        return Ok(Exit::Done);
    }
    follow(&client, waiting.timeout(), output).await
}

/// Puts a new authority in the place of an old one.
pub(crate) async fn rotate(what: &Rotate, output: Output) -> Result<Exit> {
    match what {
        Rotate::Root { reason, root_key, wait, find } => {
            let client = find.client()?;
            let root_key = root_key.as_ref().map(NextKeyWord::word);
            let request = RotateRequest { reason: reason.clone(), root_key };
            let response = client.rotate_root(&request).await?;
            if wait.wait {
                return follow(&client, wait.timeout(), output).await;
            }
            print(output, &response, || {
                format!(
                    "the rotation is under way from revision {} on: `countersign authority list` shows it\n",
                    response.revision
                )
            })?;
        }
        Rotate::Issuer { reason, find } => {
            let client = find.client()?;
            let request = RotateRequest { reason: reason.clone(), root_key: None };
            let response = client.rotate_issuer(&request).await?;
            print(output, &response, || {
                "another issuer signs from now on; what the one before signed stays in service\n"
                    .to_owned()
            })?;
        }
    }
    Ok(Exit::Done)
}

/// Says what a recovery comes to; then does it, and proves it.
pub(crate) async fn recover(arguments: &RecoverArguments, output: Output) -> Result<Exit> {
    let client = arguments.find.client()?;
    let compromised = resolve(&client, &arguments.compromised).await?;
    let reason = arguments.reason.clone();
    let root_key = arguments.root_key.as_ref().map(NextKeyWord::word);
    let plan = RecoverRequest { compromised, dry_run: true, reason, root_key };
    let planned = client.recover(&plan).await?;
    if output == Output::Human {
        output::write(shown::plan(&planned).as_bytes())?;
    }
    if arguments.dry_run {
        if output == Output::Json {
            output::json(&planned)?;
        }
        return Ok(Exit::Done);
    }
    confirm(arguments.yes)?;
    let begun = client.recover(&RecoverRequest { dry_run: false, ..plan }).await?;
    if arguments.begin_only {
        print(output, &begun, || {
            "the recovery is under way: `countersign authority list` shows it\n".to_owned()
        })?;
        return Ok(Exit::Done);
    }
    let timeout = arguments.timeout.duration();
    follow(&client, timeout, output).await
}

fn confirm(yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        let why = "this is the plan; `--yes` carries it out where nobody can be asked";
        return Err(Failure::not_understood(why).into());
    }
    eprint!("carry it out? (yes) ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "yes" => Ok(()),
        _ => Err(Failure::new(Code::Forbidden, "nothing was changed").into()),
    }
}

/// Shows each gate until the walk has come to its end.
async fn follow(client: &AdminClient, timeout: Duration, output: Output) -> Result<Exit> {
    let clock = SystemClock::new();
    let ends = clock.now() + timeout;
    let mut bar = Bar::new(output);
    let mut told = 0;
    loop {
        let response = client.authorities().await?;
        let order = response.order.as_ref().or(response.last.as_ref());
        let Some(order) = order else {
            bar.clear();
            return rolled_back();
        };
        if output == Output::Human {
            told = tell(order, told, &bar)?;
        }
        if response.order.is_none() {
            bar.clear();
            return ended(order, &response, output);
        }
        bar.say(&shown::gate(order));
        if ends <= clock.now() {
            bar.clear();
            print(output, order, || format!("not done in time: {}\n", shown::gate(order)))?;
            return Ok(Exit::No);
        }
        clock.sleep_until(clock.now() + LOOK).await;
    }
}

/// Tells the steps that were taken since.
fn tell(order: &OrderView, told: usize, bar: &Bar) -> Result<usize> {
    let done: Vec<_> = order.steps.iter().filter(|step| step.at.is_some()).collect();
    for step in done.iter().skip(told) {
        bar.clear();
        output::line(&shown::step(step, order))?;
    }
    Ok(done.len().max(told))
}

fn ended(order: &OrderView, response: &AuthoritiesResponse, output: Output) -> Result<Exit> {
    print(output, order, || shown::ended(order, response))?;
    let proven = order.steps.iter().any(|step| step.step == Step::Confirm && step.at.is_some());
    let trial = order.proof.as_ref().and_then(|proof| proof.trial.as_ref());
    let contradicted = trial.is_some_and(|trial| !trial.contradicted.is_empty());
    let done = (proven || order.goal == Goal::Retire) && !contradicted;
    Ok(if done { Exit::Done } else { Exit::No })
}

fn rolled_back() -> Result<Exit> {
    Err(Failure::new(Code::Forbidden, "the walk was taken back").into())
}

/// The one authority of this name: its key id, or how it begins.
async fn resolve(client: &AdminClient, named: &Named) -> Result<KeyId> {
    if let Some(key) = named.key() {
        return Ok(key);
    }
    let response = client.authorities().await?;
    let roots = response.roots.iter().map(|root| root.key);
    let keys = roots.chain(response.issuers.iter().map(|issuer| issuer.key));
    let mut fitting: Vec<_> = keys.filter(|key| named.fits(key)).collect();
    fitting.dedup();
    match fitting.as_slice() {
        [key] => Ok(*key),
        [] => Err(Failure::new(
            Code::NotFound,
            format!(
                "no authority's key begins with `{named}`; `countersign authority list` shows them"
            ),
        )
        .into()),
        several => Err(Failure::not_understood(format!(
            "`{named}` fits {} authorities: write more of the key",
            several.len()
        ))
        .into()),
    }
}

fn print<T: serde::Serialize>(
    output: Output,
    value: &T,
    human: impl FnOnce() -> String,
) -> Result<()> {
    match output {
        Output::Json => output::json(value)?,
        Output::Human => output::write(human().as_bytes())?,
    }
    Ok(())
}
