//! What a log says of itself at one size (C2SP tlog-checkpoint v1).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::{Incarnation, Sha256};

use crate::note::{BadNote, Note, NoteKey, NoteKeyKind, Signed};

/// Which log: that of one incarnation of a trust domain, `shop.example/log/1`.
///
/// The key's name is the part before the incarnation, so that one public key verifies all lives of the trust domain, and
/// yet no two of them can be taken for one log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    name: String, // INVARIANT: the name of a note's key
    /// Which life of the store.
    pub incarnation: Incarnation,
}

/// A text that is no origin of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the origin of a log: expected `NAME/INCARNATION`")]
pub struct BadOrigin;

impl Origin {
    /// The log that this key signs, in this incarnation.
    pub fn of(key: &NoteKey, incarnation: Incarnation) -> Self {
        Self { name: key.name().to_owned(), incarnation }
    }

    /// The name of the key that signs it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.incarnation)
    }
}

impl FromStr for Origin {
    type Err = BadOrigin;

    fn from_str(text: &str) -> Result<Self, BadOrigin> {
        let (name, incarnation) = text.rsplit_once('/').ok_or(BadOrigin)?;
        let bad = |c: char| c.is_whitespace() || c.is_control() || c == '+';
        if name.is_empty() || name.contains(bad) {
            return Err(BadOrigin);
        }
        let incarnation = decimal(incarnation).ok_or(BadOrigin)?;
        Ok(Self { name: name.to_owned(), incarnation })
    }
}

/// A number in its only decimal form.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// A hash in its only form in base64.
pub(crate) fn hash(text: &str) -> Option<Sha256> {
    let bytes = STANDARD.decode(text).ok()?;
    Some(Sha256::from_bytes(bytes.try_into().ok()?))
}

/// A log's size and root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Of which log.
    pub origin: Origin,
    /// How many leaves it has.
    pub size: u64,
    /// The root of the tree over them.
    pub root: Sha256,
}

/// Why bytes are not a checkpoint that can be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCheckpoint {
    /// Not a note, or not signed.
    #[error(transparent)]
    Note(#[from] BadNote),
    /// Its text is not that of a checkpoint of ours.
    #[error("not a checkpoint: expected an origin, a size and a root, one a line")]
    Form,
    /// Signed, but not by a key whose log it speaks of.
    #[error("the checkpoint speaks of log `{0}`, and no key of that name has signed it")]
    Origin(Origin),
}

impl Checkpoint {
    /// The note, not signed yet.
    pub fn note(&self) -> Note {
        let root = STANDARD.encode(self.root.as_bytes());
        Note::unsigned(format!("{}\n{}\n{root}\n", self.origin, self.size))
    }

    /// Reads the text of a note. It is as good as the note's signatures.
    ///
    /// # Errors
    /// When it says something else, or says it in another way than the one in which [`Checkpoint::note`] writes it.
    pub fn of(note: &Note) -> Result<Self, BadCheckpoint> {
        let mut lines = note.text().split('\n');
        let mut line = || lines.next().ok_or(BadCheckpoint::Form);
        let origin = line()?.parse().map_err(|_bad| BadCheckpoint::Form)?;
        let size = decimal(line()?).ok_or(BadCheckpoint::Form)?;
        let root = hash(line()?).ok_or(BadCheckpoint::Form)?;
        let checkpoint = Self { origin, size, root };
        // Nothing after it: what nobody audits is not to be signed along.
        if checkpoint.note().text() == note.text() {
            return Ok(checkpoint);
        }
        Err(BadCheckpoint::Form)
    }

    /// Reads a signed checkpoint, and says which of the trusted keys have signed it; one of them is the log's own.
    ///
    /// # Errors
    /// When it is not signed by the log that it speaks of.
    pub fn open(note: &[u8], trusted: &[NoteKey]) -> Result<(Self, Vec<Signed>), BadCheckpoint> {
        let note = Note::parse(note)?;
        let signed = note.verify(trusted)?;
        let checkpoint = Self::of(&note)?;
        let own = |signed: &Signed| {
            signed.key.kind() == NoteKeyKind::Log && signed.key.name() == checkpoint.origin.name()
        };
        if signed.iter().any(own) {
            return Ok((checkpoint, signed));
        }
        Err(BadCheckpoint::Origin(checkpoint.origin))
    }
}
