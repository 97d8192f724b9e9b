//! What of its own environment `up` does not hand on: settings of a production that one stands in while one tries something.

use std::ffi::{OsStr, OsString};

use countersign_program::settings::{COMMON, Program};

use crate::serve::{AgentProgram, InitProgram, ProxyProgram, ServerProgram};

/// What one may mean for all parts of an `up` at once. None of it is a secret, and none says whose state is used.
const MEANT: [&str; 4] =
    ["COUNTERSIGN_LOG", "COUNTERSIGN_LOG_LEVEL", "COUNTERSIGN_OTLP", "COUNTERSIGN_TRACE_SHARE"];

/// What commands read that is no line of a table of settings.
const OTHERS: [&str; 6] = [
    "COUNTERSIGN_ADMIN",
    "COUNTERSIGN_CONFIG",
    "COUNTERSIGN_PASSPHRASE",
    "COUNTERSIGN_PIN",
    "PGPASSFILE",
    "PGPASSWORD",
];

/// The variables that are taken away from what `up` starts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// From its parts.
    pub(crate) parts: Vec<OsString>,
    /// From the programs of the user, who may have a database of their own: all that is ours, and the database's password.
    pub(crate) programs: Vec<OsString>,
}

impl Surroundings {
    /// Of an environment with these names, of which the parts are to have `passed`.
    pub(crate) fn of(names: impl Iterator<Item = OsString>, passed: &[Variable]) -> Self {
        let mut found = Self::default();
        for name in names {
            let ours = begins(&name, "COUNTERSIGN_");
            let passed = passed.iter().any(|Variable(passed)| passed.as_str() == name);
            let meant = MEANT.iter().any(|meant| *meant == name);
            if (ours || begins(&name, "PG")) && !passed && !meant {
                found.parts.push(name.clone());
            }
            if ours || name == "PGPASSFILE" || name == "PGPASSWORD" {
                found.programs.push(name);
            }
        }
        found
    }

    /// A sentence about those that would have meant something, if there are any.
    pub(crate) fn warning(&self) -> Option<String> {
        let mut names: Vec<&str> = self.parts.iter().filter_map(|name| name.to_str()).collect();
        names.retain(|name| means_something(name));
        names.sort_unstable();
        (!names.is_empty()).then(|| {
            format!(
                "`up` takes nothing from {}: neither its parts nor your programs get it (what the parts are to have all the same: \
                 `--pass NAME`)",
                names.join(", ")
            )
        })
    }
}

/// Whether a part reads it, or a command that is used beside one.
fn means_something(name: &str) -> bool {
    let fields = [InitProgram::FIELDS, ServerProgram::FIELDS, AgentProgram::FIELDS];
    let mut fields = fields.into_iter().chain([ProxyProgram::FIELDS, COMMON]).flatten();
    OTHERS.contains(&name) || fields.any(|field| field.variable() == name)
}

fn begins(name: &OsStr, prefix: &str) -> bool {
    name.as_encoded_bytes().starts_with(prefix.as_bytes())
}

/// The name of a variable that the parts get all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variable(String); // INVARIANT: begins with COUNTERSIGN_ or PG, since all others are handed on anyway

impl std::str::FromStr for Variable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ours = ["COUNTERSIGN_", "PG"].iter().any(|prefix| text.starts_with(prefix));
        if ours && !text.contains('=') {
            return Ok(Self(text.to_owned()));
        }
        let shown = crate::output::printable(text);
        Err(format!(
            "`{shown}` is not the name of a variable that `up` keeps back: expected one such as `COUNTERSIGN_STORE` or `PGPASSFILE`"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 9] = [
        "PATH",
        "COUNTERSIGN_STORE",
        "COUNTERSIGN_OTLP",
        "COUNTERSIGN_PASSPHRASE",
        "COUNTERSIGN_DATA",
        "COUNTERSIGN_BIN",
        "PGHOST",
        "PGPASSWORD",
        "LANG",
    ];

    fn of(passed: &[&str]) -> Surroundings {
        let passed: Vec<Variable> = passed.iter().map(|name| name.parse().unwrap()).collect();
        Surroundings::of(NAMES.iter().map(OsString::from), &passed)
    }

    #[test]
    fn parts_lose_what_is_ours_but_what_is_meant_and_programs_all_of_it_with_the_databases_password()
     {
        let found = of(&[]);
        let [store, words, data] =
            ["COUNTERSIGN_STORE", "COUNTERSIGN_PASSPHRASE", "COUNTERSIGN_DATA"];
        assert_eq!(found.parts, [store, words, data, "COUNTERSIGN_BIN", "PGHOST", "PGPASSWORD"]);
        let ours = [store, "COUNTERSIGN_OTLP", words, data, "COUNTERSIGN_BIN", "PGPASSWORD"];
        assert_eq!(found.programs, ours);
    }

    #[test]
    fn what_is_asked_for_by_name_reaches_the_parts_and_no_program() {
        let found = of(&["COUNTERSIGN_STORE", "PGPASSWORD"]);
        assert!(!found.parts.contains(&"COUNTERSIGN_STORE".into()), "{found:?}");
        assert!(!found.parts.contains(&"PGPASSWORD".into()), "{found:?}");
        assert!(found.programs.contains(&"COUNTERSIGN_STORE".into()), "{found:?}");
        assert!(found.programs.contains(&"PGPASSWORD".into()), "{found:?}");
        for text in ["PATH", "", "COUNTERSIGN_STORE=postgres://x"] {
            assert!(text.parse::<Variable>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_what_would_have_meant_something_is_told() {
        let said = of(&[]).warning().unwrap();
        let named = "COUNTERSIGN_DATA, COUNTERSIGN_PASSPHRASE, COUNTERSIGN_STORE, PGPASSWORD:";
        assert!(said.contains(named), "{said}");
        let quiet = ["COUNTERSIGN_LOG", "COUNTERSIGN_BIN", "PGHOST", "HOME"].map(OsString::from);
        assert_eq!(Surroundings::of(quiet.into_iter(), &[]).warning(), None);
    }
}
