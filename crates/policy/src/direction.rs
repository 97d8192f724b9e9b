//! Which way what a policy says goes as more data is touched.

use serde_json::Value;

use crate::reads::Conditions;
use crate::schema::{CLASSIFICATIONS, DATASET};
use crate::{Names, Scope};

/// Whether what a policy says of nothing touched, and of all that could be, tells what it says of any part of it. In doubt it does not.
///
/// It does where more data can only make it apply, or only make it not apply, as long as it cannot err: what `A && (B || error)` says
/// of `A` alone is neither what it says of nothing nor what it says of both.
pub(crate) fn is_one_way(scope: &Scope, conditions: &Conditions) -> bool {
    if !scope.speaks_of_data() {
        return true;
    }
    let mut course = match scope.resources {
        Names::Dataset(_) => UP,
        Names::Any | Names::Only(_) | Names::Role(_) => NONE,
    };
    match conditions {
        Conditions::None => {}
        Conditions::Tree(tree) => {
            let Some(conditions) = tree["conditions"].as_array() else { return false };
            for condition in conditions {
                let asked = of(&condition["body"]);
                course = course.and(match condition["kind"].as_str() {
                    Some("when") => asked,
                    Some("unless") => asked.turned(),
                    _ => ANY,
                });
            }
        }
        Conditions::Unreadable => return false,
    }
    !(course.errs || course.up && course.down)
}

/// What becomes of a value as more data is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Course {
    /// It may become true.
    up: bool,
    /// It may become false.
    down: bool,
    /// It may be an error.
    errs: bool,
}

const NONE: Course = Course { up: false, down: false, errs: false };
const UP: Course = Course { up: true, ..NONE };
const DOWN: Course = Course { down: true, ..NONE };
const ANY: Course = Course { up: true, down: true, errs: true };

/// What is never an error where the types are right, which the validator sees to. Everything else may be.
const SAFE: [&str; 31] = [
    "Value",
    "Var",
    "Set",
    "Record",
    "!",
    "&&",
    "||",
    "==",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    "in",
    "is",
    "has",
    ".",
    "like",
    "if-then-else",
    "contains",
    "containsAll",
    "containsAny",
    "isEmpty",
    "ip",
    "isInRange",
    "isIpv4",
    "isIpv6",
    "isLoopback",
    "isMulticast",
    "datetime",
    "duration",
];

impl Course {
    fn and(self, other: Self) -> Self {
        Self {
            up: self.up || other.up,
            down: self.down || other.down,
            errs: self.errs || other.errs,
        }
    }

    fn turned(self) -> Self {
        Self { up: self.down, down: self.up, ..self }
    }

    /// Of something in which it is not said how it stands.
    fn either(self) -> Self {
        let changes = self.up || self.down;
        Self { up: changes, down: changes, ..self }
    }
}

/// Of an expression, as Cedar writes it in JSON.
fn of(expression: &Value) -> Course {
    let Some((name, inside)) = operator(expression) else { return ANY };
    let (left, right) = (&inside["left"], &inside["right"]);
    let course = match name {
        "Var" => NONE,
        "Value" if names_data(inside) => UP.either(),
        "Value" => NONE,
        "!" => of(&inside["arg"]).turned(),
        "&&" | "||" => of(left).and(of(right)),
        "if-then-else" => {
            of(&inside["if"]).either().and(of(&inside["then"])).and(of(&inside["else"]))
        }
        "in" if is_resource(left) && is_constant(right) => of_place(right),
        "is" if is_resource(left) && is_constant(&inside["in"]) => of_place(&inside["in"]),
        "contains" | "containsAll" | "containsAny" if is_classifications(left) => {
            UP.and(of(right).either())
        }
        "isEmpty" if is_classifications(&inside["arg"]) => DOWN,
        "." | "has" if names_classifications(&inside["attr"]) => UP.either().and(of(left)),
        _ => parts(inside).map(of).fold(NONE, Course::and).either(),
    };
    Course { errs: course.errs || !SAFE.contains(&name), ..course }
}

/// Of being in what is written there.
fn of_place(place: &Value) -> Course {
    if names_data(place) { UP } else { NONE }
}

/// What an expression does with what.
fn operator(expression: &Value) -> Option<(&str, &Value)> {
    let mut members = expression.as_object()?.iter();
    match (members.next(), members.next()) {
        (Some((name, inside)), None) => Some((name, inside)),
        _ => None,
    }
}

