//! A resource as a manifest in YAML, which our own reader reads back as the same.

use std::fmt::Write as _;

use countersign_api::resource::Resource;
use serde_json::Value;

/// The manifest of a resource.
pub(crate) fn write(resource: &Resource) -> String {
    let manifest = resource.manifest();
    let mut text = String::new();
    for key in ["apiVersion", "kind", "metadata", "spec"] {
        member(key, &manifest[key], 0, &mut text);
    }
    text
}

fn member(key: &str, value: &Value, indent: usize, text: &mut String) {
    // Writing to a string cannot fail.
    let _ = write!(text, "{:indent$}{}:", "", scalar(key));
    inside(value, indent, text);
}

/// What stands behind a key.
fn inside(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(members) if members.is_empty() => text.push_str(" {}\n"),
        Value::Object(members) => {
            text.push('\n');
            for (key, value) in members {
                member(key, value, indent + 2, text);
            }
        }
        Value::Array(items) if items.is_empty() => text.push_str(" []\n"),
        Value::Array(items) => {
            text.push('\n');
            for one in items {
                item(one, indent + 2, text);
            }
        }
        Value::String(string) if is_block(string) => {
            let keep = if string.ends_with('\n') { "|" } else { "|-" };
            let _ = writeln!(text, " {keep}");
            for line in string.lines() {
                let indent = if line.is_empty() { 0 } else { indent + 2 };
                let _ = writeln!(text, "{:indent$}{line}", "");
            }
        }
        Value::String(string) => {
            let _ = writeln!(text, " {}", scalar(string));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            let _ = writeln!(text, " {value}");
        }
    }
}

fn item(value: &Value, indent: usize, text: &mut String) {
    let Value::Object(members) = value else {
        let _ = write!(text, "{:indent$}-", "");
        return inside(value, indent, text);
    };
    for (index, (key, value)) in members.iter().enumerate() {
        let dash = if index == 0 { "- " } else { "  " };
        let _ = write!(text, "{:indent$}{dash}{}:", "", scalar(key));
        inside(value, indent + 2, text);
    }
    if members.is_empty() {
        let _ = writeln!(text, "{:indent$}- {{}}", "");
    }
}

/// Whether a text reads best, and the same, as lines of its own.
fn is_block(text: &str) -> bool {
    let fine = |line: &str| line.chars().all(|c| !c.is_control()) && !line.ends_with(' ');
    let several = text.trim_end_matches('\n').contains('\n');
    let one_end = !text.ends_with("\n\n") && !text.starts_with([' ', '\n']);
    several && one_end && text.lines().all(fine) && !text.contains('\r') && text.is_ascii()
}

/// A text on one line: as it is where no reader takes it for something else, else in quotes.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-');
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let word = text.to_ascii_lowercase();
    let meant =
        ["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&word.as_str());
    if begins && !meant && text.chars().all(plain) {
        return text.to_owned();
    }
    // JSON's way to quote is one of YAML's.
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use countersign_api::resource::Tree;
    use serde_json::json;

    use super::*;
    use crate::manifest::Manifests;

    #[track_caller]
    fn survives(kind: &str, spec: &Value) {
        let manifest = json!({
            "apiVersion": "countersign.dev/v1alpha1", "kind": kind, "metadata": {"name": "no"}, "spec": spec,
        });
        let resource = Resource::read(&Tree::from_value(&manifest)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let text = write(&resource);
        std::fs::write(folder.path().join("a.yaml"), &text).unwrap();
        let read = Manifests::read(folder.path()).unwrap();
        assert_eq!(read.resources, [resource], "{text}");
    }

    #[test]
    fn what_is_written_is_read_back_as_the_same() {
        for cedar in [
            "permit (principal, action, resource);",
            "// é\npermit (principal, action, resource);\n",
            "// a: b # c\n\n  permit (\n    principal, action, resource);",
            "@why(\"- x: |\")\nforbid (principal, action, resource);\n",
            "permit (principal, action, resource);\n\n",
            " permit (principal, action, resource);\n// x ",
        ] {
            survives("Policy", &json!({ "cedar": cedar, "mode": "observe" }));
        }
        survives(
            "Service",
            &json!({
                "workload": "web", "listen": "127.0.0.1:0", "forward": "unix", "command": ["a", "-b", "true", "", "x: y", "#"],
                "environment": {"A": "1", "B": "no", "C": "a\\\"b"}, "upstreams": [{"service": "orders", "addresses": ["a:1", "b:2"]}],
                "operations": [{"name": "on", "method": "GET", "path": "/a/{id}"}],
            }),
        );
        survives("Workload", &json!({ "selectors": ["launch:web", "unix:uid:1000"], "crl": true }));
        survives("TrustDomain", &json!({ "trustDomain": "1.5", "svidLifetime": "15m" }));
    }
}
