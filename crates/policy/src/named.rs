//! What the scope of a policy names: whom, what they may do, and to what.

use cedar_policy::{ActionConstraint, Policy, PrincipalConstraint, ResourceConstraint};

use crate::TopicAct;
use crate::schema::{CONNECT, DATASET, ROLE, SERVICE, TOPIC};

/// The role that the scope names.
pub(crate) fn role(policy: &Policy) -> Option<String> {
    match policy.principal_constraint() {
        PrincipalConstraint::In(uid) | PrincipalConstraint::IsIn(_, uid)
            if uid.type_name().to_string() == ROLE =>
        {
            Some(uid.id().unescaped().to_owned())
        }
        PrincipalConstraint::Any
        | PrincipalConstraint::Is(_)
        | PrincipalConstraint::Eq(_)
        | PrincipalConstraint::In(_)
        | PrincipalConstraint::IsIn(..) => None,
    }
}

pub(crate) fn principals(policy: &Policy) -> Vec<String> {
    match policy.principal_constraint() {
        PrincipalConstraint::Any | PrincipalConstraint::Is(_) => Vec::new(),
        PrincipalConstraint::Eq(uid)
        | PrincipalConstraint::In(uid)
        | PrincipalConstraint::IsIn(_, uid) => vec![uid.id().unescaped().to_owned()],
    }
}

pub(crate) fn actions(policy: &Policy) -> Vec<String> {
    match policy.action_constraint() {
        ActionConstraint::Any => Vec::new(),
        ActionConstraint::Eq(uid) => vec![uid.id().unescaped().to_owned()],
        ActionConstraint::In(uids) => {
            uids.iter().map(|uid| uid.id().unescaped().to_owned()).collect()
        }
    }
}

pub(crate) fn resources(policy: &Policy) -> Vec<String> {
    match policy.resource_constraint() {
        ResourceConstraint::Any | ResourceConstraint::Is(_) => Vec::new(),
        ResourceConstraint::Eq(uid)
        | ResourceConstraint::In(uid)
        | ResourceConstraint::IsIn(_, uid)
            if uid.type_name().to_string() == DATASET =>
        {
            vec![uid.to_string()]
        }
        ResourceConstraint::Eq(uid)
        | ResourceConstraint::In(uid)
        | ResourceConstraint::IsIn(_, uid) => vec![uid.id().unescaped().to_owned()],
    }
}

/// Whether a policy speaks of what is done with topics, and of nothing else.
pub(crate) fn is_of_topics(policy: &Policy) -> bool {
    let actions = actions(policy);
    let acts = actions.iter().all(|action| action.parse::<TopicAct>().is_ok());
    let topic = match policy.resource_constraint() {
        ResourceConstraint::Any => false,
        ResourceConstraint::Is(kind) => kind.to_string() == TOPIC,
        ResourceConstraint::IsIn(kind, _) => kind.to_string() == TOPIC,
        ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) => {
            uid.type_name().to_string() == TOPIC
        }
    };
    topic || (!actions.is_empty() && acts)
}

/// Whether a policy can apply to nothing but to services themselves, though it names something else that they could be in.
pub(crate) fn speaks_of_doors_alone(policy: &Policy) -> bool {
    let actions = actions(policy);
    let connects = !actions.is_empty() && actions.iter().all(|action| action == CONNECT);
    let service = match policy.resource_constraint() {
        ResourceConstraint::IsIn(kind, _) => kind.to_string() == SERVICE,
        ResourceConstraint::Any
        | ResourceConstraint::Is(_)
        | ResourceConstraint::Eq(_)
        | ResourceConstraint::In(_) => false,
    };
    connects || service
}
