//! The program `countersign`: every subcommand, thin.
//!
//! What a command does lives in the crates below; here are its words: flags, settings, manifests, what is
//! printed, and the exit status.

mod agent_channel;
mod commands;
mod exit;
mod find;
pub mod manifest;
mod output;
mod resident;
mod serve;
mod settings;
mod up;

use std::process::ExitCode;

use clap::Parser as _;

use crate::commands::Cli;
use crate::exit::{Exit, OutputClosed, Told};
use crate::output::Output;

/// Runs the program with the arguments of its process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = cli.output;
    // A defect ends the program with a sentence, too, and with the status for it.
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        eprintln!(
            "countersign: a defect of this program ({place}): {}",
            info.payload_as_str().unwrap_or("no reason given")
        );
    }));
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| commands::run(cli)));
    match ended {
        Ok(Ok(exit)) => exit.into(),
        Ok(Err(error)) => tell(&error, output).into(),
        Err(_panic) => Exit::Ours.into(),
    }
}

/// Says what went wrong: a sentence on standard error, and for scripts an object on standard output.
fn tell(error: &anyhow::Error, output: Output) -> Exit {
    if error.is::<OutputClosed>() {
        return Exit::Done;
    }
    let told = Told::of(error);
    eprintln!("countersign: {}", sentence(&told));
    if output == Output::Json {
        let object = serde_json::json!({
            "error": { "code": told.code, "message": told.message, "problems": told.problems },
        });
        if output::json(&object).is_err() {
            // Nobody reads it; the status says it all the same.
            return told.exit;
        }
    }
    told.exit
}

fn sentence(told: &Told) -> String {
    let problems = told.problems.iter().map(|problem| format!("\n{problem}"));
    problems.fold(told.message.clone(), |text, problem| text + &problem)
}
