//! The program `countersign`: every subcommand, thin.
//!
//! What a command does lives in the crates below; here are its words: flags, settings, manifests, what is
//! printed, and the exit status.

mod agent_channel;
mod commands;
mod find;
pub mod manifest;
mod out;
mod serve;
mod settings;
mod up;

#[doc(hidden)]
pub use commands::steps;

use std::error::Error;
use std::process::ExitCode;

use countersign_api::admin::AdminError;
use countersign_identity::Code;
use countersign_program::exit::Known;
pub(crate) use countersign_program::{exit, output};

use crate::commands::Cli;

/// Runs the program with the arguments of its process.
pub fn main() -> ExitCode {
    let cli: Cli = match countersign_program::arguments::read() {
        Ok(cli) => cli,
        Err(ended) => return ended,
    };
    let output = cli.output;
    countersign_program::main("countersign", output, || commands::run(cli), known)
}

/// What is known of a cause of an error.
pub(crate) fn known(cause: &(dyn Error + 'static)) -> Option<Known> {
    if let Some(found) = cause.downcast_ref::<manifest::Problems>() {
        return Some(Known { code: Code::InvalidManifest, problems: found.list().to_vec() });
    }
    if let Some(error) = cause.downcast_ref::<AdminError>() {
        let mut known = Known::from(error.code());
        if let AdminError::Refused(refusal) = error {
            known.problems.clone_from(&refusal.problems);
        }
        return Some(known);
    }
    serve::code_of(cause).map(Known::from)
}
