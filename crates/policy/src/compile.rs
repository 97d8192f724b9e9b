//! From text to policies that can be trusted to mean something.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use cedar_policy::ffi::DetailedError;
use cedar_policy::{Effect, EntityUid, Policy, PolicyId, PolicySet, ValidationMode, Validator};
use countersign_identity::{Mode, Name, SpiffeId, Timestamp, Verb};

use crate::direction::is_one_way;
use crate::known::{self, Known};
use crate::literal::{Stray, strays};
use crate::narrow::{is_of_topics, speaks_of_doors_alone};
use crate::reads::{Conditions, Reads};
use crate::schema::{CONNECT, DATASET, OPERATION, ROLE, SERVICE, SOURCE, TOPIC, WORKLOAD, schema};
use crate::text::{Layout, after_entity};
use crate::{Limit, Names, Problem, Scope, TopicAct};

/// The longest text of one manifest.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;
/// The most texts that are compiled together.
const SOURCES_MAX: usize = 20_000;
/// The most problems that are told of one text; the rest follows from them more often than not.
const PROBLEMS_MAX: usize = 50;
/// Memory that is taken only as far as it is used.
const STACK_BYTES: usize = 32 * 1024 * 1024;
/// The annotation that lets a permit stand for any principal or any service.
const UNSCOPED: &str = "unscoped";
/// The annotation that names a policy among those of its manifest.
const ID: &str = "id";

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

/// Reads one text.
struct Reader<'a> {
    name: Option<&'a Name>,
    text: &'a str,
    mode: Mode,
    until: Option<Timestamp>,
    declared: Option<&'a Declared>,
}

/// Made once: to read the schema takes longer than to read a policy.
static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| Validator::new(schema()));

