//! The narrower policies that stand in the place of a wide one, as text.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{EntityUid, Policy};

use super::{ID, Permit, UNSCOPED};
use crate::schema::{ROLE, Words};
use crate::text::Span;

/// Who did what to which resource, as one policy would say it.
pub(super) type Groups = BTreeMap<(EntityUid, EntityUid), BTreeSet<String>>;

pub(super) fn groups(permit: &Permit, words: &Words) -> Groups {
    let mut groups = Groups::new();
    let whole = permit.role.as_ref().filter(|_| permit.fills_its_role());
    for one in &permit.used {
        let who = || words.workload(one.principal.as_str());
        let who = whole.map_or_else(who, |role| words.role(role));
        let key = (who, one.resource(words));
        groups.entry(key).or_default().insert(one.action().to_owned());
    }
    groups
}

/// The policies that stand in the place of one, with its annotations and its conditions.
pub(super) fn written_out(
    policy: &Policy,
    groups: &Groups,
    text: &str,
    span: &Span,
    names: &mut BTreeSet<String>,
) -> String {
    let conditions = &text[span.scope_end..span.end];
    let mut written = Vec::new();
    for (number, ((principal, resource), actions)) in groups.iter().enumerate() {
        let mut annotations = String::new();
        for (key, value) in policy.annotations().filter(|(key, _)| *key != UNSCOPED) {
            let value = match key {
                ID if 0 < number => another(value, names),
                _ => value.to_owned(),
            };
            annotations.push_str(&format!("@{key}(\"{}\")\n", value.escape_debug()));
        }
        let quoted: Vec<_> = actions.iter().map(|action| format!("Action::\"{action}\"")).collect();
        let action = match quoted.as_slice() {
            [only] => format!("action == {only}"),
            several => format!("action in [{}]", several.join(", ")),
        };
        let is = if principal.type_name().to_string() == ROLE { "in" } else { "==" };
        written.push(format!(
            "{annotations}permit (principal {is} {principal}, {action}, resource == {resource}){conditions}"
        ));
    }
    written.join("\n")
}

/// A name like this one that no other policy of the text has.
fn another(name: &str, names: &mut BTreeSet<String>) -> String {
    let free = (2_u32..).map(|number| format!("{name}-{number}")).find(|it| !names.contains(it));
    let free = free.expect("there are more numbers than names");
    names.insert(free.clone());
    free
}

/// Without the empty lines that what is gone has left.
pub(super) fn tidy(text: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines() {
        let after_nothing = lines.last().is_none_or(|last| last.trim().is_empty());
        if !(line.trim().is_empty() && after_nothing) {
            lines.push(line);
        }
    }
    lines.join("\n").trim_end().to_owned() + "\n"
}
