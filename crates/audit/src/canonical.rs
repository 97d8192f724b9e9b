//! Canonical JSON (RFC 8785), without fractions.

use serde_json::Value;

/// The largest whole number that every JSON reader takes exactly (RFC 8785, appendix D): 2^53 - 1.
pub const INTEGER_MAX: u64 = (1 << 53) - 1;

/// How deep details may nest.
const DEPTH_MAX: usize = 16;

/// Why a value has no canonical text of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCanonical {
    /// A fraction, or a whole number beyond what every reader takes exactly.
    #[error("number `{0}` is not a whole number within 2^53 - 1")]
    Number(String),
    /// Nested too deeply.
    #[error("nested more than {DEPTH_MAX} deep")]
    Depth,
}

/// The canonical text of a value: members sorted by their UTF-16 code units, no white space, and of all ways to
/// write a string the one of RFC 8785, 3.2.2.2.
pub(crate) fn canonical(value: &Value) -> Result<String, NotCanonical> {
    let mut text = String::with_capacity(128);
    write_value(&mut text, value, 0)?;
    Ok(text)
}

fn write_value(text: &mut String, value: &Value, depth: usize) -> Result<(), NotCanonical> {
    if DEPTH_MAX < depth {
        return Err(NotCanonical::Depth);
    }
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(true) => text.push_str("true"),
        Value::Bool(false) => text.push_str("false"),
        Value::Number(number) => write_integer(text, number)?,
        Value::String(string) => write_string(text, string),
        Value::Array(items) => {
            text.push('[');
            for (position, item) in items.iter().enumerate() {
                if position != 0 {
                    text.push(',');
                }
                write_value(text, item, depth + 1)?;
            }
            text.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|(one, _), (other, _)| one.encode_utf16().cmp(other.encode_utf16()));
            text.push('{');
            for (position, (name, member)) in members.into_iter().enumerate() {
                if position != 0 {
                    text.push(',');
                }
                write_string(text, name);
                text.push(':');
                write_value(text, member, depth + 1)?;
            }
            text.push('}');
        }
    }
    Ok(())
}

fn write_integer(text: &mut String, number: &serde_json::Number) -> Result<(), NotCanonical> {
    let magnitude = number.as_i64().map(i64::unsigned_abs).or_else(|| number.as_u64());
    if magnitude.is_none_or(|magnitude| INTEGER_MAX < magnitude) {
        return Err(NotCanonical::Number(number.to_string()));
    }
    text.push_str(&number.to_string());
    Ok(())
}

/// Writes a string in the only way that is canonical.
pub(crate) fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for character in string.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\t' => text.push_str("\\t"),
            '\n' => text.push_str("\\n"),
            '\u{c}' => text.push_str("\\f"),
            '\r' => text.push_str("\\r"),
            '\0'..='\u{1f}' => text.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => text.push(character),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn is_written(value: &Value, text: &str) {
        assert_eq!(canonical(value).unwrap(), text);
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), *value, "it must read back");
    }

    #[test]
    fn strings_are_written_as_rfc_8785_writes_them() {
        // The example of RFC 8785, 3.2.2 (its numbers with fractions left out).
        let string = "\u{20ac}$\u{f}\nA'B\"\\\\\"/";
        is_written(&json!(string), "\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"");
        is_written(&json!("\u{7f}\u{2028}\u{1f600}"), "\"\u{7f}\u{2028}\u{1f600}\"");
        is_written(&json!("\u{8}\t\u{c}\r\u{0}"), "\"\\b\\t\\f\\r\\u0000\"");
    }

    #[test]
    fn members_are_sorted_by_utf_16_code_units_as_in_rfc_8785_3_2_3() {
        let value = json!({
            "\u{20ac}": "Euro Sign", "\r": "Carriage Return", "\u{fb33}": "Hebrew Letter Dalet With Dagesh",
            "1": "One", "\u{1f600}": "Emoji: Grinning Face", "\u{80}": "Control",
            "\u{f6}": "Latin Small Letter O With Diaeresis",
        });
        let text = canonical(&value).unwrap();
        let order = ["Carriage", "One", "Control", "Latin", "Euro", "Emoji", "Hebrew"];
        let places: Vec<_> = order.iter().map(|word| text.find(word).unwrap()).collect();
        assert!(places.is_sorted(), "{text}");
    }

    #[test]
    fn numbers_that_a_reader_could_round_are_refused() {
        is_written(&json!(9_007_199_254_740_991_u64), "9007199254740991");
        is_written(&json!(-9_007_199_254_740_991_i64), "-9007199254740991");
        is_written(&json!([0, true, null, {}]), "[0,true,null,{}]");
        for value in [json!(9_007_199_254_740_992_u64), json!(1.5), json!(-0.0), json!(u64::MAX)] {
            assert!(matches!(canonical(&value), Err(NotCanonical::Number(_))), "{value}");
        }
    }

    #[test]
    fn endless_nesting_is_refused() {
        let mut value = json!(1);
        for _ in 0..DEPTH_MAX {
            value = json!([value]);
        }
        assert!(canonical(&value).is_ok());
        assert_eq!(canonical(&json!([value])), Err(NotCanonical::Depth));
    }
}
