//! What of its own environment `up` does not hand on: settings of a production that one stands in while one tries something.

use std::ffi::{OsStr, OsString};

use countersign_program::settings::{COMMON, Program};

use crate::serve::{AgentProgram, InitProgram, ProxyProgram, ServerProgram};

/// What one may mean for all parts of an `up` at once. None of it is a secret, and none says whose state is used.
const MEANT: [&str; 4] =
    ["COUNTERSIGN_LOG", "COUNTERSIGN_LOG_LEVEL", "COUNTERSIGN_OTLP", "COUNTERSIGN_TRACE_SHARE"];

/// Where a program with a SPIFFE library finds an agent. In the shell of a machine that has one, that would give what is tried here an
/// identity of that machine; a service that is to have it says so in its manifest.
const AGENT: &str = "SPIFFE_ENDPOINT_SOCKET";

/// What decides for which trust domain the other commands of a shell are.
const NAMES_A_TRUST_DOMAIN: [&str; 2] = ["COUNTERSIGN_ADMIN", "COUNTERSIGN_DATA"];

/// What commands read that is no line of a table of settings.
const OTHERS: [&str; 7] = [
    "COUNTERSIGN_ADMIN",
    "COUNTERSIGN_CONFIG",
    "COUNTERSIGN_PASSPHRASE",
    "COUNTERSIGN_PIN",
    "PGPASSFILE",
    "PGPASSWORD",
    AGENT,
];

/// The variables that are taken away from what `up` starts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// From its parts.
    pub(crate) parts: Vec<OsString>,
    /// From the programs of the user, who may have a database of their own: all that is ours, the database's password, and the way to
    /// another agent.
    pub(crate) programs: Vec<OsString>,
}

impl Surroundings {
    /// Of an environment with these names, of which the parts are to have `passed`.
    pub(crate) fn of(names: impl Iterator<Item = OsString>, passed: &[Variable]) -> Self {
        let mut found = Self::default();
        for name in names {
            let ours = begins(&name, "COUNTERSIGN_") || name == AGENT;
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
        if names.is_empty() {
            return None;
        }
        let mut said = format!(
            "`up` takes nothing from {}: neither its parts nor your programs get it (what the parts are to have all the same: \
             `--pass NAME`)",
            names.join(", ")
        );
        names.retain(|name| NAMES_A_TRUST_DOMAIN.contains(name));
        if !names.is_empty() {
            said.push_str(&format!(
                "; other commands of this shell, such as `countersign revoke`, are for what {} names and not for this `up`, unless \
                 they are told `--data DIR`",
                names.join(" or ")
            ));
        }
        Some(said)
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
pub(crate) struct Variable(String); // INVARIANT: begins with COUNTERSIGN_ or PG: no part reads another of those that are kept back

impl std::str::FromStr for Variable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ours = ["COUNTERSIGN_", "PG"].iter().any(|prefix| text.starts_with(prefix));
        if ours && !text.contains('=') {
            return Ok(Self(text.to_owned()));
        }
        let shown = crate::output::printable(text);
        Err(format!(
            "`{shown}` is not a variable that the parts can be handed: expected one such as `COUNTERSIGN_STORE` or `PGPASSFILE`"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 10] = [
        "PATH",
        "COUNTERSIGN_STORE",
        "COUNTERSIGN_OTLP",
        "COUNTERSIGN_PASSPHRASE",
        "COUNTERSIGN_DATA",
        "COUNTERSIGN_BIN",
        "PGHOST",
        "PGPASSWORD",
        "SPIFFE_ENDPOINT_SOCKET",
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
        let bin = "COUNTERSIGN_BIN";
        assert_eq!(found.parts, [store, words, data, bin, "PGHOST", "PGPASSWORD", AGENT]);
        let ours = [store, "COUNTERSIGN_OTLP", words, data, bin, "PGPASSWORD", AGENT];
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
        let named = "COUNTERSIGN_DATA, COUNTERSIGN_PASSPHRASE, COUNTERSIGN_STORE, PGPASSWORD, \
                     SPIFFE_ENDPOINT_SOCKET:";
        assert!(said.contains(named), "{said}");
        assert!(
            said.contains("are for what COUNTERSIGN_DATA names and not for this `up`"),
            "{said}"
        );
        let both = ["COUNTERSIGN_DATA", "COUNTERSIGN_ADMIN"].map(OsString::from);
        let said = Surroundings::of(both.into_iter(), &[]).warning().unwrap();
        assert!(said.contains("what COUNTERSIGN_ADMIN or COUNTERSIGN_DATA names"), "{said}");
        let store = [OsString::from("COUNTERSIGN_STORE")];
        let said = Surroundings::of(store.into_iter(), &[]).warning().unwrap();
        assert!(!said.contains("other commands"), "{said}");
        let quiet = ["COUNTERSIGN_LOG", "COUNTERSIGN_BIN", "PGHOST", "HOME"].map(OsString::from);
        assert_eq!(Surroundings::of(quiet.into_iter(), &[]).warning(), None);
    }
}
