//! The benchmarks: each prints figures with their ratio to a stated limit, measured in the same run.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::shell::{cargo, root};
use crate::test::{packages, python};

/// The figures that need other proxies beside ours.
const BESIDE_PEERS: [&str; 5] = ["handshake_peers", "http1", "http2", "tcp", "bulk"];
/// The figures of our own proxy as it is shipped.
const OF_THE_PROXY: [&str; 13] = [
    "handshake",
    "handshake_remembered",
    "handshake_cores",
    "handshake_peers",
    "http1",
    "http2",
    "tcp",
    "bulk",
    "idle_connection",
    "idle_tunnel",
    "flood",
    "flood_memory",
    "flood_newcomer",
];
/// Those of them that are measured beside a bare acceptor.
const BESIDE_BARE: [&str; 3] = ["handshake", "handshake_remembered", "handshake_cores"];
/// Those of Debian.
const PEERS: [&str; 4] = ["nginx", "libnginx-mod-stream", "haproxy", "python3-venv"];

/// The figure that needs another authority beside ours.
const BESIDE_STEP_CA: &str = "issue_beside_step_ca";
/// Its libraries, which Debian has, and what builds a program of them.
const STEP_CA: [&str; 2] = ["golang-go", "golang-github-smallstep-certificates-dev"];

/// A figure could not be measured, so that nobody knows how good it is.
const NOT_MEASURED: u8 = 3;

/// How figures are printed.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Output {
    Human,
    Json,
}

/// What a fleet is measured with; everything else has no choices.
#[derive(clap::Args)]
pub(crate) struct FleetArguments {
    /// How many agents a fleet has
    #[arg(long)]
    agents: Option<usize>,
    /// Over how long the cost of streams on which nothing happens is measured: `60s`, `1h`
    #[arg(long)]
    silence: Option<String>,
    /// Where the distribution is drawn as SVG: a file, or a folder for several
    #[arg(long, value_name = "FILE")]
    plot: Option<std::path::PathBuf>,
}

/// Runs them, and ends as they do: 0 when every figure is as asked, 1 when one is not, 2 when there is none of that name, and 3 when
/// one could not be measured.
pub(crate) fn run(
    output: Output,
    name: Option<&str>,
    install: bool,
    fleet: &FleetArguments,
) -> ExitCode {
    measured(output, name, install, fleet).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::from(NOT_MEASURED)
    })
}

fn measured(
    output: Output,
    name: Option<&str>,
    install: bool,
    fleet: &FleetArguments,
) -> Result<ExitCode> {
    let format = match output {
        Output::Human => "human",
        Output::Json => "json",
    };
    let beside_peers = name.is_none_or(|name| BESIDE_PEERS.contains(&name));
    if install
        && beside_peers
        && let Err(why) = peers()
    {
        // The figures that lack one say so themselves.
        eprintln!("xtask: {why:#}");
    }
    if install
        && name.is_none_or(|name| name == BESIDE_STEP_CA)
        && let Err(why) = packages(&STEP_CA)
    {
        eprintln!("xtask: {why:#}");
    }
    // Some figures run the product itself.
    step_quietly(&mut cargo(&["build", "--quiet", "--release"]))?;
    build_shipped(name)?;
    let mut bench = cargo(&["run", "--quiet", "--release", "--package", "countersign-bench", "--"]);
    bench.args(["--output", format]).args(name);
    if std::env::var_os("COUNTERSIGN_ENVOY").is_none()
        && let Some(envoy) = envoy()
    {
        bench.env("COUNTERSIGN_ENVOY", envoy);
    }
    if let Some(agents) = fleet.agents {
        bench.args(["--agents", &agents.to_string()]);
    }
    if let Some(silence) = &fleet.silence {
        bench.args(["--silence", silence]);
    }
    if let Some(plot) = &fleet.plot {
        bench.arg("--plot").arg(std::path::absolute(plot)?);
    }
    // Built first: what cannot be built is no verdict on a figure.
    step_quietly(&mut cargo(&["build", "--quiet", "--release", "--package", "countersign-bench"]))?;
    if matches!(output, Output::Human) {
        eprintln!("── benchmarks");
    }
    Ok(ExitCode::from(passed_on(bench.status()?.code())))
}

/// What the benchmarks ended with. Whatever else may end a program has measured nothing.
fn passed_on(code: Option<i32>) -> u8 {
    let known = code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code < NOT_MEASURED);
    known.unwrap_or(NOT_MEASURED)
}

/// Builds what a figure runs as it is shipped, unless it is told to take another.
fn build_shipped(name: Option<&str>) -> Result<()> {
    let built = [
        ("countersign-proxy", "COUNTERSIGN_PROXY_BIN", &OF_THE_PROXY[..]),
        ("countersign-bench-bare", "COUNTERSIGN_BARE_BIN", &BESIDE_BARE[..]),
    ];
    let mut build = cargo(&["build", "--quiet", "--profile", "dist"]);
    let mut any = false;
    for (package, another, figures) in built {
        let asked = name.is_none_or(|name| figures.contains(&name));
        if asked && std::env::var_os(another).is_none() {
            build.args(["--package", package]);
            any = true;
        }
    }
    if any { step_quietly(&mut build) } else { Ok(()) }
}

/// Installs the proxies that ours is measured beside.
fn peers() -> Result<()> {
    packages(&PEERS)?;
    // Envoy is among what the tests need.
    python().context("Envoy is not installed")
}

/// The program in its package.
fn envoy() -> Option<PathBuf> {
    let versions = std::fs::read_dir(root().join("target/venv/lib")).ok()?;
    let inside = "site-packages/envoy/_bin/envoy";
    versions.flatten().map(|version| version.path().join(inside)).find(|path| path.is_file())
}

fn step_quietly(command: &mut std::process::Command) -> Result<()> {
    anyhow::ensure!(command.status()?.success(), "{command:?} failed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_benchmark_that_broke_has_measured_nothing() {
        assert_eq!([0, 1, 2, 3].map(|code| passed_on(Some(code))), [0, 1, 2, NOT_MEASURED]);
        // A panic, another end that is not ours, and a signal.
        assert_eq!([Some(101), Some(-1), None].map(passed_on), [NOT_MEASURED; 3]);
    }
}
