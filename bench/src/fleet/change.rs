//! A large trust domain as code: to make it the desired state, and to change one line of it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::figures::{Options, applied, marks, millis, place, plot, quantile, tell};
use super::server::{Server, command};
use super::{DOMAIN, Fleet, Place, limits, sort};
use crate::figure::{Asked, Figure, Verdict};

const WORKLOADS: usize = 10_000;
const POLICIES: usize = 2000;
/// Each policy lets one workload call the service of another.
const SERVICES: usize = POLICIES;
/// Enforcement points that a changed line concerns.
const POINTS_MAX: usize = 1000;
/// In so many sorts, each with a slice of its own.
const SORTS: usize = 20;
const ROUNDS: usize = 5;
/// The workload that every point stands for; the policy that changes is about its service.
const OF_ALL: &str = "w0";

/// Measures both: the first as an operator sees it, from the command to its end.
pub(super) async fn run(wanted: &[&'static str], options: &Options) -> Result<Verdict> {
    let points = options.agents.min(POINTS_MAX);
    limits::allow(points)?;
    let server = Server::start(DOMAIN)?;
    let place = Place { sorts: SORTS, ..place(&server) };
    let mut fleet = Fleet::join(place, points, 1).await?;
    fleet.attend().await?;
    let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp")?;
    std::fs::write(folder.path().join("all.yaml"), manifests()?)?;
    let admin = fleet.place.admin.socket();
    let begin = Instant::now();
    command_applies(folder.path(), admin)?;
    let took = begin.elapsed();
    fleet.converged().await?;
    let mut verdict = Verdict::Met;
    if wanted.contains(&"apply_10k") {
        let figure = Figure {
            name: "apply_10k",
            value: took.as_secs_f64(),
            unit: "s",
            limit: 3.0,
            limit_is: "s for `countersign apply` of 10,000 workloads with 2,000 services and 2,000 policies, asked for",
            asked: Asked::AtMost(1.0),
        };
        verdict = verdict.and(figure.print(options.output));
    }
    if wanted.contains(&"policy_change") {
        verdict = verdict.and(changed(&fleet, options).await?.print(options.output));
    }
    fleet.whole()?;
    fleet.end().await;
    Ok(verdict)
}

/// From the request with one changed policy until every point enforces it.
async fn changed(fleet: &Fleet, options: &Options) -> Result<Figure> {
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        fleet.seen.forget();
        let begin = Instant::now();
        let number = fleet.place.apply(vec![policy(0, round % 2 == 0)]).await?;
        let applied = applied(fleet, begin, number).await?;
        tell("policy_change", round, &applied);
        all.extend(applied);
        fleet.converged().await?;
        let told = fleet.seen.records.load(Ordering::Relaxed);
        let points = fleet.nodes.len() as u64;
        ensure!(told <= points, "{told} records were sent to {points} points for one that changed");
    }
    all.sort();
    let value = millis(quantile(&all, 990)?);
    let title = "From a changed line of policy to each enforcement point";
    plot(options, "policy_change", title, &all, marks(&all, 300.0)?)?;
    Ok(Figure {
        name: "policy_change",
        value,
        unit: "ms p99",
        limit: 300.0,
        limit_is: "ms from the request with one policy changed among all of them until 99 of 100 points enforce it, asked for",
        asked: Asked::AtMost(1.0),
    })
}

fn command_applies(folder: &Path, admin: &Path) -> Result<()> {
    let mut apply = command()?;
    apply.arg("apply").arg(folder).arg("--admin").arg(format!("unix://{}", admin.display()));
    let done = apply.stdin(Stdio::null()).output().context("cannot run `apply`")?;
    ensure!(done.status.success(), "`apply`: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// One file, of documents one behind the other. JSON is YAML.
fn manifests() -> Result<String> {
    let mut text = String::new();
    let services = (0..SERVICES).map(service);
    let policies = (0..POLICIES).map(|number| policy(number, false));
    for resource in (1..WORKLOADS).map(elsewhere).chain(services).chain(policies) {
        writeln!(text, "---\n{resource}")?;
    }
    Ok(text)
}

/// A workload on one sort of the nodes, or on none of them.
fn elsewhere(number: usize) -> Value {
    let name = format!("w{number}");
    let label = match number {
        0..=SORTS => sort(number % SORTS),
        _ => "elsewhere".to_owned(),
    };
    json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "Workload", "metadata": { "name": name },
        "spec": { "selectors": [format!("launch:{name}")], "nodes": [label] },
    })
}

/// Of the workload that is everywhere, or of one that is nowhere.
fn service(number: usize) -> Value {
    let workload = match number {
        0 => OF_ALL.to_owned(),
        _ => format!("w{}", WORKLOADS - number),
    };
    json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "Service",
        "metadata": { "name": format!("service-{number}") },
        "spec": { "workload": workload },
    })
}

fn policy(number: usize, narrow: bool) -> Value {
    let (caller, called) = (format!("w{}", number + 1), format!("service-{number}"));
    let when = if narrow { " when { context.tls_version == \"1.3\" }" } else { "" };
    json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "Policy",
        "metadata": { "name": format!("policy-{number}") },
        "spec": { "cedar": format!(
            "permit (principal == Workload::\"{caller}\", action == Action::\"connect\", resource == Service::\"{called}\"){when};"
        ) },
    })
}
