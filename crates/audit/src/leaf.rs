//! One leaf of the log: what is hashed, and what is kept beside it.

use std::fmt::{self, Write as _};

use aws_lc_rs::digest;
use countersign_identity::{Revision, Serial, Sha256, Timestamp};
use serde_json::Value;

use crate::canonical::{canonical, write_string};
use crate::{Event, EventKind, INTEGER_MAX, NotCanonical, leaf_hash};

/// How long a leaf may be.
pub const LEAF_BYTES_MAX: usize = 1024;
/// How long the details beside a leaf may be.
pub const DETAILS_BYTES_MAX: usize = 16 * 1024;
/// The version of the leaf's form.
const VERSION: u64 = 1;

/// A leaf as it is stored: its bytes never change, its details may be dropped later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The canonical JSON that is hashed.
    pub bytes: Vec<u8>,
    /// The leaf's hash in the tree.
    pub hash: Sha256,
    /// The details in canonical JSON.
    pub details: Vec<u8>,
    /// What hides the details from those who see only the leaf and could guess them.
    pub salt: [u8; 16],
}

/// Why an event cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeafRefused {
    /// The leaf would be too long.
    #[error(
        "the log's leaf for `{kind}` would have {bytes} bytes, over the limit of {LEAF_BYTES_MAX}"
    )]
    Long {
        /// Of which kind of event.
        kind: EventKind,
        /// How long it would be.
        bytes: usize,
    },
    /// The details are too long.
    #[error("the details of `{kind}` have {bytes} bytes, over the limit of {DETAILS_BYTES_MAX}")]
    LongDetails {
        /// Of which kind of event.
        kind: EventKind,
        /// How long they are.
        bytes: usize,
    },
    /// The details have no canonical text.
    #[error("the details of `{kind}` cannot be written: {why}")]
    Details {
        /// Of which kind of event.
        kind: EventKind,
        /// What stands in the way.
        why: NotCanonical,
    },
    /// The incarnation or the revision is beyond what JSON can say exactly.
    #[error("revision `{0}` is beyond 2^53 - 1")]
    Revision(Revision),
}

/// The digest that binds details to their leaf.
pub fn body(salt: &[u8; 16], details: &[u8]) -> Sha256 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(salt);
    context.update(details);
    crate::tree::digest_of(context)
}

impl Leaf {
    /// Writes the leaf of an event that belongs to this revision.
    ///
    /// # Errors
    /// When the event is too long, or its details are not JSON that has a canonical form.
    pub fn new(event: &Event, revision: Revision, salt: [u8; 16]) -> Result<Self, LeafRefused> {
        let kind = event.kind;
        if INTEGER_MAX < revision.incarnation || INTEGER_MAX < revision.number {
            return Err(LeafRefused::Revision(revision));
        }
        let details =
            canonical(&event.details).map_err(|why| LeafRefused::Details { kind, why })?;
        if DETAILS_BYTES_MAX < details.len() {
            return Err(LeafRefused::LongDetails { kind, bytes: details.len() });
        }
        let entry = Entry {
            kind,
            at: event.at,
            revision,
            actor: event.actor.clone(),
            subject: event.subject.clone(),
            serial: event.serial,
            tbs: event.tbs,
            body: body(&salt, details.as_bytes()),
        };
        let bytes = entry.to_bytes();
        if LEAF_BYTES_MAX < bytes.len() {
            return Err(LeafRefused::Long { kind, bytes: bytes.len() });
        }
        Ok(Self { hash: leaf_hash(&bytes), bytes, details: details.into_bytes(), salt })
    }
}

/// What a leaf says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What happened.
    pub kind: EventKind,
    /// When.
    pub at: Timestamp,
    /// The revision that was current once it had happened.
    pub revision: Revision,
    /// Who did it.
    pub actor: String,
    /// To what it happened.
    pub subject: String,
    /// The certificate's serial, if one was issued.
    pub serial: Option<Serial>,
    /// The digest of that certificate's to-be-signed bytes.
    pub tbs: Option<Sha256>,
    /// The digest of salt and details.
    pub body: Sha256,
}

