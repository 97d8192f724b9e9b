//! `countersign revoke` and what belongs to it: credentials are taken out of service, and who enforces it is told.

mod arguments;
pub(super) mod bar;
mod shown;

use std::time::Duration;

use anyhow::Result;
use countersign_api::admin::{
    AdminClient, Convergence, Reissue, ResumeRequest, RevisionResponse, RevokeRequest,
    SuspendRequest,
};
use countersign_identity::{Clock as _, Revision, SystemClock};

pub(crate) use arguments::{
    ConvergedArguments, ResumeArguments, RevocationsArguments, RevokeArguments, SuspendArguments,
};

use crate::exit::Exit;
use crate::output::{self, Output, printable};
use bar::Bar;
use shown::Outcome;

/// How long one question about convergence waits, so that progress is seen.
const LOOK: Duration = Duration::from_millis(250);

/// Takes credentials out of service.
pub(crate) async fn revoke(arguments: &RevokeArguments, output: Output) -> Result<Exit> {
    let request = RevokeRequest {
        targets: arguments.targets()?,
        reason: arguments.reason()?,
        issued_before: arguments.issued_before,
        reissue: if arguments.no_reissue { Reissue::No } else { Reissue::ByReason },
        dry_run: arguments.dry_run,
    };
    let client = arguments.find.client()?;
    let response = client.revoke(&request).await?;
    if arguments.dry_run {
        print(output, &response, || shown::dry_run(&response))?;
        return Ok(Exit::Done);
    }
    if output == Output::Human {
        // Said before anything is waited for: it is durable, whatever comes next.
        output::write(shown::revoked(&response, request.reason).as_bytes())?;
    }
    let wait = if arguments.wait { arguments.timeout.duration() } else { Duration::ZERO };
    let asked = Asked {
        revision: Some(response.revision),
        trial: trial(&client, arguments.verify).await?,
        until: Until::Reissued,
    };
    let convergence = follow(&client, asked, wait, output).await?;
    let outcome = Outcome::of(&convergence, Some(&response));
    match output {
        Output::Json => output::json(&outcome)?,
        Output::Human => output::write(shown::outcome(&convergence, Some(&response)).as_bytes())?,
    }
    let done = !arguments.wait || convergence.is_converged() && convergence.is_as_claimed();
    Ok(if done && response.not_in_journal.is_none() { Exit::Done } else { Exit::No })
}

/// Says that the journal does not hold what was done, where it should: it is done all the same, and not as was promised.
pub(super) fn lacking(not_in_journal: Option<&str>, what: &str) -> String {
    let Some(why) = not_in_journal else { return String::new() };
    format!(
        "{what}, but not in the journal: {}; until `countersign status` does not warn of it any more, a restored backup may \
         lack it\n",
        printable(why)
    )
}

/// Waits until every live point enforces a revision.
pub(super) async fn enforced(
    client: &AdminClient,
    revision: Revision,
    wait: Duration,
    output: Output,
) -> Result<Convergence> {
    let asked = Asked { revision: Some(revision), trial: None, until: Until::Converged };
    follow(client, asked, wait, output).await
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Every live point enforces it.
    Converged,
    /// And whoever is to have a new credential has it.
    Reissued,
}

/// What is asked about.
#[derive(Clone, Copy)]
struct Asked {
    /// Which revision; the newest when none is named.
    revision: Option<Revision>,
    trial: Option<Revision>,
    until: Until,
}

/// Begins a trial, if one is wanted.
async fn trial(client: &AdminClient, wanted: bool) -> Result<Option<Revision>> {
    Ok(if wanted { Some(client.try_out().await?.revision) } else { None })
}

/// Asks again and again until it is so, or the time is over.
async fn follow(
    client: &AdminClient,
    asked: Asked,
    wait: Duration,
    output: Output,
) -> Result<Convergence> {
    let clock = SystemClock::new();
    let ends = clock.now() + wait;
    let mut bar = Bar::new(output);
    // The same revision all the time, also when none was named.
    let mut named = asked.revision;
    loop {
        let left = ends.since(clock.now()).min(LOOK);
        let convergence = match (named, asked.trial) {
            (Some(revision), Some(trial)) => client.tried_out(revision, trial, left).await?,
            (_, _) => client.convergence(named, left).await?,
        };
        named = Some(convergence.revision);
        bar.show(&convergence);
        let reissued = asked.until == Until::Converged || !convergence.reissue_pending;
        let tried = !convergence.is_tried_out_later();
        if (convergence.is_converged() && reissued && tried) || ends <= clock.now() {
            bar.clear();
            return Ok(convergence);
        }
    }
}

/// Lists what is out of service, who does not know yet, and when exposure ends.
pub(crate) async fn revocations(arguments: &RevocationsArguments, output: Output) -> Result<Exit> {
    let client = arguments.find.client()?;
    let response = client.revocations().await?;
    let convergence = client.convergence(None, Duration::ZERO).await?;
    match output {
        Output::Json => output::json(&shown::Listing::of(&response, &convergence))?,
        Output::Human => {
            let now = SystemClock::new().now();
            output::write(shown::listing(&response, &convergence, now).as_bytes())?;
        }
    }
    Ok(Exit::Done)
}

/// Says who enforces what; yes only when all live enforcement points do.
pub(crate) async fn converged(arguments: &ConvergedArguments, output: Output) -> Result<Exit> {
    let client = arguments.find.client()?;
    let wait = arguments.wait || arguments.verify;
    let wait = if wait { arguments.timeout.duration() } else { Duration::ZERO };
    if arguments.verify && arguments.revision.is_some() {
        // A revision that is not there is refused before a trial of it begins.
        client.convergence(arguments.revision, Duration::ZERO).await?;
    }
    let mut asked = Asked {
        revision: arguments.revision,
        trial: trial(&client, arguments.verify).await?,
        until: Until::Converged,
    };
    // Of the newest, the trial's own is the newest.
    asked.revision = asked.revision.or(asked.trial);
    let convergence = follow(&client, asked, wait, output).await?;
    match output {
        Output::Json => output::json(&Outcome::of(&convergence, None))?,
        Output::Human => output::write(shown::outcome(&convergence, None).as_bytes())?,
    }
    let yes = convergence.is_converged() && convergence.is_as_claimed();
    Ok(if yes { Exit::Done } else { Exit::No })
}

/// Stops what would be issued.
pub(crate) async fn suspend(arguments: &SuspendArguments, output: Output) -> Result<Exit> {
    let request =
        SuspendRequest { target: arguments.target.suspended()?, reason: arguments.reason };
    let response = arguments.find.client()?.suspend(&request).await?;
    print(output, &response, || {
        format!(
            "suspended at revision {}: nothing is issued until `countersign resume`; what is out stays in service until it is revoked or ends\n{}",
            response.revision,
            lacking(response.not_in_journal.as_deref(), "it is in force")
        )
    })?;
    Ok(journaled(&response))
}

/// Lifts a suspension.
pub(crate) async fn resume(arguments: &ResumeArguments, output: Output) -> Result<Exit> {
    let request = ResumeRequest { target: arguments.target.suspended()? };
    let response = arguments.find.client()?.resume(&request).await?;
    print(output, &response, || {
        let lacking = lacking(response.not_in_journal.as_deref(), "it is lifted");
        let revision = response.revision;
        format!("resumed at revision {revision}; what was revoked stays revoked\n{lacking}")
    })?;
    Ok(journaled(&response))
}

fn journaled(response: &RevisionResponse) -> Exit {
    if response.not_in_journal.is_none() { Exit::Done } else { Exit::No }
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
