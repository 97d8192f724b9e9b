//! Records of the state, as they come from a server.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The kinds of records. Closed: a kind that this version does not know could take rights away, so a stream that
/// brings one is refused, and what is held stays in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordKind {
    /// The trust domain and its lifetimes.
    TrustDomain,
    /// The authorities of one trust domain.
    Bundle,
    /// A SPIFFE ID and its selectors.
    Workload,
    /// A door of a workload.
    Service,
    /// Cedar text and whom it speaks of.
    Policy,
    /// Who is in a group of workloads.
    Role,
    /// What was issued and is out of service.
    Revocation,
    /// What is not issued any more.
    Suspension,
}

const KINDS: [(RecordKind, &str); 8] = [
    (RecordKind::TrustDomain, "TrustDomain"),
    (RecordKind::Bundle, "Bundle"),
    (RecordKind::Workload, "Workload"),
    (RecordKind::Service, "Service"),
    (RecordKind::Policy, "Policy"),
    (RecordKind::Role, "Role"),
    (RecordKind::Revocation, "Revocation"),
    (RecordKind::Suspension, "Suspension"),
];

/// Why a record was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// Another kind.
    #[error(
        "the server sends records of kind `{0}`, which this version does not know: it needs an update"
    )]
    Kind(String),
    /// Longer than any record.
    #[error("`{kind}/{name}` has {bytes} bytes, over the limit of {VALUE_BYTES_MAX}")]
    Long {
        /// Its kind.
        kind: RecordKind,
        /// Its name.
        name: String,
        /// Its size.
        bytes: usize,
    },
    /// A name that is none.
    #[error("a record's name of {0} bytes is not understood")]
    Name(usize),
}

/// The identity of a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey {
    /// Its kind.
    pub kind: RecordKind,
    /// Its name, unique within its kind.
    pub name: Arc<str>,
}

/// One record with its value, which is JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which.
    pub key: RecordKey,
    /// What it says.
    pub value: Arc<[u8]>,
}

/// A record that takes rights away, with the signature of the trust domain's log key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRecord {
    /// The record.
    pub record: Record,
    /// By which any server of the trust domain knows that it was made.
    pub signature: Arc<[u8]>,
}

const VALUE_BYTES_MAX: usize = 512 * 1024;
const NAME_BYTES_MAX: usize = 255;

impl RecordKey {
    /// Reads a record's identity.
    ///
    /// # Errors
    /// When the kind is unknown, or the name none.
    pub fn read(kind: &str, name: &str) -> Result<Self, BadRecord> {
        if name.is_empty() || NAME_BYTES_MAX < name.len() {
            return Err(BadRecord::Name(name.len()));
        }
        Ok(Self { kind: kind.parse()?, name: name.into() })
    }
}

impl Record {
    /// Reads a record.
    ///
    /// # Errors
    /// When the kind is unknown, the name none, or the value too long.
    pub fn read(kind: &str, name: &str, value: &[u8]) -> Result<Self, BadRecord> {
        let key = RecordKey::read(kind, name)?;
        if VALUE_BYTES_MAX < value.len() {
            let bytes = value.len();
            return Err(BadRecord::Long { kind: key.kind, name: name.to_owned(), bytes });
        }
        Ok(Self { key, value: value.into() })
    }
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = KINDS.iter().find(|(kind, _)| kind == self).map_or("", |(_, text)| text);
        f.write_str(text)
    }
}

impl FromStr for RecordKind {
    type Err = BadRecord;

    fn from_str(text: &str) -> Result<Self, BadRecord> {
        let kind = KINDS.iter().find(|(_, word)| *word == text).map(|(kind, _)| *kind);
        kind.ok_or_else(|| BadRecord::Kind(text.chars().take(80).collect()))
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}
