//! A question in Cedar's words, with as much of the world as the policies that bear on it ask for.

use std::collections::{BTreeSet, HashMap, HashSet};

use cedar_policy::{
    Context as CedarContext, Entities, Entity, EntityUid, Request, RestrictedExpression,
};
use countersign_identity::Name;

use super::Policies;
use super::decide::{Act, Asked};
use crate::Member;
use crate::holdings::{Part, Touched};
use crate::index::Bucket;
use crate::reads::Reads;
use crate::request::Principal;
use crate::schema::{CLASSIFICATIONS, LABELS};

impl Policies {
    /// The question in Cedar's words, with all that is read of the context, and that these buckets may read of workloads.
    pub(super) fn cedar_request(
        &self,
        asked: &Asked<'_>,
        reads: Reads,
        readers: &Readers<'_>,
    ) -> Option<(Request, Entities)> {
        let context = CedarContext::from_pairs(asked.context.attributes(asked.now, reads)?);
        let principal: EntityUid = self.words.workload(asked.principal.as_str());
        let action = match asked.act {
            Act::Connect => self.words.connect(),
            Act::Call(verb) => self.words.verb(verb),
            Act::Topic(act) => self.words.topic_act(act),
        };
        let mut entities = self.member_entities(asked.principal, readers.members)?;
        let resource = self.resource(asked, readers.touched, &mut entities)?;
        let entities = match entities.is_empty() {
            true => Entities::empty(),
            false => Entities::from_entities(entities, None).ok()?,
        };
        // Types and context are right by construction; validating them again would cost more than the decision.
        let request = Request::new(principal, action, resource, context.ok()?, None);
        Some((request.ok()?, entities))
    }

    /// What is asked for, and of it as an entity what policies can read: of which service it is, and, where that is asked, which data
    /// sets it touches and how those are classified.
    fn resource(
        &self,
        asked: &Asked<'_>,
        touched: Option<Touched<'_>>,
        entities: &mut Vec<Entity>,
    ) -> Option<EntityUid> {
        let service = self.words.service(asked.service);
        let (resource, mut parents) = match asked.part {
            Part::Door | Part::Undeclared => (service, HashSet::new()),
            Part::Operation(name) => {
                (self.words.operation(asked.service, name.as_str()), HashSet::from([service]))
            }
            Part::Topic(name) => {
                (self.words.topic(asked.service, name.as_str()), HashSet::from([service]))
            }
        };
        if let Some(touched) = touched {
            parents.extend(touched.names().map(|name| self.words.dataset(name.as_str())));
            let classified = touched.classifications().into_iter().map(str::to_owned);
            let classified =
                RestrictedExpression::new_set(classified.map(RestrictedExpression::new_string));
            let attributes = HashMap::from([(CLASSIFICATIONS.to_owned(), classified)]);
            entities.push(Entity::new(resource.clone(), attributes, parents).ok()?);
        } else if !parents.is_empty() {
            entities.push(Entity::new_no_attrs(resource.clone(), parents));
        }
        Some(resource)
    }

    /// The principal, and the workloads of whom these buckets ask as well. Nobody where none of them asks.
    fn member_entities(&self, principal: &Principal, readers: &[&Bucket]) -> Option<Vec<Entity>> {
        if readers.is_empty() {
            return Some(Vec::new());
        }
        let mentioned = readers.iter().flat_map(|bucket| bucket.members.iter().map(String::as_str));
        let asked_for: BTreeSet<&str> =
            std::iter::once(principal.as_str()).chain(mentioned).collect();
        asked_for.into_iter().map(|name| self.member_entity(name)).collect()
    }

    fn member_entity(&self, name: &str) -> Option<Entity> {
        let nothing = Member::default();
        let Member { roles, labels } = self.members.of(name).unwrap_or(&nothing);
        let label = |label: &Name| RestrictedExpression::new_string(label.to_string());
        let labels = RestrictedExpression::new_set(labels.iter().map(label));
        let attributes = HashMap::from([(LABELS.to_owned(), labels)]);
        let roles = roles.iter().map(|role| self.words.role(role.as_str())).collect();
        Entity::new(self.words.workload(name), attributes, roles).ok()
    }
}

/// Which of the policies that bear on a question ask for more than it says.
pub(super) struct Readers<'a> {
    /// For roles or labels.
    pub(super) members: &'a [&'a Bucket],
    /// For data; that is what they are told then.
    pub(super) touched: Option<Touched<'a>>,
}