impl Reader<'_> {
    fn read(&self) -> Result<Vec<Statement>, Vec<Problem>> {
        let text = match known::recall(self.text) {
            Some(text) => text,
            None => {
                let text = Arc::new(self.learn()?);
                known::remember(self.text, Arc::clone(&text));
                text
            }
        };
        self.named(&text)
    }

    /// The policies of a known text under their manifest's name, if what they name is there.
    fn named(&self, text: &known::Text) -> Result<Vec<Statement>, Vec<Problem>> {
        let policies = text.policies.iter().map(|known| &known.policy);
        let problems = self.names(policies, &text.layout);
        if problems.is_empty() {
            return Ok(text.policies.iter().map(|known| self.statement(known)).collect());
        }
        Err(told(problems))
    }

    /// All that is true of the text whoever's it is, and whatever is declared.
    fn learn(&self) -> Result<known::Text, Vec<Problem>> {
        // The bounds come first: Cedar's own passes recurse.
        if TEXT_BYTES_MAX < self.text.len() {
            let bytes = self.text.len();
            let message = format!("{bytes} bytes are over the limit of {TEXT_BYTES_MAX}; split it");
            return Err(vec![self.problem(0, message)]);
        }
        let layout = Layout::of(self.text)
            .map_err(|much| vec![self.problem(much.offset(), much.to_string())])?;
        let parsed = self.parse(&layout)?;
        let mut problems = self.validate(&parsed);
        let mut policies = Vec::with_capacity(parsed.len());
        let ends = layout.statements.iter().skip(1).copied().chain([self.text.len()]);
        let spans = layout.statements.iter().zip(ends);
        for ((policy, suffix), (offset, end)) in parsed.iter().cloned().zip(spans) {
            let conditions = Conditions::of(&policy, self.text);
            let (scope, reads) = (Scope::of(&policy, &conditions), Reads::of(&conditions));
            let wide = self.addressed(&policy, &scope, reads, *offset);
            problems.extend(wide.or_else(|| self.unscoped(&policy, &scope, *offset)));
            problems.extend(self.doors(&policy, &scope, *offset));
            let strays = strays(&conditions).into_iter();
            problems.extend(strays.map(|stray| self.stray(&stray, &layout, *offset..end)));
            let (counted, one_way) = (!is_of_topics(&policy), is_one_way(&scope, &conditions));
            match Limit::of(&policy) {
                Ok(limit) => {
                    policies.push(Known { policy, suffix, scope, limit, reads, counted, one_way });
                }
                Err(why) => problems.push(self.problem(*offset, why)),
            }
        }
        if problems.is_empty() {
            return Ok(known::Text { layout, policies });
        }
        problems.extend(self.names(parsed.iter().map(|(policy, _)| policy), &layout));
        Err(told(problems))
    }

    /// A policy under the name and with the mode and the end of its manifest.
    fn statement(&self, known: &Known) -> Statement {
        let Known { policy, suffix, scope, limit, reads, counted, one_way } = known;
        Statement {
            policy: policy.new_id(PolicyId::new(self.id(suffix.as_deref()))),
            scope: scope.clone(),
            mode: self.mode,
            until: self.until,
            limit: *limit,
            reads: *reads,
            counted: *counted,
            one_way: *one_way,
        }
    }

    /// The policies in the order of the text, each with its final id, and what of that is not its manifest's name.
    fn parse(&self, layout: &Layout) -> Result<Vec<(Policy, Option<String>)>, Vec<Problem>> {
        let set = PolicySet::from_str(self.text).map_err(|errors| {
            let details = errors.iter().map(DetailedError::from);
            details.map(|detail| self.cedar_problem(detail)).take(PROBLEMS_MAX).collect::<Vec<_>>()
        })?;
        if layout.statements.is_empty() {
            let message = "there is no policy in it; write `permit (…);` or `forbid (…);`";
            return Err(vec![self.problem(0, message.to_owned())]);
        }
        // Were they ever to differ, a policy would be left out unseen, and that may be a `forbid`.
        if set.policies().count() + set.templates().count() != layout.statements.len() {
            let message = "its policies cannot be told apart; write each on lines of its own";
            return Err(vec![self.problem(0, message.to_owned())]);
        }
        let (mut policies, mut problems) = (Vec::new(), Vec::new());
        let mut ids = BTreeSet::new();
        let single = layout.statements.len() == 1;
        for (number, offset) in layout.statements.iter().enumerate() {
            // Cedar numbers the policies of a text in its order.
            let Some(policy) = set.policy(&PolicyId::new(format!("policy{number}"))) else {
                let message =
                    "a template with `?principal` or `?resource` is not a policy; name them";
                problems.push(self.problem(*offset, message.to_owned()));
                continue;
            };
            match suffix(policy, number, single) {
                Ok(suffix) => {
                    let id = self.id(suffix.as_deref());
                    if ids.insert(id.clone()) {
                        policies.push((policy.new_id(PolicyId::new(id)), suffix));
                    } else {
                        let message = format!("there are two policies `{id}`");
                        problems.push(self.problem(*offset, message));
                    }
                }
                Err(message) => problems.push(self.problem(*offset, message)),
            }
        }
        if problems.is_empty() { Ok(policies) } else { Err(problems) }
    }

    /// The name under which decisions tell of the policy.
    fn id(&self, suffix: Option<&str>) -> String {
        let manifest = self.name.map_or("policy", Name::as_str);
        suffix.map_or_else(|| manifest.to_owned(), |suffix| format!("{manifest}#{suffix}"))
    }

    /// What Cedar's strict validation says. Its warnings are problems too: a policy that can never apply, and
    /// names that look like others.
    fn validate(&self, policies: &[(Policy, Option<String>)]) -> Vec<Problem> {
        let set = PolicySet::from_policies(policies.iter().map(|(policy, _)| policy.clone()))
            .expect("ids are unique, and there are no templates");
        let result = VALIDATOR.validate(&set, ValidationMode::Strict);
        let errors: Vec<_> = result.validation_errors().map(DetailedError::from).collect();
        // Warnings repeat what follows from an error, such as that no action can apply.
        let details = if errors.is_empty() {
            result.validation_warnings().map(DetailedError::from).collect()
        } else {
            errors
        };
        of_all_actions(details.into_iter().map(|detail| self.cedar_problem(detail)))
    }

    /// A permit for anybody that reads an address: whoever can have that address would be whom it permits.
    fn addressed(
        &self,
        policy: &Policy,
        scope: &Scope,
        reads: Reads,
        offset: usize,
    ) -> Option<Problem> {
        match policy.effect() {
            Effect::Forbid => return None,
            Effect::Permit => {}
        }
        match scope.principals {
            Names::Only(_) | Names::Role(_) | Names::Dataset(_) => return None,
            Names::Any => {}
        }
        reads.source.then(|| {
            let message = format!(
                "it permits anybody by the address that they come from, and an address is no identity; name whom with \
                 `principal == Workload::\"…\"` or `principal in Role::\"…\"`, and let `context.{SOURCE}` narrow that"
            );
            self.problem(offset, message)
        })
    }

    /// A permit to connect by a data set: whoever may have data is let in by no more than that, so it would never permit anything.
    fn doors(&self, policy: &Policy, scope: &Scope, offset: usize) -> Option<Problem> {
        match (policy.effect(), &scope.resources) {
            (Effect::Permit, Names::Dataset(_)) => {}
            (Effect::Permit, Names::Any | Names::Only(_) | Names::Role(_))
            | (Effect::Forbid, _) => return None,
        }
        speaks_of_doors_alone(policy).then(|| {
            let message = format!(
                "it can never permit: nobody says which data is touched by connecting; name the service with \
                 `resource == {SERVICE}::\"…\"`"
            );
            self.problem(offset, message)
        })
    }

    /// Something that is asked of a thing by its name, though it is known only of what is asked for: it would be false, or an error.
    fn stray(&self, stray: &Stray, layout: &Layout, span: Range<usize>) -> Problem {
        let is_it = |uid: &EntityUid| {
            uid.id().unescaped() == stray.id && uid.type_name().to_string() == stray.kind
        };
        let written = layout.entities.iter().filter(|(at, uid)| span.contains(at) && is_it(uid));
        let written: Vec<usize> = written.map(|(at, _)| *at).collect();
        let asks = |at: &usize| {
            let after = after_entity(self.text, *at);
            ["in", "is", "has", ".", "["].iter().any(|word| after.starts_with(word))
        };
        let found = written.iter().find(|at| asks(at)).or(written.first());
        let uid = format!("{}::{:?}", stray.kind, stray.id);
        let message = format!(
            "what `{uid}` is in, and how its data is classified, is known only while it is what is asked for, and this would be \
             false or fail otherwise; write `resource` in its place, and `resource == {uid}` beside it where no other is meant"
        );
        self.problem(found.copied().unwrap_or(span.start), message)
    }

    fn unscoped(&self, policy: &Policy, scope: &Scope, offset: usize) -> Option<Problem> {
        match policy.effect() {
            Effect::Forbid => return None,
            Effect::Permit => {}
        }
        let whom = match (scope.principals == Names::Any, scope.resources == Names::Any) {
            (false, false) => return None,
            (true, true) => "any workload to any service",
            (true, false) => "any workload",
            (false, true) => "connections to any service",
        };
        match annotation(policy, UNSCOPED).map(str::trim) {
            Some(why) if !why.is_empty() => None,
            Some(_) => {
                Some(self.problem(offset, format!("annotation `@{UNSCOPED}` needs a reason")))
            }
            None => {
                let message = format!(
                    "its scope permits {whom}; name one with `principal == Workload::\"…\"` and one with \
                     `resource == Service::\"…\"` (or `in Dataset::\"…\"`), or say why in `@{UNSCOPED}(\"…\")`"
                );
                Some(self.problem(offset, message))
            }
        }
    }

    /// Every name must be one that can stand for something: Cedar takes any text, so a misspelt forbid would
    /// forbid nothing.
    fn names<'a>(
        &self,
        policies: impl Iterator<Item = &'a Policy>,
        layout: &Layout,
    ) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (offset, uid) in &layout.entities {
            problems.extend(self.name(uid).map(|message| self.problem(*offset, message)));
        }
        // What Cedar finds decides; the layout only knows where.
        for (policy, offset) in policies.zip(&layout.statements) {
            for uid in policy.entity_literals() {
                if layout.entities.iter().all(|(_, written)| *written != uid) {
                    problems.extend(self.name(&uid).map(|message| self.problem(*offset, message)));
                }
            }
        }
        problems
    }

    fn name(&self, uid: &EntityUid) -> Option<String> {
        let kind = uid.type_name().to_string();
        let text = uid.id().unescaped();
        match (kind.as_str(), self.declared) {
            (WORKLOAD, Some(declared)) => unknown(uid, text, &declared.workloads),
            (ROLE, Some(declared)) => unknown(uid, text, &declared.roles),
            (SERVICE, Some(declared)) => unknown(uid, text, &declared.services),
            (OPERATION, Some(declared)) => undeclared(uid, text, &declared.operations, OPERATIONS),
            (TOPIC, Some(declared)) => undeclared(uid, text, &declared.topics, TOPICS),
            (DATASET, Some(declared)) => undeclared(uid, text, &declared.data_sets, DATA_SETS),
            (DATASET, None) => text
                .parse::<Name>()
                .is_err()
                .then(|| format!("`{uid}` can match nothing: expected the name of a data set")),
            (WORKLOAD, None) => {
                let is_id = || text.parse::<SpiffeId>().is_ok_and(|id| id.as_str() == text);
                let known = text.parse::<Name>().is_ok() || is_id();
                (!known)
                    .then(|| format!("`{uid}` can match nothing: expected a name or a SPIFFE ID"))
            }
            (ROLE, None) => text
                .parse::<Name>()
                .is_err()
                .then(|| format!("`{uid}` can match nothing: expected the name of a role")),
            (SERVICE, None) => text
                .parse::<Name>()
                .is_err()
                .then(|| format!("`{uid}` can match nothing: expected the name of a service")),
            (OPERATION | TOPIC, None) => {
                let parts = text.split_once('/').map(|(service, name)| {
                    service.parse::<Name>().is_ok() && name.parse::<Name>().is_ok()
                });
                let form = if kind == TOPIC { "SERVICE/TOPIC" } else { "SERVICE/OPERATION" };
                (parts != Some(true))
                    .then(|| format!("`{uid}` can match nothing: expected `{form}`"))
            }
            // Cedar's validation knows the other types, and says so.
            _ => None,
        }
    }

    fn cedar_problem(&self, detail: DetailedError) -> Problem {
        let offset = detail.source_locations.first().map_or(0, |label| label.loc.start);
        let label = detail.source_locations.into_iter().find_map(|label| label.label);
        let mut message = detail.message;
        let help = nearest_action(&message).or(detail.help);
        for more in [label, help].into_iter().flatten() {
            message.push_str("; ");
            message.push_str(&more);
        }
        self.problem(offset, message)
    }

    fn problem(&self, offset: usize, message: String) -> Problem {
        Problem::at(self.name, self.text, offset, message)
    }
}

