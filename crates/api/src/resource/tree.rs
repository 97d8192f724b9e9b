//! What a manifest is before it is understood: a tree of values, each with its place when it has one.

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::problem::Position;

/// How deep a manifest may nest. The deepest field of any kind lies at 6.
pub const TREE_DEPTH_MAX: usize = 32;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    /// Where, when it was read from a text with places.
    pub at: Option<Position>,
    /// What.
    pub node: Node,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// Nothing: `null`, `~`, or a key without a value.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, as it was written.
    Number(String),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Tree>),
    /// Fields in the order of the text. Keys may repeat; the reader refuses that.
    Map(Vec<Entry>),
}

/// One field of a map.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name.
    pub key: String,
    /// Where the name stands.
    pub at: Option<Position>,
    /// Its value.
    pub value: Tree,
}

/// Why bytes are not a tree.
#[derive(Debug, thiserror::Error)]
#[error("not valid JSON: {0}")]
pub struct BadTree(#[from] serde_json::Error);

impl Tree {
    /// Reads JSON. Values have no place then.
    ///
    /// # Errors
    /// When it is not JSON, or nests too deep.
    pub fn from_json(bytes: &[u8]) -> Result<Self, BadTree> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// Takes a JSON value.
    pub fn from_value(value: &serde_json::Value) -> Self {
        use serde_json::Value;
        let node = match value {
            Value::Null => Node::Null,
            Value::Bool(value) => Node::Bool(*value),
            Value::Number(number) => Node::Number(number.to_string()),
            Value::String(text) => Node::Text(text.clone()),
            Value::Array(items) => Node::List(items.iter().map(Self::from_value).collect()),
            Value::Object(members) => Node::Map(
                members
                    .iter()
                    .map(|(key, value)| Entry {
                        key: key.clone(),
                        at: None,
                        value: Self::from_value(value),
                    })
                    .collect(),
            ),
        };
        Self { at: None, node }
    }

    /// The value of a field; the first of that name.
    pub fn field(&self, key: &str) -> Option<&Self> {
        match &self.node {
            Node::Map(entries) => {
                entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
            }
            Node::Null | Node::Bool(_) | Node::Number(_) | Node::Text(_) | Node::List(_) => None,
        }
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match &self.node {
            Node::Text(text) => Some(text),
            Node::Null | Node::Bool(_) | Node::Number(_) | Node::List(_) | Node::Map(_) => None,
        }
    }
}

impl Node {
    /// What it is, for messages where a text is not what was expected.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Bool(value) => format!("`{value}`"),
            Self::Number(number) => format!("the number `{}`", super::problem::shorten(number)),
            Self::Text(_) | Self::List(_) | Self::Map(_) => self.describe(),
        }
    }

    /// What it is, for messages.
    pub fn describe(&self) -> String {
        match self {
            Self::Null => "nothing: write one, or remove the field".to_owned(),
            Self::Bool(value) => format!("`{value}`, which is not a text here; quote it"),
            Self::Number(number) => format!("the number `{number}`; quote it"),
            Self::Text(text) => format!("the text `{}`", super::problem::shorten(text)),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "fields".to_owned(),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = deserializer.deserialize_any(TreeVisitor)?;
        Ok(Self { at: None, node })
    }
}

/// Builds a tree without places. The format's own reader bounds the depth.
struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
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

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = members.next_entry()? {
            entries.push(Entry { key, at: None, value });
        }
        Ok(Node::Map(entries))
    }
}
