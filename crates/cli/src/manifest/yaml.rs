//! YAML documents as trees with places. Bounded, so that a hostile text is refused, not expanded.

use std::fmt;

use countersign_api::resource::{Entry, Node, Position, TREE_DEPTH_MAX, Tree};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_saphyr::{Location, Options, Spanned};

/// How often a document may use `*alias`. Manifests have little reason to use any.
const ALIASES_MAX: usize = 64;
/// How many values and names one document may have.
const DOCUMENT_NODES_MAX: usize = 100_000;
/// How many of them may come out of aliases.
const REPLAYED_MAX: usize = 10_000;
/// How many values one file may have in all.
const NODES_MAX: usize = 1_000_000;

/// What is wrong with the text, and where.
pub(super) type Bad = (Option<Position>, String);

/// Reads the documents of a text, separated by `---`. Empty ones are passed over.
///
/// Each is read by itself, so that one that is no YAML does not hide the problems of the others.
pub(super) fn documents(text: &str) -> Vec<Result<Tree, Bad>> {
    let mut documents = Vec::new();
    let mut nodes = 0;
    for (lines_before, part) in parts(text) {
        let mut reader = part.as_bytes();
        let read = serde_saphyr::read_with_options::<_, Spanned<Value>>(&mut reader, options());
        for document in read {
            documents.push(match document {
                Ok(spanned) => {
                    let tree = tree(spanned, lines_before);
                    nodes += count(&tree);
                    Ok(tree)
                }
                Err(error) => Err(explain(&error, lines_before)),
            });
        }
        if NODES_MAX < nodes {
            let why = format!("the file holds over {NODES_MAX} values: split it");
            documents.push(Err((None, why)));
            break;
        }
    }
    documents
}

/// Cuts the text before each line that begins a document, with the number of lines before it. At the beginning of a
/// line, `---` is nothing else, also within a quoted text (YAML 1.2.2, 9.1.2).
fn parts(text: &str) -> Vec<(u64, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let (mut offset, mut line) = (0, 0);
    for row in text.split_inclusive('\n') {
        let marker = row.strip_prefix("---");
        let begins =
            marker.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        // Directives belong to the document that the marker begins.
        let directives = text[start..offset].lines().all(|line| line.starts_with(['%', '#']));
        if begins && !directives {
            parts.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, line);
        }
        offset += row.len();
        line += 1;
    }
    parts.push((start_line, &text[start..]));
    parts
}

fn count(tree: &Tree) -> usize {
    1 + match &tree.node {
        Node::Null | Node::Bool(_) | Node::Number(_) | Node::Text(_) => 0,
        Node::List(items) => items.iter().map(count).sum(),
        Node::Map(entries) => entries.iter().map(|entry| count(&entry.value)).sum(),
    }
}

fn options() -> Options {
    let mut options = Options::default();
    if let Some(budget) = &mut options.budget {
        budget.max_aliases = ALIASES_MAX;
        budget.max_anchors = ALIASES_MAX;
        budget.max_depth = TREE_DEPTH_MAX;
        budget.max_nodes = DOCUMENT_NODES_MAX;
        budget.max_events = DOCUMENT_NODES_MAX * 2;
        budget.max_reader_input_bytes = Some(super::files::FILE_BYTES_MAX);
        budget.max_total_scalar_bytes = super::files::FILE_BYTES_MAX;
    }
    options.alias_limits.max_total_replayed_events = REPLAYED_MAX;
    // The reader of the fields tells of them, with all other problems.
    options.duplicate_keys = DuplicateKeyPolicy::PassThrough;
    options.merge_keys = MergeKeyPolicy::Error;
    options.reject_unsupported_tags = true;
    // YAML 1.2: `no` is a text, as everybody expects of a name.
    options.strict_booleans = true;
    options.with_snippet = false;
    options
}

fn explain(error: &serde_saphyr::Error, lines_before: u64) -> Bad {
    use serde_saphyr::Error;
    let error = error.without_snippet();
    let position = error.location().and_then(|location| position(location, lines_before));
    // The parser's sentence ends with the place, which is told before it.
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text).trim_end_matches('.');
    let why = if matches!(error, Error::MergeKeyNotAllowed { .. }) {
        "merge keys (`<<`) have no place in a manifest: write the fields out".to_owned()
    } else if text.contains("alias") && text.contains("limit") {
        "its aliases expand to too much: write the values out".to_owned()
    } else if text.contains("recursion limit") || matches!(error, Error::Budget { .. }) {
        format!(
            "nests deeper than {TREE_DEPTH_MAX}, holds over {DOCUMENT_NODES_MAX} values, or uses over {ALIASES_MAX} aliases: make it simpler"
        )
    } else {
        let remedy = if text.contains("tabs") { ": indent with blanks" } else { "" };
        format!("not valid YAML: {}{remedy}", crate::output::printable(text))
    };
    (position, why)
}

fn position(location: Location, lines_before: u64) -> Option<Position> {
    let (line, column) = (location.line(), location.column());
    (0 < line).then_some(Position { line: line + lines_before, column })
}

/// Adds the lines before the document to every place.
fn tree(spanned: Spanned<Value>, lines_before: u64) -> Tree {
    let mut tree = within(spanned);
    move_down(&mut tree, lines_before);
    tree
}

fn move_down(tree: &mut Tree, lines: u64) {
    let down = |at: &mut Option<Position>| {
        if let Some(at) = at {
            at.line += lines;
        }
    };
    down(&mut tree.at);
    match &mut tree.node {
        Node::Null | Node::Bool(_) | Node::Number(_) | Node::Text(_) => {}
        Node::List(items) => items.iter_mut().for_each(|item| move_down(item, lines)),
        Node::Map(entries) => {
            for entry in entries {
                down(&mut entry.at);
                move_down(&mut entry.value, lines);
            }
        }
    }
}

/// A tree whose places are counted from the beginning of its document.
fn within(spanned: Spanned<Value>) -> Tree {
    Tree { at: position(spanned.referenced, 0), node: spanned.value.0 }
}

/// A node, whose children are trees with places.
struct Value(Node);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor).map(Self)
    }
}

/// The name of a field: any scalar, as it is written.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(Self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_bytes<E: de::Error>(self, _value: &[u8]) -> Result<Node, E> {
        Err(E::custom("`!!binary` has no place in a manifest: write a text"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Value>>()? {
            list.push(within(item));
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = members.next_key::<Spanned<Key>>()? {
            let value = within(members.next_value()?);
            entries.push(Entry { key: key.value.0, at: position(key.referenced, 0), value });
        }
        Ok(Node::Map(entries))
    }
}
