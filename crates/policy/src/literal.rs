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
                    named(&inside["left"], &[], found);
                }
                if key == "has" {
                    on_the_way(inside, found);
                }
                collect(inside, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What `has` with several attributes after each other asks, beside the first, of what the ones before lead to.
fn on_the_way(has: &Value, found: &mut Vec<Stray>) {
    let attributes = has["attr"].as_array().map(Vec::as_slice).unwrap_or_default();
    let attributes: Vec<&str> = attributes.iter().filter_map(Value::as_str).collect();
    for end in 1..attributes.len() {
        named(&has["left"], &attributes[..end], found);
    }
}

/// What the attribute at this path of the expression may come to, or with an empty path the expression itself, where it names that.
fn named(expression: &Value, path: &[&str], found: &mut Vec<Stray>) {
    if let (Some(entity), []) = (expression["Value"].get("__entity"), path) {
        let text = |name: &str| entity[name].as_str().unwrap_or_default().to_owned();
        let (kind, id) = (text("type"), text("id"));
        if [SERVICE, OPERATION, TOPIC].contains(&kind.as_str()) {
            found.push(Stray { kind, id });
        }
    }
    for branch in ["then", "else"] {
        if let Some(chosen) = expression["if-then-else"].get(branch) {
            named(chosen, path, found);
        }
    }
    if let Some(attribute) = expression["."]["attr"].as_str() {
        let longer: Vec<&str> = std::iter::once(attribute).chain(path.iter().copied()).collect();
        named(&expression["."]["left"], &longer, found);
    }
    if let Some((attribute, rest)) = path.split_first()
        && let Some(value) = expression["Record"].get(attribute)
    {
        named(value, rest, found);
    }
}
