//! Which of what changes by itself a policy reads.

use cedar_policy::Policy;
use serde_json::Value;

use crate::schema::{AGE, LABELS};

/// Whether what a policy says can depend on how old the peer's certificate is. In doubt it can.
pub(crate) fn reads_age(policy: &Policy) -> bool {
    policy.to_json().map_or(true, |parsed| reads(&parsed))
}

/// Whether what a policy says can depend on labels. In doubt it does.
pub(crate) fn reads_labels(policy: &Policy) -> bool {
    policy.to_json().map_or(true, |parsed| names_labels(&parsed))
}

/// Whether an attribute of that name is read of anything: no other type has one, and `has` tells of it as well.
fn names_labels(tree: &Value) -> bool {
    match tree {
        Value::Object(members) => members.iter().any(|(key, inside)| {
            let reads = matches!(key.as_str(), "." | "has");
            // `has` may name a path of attributes.
            let named = |name: &Value| match name {
                Value::Array(path) => path.iter().any(|part| part == LABELS),
                name => name == LABELS,
            };
            (reads && named(&inside["attr"])) || names_labels(inside)
        }),
        Value::Array(items) => items.iter().any(names_labels),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Looks for the context in the tree of an expression, as Cedar writes it in JSON.
fn reads(tree: &Value) -> bool {
    match tree {
        Value::Object(members) => {
            members.iter().any(|(key, inside)| match attribute(key, inside) {
                Some(attribute) => attribute == AGE,
                // The context as a whole, in which the age is.
                None if key == "Var" && inside == CONTEXT => true,
                None => reads(inside),
            })
        }
        Value::Array(items) => items.iter().any(reads),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// The name in `context.NAME` and in `context has NAME`.
fn attribute<'a>(key: &str, inside: &'a Value) -> Option<&'a str> {
    let of_context = matches!(key, "." | "has") && inside["left"]["Var"] == CONTEXT;
    of_context.then(|| inside["attr"].as_str()).flatten()
}

const CONTEXT: &str = "context";

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    #[track_caller]
    fn does_read(condition: &str, expected: bool) {
        let policy =
            Policy::from_str(&format!("permit (principal, action, resource) {condition};"));
        assert_eq!(reads_age(&policy.unwrap()), expected, "{condition}");
    }

    #[test]
    fn the_age_is_found_however_it_is_read() {
        does_read("when { context.peer_age_seconds < 5 }", true);
        does_read("when { context[\"peer_age_seconds\"] < 5 }", true);
        does_read(
            "unless { 1 < 2 && (if 3 < 4 then context.peer_age_seconds == 1 else true) }",
            true,
        );
        does_read("when { [1, context.peer_age_seconds].contains(7) }", true);
        does_read("when { {a: {b: context.peer_age_seconds}}.a.b == 3 }", true);
        does_read("when { context has peer_age_seconds }", true);
        does_read("when { context == {tls_version: \"1.3\"} }", true);
        does_read("when { {x: context}.x.peer_age_seconds < 5 }", true);
        does_read("when { (if true then context else context).peer_age_seconds < 5 }", true);
    }

    #[test]
    fn labels_are_found_however_they_are_read() {
        let reads = |condition: &str| {
            let text = format!("permit (principal, action, resource) when {{ {condition} }};");
            reads_labels(&Policy::from_str(&text).unwrap())
        };
        for condition in [
            "principal.labels.contains(\"pci\")",
            "principal[\"labels\"] == [\"pci\"]",
            "principal has labels",
            "1 < 2 && !(if true then Workload::\"web\" else principal).labels.isEmpty()",
            "{a: principal.labels}.a.containsAny([\"pci\"])",
        ] {
            assert!(reads(condition), "{condition}");
        }
        for condition in ["principal == Workload::\"labels\"", "context.group == \"labels\""] {
            assert!(!reads(condition), "{condition}");
        }
    }

    #[test]
    fn what_does_not_read_it_may_be_remembered() {
        does_read("", false);
        does_read("when { context.tls_version == \"1.3\" }", false);
        does_read("when { context.group like \"*768\" && principal == Workload::\"web\" }", false);
        does_read("when { resource in Service::\"peer_age_seconds\" }", false);
        does_read("when { \"context.peer_age_seconds\" == \"context\" }", false);
    }
}