/// The expressions in one: what else there is are names and patterns.
fn parts(inside: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match inside {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(members) => Box::new(members.values().filter(|it| it.is_object())),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            Box::new(std::iter::empty())
        }
    }
}

fn is_resource(expression: &Value) -> bool {
    expression["Var"] == "resource"
}

fn is_classifications(expression: &Value) -> bool {
    let read = &expression["."];
    is_resource(&read["left"]) && read["attr"] == CLASSIFICATIONS
}

/// In `has` a path may be named.
fn names_classifications(attribute: &Value) -> bool {
    match attribute {
        Value::Array(path) => path.iter().any(|part| part == CLASSIFICATIONS),
        name => name == CLASSIFICATIONS,
    }
}

fn is_constant(expression: &Value) -> bool {
    match operator(expression) {
        Some(("Value", _)) => true,
        Some(("Set", Value::Array(items))) => items.iter().all(is_constant),
        Some(_) | None => false,
    }
}

/// Whether a data set is named anywhere in it.
fn names_data(tree: &Value) -> bool {
    match tree {
        Value::Object(members) => {
            members.get("type").is_some_and(|kind| kind == DATASET)
                || members.values().any(names_data)
        }
        Value::Array(items) => items.iter().any(names_data),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use cedar_policy::Policy;

    use super::*;

    #[track_caller]
    fn one_way(rest: &str, expected: bool) {
        let text = format!("forbid (principal, action, {rest};");
        let policy = Policy::from_str(&text).unwrap();
        let conditions = Conditions::of(&policy, &text);
        let scope = Scope::of(&policy, &conditions);
        assert_eq!(is_one_way(&scope, &conditions), expected, "{rest}");
    }

    #[test]
    fn what_more_data_can_only_make_apply_goes_one_way() {
        for rest in [
            "resource)",
            "resource in Dataset::\"a\")",
            "resource in Dataset::\"a\") when { resource in Dataset::\"b\" }",
            "resource in Dataset::\"a\") unless { principal in Role::\"r\" }",
            "resource) when { resource in Dataset::\"a\" || resource in [Dataset::\"b\", Dataset::\"c\"] }",
            "resource) when { resource is Operation in Dataset::\"a\" && context.time < datetime(\"2027-01-01\") }",
            "resource) when { resource.classifications.contains(\"restricted\") } unless { principal.labels.contains(\"pci\") }",
            "resource) when { resource.classifications.containsAny([\"restricted\", \"confidential\"]) }",
            "resource) when { if context.group like \"X*\" then resource in Dataset::\"a\" else resource in Dataset::\"b\" }",
            "resource) when { context has source && context.source.isInRange(ip(\"10.0.0.0/8\")) && resource in Dataset::\"a\" }",
        ] {
            one_way(rest, true);
        }
    }

    #[test]
    fn what_more_data_can_only_make_not_apply_goes_one_way() {
        for rest in [
            "resource) unless { resource in Dataset::\"a\" || resource in Dataset::\"b\" }",
            "resource) when { resource.classifications.isEmpty() && !(resource in Dataset::\"a\") }",
            "resource) unless { !(!(resource.classifications.containsAll([\"public\"]))) }",
        ] {
            one_way(rest, true);
        }
    }

    #[test]
    fn what_makes_exceptions_may_err_or_is_not_understood_does_not() {
        for rest in [
            "resource in Dataset::\"a\") unless { resource in Dataset::\"b\" }",
            "resource in Dataset::\"a\") when { resource.classifications.isEmpty() }",
            "resource) when { resource in Dataset::\"a\" && !(resource in Dataset::\"b\") }",
            "resource) when { resource in Dataset::\"a\" } unless { resource in Dataset::\"b\" }",
            "resource) when { if resource in Dataset::\"a\" then true else false }",
            "resource) when { resource.classifications == [\"public\"] }",
            "resource) when { [\"public\"].containsAll(resource.classifications) }",
            "resource) when { resource.classifications.contains(\"public\") == false }",
            "resource) when { (resource in Dataset::\"a\") == (resource in Dataset::\"b\") }",
            "resource) when { resource in (if true then Dataset::\"a\" else Dataset::\"b\") }",
            "resource) when { {a: resource}.a in Dataset::\"a\" }",
            "resource) when { resource has classifications }",
            "resource) when { resource in Dataset::\"a\" && (resource in Dataset::\"b\" || context.peer_age_seconds * 2 == 3) }",
            "resource) when { resource in Dataset::\"a\" && context.time.offset(duration(\"1h\")) < datetime(\"2027-01-01\") }",
        ] {
            one_way(rest, false);
        }
    }
}
