//! What a fleet costs, and how fast it is told.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use countersign_api::admin::{Reissue, RevokeRequest, RevokeResponse, Target};
use countersign_identity::{Reason, Revision, Serial};

use super::server::{Server, Usage};
use super::{DOMAIN, Fleet, Place, change, limits, live, rotate, workload};
use crate::figure::{Asked, Figure, Output, Verdict};
use crate::plot::{Mark, Plot};

/// The figures of a fleet. Those that need the same fleet share it when all are run.
pub(crate) const NAMES: [&str; 10] = [
    "stream_memory",
    "stream_idle",
    "fan_out",
    "revoke_fleet",
    "revoke_fleet_known",
    "revocations_10k",
    "rotate_fleet",
    "revoke_live",
    "apply_10k",
    "policy_change",
];
const CHANGE: [&str; 2] = ["apply_10k", "policy_change"];
const STANDING: [&str; 5] =
    ["stream_memory", "stream_idle", "fan_out", "revoke_fleet", "revoke_fleet_known"];

/// How often something is measured whose distribution is asked for.
const ROUNDS: usize = 5;
/// After which every stream has been told, by what it was told next, how long all of them together may be silent.
const SILENT: Duration = Duration::from_secs(170);
/// After which a round has failed.
const ROUND_TIMEOUT: Duration = Duration::from_secs(60);
/// Streams settle, and the system gives memory back.
const SETTLE: Duration = Duration::from_secs(5);
/// For all acknowledgements.
const WAIT: Duration = Duration::from_secs(9);
const POLL: Duration = Duration::from_millis(10);
/// Enforcement points that take ten thousand rules at once.
const TAKERS: usize = 20;
const SERIALS: usize = 10_000;
const SERIALS_A_REQUEST: usize = 250;

/// How the fleet is measured.
pub(crate) struct Options {
    pub(crate) output: Output,
    pub(crate) agents: usize,
    /// Over which the cost of silence is measured.
    pub(crate) silence: Duration,
    pub(crate) plot: Option<PathBuf>,
}

