//! How changes of resources, and flows that they would hit, are shown to people.

use countersign_api::admin::{Action, FieldChange, FlowView, PlannedChange};
use countersign_identity::Timestamp;
use serde_json::Value;

use super::when;
use crate::output::{Table, printable};

/// A longer value is cut.
const VALUE_CHARS_MAX: usize = 100;

/// One line a resource, and one for each field that differs.
pub(super) fn describe(changes: &[PlannedChange]) -> String {
    let mut text = String::new();
    for change in changes {
        let sign = match change.action {
            Action::Create => '+',
            Action::Update => '~',
            Action::Remove => '-',
        };
        let only = match change.fields.as_slice() {
            [only] if !is_long(only) => format!("    {}", field(only)),
            _ => String::new(),
        };
        text.push_str(&format!("  {sign} {} {}{only}\n", change.kind, change.name));
        if only.is_empty() {
            for one in &change.fields {
                text.push_str(&lines(one));
            }
        }
    }
    text
}

/// One field on one line.
fn field(change: &FieldChange) -> String {
    let (before, after) =
        (value(change, change.before.as_ref()), value(change, change.after.as_ref()));
    // What a policy goes over to needs no name.
    if change.field == "mode" {
        return format!("{before} → {after}");
    }
    format!("{}: {before} → {after}", change.field)
}

fn lines(change: &FieldChange) -> String {
    if !is_long(change) {
        return format!("      {}\n", field(change));
    }
    let mut text = format!("      {}:\n", change.field);
    let all = |value: &Option<Value>| match value {
        Some(Value::String(text)) => text.lines().map(str::to_owned).collect(),
        Some(other) => vec![other.to_string()],
        None => Vec::new(),
    };
    let (before, after): (Vec<String>, Vec<String>) = (all(&change.before), all(&change.after));
    for line in before.iter().filter(|line| !after.contains(line)) {
        text.push_str(&format!("        - {}\n", printable(line)));
    }
    for line in after.iter().filter(|line| !before.contains(line)) {
        text.push_str(&format!("        + {}\n", printable(line)));
    }
    text
}

/// Whether it takes lines of its own.
fn is_long(change: &FieldChange) -> bool {
    let long = |value: &Option<Value>| match value {
        Some(Value::String(text)) => text.trim_end().contains('\n'),
        Some(_) | None => false,
    };
    long(&change.before) || long(&change.after)
}

fn value(change: &FieldChange, value: Option<&Value>) -> String {
    let text = match value {
        // What a policy does that says nothing of it.
        None if change.field == "mode" => "enforce".to_owned(),
        None => "(nothing)".to_owned(),
        Some(Value::String(text)) => printable(text.trim_end()),
        Some(other) => printable(&other.to_string()),
    };
    let cut: String = text.chars().take(VALUE_CHARS_MAX).collect();
    if cut.len() < text.len() { cut + "…" } else { cut }
}

/// Flows with their counts, one a line.
pub(super) fn flows(flows: &[FlowView], now: Timestamp) -> String {
    let mut table = Table::new(["", "", ""]);
    for flow in flows {
        let seen = format!("({}×, last {})", flow.count, when::relative(flow.last_seen, now));
        table.row([format!("{} → {}", flow.source, flow.service), flow.what(), seen]);
    }
    // The head has no words.
    table.render(4).lines().skip(1).map(|line| format!("{line}\n")).collect()
}
