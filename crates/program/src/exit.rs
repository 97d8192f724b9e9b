//! How the program ends (design, section 16).

use std::error::Error;
use std::process::ExitCode;

use countersign_api::resource::Problem;
use countersign_identity::{Code, Fault};

use crate::system::plain;

/// The exit statuses. Nothing else is ever returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was done, or the answer is yes.
    Done = 0,
    /// The answer is no: refused, denied, different.
    No = 1,
    /// What was given is not understood.
    NotUnderstood = 2,
    /// What is needed cannot be reached, or is not ready.
    Unreachable = 3,
    /// Something else is in the way: another process, another change.
    Conflict = 4,
    /// A defect or a broken machine of ours.
    Ours = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// The status that belongs to a code.
    pub fn of(code: Code) -> Self {
        match code {
            Code::NotUnderstood | Code::InvalidManifest | Code::InvalidPolicy | Code::TooLarge => {
                Self::NotUnderstood
            }
            Code::StaleBase | Code::AlreadyExists | Code::NotConverged => Self::Conflict,
            other => match other.fault() {
                Fault::Caller | Fault::Peer => Self::No,
                Fault::Outage => Self::Unreachable,
                Fault::Us => Self::Ours,
            },
        }
    }
}

/// A sentence for the user, with the status that belongs to it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its code.
    pub code: Code,
    /// The status.
    pub exit: Exit,
    /// The sentence.
    pub message: String,
}

impl Failure {
    /// A failure of this code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, exit: Exit::of(code), message: message.into() }
    }

    /// What was given is not understood.
    pub fn not_understood(message: impl Into<String>) -> Self {
        Self::new(Code::NotUnderstood, message)
    }

    /// What is needed cannot be reached.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }
}

/// Nobody reads standard output any more.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub struct OutputClosed;

/// What is known of an error, wherever it came from.
#[derive(Debug)]
pub struct Told {
    /// How the program ends.
    pub exit: Exit,
    /// The code.
    pub code: Code,
    /// The sentence.
    pub message: String,
    /// What is wrong in detail.
    pub problems: Vec<Problem>,
}

/// What a program knows of one cause of an error.
#[derive(Debug)]
pub struct Known {
    /// Its code.
    pub code: Code,
    /// What is wrong in detail.
    pub problems: Vec<Problem>,
}

impl From<Code> for Known {
    fn from(code: Code) -> Self {
        Self { code, problems: Vec::new() }
    }
}

impl Told {
    /// Finds out what an error means. The first error in the chain that is known decides.
    pub fn of(
        error: &anyhow::Error,
        known: impl Fn(&(dyn Error + 'static)) -> Option<Known>,
    ) -> Self {
        let message = sentence(error);
        let found = error.chain().find_map(|cause| {
            if let Some(failure) = cause.downcast_ref::<Failure>() {
                return Some((failure.exit, Known::from(failure.code)));
            }
            known(cause).map(|known| (Exit::of(known.code), known))
        });
        // One that was given as the context of another is not in the chain as itself.
        let as_context = || {
            let failure = error.downcast_ref::<Failure>();
            failure.map(|failure| (failure.exit, Known::from(failure.code)))
        };
        let (exit, Known { code, problems }) =
            found.or_else(as_context).unwrap_or((Exit::Ours, Code::Internal.into()));
        // The problems are told one by one.
        let message = match problems.len() {
            0 => message,
            1 => "1 problem, nothing was changed".to_owned(),
            count => format!("{count} problems, nothing was changed"),
        };
        Self { exit, code, message, problems }
    }
}

/// The causes of an error, from the outermost on, without those that were already said.
fn sentence(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let said = cause.to_string();
        let said = match cause.downcast_ref::<std::io::Error>() {
            Some(error) => plain(error),
            None => without_numbers(&said),
        };
        // The system begins its words with a capital letter, and we do not.
        if message.to_lowercase().contains(&said.to_lowercase()) {
            continue;
        }
        if !message.is_empty() {
            message.push_str(": ");
        }
        message.push_str(&said);
    }
    message
}

/// A sentence without the numbers that the system gives its errors.
fn without_numbers(said: &str) -> String {
    let mut parts = said.split(" (os error ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once(')').map_or(part, |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let inner = std::io::Error::from_raw_os_error(2);
        let failure = Failure::unreachable("nobody answers: no such file or directory");
        let error = Err::<(), _>(inner).context(failure).context("outermost").unwrap_err();
        let told = Told::of(&error, |_cause| None);
        assert_eq!(told.message, "outermost: nobody answers: no such file or directory");
        assert_eq!(told.exit, Exit::Unreachable);
    }

    #[test]
    fn a_cause_is_said_once_however_the_system_spells_it() {
        let inner = std::io::Error::from_raw_os_error(2);
        let failure = Failure::unreachable(format!("could not read `a`: {inner}"));
        let error = Err::<(), _>(inner).context(failure).unwrap_err();
        let said = Told::of(&error, |_cause| None).message.to_lowercase();
        assert_eq!(said.matches("no such file").count(), 1, "{said}");
    }

    #[test]
    fn the_numbers_of_the_system_are_left_out() {
        let said =
            "cannot read `a`: no such file (os error 2); cannot read `b`: denied (os error 13)";
        assert_eq!(without_numbers(said), "cannot read `a`: no such file; cannot read `b`: denied");
        assert_eq!(without_numbers("plain"), "plain");
    }

    #[test]
    fn what_is_not_known_is_our_fault() {
        let told = Told::of(&anyhow::anyhow!("something"), |_cause| None);
        assert_eq!((told.exit, told.code), (Exit::Ours, Code::Internal));
    }

    #[test]
    fn every_code_has_a_status_and_none_is_success() {
        for code in Code::ALL {
            assert_ne!(Exit::of(*code), Exit::Done, "{code}");
        }
    }
}
