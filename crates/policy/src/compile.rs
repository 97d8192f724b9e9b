//! From text to policies that can be trusted to mean something.

mod cedar;
mod names;
mod reader;
mod rules;

use std::collections::BTreeSet;

use cedar_policy::Policy;
use countersign_identity::{Mode, Name, Timestamp};

pub use self::names::nearest;
use self::reader::Reader;
use crate::known;
use crate::reads::Reads;
use crate::{Limit, Problem, Scope};

/// The longest text of one manifest.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;
/// The most texts that are compiled together.
const SOURCES_MAX: usize = 20_000;

/// Memory that is taken only as far as it is used.
const STACK_BYTES: usize = 32 * 1024 * 1024;

/// The text of one Policy manifest, which may hold several policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySource {
    /// The manifest's name.
    pub name: Name,
    /// Cedar.
    pub text: String,
    /// How far it goes.
    pub mode: Mode,
    /// From when on it is as if it were not there; `None` for never.
    pub until: Option<Timestamp>,
}

impl PolicySource {
    /// A text that is enforced, without an end.
    pub fn enforced(name: Name, text: impl Into<String>) -> Self {
        Self { name, text: text.into(), mode: Mode::Enforce, until: None }
    }
}

/// The names that manifests declare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Of kind Workload.
    pub workloads: BTreeSet<Name>,
    /// Of kind Role.
    pub roles: BTreeSet<Name>,
    /// Of kind Service.
    pub services: BTreeSet<Name>,
    /// The operations of services, `payments/charge`.
    pub operations: BTreeSet<String>,
    /// The data sets of services, `cards`.
    pub data_sets: BTreeSet<String>,
    /// The topics of services, `broker/charges-made`.
    pub topics: BTreeSet<String>,
}

/// One checked policy.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub(crate) policy: Policy,
    pub(crate) scope: Scope,
    pub(crate) mode: Mode,
    pub(crate) until: Option<Timestamp>,
    pub(crate) limit: Option<Limit>,
    /// What it reads of the context.
    pub(crate) reads: Reads,
    /// Whether it is seen when it is used: what is done with topics, nobody counts.
    pub(crate) counted: bool,
    /// Whether, of all data that could be touched, what it says of nothing and of all of it tells what it says of any part.
    pub(crate) one_way: bool,
}

pub(crate) fn compile(
    sources: &[PolicySource],
    declared: Option<&Declared>,
) -> Result<Vec<Statement>, Vec<Problem>> {
    with_room(|| compile_here(sources, declared))
}

/// Compiles a text by itself, without its manifest's name and without the check of declared names.
pub(crate) fn parse_alone(text: &str) -> Result<Vec<Statement>, Vec<Problem>> {
    let reader = Reader { name: None, text, mode: Mode::Enforce, until: None, declared: None };
    match known::recall(text) {
        // Nothing is left to do that needs room.
        Some(known) => reader.named(&known),
        None => with_room(|| reader.read()),
    }
}

/// Compiles a text as that of the manifest of this name, without the check of declared names.
pub(crate) fn parse_named(name: &Name, text: &str) -> Result<Vec<Statement>, Vec<Problem>> {
    with_room(|| {
        let (mode, until, name) = (Mode::Enforce, None, Some(name));
        Reader { name, text, mode, until, declared: None }.read()
    })
}

/// Works on a stack of its own, since Cedar takes some 45 KiB of it for each bracket (without optimisation) and
/// the caller's may be as small as a worker thread's.
fn with_room<T: Send>(
    work: impl FnOnce() -> Result<T, Vec<Problem>> + Send,
) -> Result<T, Vec<Problem>> {
    let failed = |why: &str| vec![Problem::at(None, "", 0, format!("could not compile: {why}"))];
    std::thread::scope(|threads| {
        let thread = std::thread::Builder::new()
            .name("policy".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(threads, work)
            .map_err(|error| failed(&error.to_string()))?;
        thread.join().unwrap_or_else(|_panic| Err(failed("a defect in the compiler")))
    })
}

fn compile_here(
    sources: &[PolicySource],
    declared: Option<&Declared>,
) -> Result<Vec<Statement>, Vec<Problem>> {
    if SOURCES_MAX < sources.len() {
        let message = format!("{} policies are over the limit of {SOURCES_MAX}", sources.len());
        return Err(vec![Problem::at(None, "", 0, message)]);
    }
    let (mut statements, mut problems) = (Vec::new(), Vec::new());
    let mut names = BTreeSet::new();
    for PolicySource { name, text, mode, until } in sources {
        if !names.insert(name) {
            let message = format!("there are two policies named `{name}`");
            problems.push(Problem::at(Some(name), text, 0, message));
            continue;
        }
        let (name, mode, until) = (Some(name), *mode, *until);
        let reader = Reader { name, text, mode, until, declared };
        match reader.read() {
            Ok(read) => statements.extend(read),
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() { Ok(statements) } else { Err(problems) }
}

/// What an annotation says. Cedar's own way to it parses the name each time.
pub(crate) fn annotation<'a>(policy: &'a Policy, name: &str) -> Option<&'a str> {
    policy.annotations().find_map(|(key, value)| (key == name).then_some(value))
}
