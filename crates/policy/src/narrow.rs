//! From what was granted and what was used to the narrower text: permits nobody used go, and wide ones name those who did.

mod written;

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{Effect, EntityUid, Policy, PrincipalConstraint, ResourceConstraint};
use countersign_identity::{Name, Verb};

use self::written::{groups, tidy, written_out};
use crate::compile::{annotation, parse_named};
use crate::named::{actions, is_of_topics, principals, resources, role};
use crate::schema::{CONNECT, DATASET, Words, service_of};
use crate::text::spans;
use crate::{Members, Principal, Problem};

/// How many policies may stand in the place of one. What is used more widely than that is meant to be wide.
const WRITTEN_OUT_MAX: usize = 16;
/// The annotation that names a policy.
const ID: &str = "id";
/// The annotation that excuses a wide scope, which a narrow one does not need.
const UNSCOPED: &str = "unscoped";

/// Something that was asked for, and let pass.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// Who asked.
    pub principal: Principal,
    /// Whose door it was.
    pub service: Name,
    /// The method; `None` for a connection.
    pub verb: Option<Verb>,
    /// The operation; `None` for a connection, and for a path that none declares.
    pub operation: Option<Name>,
}

impl Use {
    fn action(&self) -> &str {
        self.verb.map_or(CONNECT, Verb::as_str)
    }

    fn resource(&self, words: &Words) -> EntityUid {
        match &self.operation {
            Some(operation) => words.operation(self.service.as_str(), operation.as_str()),
            None => words.service(self.service.as_str()),
        }
    }
}

/// What one permit of a text grants, as its scope says; a list without names stands for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Under which name decisions tell of it.
    pub policy: String,
    /// Whom; of a role, all who are in it.
    pub principals: Vec<String>,
    /// The role, where it is one that is named.
    pub role: Option<String>,
    /// What they may do.
    pub actions: Vec<String>,
    /// To what: services, operations as `payments/charge`, data sets as `Dataset::"charges"`.
    pub resources: Vec<String>,
    /// What of that was used, without what its scope does not admit: it was seen under an earlier text.
    pub used: BTreeSet<Use>,
    /// What is to become of it.
    pub outcome: Outcome,
}

impl Permit {
    /// Whether it names a role, and each of its members used it: then the role says whom it is for.
    fn fills_its_role(&self) -> bool {
        let did = |name: &String| self.used.iter().any(|one| one.principal.as_str() == name);
        self.role.is_some() && self.principals.iter().all(did)
    }
}

/// What is to become of a permit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It grants nothing that was not used.
    Exact,
    /// Nobody used it: it goes.
    Unused,
    /// Narrower ones stand in its place.
    Narrower,
    /// It stays wide, because so much of it was used.
    Wide,
}

/// On what a text is narrowed.
pub struct Grounds<'a> {
    /// What was used of each permit, named as decisions name them.
    pub used: &'a BTreeMap<String, BTreeSet<Use>>,
    /// Who is in which role.
    pub members: &'a Members,
    /// Whether permits of these actions on these resources are to be looked at.
    pub about: &'a dyn Fn(&[String], &[String]) -> bool,
    /// Whether they may be permits to publish or subscribe as well.
    pub of_topics: &'a dyn Fn(&[String], &[String]) -> bool,
}

/// A text, narrowed to what was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Narrowed {
    /// Each permit of the text before, in its order.
    pub permits: Vec<Permit>,
    /// Those of them that stay as they are, because nobody counts what is done with topics.
    pub uncounted: Vec<String>,
    /// The narrower text; `None` when nothing is left of it.
    pub text: Option<String>,
}

