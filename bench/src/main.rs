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
use countersign_identity::Lifetime;

use figure::{Output, Verdict};

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
    /// Over how long the cost of streams on which nothing happens is measured: `60s`, `1h`
    #[arg(long, default_value = "60s")]
    silence: Lifetime,
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

type Bench = fn(Output) -> Result<Verdict>;

const FIGURES: [(&str, Bench); 29] = [
    ("issue_embedded", issue::embedded),
    ("issue_postgres", issue::postgres),
    ("issue_beside_step_ca", step_ca::run),
    ("handshake", handshake::run),
    ("handshake_remembered", handshake::remembered),
    ("handshake_cores", handshake::cores),
    ("handshake_peers", handshake::beside_peers),
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

/// A figure is not as good as was asked: the answer is no.
const MISSED: u8 = 1;
/// There is no such figure.
const NOT_UNDERSTOOD: u8 = 2;
/// A figure could not be measured, so that nobody knows.
const NOT_MEASURED: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let (Some(end), Some(folder)) = (arguments.be, &arguments.folder) {
        return told(child::serve(end, folder).map(|()| ExitCode::SUCCESS));
    }
    if arguments.name.as_deref().is_some_and(|name| !names().contains(&name)) {
        eprintln!("bench: no figure of that name: expected one of {}", names().join(", "));
        return ExitCode::from(NOT_UNDERSTOOD);
    }
    told(run(&arguments).map(|verdict| match verdict {
        Verdict::Met => ExitCode::SUCCESS,
        Verdict::Missed => ExitCode::from(MISSED),
    }))
}

fn told(ended: Result<ExitCode>) -> ExitCode {
    ended.unwrap_or_else(|error| {
        eprintln!("bench: {error:#}");
        ExitCode::from(NOT_MEASURED)
    })
}

/// All that can be asked for by name.
fn names() -> Vec<&'static str> {
    let figures = FIGURES.iter().map(|(name, _)| *name);
    figures.chain(flood::TOGETHER).chain(fleet::NAMES).chain(["fleet"]).collect()
}

fn run(arguments: &Arguments) -> Result<Verdict> {
    let wanted = |name: &str| {
        let measured_with = |only: &str| name == "flood" && flood::TOGETHER.contains(&only);
        arguments.name.as_deref().is_none_or(|only| only == name || measured_with(only))
    };
    let (mut verdict, mut failed) = (Verdict::Met, Vec::new());
    for (name, bench) in FIGURES {
        if wanted(name) {
            // The others go on: what one lacks says nothing of them.
            match bench(arguments.output) {
                Ok(judged) => verdict = verdict.and(judged),
                Err(error) => {
                    eprintln!("bench: {name}: {error:#}");
                    failed.push(name);
                }
            }
        }
    }
    let of_fleet: Vec<_> =
        fleet::NAMES.into_iter().filter(|name| wanted(name) || wanted("fleet")).collect();
    if !of_fleet.is_empty() {
        let options = fleet::Options {
            output: arguments.output,
            agents: arguments.agents,
            silence: arguments.silence.duration(),
            plot: arguments.plot.clone(),
        };
        verdict = verdict.and(fleet::run(&of_fleet, &options)?);
    }
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    Ok(verdict)
}