/// Measures these figures, each of them one of [`NAMES`].
pub(crate) fn run(wanted: &[&'static str], options: &Options) -> Result<Verdict> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut verdict = Verdict::Met;
    if wanted.iter().any(|name| STANDING.contains(name)) {
        limits::allow(options.agents)?;
        verdict = verdict.and(runtime.block_on(standing(wanted, options))?);
    }
    if wanted.contains(&"revocations_10k") {
        verdict = verdict.and(runtime.block_on(many(options))?);
    }
    if wanted.contains(&"rotate_fleet") {
        verdict = verdict.and(runtime.block_on(rotate::run(options))?);
    }
    if wanted.contains(&"revoke_live") {
        verdict = verdict.and(runtime.block_on(live::run(options))?);
    }
    if wanted.iter().any(|name| CHANGE.contains(name)) {
        verdict = verdict.and(runtime.block_on(change::run(wanted, options))?);
    }
    Ok(verdict)
}

pub(super) fn place(server: &Server) -> Place {
    Place {
        admin: server.admin.clone(),
        address: server.address,
        trust: server.trust.0,
        domain: DOMAIN.to_owned(),
        sorts: 1,
    }
}

/// Everything for which a fleet has to stand, on one fleet.
async fn standing(wanted: &[&'static str], options: &Options) -> Result<Verdict> {
    let server = Server::start(DOMAIN)?;
    let usage = server.usage();
    let mut fleet = Fleet::join(place(&server), options.agents, 1).await?;
    tokio::time::sleep(SETTLE).await;
    let without = usage.resident()?;
    fleet.attend().await?;
    tokio::time::sleep(SETTLE).await;
    let with = usage.resident()?;
    let mut verdict = Verdict::Met;
    let mut print = |figure: Figure| {
        if wanted.contains(&figure.name) {
            verdict = verdict.and(figure.print(options.output));
        }
    };
    print(memory(with - without, options.agents));
    if wanted.contains(&"stream_idle") {
        print(idle(usage, options.silence).await?);
    }
    if wanted.contains(&"fan_out") {
        print(fan_out(&fleet, options).await?);
    }
    if wanted.iter().any(|name| name.starts_with("revoke_fleet")) {
        revoke(&fleet, options).await?.into_iter().for_each(print);
    }
    fleet.whole()?;
    fleet.end().await;
    Ok(verdict)
}

#[expect(clippy::cast_precision_loss, reason = "some thousands")]
fn memory(kib: f64, agents: usize) -> Figure {
    Figure {
        name: "stream_memory",
        value: kib / agents as f64,
        unit: "KiB a stream",
        limit: 32.0,
        limit_is: "KiB of the server's memory a stream, above the same server without streams",
        asked: Asked::AtMost(1.0),
    }
}

async fn idle(usage: Usage, silence: Duration) -> Result<Figure> {
    tokio::time::sleep(SILENT).await;
    let (begin, before) = (Instant::now(), usage.processor()?);
    tokio::time::sleep(silence).await;
    let used = usage.processor()?.saturating_sub(before);
    Ok(Figure {
        name: "stream_idle",
        value: 100.0 * used.as_secs_f64() / begin.elapsed().as_secs_f64(),
        unit: "% of a core",
        limit: 1.0,
        limit_is: "% of a core for streams on which nothing happens, their signs of life included",
        asked: Asked::AtMost(1.0),
    })
}

/// A change that concerns everybody: another workload on all nodes.
async fn fan_out(fleet: &Fleet, options: &Options) -> Result<Figure> {
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        fleet.seen.forget();
        let begin = Instant::now();
        let number = fleet.place.apply(vec![workload(&format!("n{round}"), "1h")]).await?;
        let applied = applied(fleet, begin, number).await?;
        tell("fan_out", round, &applied);
        all.extend(applied);
        fleet.converged().await?;
    }
    all.sort();
    let value = millis(quantile(&all, 990)?);
    let marks = marks(&all, 1000.0)?;
    plot(options, "fan_out", "From an operator's change to each agent", &all, marks)?;
    Ok(Figure {
        name: "fan_out",
        value,
        unit: "ms p99",
        limit: 1000.0,
        limit_is: "ms from an operator's request to 99 of 100 agents, asked for by the design",
        asked: Asked::AtMost(1.0),
    })
}

/// One leaked certificate that any of the points could meet: when they refuse it, and when that is known of all of them.
async fn revoke(fleet: &Fleet, options: &Options) -> Result<[Figure; 2]> {
    let mut all = Vec::new();
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        let thief = fleet.nodes.first().context("a fleet has nodes")?;
        let names: Vec<_> = fleet.workloads.iter().map(|(name, _)| name.clone()).collect();
        let serials = thief.sign(&names).await?;
        fleet.seen.forget();
        let begin = Instant::now();
        let done = order(fleet, serials).await?;
        // Its agent asks for what takes the place of what leaked, as any would: that is waited for as well.
        let (enforced, applied, again) = tokio::join!(
            enforced(fleet, done.revision, begin),
            applied(fleet, begin, done.revision.number),
            thief.sign(&names)
        );
        again?;
        let applied = applied?;
        let heard = enforced?;
        acknowledged.push(heard);
        tell("revoke_fleet", round, &applied);
        eprintln!("    known of all after {:.0} ms", millis(heard));
        all.extend(applied);
        fleet.converged().await?;
    }
    all.sort();
    acknowledged.sort();
    let (p99, heard) = (quantile(&all, 990)?, *acknowledged.last().context("rounds")?);
    let mut marks = marks(&all, 500.0)?;
    marks.push(Mark {
        at: millis(heard),
        label: format!("all acknowledged {:.0} ms", millis(heard)),
    });
    plot(options, "revoke_fleet", "From `revoke` to each enforcement point", &all, marks)?;
    let enforced = Figure {
        name: "revoke_fleet",
        value: millis(p99),
        unit: "ms p99",
        limit: 500.0,
        limit_is: "ms from an operator's request until 99 of 100 points enforce it, over all rounds",
        asked: Asked::AtMost(1.0),
    };
    let known = Figure {
        name: "revoke_fleet_known",
        value: millis(heard),
        unit: "ms",
        limit: 1000.0,
        limit_is: "ms from an operator's request until the server knows of all points that they enforce it, in the slowest round",
        asked: Asked::AtMost(1.0),
    };
    Ok([enforced, known])
}