/// Cedar looks at each action by itself. What is wrong with several of them at one place is told once, and names all.
fn of_all_actions(problems: impl Iterator<Item = Problem>) -> Vec<Problem> {
    let mut wrong: BTreeMap<Problem, BTreeSet<String>> = BTreeMap::new();
    for mut problem in problems {
        let action = cut_action(&mut problem.message);
        wrong.entry(problem).or_default().extend(action);
    }
    let named = |(mut problem, actions): (Problem, BTreeSet<String>)| {
        let actions = actions.into_iter().collect::<Vec<_>>().join(", ");
        problem.message = problem.message.replacen(CUT, &actions, 1);
        problem
    };
    wrong.into_iter().map(named).collect()
}

/// Stands for the action in a message out of which it was cut. No message of Cedar's holds it, since texts are escaped there.
const CUT: &str = "\u{0}";

/// The first action that the message names, out of it.
fn cut_action(message: &mut String) -> Option<String> {
    const BEGIN: &str = "Action::\"";
    let from = message.find(BEGIN)?;
    let to = from + BEGIN.len() + message[from + BEGIN.len()..].find('"')? + 1;
    let action = message[from..to].to_owned();
    message.replace_range(from..to, CUT);
    Some(action)
}

/// The same in order, each once, and not without end.
fn told(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort();
    problems.dedup();
    problems.truncate(PROBLEMS_MAX);
    problems
}

