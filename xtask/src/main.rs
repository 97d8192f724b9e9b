//! The project's own commands: `cargo xtask check | test | layers | gen | sbom | reproducible | crash | older | bench |
//! instructions | fuzz`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod advisories;
mod bench;
mod bounded;
mod check;
mod crash;
mod fuzz;
mod generate;
mod instructions;
mod layers;
mod lock;
mod older;
mod reproducible;
mod sbom;
mod shell;
mod test;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Format, lints with warnings denied, layers, one TLS stack, sources, licences, known advisories
    Check,
    /// Install what the tests need, build, and run all of them
    Test {
        /// Leave the machine's packages as they are
        #[arg(long)]
        no_install: bool,
        /// Run only tests whose name holds this
        filter: Option<String>,
    },
    /// Run one test program, and end it with all that it started when it takes too long
    #[command(hide = true)]
    Bounded {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        program: Vec<std::ffi::OsString>,
    },
    /// Check which crate knows which against ARCHITECTURE.md's table
    Layers,
    /// Write generated files anew: vectors, reference pages
    Gen,
    /// Print what a program is made of, as CycloneDX JSON
    Sbom {
        /// Which of the programs
        #[arg(long = "bin", default_value = "countersign")]
        binary: sbom::Binary,
    },
    /// Build a program twice, in two folders, and compare the bytes
    Reproducible(reproducible::Builds),
    /// Run the benchmarks and print each figure with its ratio to a limit
    Bench {
        /// `json` prints one object a line
        #[arg(long, default_value = "human")]
        output: bench::Output,
        /// Leave the machine's packages as they are
        #[arg(long)]
        no_install: bool,
        /// Run only this figure, or only those of a `fleet`
        name: Option<String>,
        #[command(flatten)]
        fleet: bench::FleetArguments,
    },
    /// Count the instructions of what is done most, beside the committed table
    Instructions(instructions::Counting),
    /// Run the kill rounds of a range of seeds, in pieces, going on where it was stopped
    Crash(crash::Rounds),
    /// Build the program of an earlier commit, and run it beside this one on one database
    Older(older::Older),
    /// Run every fuzz target for some seconds
    Fuzz {
        /// How long each target runs
        #[arg(long, default_value_t = 20)]
        seconds: u32,
        /// Run only this target
        target: Option<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let done = match command {
        Command::Check => check::run(),
        Command::Test { no_install, filter } => test::run(!no_install, filter.as_deref()),
        Command::Bounded { program } => bounded::run(&program),
        Command::Layers => layers::run(),
        Command::Gen => generate::run(),
        Command::Sbom { binary } => sbom::run(binary),
        Command::Reproducible(builds) => reproducible::run(&builds),
        Command::Instructions(counting) => instructions::run(&counting),
        Command::Crash(rounds) => crash::run(&rounds),
        Command::Older(older) => older::run(&older),
        Command::Bench { output, no_install, name, fleet } => {
            return Ok(bench::run(output, name.as_deref(), !no_install, &fleet));
        }
        Command::Fuzz { seconds, target } => fuzz::run(seconds, target.as_deref()),
    };
    done.map(|()| ExitCode::SUCCESS)
}