async fn order(fleet: &Fleet, serials: Vec<Serial>) -> Result<RevokeResponse> {
    let request = RevokeRequest {
        targets: serials.into_iter().map(Target::Serial).collect(),
        reason: Reason::KeyCompromise,
        issued_before: None,
        reissue: Reissue::ByReason,
        dry_run: false,
    };
    Ok(fleet.place.admin.revoke(&request).await?)
}

/// Waits until every agent has applied it; gives how long each took.
pub(super) async fn applied(fleet: &Fleet, begin: Instant, number: u64) -> Result<Vec<Duration>> {
    loop {
        let took = fleet.seen.since(begin, number);
        if fleet.nodes.len() <= took.len() {
            return Ok(took);
        }
        anyhow::ensure!(
            begin.elapsed() < ROUND_TIMEOUT,
            "{} of {} agents were told after {ROUND_TIMEOUT:?}",
            took.len(),
            fleet.nodes.len()
        );
        tokio::time::sleep(POLL).await;
    }
}

/// Waits, as `revoke --wait` does, until the server knows of every point that it enforces this; gives how long that took.
async fn enforced(fleet: &Fleet, revision: Revision, begin: Instant) -> Result<Duration> {
    let now = fleet.place.admin.convergence(Some(revision), WAIT).await?;
    anyhow::ensure!(now.is_converged(), "{} points have not acknowledged", now.missing.len());
    Ok(begin.elapsed())
}

/// Ten thousand single serials in one request, until they are enforced.
async fn many(options: &Options) -> Result<Verdict> {
    let server = Server::start(DOMAIN)?;
    let mut fleet = Fleet::join(place(&server), TAKERS, 1).await?;
    fleet.attend().await?;
    let node = fleet.nodes.first().context("a fleet has nodes")?;
    let mut serials = Vec::with_capacity(SERIALS);
    while serials.len() < SERIALS {
        serials.extend(node.sign(&vec!["w0".to_owned(); SERIALS_A_REQUEST]).await?);
    }
    let begin = Instant::now();
    let done = order(&fleet, serials).await?;
    let ordered = begin.elapsed();
    fleet.converged().await?;
    eprintln!("  {} rules in one revision after {ordered:.2?}", done.rules.len());
    let figure = Figure {
        name: "revocations_10k",
        value: begin.elapsed().as_secs_f64(),
        unit: "s",
        limit: 5.0,
        limit_is: "s from one request with 10,000 serials until 20 points enforce all of them",
        asked: Asked::AtMost(1.0),
    };
    let verdict = figure.print(options.output);
    fleet.whole()?;
    fleet.end().await;
    Ok(verdict)
}

pub(super) fn tell(name: &str, round: usize, took: &[Duration]) {
    let at = |thousandths| quantile(took, thousandths).map(millis).unwrap_or_default();
    let (first, middle, late, last) = (at(0), at(500), at(990), at(1000));
    eprintln!(
        "  {name} {}: first {first:.0} ms, p50 {middle:.0} ms, p99 {late:.0} ms, all {last:.0} ms",
        round + 1
    );
}

pub(super) fn quantile(sorted: &[Duration], thousandths: usize) -> Result<Duration> {
    let last = sorted.len().checked_sub(1).context("nothing was measured")?;
    sorted.get(last * thousandths / 1000).copied().context("nothing was measured")
}

pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

pub(super) fn marks(sorted: &[Duration], limit: f64) -> Result<Vec<Mark>> {
    let mark = |label: &str, thousandths| -> Result<Mark> {
        let at = millis(quantile(sorted, thousandths)?);
        Ok(Mark { at, label: format!("{label} {at:.0} ms") })
    };
    let limit = Mark { at: limit, label: format!("limit {limit:.0} ms") };
    Ok(vec![mark("p50", 500)?, mark("p99", 990)?, limit])
}

/// Draws the distribution, where one is asked for. Of several figures each has a file of its own.
pub(super) fn plot(
    options: &Options,
    name: &str,
    title: &str,
    sorted: &[Duration],
    marks: Vec<Mark>,
) -> Result<()> {
    let Some(path) = &options.plot else { return Ok(()) };
    let path = match path.is_dir() {
        true => path.join(format!("{name}.svg")),
        false => path.clone(),
    };
    let title = format!("{title}, {} agents", options.agents);
    let values = sorted.iter().copied().map(millis).collect();
    let plot = Plot { title, unit: "ms", values, marks };
    std::fs::write(&path, plot.svg()).with_context(|| path.display().to_string())
}