/// What tells a policy from the others of its text; `None` for the only one, where it does not say its name.
fn suffix(policy: &Policy, number: usize, single: bool) -> Result<Option<String>, String> {
    let Some(written) = annotation(policy, ID) else {
        return Ok((!single).then(|| (number + 1).to_string()));
    };
    let name: Name = written.parse().map_err(|bad| format!("annotation `@{ID}`: {bad}"))?;
    Ok(Some(name.to_string()))
}

/// What an annotation says. Cedar's own way to it parses the name each time.
pub(crate) fn annotation<'a>(policy: &'a Policy, name: &str) -> Option<&'a str> {
    policy.annotations().find_map(|(key, value)| (key == name).then_some(value))
}

fn unknown(uid: &EntityUid, text: &str, declared: &BTreeSet<Name>) -> Option<String> {
    if text.parse::<Name>().is_ok_and(|name| declared.contains(&name)) {
        return None;
    }
    let near = nearest(text, declared.iter().map(Name::as_str))
        .map(|near| format!("; did you mean `{near}`?"))
        .unwrap_or_else(|| format!("; declare it with a manifest of kind {}", uid.type_name()));
    Some(format!("no manifest declares `{uid}`{near}"))
}

/// Cedar's own idea of what was meant is of another kind than ours.
fn nearest_action(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("unrecognized action `Action::\"")?;
    let (written, _) = rest.split_once('"')?;
    let actions = std::iter::once(CONNECT).chain(Verb::ALL.iter().map(|verb| verb.as_str()));
    let actions = actions.chain(TopicAct::ALL.map(TopicAct::as_str));
    nearest(written, actions).map(|near| format!("did you mean `Action::\"{near}\"`?"))
}

/// Where a Service declares them.
const OPERATIONS: &str = "`operations` of its Service";
const TOPICS: &str = "`topics` of its Service";
const DATA_SETS: &str = "`dataSets` of a Service";

fn undeclared(
    uid: &EntityUid,
    text: &str,
    declared: &BTreeSet<String>,
    place: &str,
) -> Option<String> {
    if declared.contains(text) {
        return None;
    }
    let near = nearest(text, declared.iter().map(String::as_str))
        .map(|near| format!("did you mean `{near}`?"))
        .unwrap_or_else(|| format!("declare it in {place}"));
    Some(format!("no manifest declares `{uid}`; {near}"))
}

/// The declared name that is one or two slips away, if any.
pub fn nearest<'a>(text: &str, declared: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = |name: &&str| {
        name.len().abs_diff(text.len()) <= SLIPS_MAX && slips(text, name) <= SLIPS_MAX
    };
    (SLIPS_MAX < text.len() && text.len() <= NEAR_BYTES_MAX)
        .then(|| declared.into_iter().find(near))
        .flatten()
}

const SLIPS_MAX: usize = 2;
const NEAR_BYTES_MAX: usize = 128;

/// Levenshtein's distance.
fn slips(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
