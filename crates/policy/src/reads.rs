//! Which of what changes by itself, and of what callers differ in, a policy reads.

use std::ops::BitOr;

use cedar_policy::Policy;
use serde_json::Value;

use crate::schema::{
    AGE, ATTESTATION, CLASSIFICATIONS, GROUP, LABELS, SOURCE, TIME, TLS_VERSION, WEEKDAY,
};

/// What a policy asks beyond its scope, which reads nothing but who asks whom for what.
pub(crate) enum Conditions {
    /// Nothing.
    None,
    /// The policy as Cedar writes it in JSON.
    Tree(Value),
    /// Something that Cedar does not write.
    Unreadable,
}

impl Conditions {
    /// Those of a policy in this text. To have them written costs as much as to parse the policy, so a text in which neither of
    /// the words stands with which conditions begin is spared that.
    pub(crate) fn of(policy: &Policy, text: &str) -> Self {
        if !["when", "unless"].iter().any(|word| text.contains(word)) {
            return Self::None;
        }
        policy.to_json().map_or(Self::Unreadable, Self::Tree)
    }
}

/// Which attributes of the context policies read. In doubt all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// What the handshake agreed on: `tls_version`, `group`.
    pub handshake: bool,
    /// How old the peer's certificate is: `peer_age_seconds`.
    pub age: bool,
    /// When it is decided: `time`, `weekday`.
    pub time: bool,
    /// From where the caller comes: `source`.
    pub source: bool,
    /// By which kinds of facts the caller was attested: `attestation`.
    pub attestation: bool,
}

impl Reads {
    const ALL: Self =
        Self { handshake: true, age: true, time: true, source: true, attestation: true };

    pub(crate) fn of(conditions: &Conditions) -> Self {
        match conditions {
            Conditions::None => Self::default(),
            Conditions::Tree(tree) => Self::in_tree(tree),
            Conditions::Unreadable => Self::ALL,
        }
    }

    /// Whether what it comes to can change while nothing does but time.
    pub(crate) fn passing(self) -> bool {
        self.age || self.time
    }

    /// Looks for the context in the tree of an expression, as Cedar writes it in JSON.
    fn in_tree(tree: &Value) -> Self {
        let all = |all: Self, one: Self| all | one;
        match tree {
            Value::Object(members) => {
                let read = |(key, inside): (&String, &Value)| match attribute(key, inside) {
                    Some(attribute) => Self::attribute(attribute),
                    // The context as a whole, in which everything is.
                    None if key == "Var" && inside == CONTEXT => Self::ALL,
                    None => Self::in_tree(inside),
                };
                members.iter().map(read).fold(Self::default(), all)
            }
            Value::Array(items) => items.iter().map(Self::in_tree).fold(Self::default(), all),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Self::default(),
        }
    }

    fn attribute(name: &str) -> Self {
        match name {
            TLS_VERSION | GROUP => Self { handshake: true, ..Self::default() },
            AGE => Self { age: true, ..Self::default() },
            TIME | WEEKDAY => Self { time: true, ..Self::default() },
            SOURCE => Self { source: true, ..Self::default() },
            ATTESTATION => Self { attestation: true, ..Self::default() },
            _ => Self::ALL,
        }
    }
}

impl BitOr for Reads {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            handshake: self.handshake || other.handshake,
            age: self.age || other.age,
            time: self.time || other.time,
            source: self.source || other.source,
            attestation: self.attestation || other.attestation,
        }
    }
}

/// Whether what a policy says can depend on labels. In doubt it does.
pub(crate) fn reads_labels(conditions: &Conditions) -> bool {
    read_attribute(conditions, LABELS)
}

/// Whether what a policy says can depend on how data is classified. In doubt it does.
pub(crate) fn reads_classifications(conditions: &Conditions) -> bool {
    read_attribute(conditions, CLASSIFICATIONS)
}

