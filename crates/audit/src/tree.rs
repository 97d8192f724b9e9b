//! The Merkle tree of RFC 6962, kept as a compact range: one hash for each complete subtree.

use aws_lc_rs::digest;
use countersign_identity::Sha256;

/// The prefixes keep a leaf from being taken for an interior node, and the reverse (RFC 6962, 2.1).
const LEAF_PREFIX: u8 = 0;
const NODE_PREFIX: u8 = 1;

pub(crate) fn digest_of(context: digest::Context) -> Sha256 {
    let digest = context.finish();
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    Sha256::from_bytes(bytes)
}

/// The hash of a leaf's bytes.
pub fn leaf_hash(leaf: &[u8]) -> Sha256 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[LEAF_PREFIX]);
    context.update(leaf);
    digest_of(context)
}

/// The hash of two subtrees.
pub(crate) fn node_hash(left: &Sha256, right: &Sha256) -> Sha256 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[NODE_PREFIX]);
    context.update(left.as_bytes());
    context.update(right.as_bytes());
    digest_of(context)
}

/// The root of the tree without leaves: the hash of nothing.
pub(crate) fn empty_root() -> Sha256 {
    digest_of(digest::Context::new(&digest::SHA256))
}

/// A tree that only grows, in memory of the order of the logarithm of its size.
///
/// It knows its root, and takes leaves; proofs are made from the leaves' hashes ([`crate::inclusion_proof`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    peaks: Vec<Sha256>, // INVARIANT: one for each set bit of `size`, the largest subtree first
}

impl Tree {
    /// The tree without leaves.
    pub const fn new() -> Self {
        Self { size: 0, peaks: Vec::new() }
    }

    /// The tree over leaves with these hashes.
    pub fn from_leaf_hashes(hashes: impl IntoIterator<Item = Sha256>) -> Self {
        let mut tree = Self::new();
        for hash in hashes {
            tree.push(hash);
        }
        tree
    }

    /// Appends the leaf with this hash.
    pub fn push(&mut self, leaf: Sha256) {
        let mut hash = leaf;
        // As in binary counting: each trailing 1 of the size is a full subtree that the new one completes.
        for _ in 0..self.size.trailing_ones() {
            let left = self.peaks.pop().expect("each set bit of the size has its peak");
            hash = node_hash(&left, &hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// Appends 256 leaves by the hash of their subtree. The tree's size must be a multiple of 256.
    pub(crate) fn push_tile(&mut self, hash: Sha256) {
        debug_assert!(self.size.is_multiple_of(256), "a tile begins at a multiple of its width");
        let mut hash = hash;
        for _ in 0..(self.size >> 8).trailing_ones() {
            let left = self.peaks.pop().expect("each set bit of the size has its peak");
            hash = node_hash(&left, &hash);
        }
        self.peaks.push(hash);
        self.size += 256;
    }

    /// How many leaves it has.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The root hash.
    pub fn root(&self) -> Sha256 {
        root_of_peaks(&self.peaks)
    }

    /// The hashes of its full subtrees, the largest first.
    pub(crate) fn into_peaks(self) -> Vec<Sha256> {
        self.peaks
    }
}

/// The root over full subtrees, the largest first.
pub(crate) fn root_of_peaks(peaks: &[Sha256]) -> Sha256 {
    let mut peaks = peaks.iter().rev();
    let Some(last) = peaks.next() else { return empty_root() };
    peaks.fold(*last, |right, left| node_hash(left, &right))
}

/// The root of the tree over leaves with these hashes.
pub fn root_of(hashes: &[Sha256]) -> Sha256 {
    Tree::from_leaf_hashes(hashes.iter().copied()).root()
}
