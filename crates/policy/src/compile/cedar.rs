//! What Cedar's validation says of a text, told as our problems.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use cedar_policy::ffi::DetailedError;
use cedar_policy::{Policy, PolicySet, ValidationMode, Validator};
use countersign_identity::Verb;

use super::names::nearest;
use super::reader::Reader;
use crate::schema::{CONNECT, schema};
use crate::{Problem, TopicAct};

/// Made once: to read the schema takes longer than to read a policy.
static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| Validator::new(schema()));

impl Reader<'_> {
    /// What Cedar's strict validation says. Its warnings are problems too: a policy that can never apply, and
    /// names that look like others.
    pub(super) fn validate(&self, policies: &[(Policy, Option<String>)]) -> Vec<Problem> {
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

    pub(super) fn cedar_problem(&self, detail: DetailedError) -> Problem {
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

/// Cedar's own idea of what was meant is of another kind than ours.
fn nearest_action(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("unrecognized action `Action::\"")?;
    let (written, _) = rest.split_once('"')?;
    let actions = std::iter::once(CONNECT).chain(Verb::ALL.iter().map(|verb| verb.as_str()));
    let actions = actions.chain(TopicAct::ALL.map(TopicAct::as_str));
    nearest(written, actions).map(|near| format!("did you mean `Action::\"{near}\"`?"))
}
