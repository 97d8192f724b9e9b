//! From texts to typed values, with every problem told at once.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::field::Field;
use crate::exit::Failure;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag,
    /// This environment variable.
    Environment(String),
    /// This line of a file.
    File(String),
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment(name) => f.write_str(name),
            Self::File(place) => f.write_str(place),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value as it was given.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) field: &'static Field,
    pub(super) texts: Vec<String>,
    pub(super) source: Source,
}

/// The texts of all settings, and what is wrong with them so far.
#[derive(Debug, Default)]
pub struct Resolved {
    pub(super) given: BTreeMap<&'static str, Given>,
    problems: Vec<String>,
}

impl Resolved {
    pub(super) fn set(&mut self, field: &'static Field, texts: Vec<String>, source: Source) {
        self.given.insert(field.flag, Given { field, texts, source });
    }

    /// Adds something that is wrong.
    pub fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// Whether anybody said anything.
    pub fn has(&self, flag: &str) -> bool {
        self.given.get(flag).is_some_and(|given| !given.texts.is_empty())
    }

    /// A value that must be there.
    pub fn required<T>(&mut self, flag: &'static str) -> Option<T>
    where
        T: FromStr<Err: fmt::Display>,
    {
        if !self.has(flag) {
            let variable = format!("COUNTERSIGN_{}", flag.replace('-', "_").to_uppercase());
            self.problem(format!(
                "`--{flag}` is missing: give it as a flag, as {variable}, or in the file"
            ));
        }
        self.optional(flag)
    }

    /// A value that may be absent; also `None` when it is wrong, which is told.
    pub fn optional<T>(&mut self, flag: &'static str) -> Option<T>
    where
        T: FromStr<Err: fmt::Display>,
    {
        self.list(flag).pop()
    }

    /// Any number of values, without those that are wrong, which are told.
    pub fn list<T>(&mut self, flag: &'static str) -> Vec<T>
    where
        T: FromStr<Err: fmt::Display>,
    {
        let Some(given) = self.given.get(flag).cloned() else { return Vec::new() };
        let mut values = Vec::new();
        for text in &given.texts {
            match text.parse() {
                Ok(value) => values.push(value),
                Err(error) if given.field.secret => {
                    let error: T::Err = error;
                    drop(error);
                    self.problem(format!("{}: is not of the right form", given.place()));
                }
                Err(error) => self.problem(format!("{}: {error}", given.place())),
            }
        }
        values
    }

    /// Whether it is on.
    pub fn switch(&mut self, flag: &'static str) -> bool {
        self.optional::<Switch>(flag).is_some_and(|Switch(on)| on)
    }

    /// Ends with every problem, if there is any.
    ///
    /// # Errors
    /// With every problem, one a line.
    pub fn finish(&self) -> Result<(), Failure> {
        match self.problems.as_slice() {
            [] => Ok(()),
            [problem] => Err(Failure::not_understood(problem.clone())),
            problems => Err(Failure::not_understood(format!(
                "{} settings are wrong\n{}",
                problems.len(),
                problems.join("\n")
            ))),
        }
    }
}

impl Given {
    fn place(&self) -> String {
        match &self.source {
            Source::Flag | Source::Default => format!("`--{}`", self.field.flag),
            Source::Environment(name) => name.clone(),
            Source::File(place) => format!("{place}: `{}`", self.field.key()),
        }
    }
}

/// `true` or `false`.
struct Switch(bool);

impl FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(Self(true)),
            "false" => Ok(Self(false)),
            other => {
                Err(format!("`{}` is neither `true` nor `false`", crate::output::printable(other)))
            }
        }
    }
}