/// Whether they read an attribute that only one kind of thing has.
fn read_attribute(conditions: &Conditions, name: &str) -> bool {
    match conditions {
        Conditions::None => false,
        Conditions::Tree(tree) => names_attribute(tree, name),
        Conditions::Unreadable => true,
    }
}

/// Whether an attribute of that name is read of anything, and `has` tells of it as well.
fn names_attribute(tree: &Value, wanted: &str) -> bool {
    match tree {
        Value::Object(members) => members.iter().any(|(key, inside)| {
            let reads = matches!(key.as_str(), "." | "has");
            // `has` may name a path of attributes.
            let named = |name: &Value| match name {
                Value::Array(path) => path.iter().any(|part| part == wanted),
                name => name == wanted,
            };
            (reads && named(&inside["attr"])) || names_attribute(inside, wanted)
        }),
        Value::Array(items) => items.iter().any(|item| names_attribute(item, wanted)),
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
    fn conditions(text: &str) -> Conditions {
        Conditions::of(&Policy::from_str(text).unwrap(), text)
    }

    #[track_caller]
    fn read(condition: &str) -> Reads {
        Reads::of(&conditions(&format!("permit (principal, action, resource) {condition};")))
    }

    #[track_caller]
    fn does_read(condition: &str, expected: bool) {
        assert_eq!(read(condition).age, expected, "{condition}");
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
    fn time_source_and_attestation_are_found_however_they_are_read() {
        let nothing = Reads::default();
        let time = Reads { time: true, ..nothing };
        for condition in [
            "when { context.time < datetime(\"2027-01-01\") }",
            "when { context.time.toTime() < duration(\"18h\") }",
            "unless { context[\"time\"].offset(duration(\"1h\")).toTime() < duration(\"18h\") }",
            "when { context.weekday <= 5 }",
            "when { datetime(\"2027-01-01\").durationSince(context.time) > duration(\"1d\") }",
        ] {
            assert_eq!(read(condition), time, "{condition}");
        }
        let source = Reads { source: true, ..nothing };
        for condition in [
            "when { context has source && context.source.isInRange(ip(\"10.0.0.0/8\")) }",
            "unless { context has source }",
            "when { context[\"source\"].isLoopback() }",
        ] {
            assert_eq!(read(condition), source, "{condition}");
        }
        let attested = Reads { attestation: true, ..nothing };
        for condition in [
            "when { context has attestation && context.attestation.contains(\"launch\") }",
            "when { [\"launch\"].containsAll(context.attestation) }",
        ] {
            assert_eq!(read(condition), attested, "{condition}");
        }
        assert_eq!(read("when { context has source.more }"), Reads::ALL, "a path of attributes");
        assert_eq!(read("when { {x: context}.x.tls_version == \"1.3\" }"), Reads::ALL);
        let both = Reads { age: true, source: true, ..nothing };
        assert_eq!(read("when { context.peer_age_seconds < 5 && context has source }"), both);
        let handshake = Reads { handshake: true, ..nothing };
        assert_eq!(read("when { context.group like \"X*\" }"), handshake);
    }

    #[test]
    fn labels_are_found_however_they_are_read() {
        let reads = |condition: &str| {
            let text = format!("permit (principal, action, resource) when {{ {condition} }};");
            reads_labels(&conditions(&text))
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
    fn what_does_not_read_them_may_be_remembered() {
        for condition in [
            "",
            "when { context.tls_version == \"1.3\" }",
            "when { context.group like \"*768\" && principal == Workload::\"web\" }",
            "when { resource in Service::\"peer_age_seconds\" }",
            "when { \"context.peer_age_seconds\" == \"context\" }",
            "when { resource == Service::\"time\" && \"context.source\" != \"attestation\" }",
        ] {
            let read = read(condition);
            assert_eq!(Reads { handshake: false, ..read }, Reads::default(), "{condition}");
        }
    }
}