/// Why bytes are not a leaf of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLeaf {
    /// Longer than any leaf.
    #[error("a leaf of {bytes} bytes is over the limit of {LEAF_BYTES_MAX}")]
    Long {
        /// How long it is.
        bytes: usize,
    },
    /// Not a JSON object.
    #[error("a leaf is not a JSON object")]
    NotJson,
    /// A field is missing or has a value that it cannot have.
    #[error("a leaf's field `{0}` is missing or has a wrong value")]
    Field(&'static str),
    /// It says something in another way than the one in which we would have written it.
    #[error("a leaf is not in canonical form, or holds what this version does not know")]
    NotCanonical,
}

impl Entry {
    /// The canonical text. The members are in their sorted order.
    fn to_bytes(&self) -> Vec<u8> {
        let mut text = String::with_capacity(512);
        text.push_str("{\"actor\":");
        write_string(&mut text, &self.actor);
        put(
            &mut text,
            format_args!(
                ",\"at\":\"{}\",\"body\":\"{}\",\"incarnation\":{},\"kind\":\"{}\",\"revision\":{}",
                self.at, self.body, self.revision.incarnation, self.kind, self.revision.number
            ),
        );
        if let Some(serial) = self.serial {
            put(&mut text, format_args!(",\"serial\":\"{serial}\""));
        }
        text.push_str(",\"subject\":");
        write_string(&mut text, &self.subject);
        if let Some(tbs) = self.tbs {
            put(&mut text, format_args!(",\"tbs\":\"{tbs}\""));
        }
        put(&mut text, format_args!(",\"v\":{VERSION}}}"));
        text.into_bytes()
    }

    /// Reads a leaf's bytes. Only what [`Leaf::new`] writes is read; so what was read is all that was hashed.
    ///
    /// # Errors
    /// When the bytes are not a canonical leaf of this version, or of an unknown kind.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadLeaf> {
        if LEAF_BYTES_MAX < bytes.len() {
            return Err(BadLeaf::Long { bytes: bytes.len() });
        }
        let Ok(Value::Object(members)) = serde_json::from_slice(bytes) else {
            return Err(BadLeaf::NotJson);
        };
        let text = |name: &'static str| {
            members.get(name).and_then(Value::as_str).ok_or(BadLeaf::Field(name))
        };
        let integer = |name: &'static str| {
            members.get(name).and_then(Value::as_u64).ok_or(BadLeaf::Field(name))
        };
        let optional = |name: &'static str| members.get(name).map(|_| text(name)).transpose();
        if integer("v")? != VERSION {
            return Err(BadLeaf::Field("v"));
        }
        let entry = Self {
            kind: parsed("kind", text("kind")?)?,
            at: parsed("at", text("at")?)?,
            revision: Revision {
                incarnation: integer("incarnation")?,
                number: integer("revision")?,
            },
            actor: text("actor")?.to_owned(),
            subject: text("subject")?.to_owned(),
            serial: optional("serial")?.map(|text| parsed("serial", text)).transpose()?,
            tbs: optional("tbs")?.map(|text| parsed("tbs", text)).transpose()?,
            body: parsed("body", text("body")?)?,
        };
        // Duplicate and unknown members, other escapes, white space: all of them would make two readers differ.
        if entry.to_bytes() == bytes { Ok(entry) } else { Err(BadLeaf::NotCanonical) }
    }
}

fn put(text: &mut String, more: fmt::Arguments<'_>) {
    text.write_fmt(more).expect("a string takes all that is written");
}

fn parsed<T: std::str::FromStr>(name: &'static str, text: &str) -> Result<T, BadLeaf> {
    text.parse().map_err(|_| BadLeaf::Field(name))
}