/// Narrows a text to what was used of each of its permits.
///
/// What forbids stays as it is, and so do conditions, limits and comments, permits of what is done with topics, which nobody counts,
/// and those that it is not `about`. The result grants nothing that the text did not. That it grants all that was used is for the
/// caller to try, with the very decision that was made.
///
/// # Errors
/// When the text does not compile.
pub fn narrow(name: &Name, text: &str, grounds: &Grounds<'_>) -> Result<Narrowed, Vec<Problem>> {
    let statements = parse_named(name, text)?;
    let spans = spans(text);
    let words = Words::new();
    let mut names: BTreeSet<String> = statements
        .iter()
        .filter_map(|one| annotation(&one.policy, ID).map(str::to_owned))
        .collect();
    let (mut permits, mut uncounted) = (Vec::new(), Vec::new());
    let (mut rest, mut left) = (String::new(), 0);
    let mut end = 0;
    for (statement, span) in statements.iter().zip(&spans) {
        rest.push_str(&text[end..span.start]);
        end = span.end;
        let policy = &statement.policy;
        let written = &text[span.start..span.end];
        let (actions, resources) = (actions(policy), resources(policy));
        let concerned = policy.effect() == Effect::Permit && (grounds.about)(&actions, &resources);
        let of_topics = is_of_topics(policy) || (grounds.of_topics)(&actions, &resources);
        if !concerned || of_topics {
            uncounted.extend(concerned.then(|| policy.id().to_string()));
            rest.push_str(written);
            left += 1;
            continue;
        }
        let permit = permit(policy, grounds, &words);
        match permit.outcome {
            Outcome::Exact | Outcome::Wide => {
                rest.push_str(written);
                left += 1;
            }
            Outcome::Unused => {}
            Outcome::Narrower => {
                let groups = groups(&permit, &words);
                left += groups.len();
                rest.push_str(&written_out(policy, &groups, text, span, &mut names));
            }
        }
        permits.push(permit);
    }
    rest.push_str(&text[end..]);
    let text = (0 < left).then(|| tidy(&rest));
    Ok(Narrowed { permits, uncounted, text })
}

fn permit(policy: &Policy, grounds: &Grounds<'_>, words: &Words) -> Permit {
    let Grounds { used, members, .. } = grounds;
    let id = policy.id().to_string();
    let role = role(policy);
    let principals = match &role {
        Some(role) => members.in_role(role).into_iter().map(str::to_owned).collect(),
        None => principals(policy),
    };
    let in_role =
        |one: &Use| role.is_none() || principals.iter().any(|it| it == one.principal.as_str());
    let admitted = |one: &&Use| in_role(one) && admits(policy, one, words);
    let used: BTreeSet<Use> =
        used.get(&id).into_iter().flatten().filter(admitted).cloned().collect();
    let outcome = Outcome::Unused;
    let (actions, resources) = (actions(policy), resources(policy));
    let permit = Permit { policy: id, principals, role, actions, resources, used, outcome };
    let outcome = if permit.used.is_empty() {
        Outcome::Unused
    } else if is_exact(policy, &permit) {
        Outcome::Exact
    } else if WRITTEN_OUT_MAX < groups(&permit, words).len() {
        Outcome::Wide
    } else {
        Outcome::Narrower
    };
    Permit { outcome, ..permit }
}

/// Whether the scope admits what was used, as far as it does not name a role.
fn admits(policy: &Policy, one: &Use, words: &Words) -> bool {
    let principal = match policy.principal_constraint() {
        PrincipalConstraint::Eq(uid) => uid == words.workload(one.principal.as_str()),
        PrincipalConstraint::Any
        | PrincipalConstraint::Is(_)
        | PrincipalConstraint::In(_)
        | PrincipalConstraint::IsIn(..) => true,
    };
    let actions = actions(policy);
    let action = actions.is_empty() || actions.iter().any(|action| action == one.action());
    let asked = one.resource(words);
    let resource = match policy.resource_constraint() {
        ResourceConstraint::Eq(uid) => uid == asked,
        ResourceConstraint::In(uid) | ResourceConstraint::IsIn(_, uid) => {
            // A data set is taken to hold it, as a role is: what it held when it was used, nobody knows.
            uid.type_name().to_string() == DATASET
                || uid == asked
                || uid == words.service(service_of(asked.id().unescaped()))
        }
        ResourceConstraint::Any | ResourceConstraint::Is(_) => true,
    };
    principal && action && resource
}

/// Whether all that the scope names was used: one principal or each of a role, one resource, and each of the actions.
fn is_exact(policy: &Policy, permit: &Permit) -> bool {
    let named = matches!(policy.principal_constraint(), PrincipalConstraint::Eq(_));
    let one = (named || permit.fills_its_role())
        && matches!(policy.resource_constraint(), ResourceConstraint::Eq(_));
    let done: BTreeSet<&str> = permit.used.iter().map(Use::action).collect();
    let actions = &permit.actions;
    one && !actions.is_empty() && actions.iter().all(|action| done.contains(action.as_str()))
}

#[cfg(test)]
mod tests;
