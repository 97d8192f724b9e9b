//! From a manifest that adds a workload to the SVID in the hand of a process that waits for it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use countersign_api::resource::Kind;
use countersign_identity::Name;
use serde_json::json;

use crate::figure::{Asked, Figure, Output, Verdict};
use crate::machine::{Machine, withdrawn};

const ROUNDS: usize = 200;
/// So many make a 99th of 100; more are measured as long as there is time.
const ROUNDS_MIN: usize = 100;
const ENOUGH: Duration = Duration::from_secs(25);
/// Unmeasured, until connections stand and pages are in memory.
const FIRST: usize = 5;
/// After which a process that was refused asks again.
const PAUSE: Duration = Duration::from_millis(5);

/// Real server, agent, and sockets; the process asks as the standard has it, every 5 ms, which counts as well.
pub(crate) fn run(output: Output) -> Result<Verdict> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut took = runtime.block_on(rounds())?;
    took.sort();
    let at = |share: usize| took.get((took.len() - 1) * share / 100).copied();
    let (half, p99) = (at(50).context("rounds")?, at(99).context("rounds")?);
    eprintln!("  workload_to_svid: {half:.1?} at the median of {} rounds", took.len());
    let figure = Figure {
        name: "workload_to_svid",
        value: p99.as_secs_f64() * 1000.0,
        unit: "ms p99",
        limit: 100.0,
        limit_is: "ms from the request that adds a workload to the SVID in a waiting process, asked for",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
}

async fn rounds() -> Result<Vec<Duration>> {
    let machine = Machine::start("bench.example").await?;
    let workloads = machine.workloads().await?;
    let mut took = Vec::with_capacity(ROUNDS);
    let started = Instant::now();
    for round in 0..FIRST + ROUNDS {
        let name: Name = format!("w{round}").parse()?;
        let begin = Instant::now();
        let waiting = workloads.wait(PAUSE);
        let (applied, waited) = tokio::join!(machine.apply(vec![workload(&name)]), async {
            waiting.await.map(|(call, svid)| (call, svid, begin.elapsed()))
        });
        applied?;
        let (call, svid, span) = waited?;
        ensure!(svid.spiffe_id.ends_with(name.as_str()), "another SVID: {}", svid.spiffe_id);
        machine.admin().remove_resource(Kind::Workload, &name).await?;
        withdrawn(call).await?;
        if FIRST <= round {
            took.push(span);
        }
        if ROUNDS_MIN <= took.len() && ENOUGH < started.elapsed() {
            break;
        }
    }
    Ok(took)
}

/// Whatever this user runs.
fn workload(name: &Name) -> serde_json::Value {
    let uid = nix::unistd::geteuid();
    json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "Workload", "metadata": { "name": name },
        "spec": { "selectors": [format!("unix:uid:{uid}")], "lifetime": "10m" },
    })
}
