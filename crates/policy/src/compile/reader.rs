//! One text, read: into known policies, and those under the name of their manifest.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{Policy, PolicyId, PolicySet};
use countersign_identity::{Mode, Name, Timestamp};

use super::{Declared, Statement, TEXT_BYTES_MAX, annotation};
use crate::direction::is_one_way;
use crate::known::{self, Known};
use crate::literal::strays;
use crate::named::is_of_topics;
use crate::reads::{Conditions, Reads};
use crate::text::Layout;
use crate::{Limit, Problem, Scope};

/// The most problems that are told of one text; the rest follows from them more often than not.
const PROBLEMS_MAX: usize = 50;

/// The annotation that names a policy among those of its manifest.
const ID: &str = "id";

/// Reads one text.
pub(super) struct Reader<'a> {
    pub(super) name: Option<&'a Name>,
    pub(super) text: &'a str,
    pub(super) mode: Mode,
    pub(super) until: Option<Timestamp>,
    pub(super) declared: Option<&'a Declared>,
}

impl Reader<'_> {
    pub(super) fn read(&self) -> Result<Vec<Statement>, Vec<Problem>> {
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
    pub(super) fn named(&self, text: &known::Text) -> Result<Vec<Statement>, Vec<Problem>> {
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

    pub(super) fn problem(&self, offset: usize, message: String) -> Problem {
        Problem::at(self.name, self.text, offset, message)
    }
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
