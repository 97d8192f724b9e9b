//! The names in a text: whether each can stand for something, and which declared one was meant.

use std::collections::BTreeSet;

use cedar_policy::{EntityUid, Policy};
use countersign_identity::{Name, SpiffeId};

use super::reader::Reader;
use crate::Problem;
use crate::schema::{DATASET, OPERATION, ROLE, SERVICE, TOPIC, WORKLOAD};
use crate::text::Layout;

impl Reader<'_> {
    /// Every name must be one that can stand for something: Cedar takes any text, so a misspelt forbid would
    /// forbid nothing.
    pub(super) fn names<'a>(
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
