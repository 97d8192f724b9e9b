//! Signed notes (C2SP signed-note v1) with Ed25519 keys, and the cosignatures of witnesses (C2SP tlog-cosignature v1).

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The longest note that is read: room for more cosignatures than anybody collects.
pub const NOTE_BYTES_MAX: usize = 64 * 1024;
/// How many signatures of a note are read.
const SIGNATURES_MAX: usize = 64;
/// How long a key's name may be.
const NAME_BYTES_MAX: usize = 300;
/// What a signature's line begins with.
const DASH: &str = "\u{2014} ";

/// How a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NoteKeyKind {
    /// Ed25519 over the note's text: a log.
    Log,
    /// Ed25519 over the text and a time: a witness.
    Witness,
}

impl NoteKeyKind {
    /// The byte that the specification assigns to this kind of signature.
    const fn byte(self) -> u8 {
        match self {
            Self::Log => 1,
            Self::Witness => 4,
        }
    }
}

/// A public key under a name, which notes are verified with; written as `NAME+ID+KEY`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NoteKey {
    name: String, // INVARIANT: not empty; no white space, control character or plus sign
    kind: NoteKeyKind,
    key: [u8; 32],
}

/// Why a text is not a note's key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadNoteKey {
    /// Not of the form.
    #[error("not a key of a log or a witness: expected `NAME+ID+KEY`")]
    Form,
    /// The name holds what none may hold.
    #[error("the name of a key is empty, too long, or holds white space or a plus sign")]
    Name,
    /// A key of another algorithm.
    #[error("not an Ed25519 key of a log or a witness")]
    Kind,
    /// The id does not belong to name and key: a typing error, or another name.
    #[error("the id `{found}` does not belong to this name and key, whose id is `{expected}`")]
    Id {
        /// The one that is written.
        found: String,
        /// The right one.
        expected: String,
    },
}

fn is_name(name: &str) -> bool {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '+';
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains(bad)
}

impl NoteKey {
    /// The Ed25519 key with these 32 bytes, under a name.
    ///
    /// # Errors
    /// When the name is none.
    pub fn new(name: &str, kind: NoteKeyKind, key: [u8; 32]) -> Result<Self, BadNoteKey> {
        if !is_name(name) {
            return Err(BadNoteKey::Name);
        }
        Ok(Self { name: name.to_owned(), kind, key })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it signs.
    pub fn kind(&self) -> NoteKeyKind {
        self.kind
    }

    /// The four bytes by which a signature names its key. They help to find it and prove nothing.
    fn id(&self) -> [u8; 4] {
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        context.update(self.name.as_bytes());
        context.update(&[b'\n', self.kind.byte()]);
        context.update(&self.key);
        let mut id = [0; 4];
        id.copy_from_slice(&context.finish().as_ref()[..4]);
        id
    }

    fn id_text(&self) -> String {
        format!("{:08x}", u32::from_be_bytes(self.id()))
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.key).verify(message, signature).is_ok()
    }
}

impl fmt::Display for NoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![self.kind.byte()];
        bytes.extend_from_slice(&self.key);
        write!(f, "{}+{}+{}", self.name, self.id_text(), STANDARD.encode(bytes))
    }
}

impl fmt::Debug for NoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoteKey({self})")
    }
}

impl FromStr for NoteKey {
    type Err = BadNoteKey;

    fn from_str(text: &str) -> Result<Self, BadNoteKey> {
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(BadNoteKey::Form);
        };
        let bytes = STANDARD.decode(key).map_err(|_bad| BadNoteKey::Form)?;
        let (kind, key) = match bytes.split_first() {
            Some((1, key)) => (NoteKeyKind::Log, key),
            Some((4, key)) => (NoteKeyKind::Witness, key),
            Some(_) | None => return Err(BadNoteKey::Kind),
        };
        let key = Self::new(name, kind, key.try_into().map_err(|_length| BadNoteKey::Kind)?)?;
        let expected = key.id_text();
        if id == expected {
            return Ok(key);
        }
        Err(BadNoteKey::Id { found: id.chars().take(20).collect(), expected })
    }
}

/// A text with signatures. What it says counts for nothing before [`Note::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String, // INVARIANT: ends with a line break; no other control characters
    signatures: Vec<Signature>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    name: String,
    id: [u8; 4],
    bytes: Vec<u8>,
}

/// Why bytes are not a note that can be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadNote {
    /// Longer than any that is read.
    #[error("a note is over the limit of {NOTE_BYTES_MAX} bytes or {SIGNATURES_MAX} signatures")]
    Long,
    /// Not of the form.
    #[error("not a signed note: expected a text, an empty line, and lines of signatures")]
    Form,
    /// A signature that names a known key is not that key's.
    #[error("the signature of `{0}` does not verify")]
    Signature(String),
    /// No known key has signed it.
    #[error("the note is not signed by a key that is trusted here")]
    Unsigned,
}

