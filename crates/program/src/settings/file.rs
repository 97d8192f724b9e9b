//! Settings in a TOML file.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::field::{Field, Takes};
use super::resolve::{Resolved, Source};
use crate::exit::Failure;

/// The largest file that is read.
const FILE_BYTES_MAX: usize = 1024 * 1024;

/// What a file says of each field, with its place.
pub(super) type Found = BTreeMap<&'static str, (Vec<String>, Source)>;

/// Reads the file. Problems with its keys and values are left in `resolved`, to be told with all others.
pub(super) fn read(
    path: &Path,
    fields: &[&'static Field],
    resolved: &mut Resolved,
) -> Result<Found, Failure> {
    let text = crate::system::read_regular(path, FILE_BYTES_MAX)
        .map_err(|why| Failure::not_understood(format!("`{}` {why}", path.display())))?;
    let table = DeTable::parse(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(&text, span.start));
        Failure::not_understood(format!(
            "{}:{line}: not valid TOML: {}",
            path.display(),
            error.message().trim()
        ))
    })?;
    let mut found = Found::new();
    for (key, value) in table.get_ref() {
        let line = line_of(&text, key.span().start);
        let place = format!("{}:{line}", path.display());
        let name = key.get_ref();
        let Some(field) = fields.iter().find(|field| field.key() == **name) else {
            let known: Vec<_> = fields
                .iter()
                .filter(|field| !field.hidden)
                .map(|field| format!("`{}`", field.key()))
                .collect();
            resolved.problem(format!(
                "{place}: `{}` is not a setting: expected one of {}",
                crate::output::printable(name),
                known.join(", ")
            ));
            continue;
        };
        match texts(field, value) {
            Ok(texts) => {
                found.insert(field.flag, (texts, Source::File(place)));
            }
            Err(expected) => resolved.problem(format!("{place}: `{name}` is {expected}")),
        }
    }
    Ok(found)
}

fn texts(field: &Field, value: &Spanned<DeValue<'_>>) -> Result<Vec<String>, String> {
    match (value.get_ref(), field.takes) {
        (DeValue::Array(items), Takes::Many) => {
            items.iter().map(|item| text(item.get_ref())).collect()
        }
        (DeValue::Array(_), Takes::One | Takes::Nothing) => {
            Err("a list, where one value is expected".to_owned())
        }
        (other, Takes::One | Takes::Many | Takes::Nothing) => Ok(vec![text(other)?]),
    }
}

fn text(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        DeValue::Integer(number) => Ok(number.to_string()),
        DeValue::Float(_) | DeValue::Datetime(_) => {
            Err("a number or date, where a text is expected: quote it".to_owned())
        }
        DeValue::Array(_) | DeValue::Table(_) => {
            Err("a list or table, where a text is expected".to_owned())
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}
