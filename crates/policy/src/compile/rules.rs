//! What is refused of a policy beside what Cedar refuses: scopes that are too wide, and policies that could never do what they say.

use std::ops::Range;

use cedar_policy::{Effect, EntityUid, Policy};

use super::annotation;
use super::reader::Reader;
use crate::literal::Stray;
use crate::named::speaks_of_doors_alone;
use crate::reads::Reads;
use crate::schema::{SERVICE, SOURCE};
use crate::text::{Layout, after_entity};
use crate::{Names, Problem, Scope};

/// The annotation that lets a permit stand for any principal or any service.
const UNSCOPED: &str = "unscoped";

impl Reader<'_> {
    /// A permit for anybody that reads an address: whoever can have that address would be whom it permits.
    pub(super) fn addressed(
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
    pub(super) fn doors(&self, policy: &Policy, scope: &Scope, offset: usize) -> Option<Problem> {
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
    pub(super) fn stray(&self, stray: &Stray, layout: &Layout, span: Range<usize>) -> Problem {
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

    pub(super) fn unscoped(
        &self,
        policy: &Policy,
        scope: &Scope,
        offset: usize,
    ) -> Option<Problem> {
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
}
