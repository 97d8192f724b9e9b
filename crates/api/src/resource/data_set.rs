//! What a service keeps or hands out: its data sets, how much harm they could do, and whether it may be spoken to in plain text.

use std::fmt;
use std::str::FromStr;

use countersign_identity::Name;
use serde::Serialize;

use super::problem::shorten;
use super::reader::{Fields, Place, Problems};
use super::tree::Tree;

/// How many data sets one service may have.
pub(super) const DATA_SETS_MAX: usize = 64;

/// How much harm it does when somebody sees it who should not, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Classification {
    /// Anybody may see it.
    Public,
    /// Everybody inside may.
    Internal,
    /// Those who need it may.
    Confidential,
    /// Those who are named may.
    Restricted,
}

impl Classification {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Confidential => "confidential",
            Self::Restricted => "restricted",
        }
    }
}

/// A text that is none of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no classification: expected `public`, `internal`, `confidential` or `restricted`"
)]
pub struct UnknownClassification(String);

impl fmt::Display for Classification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Classification {
    type Err = UnknownClassification;

    fn from_str(text: &str) -> Result<Self, UnknownClassification> {
        match text {
            "public" => Ok(Self::Public),
            "internal" => Ok(Self::Internal),
            "confidential" => Ok(Self::Confidential),
            "restricted" => Ok(Self::Restricted),
            _ => Err(UnknownClassification(shorten(text))),
        }
    }
}

impl Serialize for Classification {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whether a service may be spoken to without mutual TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MutualTls {
    /// It may not: where it has no door, nobody else reaches it.
    #[default]
    Required,
    /// It is spoken to in plain text, and known to be: a front for browsers, something old.
    None,
}

/// A text that is neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` does not say whether mutual TLS is required: expected `required` or `none`")]
pub struct UnknownMutualTls(String);

impl MutualTls {
    pub(super) fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for MutualTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Required => "required",
            Self::None => "none",
        })
    }
}

impl FromStr for MutualTls {
    type Err = UnknownMutualTls;

    fn from_str(text: &str) -> Result<Self, UnknownMutualTls> {
        match text {
            "required" => Ok(Self::Required),
            "none" => Ok(Self::None),
            _ => Err(UnknownMutualTls(shorten(text))),
        }
    }
}

impl Serialize for MutualTls {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Data that a service keeps or hands out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct DataSet {
    /// Its name.
    #[schemars(with = "super::schema::NameText")]
    pub name: Name,
    /// How much harm it does when somebody sees it who should not: `public`, `internal`, `confidential` or `restricted`.
    #[schemars(with = "super::schema::ClassificationText")]
    pub classification: Classification,
}

pub(super) fn read_data_set(
    tree: &Tree,
    place: &Place,
    problems: &mut Problems,
) -> Option<DataSet> {
    let mut fields = Fields::open(tree, &place.path, problems)?;
    let name = fields.required("name", problems);
    let classification = fields.required("classification", problems);
    fields.close(problems);
    Some(DataSet { name: name?, classification: classification? })
}
