//! A proof that needs nothing beside it but a public key (C2SP tlog-proof v1).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::Sha256;

use crate::checkpoint::{BadCheckpoint, Checkpoint, decimal, hash};
use crate::leaf::LEAF_BYTES_MAX;
use crate::note::{BadNote, NOTE_BYTES_MAX, Note, NoteKey, Signed};
use crate::{BadLeaf, BadProof, Entry, leaf_hash, verify_inclusion};

const HEADING: &str = "c2sp.org/tlog-proof@v1";
/// No tree is deeper.
const HASHES_MAX: usize = 64;
/// The longest bundle that is read.
pub const BUNDLE_BYTES_MAX: usize = NOTE_BYTES_MAX + 8 * 1024;

/// That a leaf is in a log: the leaf, its place, the hashes beside its way to the root, and the signed root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The leaf's bytes. Its hash is what is proven, so it is believed once the proof holds.
    pub leaf: Vec<u8>,
    /// Its index.
    pub index: u64,
    /// The hashes, from the leaf to the root.
    pub path: Vec<Sha256>,
    /// The signed checkpoint.
    pub checkpoint: Note,
}

/// Why a bundle proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBundle {
    /// Not of the form.
    #[error("not a proof of the form `{HEADING}` that carries its leaf")]
    Form,
    /// Longer than any.
    #[error("a proof is over the limit of {BUNDLE_BYTES_MAX} bytes")]
    Long,
    /// The checkpoint counts for nothing.
    #[error(transparent)]
    Checkpoint(#[from] BadCheckpoint),
    /// The hashes do not lead from the leaf to the root.
    #[error(transparent)]
    Proof(#[from] BadProof),
    /// What is proven is no leaf of this version.
    #[error(transparent)]
    Leaf(#[from] BadLeaf),
}

impl From<BadNote> for BadBundle {
    fn from(bad: BadNote) -> Self {
        Self::Checkpoint(bad.into())
    }
}

/// What a bundle proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// What the leaf says.
    pub entry: Entry,
    /// The log that it is in.
    pub checkpoint: Checkpoint,
    /// Which of the trusted keys have signed that log.
    pub signed: Vec<Signed>,
}

impl Bundle {
    /// Reads a bundle. Nobody has verified it yet.
    ///
    /// # Errors
    /// When it is too long or not of the form.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadBundle> {
        if BUNDLE_BYTES_MAX < bytes.len() {
            return Err(BadBundle::Long);
        }
        let text = std::str::from_utf8(bytes).map_err(|_bad| BadBundle::Form)?;
        let (head, note) = text.split_once("\n\n").ok_or(BadBundle::Form)?;
        let mut lines = head.split('\n');
        let mut field = |name: &str| lines.next()?.strip_prefix(name);
        if field(HEADING) != Some("") {
            return Err(BadBundle::Form);
        }
        let leaf = field("extra ").and_then(|leaf| STANDARD.decode(leaf).ok());
        let leaf = leaf.filter(|leaf| leaf.len() <= LEAF_BYTES_MAX).ok_or(BadBundle::Form)?;
        let index = field("index ").and_then(decimal).ok_or(BadBundle::Form)?;
        let path = lines.take(HASHES_MAX + 1).map(hash).collect::<Option<Vec<_>>>();
        let path = path.filter(|path| path.len() <= HASHES_MAX).ok_or(BadBundle::Form)?;
        Ok(Self { leaf, index, path, checkpoint: Note::parse(note.as_bytes())? })
    }

    /// Checks everything: the signature under the root, the way from the leaf to it, and what the leaf says.
    ///
    /// # Errors
    /// When any of it does not hold.
    pub fn verify(&self, trusted: &[NoteKey]) -> Result<Proven, BadBundle> {
        let note = self.checkpoint.to_string();
        let (checkpoint, signed) = Checkpoint::open(note.as_bytes(), trusted)?;
        let Checkpoint { size, root, .. } = checkpoint;
        verify_inclusion(leaf_hash(&self.leaf), self.index, size, &self.path, root)?;
        let entry = Entry::parse(&self.leaf)?;
        Ok(Proven { entry, checkpoint, signed })
    }
}

impl fmt::Display for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leaf = STANDARD.encode(&self.leaf);
        writeln!(f, "{HEADING}\nextra {leaf}\nindex {}", self.index)?;
        for hash in &self.path {
            writeln!(f, "{}", STANDARD.encode(hash.as_bytes()))?;
        }
        write!(f, "\n{}", self.checkpoint)
    }
}
