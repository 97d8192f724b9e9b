//! How a program of ours is told what to do, and how it lives: settings, output, exit status, readiness, signals.
//!
//! It refuses to know what any of the programs does.

pub mod arguments;
pub mod exit;
pub mod exposition;
mod log;
pub mod otlp;
pub mod output;
mod resident;
pub mod run;
pub mod seldom;
pub mod settings;
pub mod system;
pub mod trace;

use std::error::Error;
use std::process::ExitCode;

use countersign_api::resource::Problem;
use countersign_identity::Code;
use serde_json::{Value, json};

use crate::exit::{Exit, Known, OutputClosed, Told};
use crate::output::Output;

/// Runs a command of the program of this name, and says how it ended. `known` tells what it knows of a cause of an error.
pub fn main(
    name: &'static str,
    output: Output,
    command: impl FnOnce() -> anyhow::Result<Exit>,
    known: impl Fn(&(dyn Error + 'static)) -> Option<Known>,
) -> ExitCode {
    // A defect ends the program with a sentence, too, and with the status for it.
    std::panic::set_hook(Box::new(move |info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let why = info.payload_as_str().unwrap_or("no reason given");
        output::aside(&format!("{name}: a defect of this program ({place}): {why}"));
    }));
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(command)) {
        Ok(Ok(exit)) => exit.into(),
        Ok(Err(error)) => tell(name, &error, output, known).into(),
        Err(_panic) => Exit::Ours.into(),
    }
}

/// Says what went wrong: a sentence on standard error, and for scripts an object on standard output.
fn tell(
    name: &str,
    error: &anyhow::Error,
    output: Output,
    known: impl Fn(&(dyn Error + 'static)) -> Option<Known>,
) -> Exit {
    if error.is::<OutputClosed>() {
        return Exit::Done;
    }
    let told = Told::of(error, known);
    output::aside(&format!("{name}: {}", sentence(&told)));
    if output == Output::Json {
        let object = object(told.code, &told.message, &told.problems);
        if output::json(&object).is_err() {
            // Nobody reads it; the status says it all the same.
            return told.exit;
        }
    }
    told.exit
}

/// A failure, as scripts read it.
fn object(code: Code, message: &str, problems: &[Problem]) -> Value {
    json!({ "error": { "code": code, "message": message, "problems": problems } })
}

fn sentence(told: &Told) -> String {
    let problems = told.problems.iter().map(|problem| format!("\n{problem}"));
    problems.fold(told.message.clone(), |text, problem| text + &problem)
}