/// A signature of a note that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Whose.
    pub key: NoteKey,
    /// When a witness signed, in seconds since 1970; a log does not say.
    pub at_secs: Option<u64>,
}

/// What a witness signs: the note's text under a heading and the time.
pub fn cosigned(text: &str, at_secs: u64) -> Vec<u8> {
    format!("cosignature/v1\ntime {at_secs}\n{text}").into_bytes()
}

impl Note {
    /// A text, not signed yet; a line break is its end.
    pub(crate) fn unsigned(text: String) -> Self {
        Self { text, signatures: Vec::new() }
    }

    /// The text, its last line break included. It is what a log signs.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The same note with the signature of a log, which is one over [`Note::text`].
    #[must_use]
    pub fn with_signature(mut self, key: &NoteKey, signature: &[u8]) -> Self {
        self.put(Signature { name: key.name.clone(), id: key.id(), bytes: signature.to_vec() });
        self
    }

    /// The same note with the signature of a witness, which is one over [`cosigned`].
    #[must_use]
    pub fn with_cosignature(mut self, key: &NoteKey, at_secs: u64, signature: &[u8]) -> Self {
        let mut bytes = at_secs.to_be_bytes().to_vec();
        bytes.extend_from_slice(signature);
        self.put(Signature { name: key.name.clone(), id: key.id(), bytes });
        self
    }

    fn put(&mut self, signature: Signature) {
        self.signatures.retain(|old| (&old.name, old.id) != (&signature.name, signature.id));
        self.signatures.push(signature);
    }

    /// Reads a note. Nobody has verified it yet.
    ///
    /// # Errors
    /// When it is too long or not of the form.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadNote> {
        if NOTE_BYTES_MAX < bytes.len() {
            return Err(BadNote::Long);
        }
        let note = std::str::from_utf8(bytes).map_err(|_bad| BadNote::Form)?;
        if note.contains(|c: char| c < ' ' && c != '\n') {
            return Err(BadNote::Form);
        }
        // The last empty line; the text keeps the line break before it.
        let end = note.rfind("\n\n").ok_or(BadNote::Form)?;
        let (text, lines) = (&note[..=end], &note[end + 2..]);
        let lines = lines.strip_suffix('\n').ok_or(BadNote::Form)?;
        let signatures = lines.split('\n').take(SIGNATURES_MAX + 1).map(signature);
        let signatures = signatures.collect::<Option<Vec<_>>>().ok_or(BadNote::Form)?;
        if SIGNATURES_MAX < signatures.len() {
            return Err(BadNote::Long);
        }
        Ok(Self { text: text.to_owned(), signatures })
    }

    /// Checks the signatures of the keys that are trusted; others are not looked at. Says which of them signed.
    ///
    /// # Errors
    /// When none of them signed, or a signature in the name of one of them is not its own.
    pub fn verify(&self, trusted: &[NoteKey]) -> Result<Vec<Signed>, BadNote> {
        let mut signed = Vec::new();
        for signature in &self.signatures {
            let whose = |key: &&NoteKey| key.name == signature.name && key.id() == signature.id;
            for key in trusted.iter().filter(whose) {
                let bad = || BadNote::Signature(key.name.clone());
                signed.push(check(key, &self.text, &signature.bytes).ok_or_else(bad)?);
            }
        }
        if signed.is_empty() { Err(BadNote::Unsigned) } else { Ok(signed) }
    }
}

fn check(key: &NoteKey, text: &str, bytes: &[u8]) -> Option<Signed> {
    let (at_secs, verifies) = match key.kind {
        NoteKeyKind::Log => (None, key.verifies(text.as_bytes(), bytes)),
        NoteKeyKind::Witness => {
            let (time, signature) = bytes.split_first_chunk::<8>()?;
            let at = u64::from_be_bytes(*time);
            (Some(at), key.verifies(&cosigned(text, at), signature))
        }
    };
    verifies.then(|| Signed { key: key.clone(), at_secs })
}

fn signature(line: &str) -> Option<Signature> {
    let (name, encoded) = line.strip_prefix(DASH)?.split_once(' ')?;
    let bytes = STANDARD.decode(encoded).ok()?;
    let (id, bytes) = bytes.split_first_chunk::<4>()?;
    if !is_name(name) || bytes.is_empty() {
        return None;
    }
    Some(Signature { name: name.to_owned(), id: *id, bytes: bytes.to_vec() })
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for Signature { name, id, bytes } in &self.signatures {
            let all = [id.as_slice(), bytes].concat();
            writeln!(f, "{DASH}{name} {}", STANDARD.encode(all))?;
        }
        Ok(())
    }
}
