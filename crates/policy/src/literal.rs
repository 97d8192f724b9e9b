//! What a policy asks of a thing by its name, though it is known only of what is asked for.

use serde_json::Value;

use crate::reads::Conditions;
use crate::schema::{OPERATION, SERVICE, TOPIC};

/// A service, an operation or a topic that is named where `resource` is meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stray {
    /// Of which kind it is.
    pub(crate) kind: String,
    /// Its name.
    pub(crate) id: String,
}

/// Those of which a policy asks what they are in, or how their data is classified.
///
/// When it is decided, nothing is known of such a thing unless it is the very one that is asked for: the first would be false, and the second
/// an error. Of workloads that a policy names it is known in which roles they are, and which labels they have.
pub(crate) fn strays(conditions: &Conditions) -> Vec<Stray> {
    let mut found = Vec::new();
    if let Conditions::Tree(tree) = conditions {
        collect(&tree["conditions"], &mut found);
    }
    found.sort();
    found.dedup();
    found
}

fn collect(tree: &Value, found: &mut Vec<Stray>) {
    match tree {
        Value::Object(members) => {
            for (key, inside) in members {
                // `is` alone asks for the kind, which the name tells.
                let asks = matches!(key.as_str(), "in" | "." | "has")
                    || key == "is" && !inside["in"].is_null();
                if asks {
                    named(&inside["left"], found);
                }
                collect(inside, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What the expression may come to, where it names that.
fn named(expression: &Value, found: &mut Vec<Stray>) {
    if let Some(entity) = expression["Value"].get("__entity") {
        let text = |name: &str| entity[name].as_str().unwrap_or_default().to_owned();
        let (kind, id) = (text("type"), text("id"));
        if [SERVICE, OPERATION, TOPIC].contains(&kind.as_str()) {
            found.push(Stray { kind, id });
        }
    }
    for branch in ["then", "else"] {
        if let Some(chosen) = expression["if-then-else"].get(branch) {
            named(chosen, found);
        }
    }
    // An attribute of a record that is written there.
    if let Some(record) = expression["."]["left"]["Record"].as_object() {
        record.values().for_each(|value| named(value, found));
    }
}
