//! What differs between two forms of one resource, field by field.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// One field that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FieldChange {
    /// Where it stands, `upstreams[0].service`.
    pub field: String,
    /// What it said; absent: it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub before: Option<Value>,
    /// What it says; absent: it is not there any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub after: Option<Value>,
}

/// Under this field are variables of programs, which may hold secrets.
const ENVIRONMENT: &str = "environment";
const HIDDEN: &str = "(not shown)";

/// Every field that differs, in the order of the fields' names. What programs are told in their environment is not shown.
pub fn differences(before: &Value, after: &Value) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    compare("", Some(before), Some(after), &mut changes);
    for change in &mut changes {
        if change.field == ENVIRONMENT || change.field.starts_with("environment.") {
            let hidden = |value: &mut Value| *value = Value::from(HIDDEN);
            change.before.as_mut().map(hidden);
            change.after.as_mut().map(hidden);
        }
    }
    changes
}

fn compare(
    field: &str,
    before: Option<&Value>,
    after: Option<&Value>,
    changes: &mut Vec<FieldChange>,
) {
    if before == after {
        return;
    }
    match (before, after) {
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let field = if field.is_empty() { key.clone() } else { format!("{field}.{key}") };
                compare(&field, before.get(key), after.get(key), changes);
            }
        }
        (Some(Value::Array(before)), Some(Value::Array(after))) => {
            for index in 0..before.len().max(after.len()) {
                let field = format!("{field}[{index}]");
                compare(&field, before.get(index), after.get(index), changes);
            }
        }
        (before, after) => changes.push(FieldChange {
            field: field.to_owned(),
            before: before.cloned(),
            after: after.cloned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_field_that_differs_is_told_and_no_other() {
        let before = json!({"a": 1, "b": {"c": [1, 2]}, "gone": "x", "environment": {"K": "old"}});
        let after = json!({"a": 1, "b": {"c": [1, 3, 4]}, "new": "y", "environment": {"K": "new"}});
        let told: Vec<_> = differences(&before, &after)
            .into_iter()
            .map(|change| (change.field, change.before, change.after))
            .collect();
        let text = |text: &str| Some(Value::from(text));
        assert_eq!(
            told,
            [
                ("b.c[1]".to_owned(), Some(json!(2)), Some(json!(3))),
                ("b.c[2]".to_owned(), None, Some(json!(4))),
                ("environment.K".to_owned(), text(HIDDEN), text(HIDDEN)),
                ("gone".to_owned(), text("x"), None),
                ("new".to_owned(), None, text("y")),
            ]
        );
        assert_eq!(differences(&before, &before), []);
    }
}
