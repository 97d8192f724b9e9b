//! Figures of Countersign, each beside a limit that is measured in the same run on the same cores.
//!
//! `cargo xtask bench [NAME]` runs them; `--output json` prints one object a line:
//! `{"name":…,"value":…,"unit":…,"limit":…,"ratio":…}`. For rates the ratio is value over limit (higher is better); for costs
//! it is value over limit too (lower is better); `better` says which.

mod child;
mod client;
mod console;
mod credentials;
mod figure;
mod fleet;
mod flood;
mod handshake;
mod issue;
mod lists;
#[path = "../../crates/cli/tests/support/load.rs"]
mod load;
mod log;
mod machine;
mod peers;
mod plot;
#[path = "../../crates/store/tests/support/postgres.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "it is the tests' own")]
mod postgres;
mod revoked;
mod rotation;
mod small;
mod step_ca;
mod telemetry;
mod workload;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;

use figure::Output;

#[derive(Parser)]
struct Arguments {
    /// How figures are printed
    #[arg(long, default_value = "human")]
    output: Output,
    /// Run only this figure, or only those of a `fleet`
    name: Option<String>,
    /// How many agents a fleet has
    #[arg(long, default_value_t = 10_000)]
    agents: usize,
    /// Where the distribution is drawn as SVG, for the figures that have one: a file, or a folder for several
    #[arg(long, value_name = "FILE")]
    plot: Option<std::path::PathBuf>,
    /// Be one end of a measurement; used by the benchmarks themselves
    #[arg(long, hide = true)]
    be: Option<child::End>,
    /// The folder with the credentials of that end
    #[arg(long, hide = true)]
    folder: Option<std::path::PathBuf>,
}

type Bench = fn(Output) -> Result<()>;

const FIGURES: [(&str, Bench); 28] = [
    ("issue_embedded", issue::embedded),
    ("issue_postgres", issue::postgres),
    ("issue_beside_step_ca", step_ca::run),
    ("handshake", handshake::run),
    ("handshake_remembered", handshake::remembered),
    ("handshake_cores", handshake::cores),
    ("http1", peers::http1),
    ("http2", peers::http2),
    ("tcp", peers::tcp),
    ("bulk", peers::bulk),
    ("idle_connection", peers::idle),
    ("idle_tunnel", peers::idle_tunnel),
    ("proxy_policy", peers::policy),
    ("workload_to_svid", workload::run),
    ("flood", flood::run),
    ("rotation_p99", rotation::run),
    ("verify", small::verify),
    ("decide_cached", small::decide_cached),
    ("decide_10", small::decide_10),
    ("decide_10000", small::decide_10000),
    ("revoked_check", revoked::check),
    ("revoked_cut", revoked::cut),
    ("crl_100k", lists::run),
    ("log_append", issue::append),
    ("log_verify_1m", log::verify),
    ("log_proof", log::prove),
    ("telemetry", telemetry::run),
    ("console_page", console::page),
];

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if let (Some(end), Some(folder)) = (arguments.be, &arguments.folder) {
        return child::serve(end, folder);
    }
    let wanted = |name: &str| arguments.name.as_deref().is_none_or(|only| only == name);
    let (mut ran, mut failed) = (false, Vec::new());
    for (name, bench) in FIGURES {
        if wanted(name) {
            // The others go on: what one lacks says nothing of them.
            if let Err(error) = bench(arguments.output) {
                eprintln!("bench: {name}: {error:#}");
                failed.push(name);
            }
            ran = true;
        }
    }
    let of_fleet: Vec<_> =
        fleet::NAMES.into_iter().filter(|name| wanted(name) || wanted("fleet")).collect();
    if !of_fleet.is_empty() {
        let (output, agents) = (arguments.output, arguments.agents);
        fleet::run(&of_fleet, &fleet::Options { output, agents, plot: arguments.plot.clone() })?;
        ran = true;
    }
    if !ran {
        let names = FIGURES.iter().map(|(name, _)| *name);
        let names: Vec<_> = names.chain(fleet::NAMES).chain(["fleet"]).collect();
        bail!("no figure of that name: expected one of {}", names.join(", "));
    }
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    Ok(())
}
