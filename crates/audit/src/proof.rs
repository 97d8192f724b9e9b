//! Proofs that a leaf is in a tree, and that a tree grew out of an older one (RFC 6962, 2.1; RFC 9162, 2.1).

use countersign_identity::Sha256;

use crate::root_of;
use crate::tree::{empty_root, node_hash};

/// No tree is deeper, so no proof is longer.
const PROOF_HASHES_MAX: usize = 64;

/// Why a proof does not prove what it is shown for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadProof {
    /// The leaf or the older tree lies beyond the tree's size.
    #[error("position {position} is beyond a tree of {size} leaves")]
    Beyond {
        /// The leaf's index or the older tree's size.
        position: u64,
        /// How many leaves the tree has.
        size: u64,
    },
    /// The proof has more or fewer hashes than the shape of the tree asks for.
    #[error("a proof of {hashes} hashes has the wrong length for its tree")]
    Length {
        /// How many it has.
        hashes: usize,
    },
    /// The hashes lead to another root.
    #[error("the proof leads to another root")]
    Root,
}

/// The largest power of two below `size`, which is at least 2: where RFC 6962 splits a tree.
fn split(size: usize) -> usize {
    1 << (usize::BITS - 1 - (size - 1).leading_zeros())
}

/// The proof that leaf `index` is in the tree over `leaves`; `None` when it is not.
///
/// It reads all leaves, so it costs what the tree's size costs.
pub fn inclusion_proof(leaves: &[Sha256], index: u64) -> Option<Vec<Sha256>> {
    let mut index = usize::try_from(index).ok().filter(|index| *index < leaves.len())?;
    let mut leaves = leaves;
    let mut proof = Vec::new();
    while 1 < leaves.len() {
        let (left, right) = leaves.split_at(split(leaves.len()));
        if index < left.len() {
            proof.push(root_of(right));
            leaves = left;
        } else {
            proof.push(root_of(left));
            index -= left.len();
            leaves = right;
        }
    }
    proof.reverse();
    Some(proof)
}

/// The proof that the tree over `leaves` begins with the tree of `older` leaves; `None` when that is larger.
///
/// It reads all leaves, so it costs what the tree's size costs.
pub fn consistency_proof(leaves: &[Sha256], older: u64) -> Option<Vec<Sha256>> {
    let mut older = usize::try_from(older).ok().filter(|older| *older <= leaves.len())?;
    let mut leaves = leaves;
    let mut proof = Vec::new();
    if older == 0 {
        return Some(proof);
    }
    // While the older tree is a whole left part of this one, its reader knows its hash.
    let mut known = true;
    while older < leaves.len() {
        let (left, right) = leaves.split_at(split(leaves.len()));
        if older <= left.len() {
            proof.push(root_of(right));
            leaves = left;
        } else {
            proof.push(root_of(left));
            older -= left.len();
            leaves = right;
            known = false;
        }
    }
    if !known {
        proof.push(root_of(leaves));
    }
    proof.reverse();
    Some(proof)
}

/// Checks that the leaf with this hash is at `index` of the tree with `size` leaves and this root.
///
/// # Errors
/// When the proof does not show that.
pub fn verify_inclusion(
    leaf: Sha256,
    index: u64,
    size: u64,
    proof: &[Sha256],
    root: Sha256,
) -> Result<(), BadProof> {
    if size <= index {
        return Err(BadProof::Beyond { position: index, size });
    }
    let length = BadProof::Length { hashes: proof.len() };
    if PROOF_HASHES_MAX < proof.len() {
        return Err(length);
    }
    // RFC 9162, 2.1.3.2.
    let (mut place, mut last, mut hash) = (index, size - 1, leaf);
    for sibling in proof {
        if last == 0 {
            return Err(length);
        }
        if place & 1 == 1 || place == last {
            hash = node_hash(sibling, &hash);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        place >>= 1;
        last >>= 1;
    }
    match (last, hash == root) {
        (0, true) => Ok(()),
        (0, false) => Err(BadProof::Root),
        (1.., _) => Err(length),
    }
}

/// One of two trees of which the newer must have grown out of the older.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    size: u64,
    root: Sha256,
}

/// Checks that the tree with `newer` leaves begins with that of `older` leaves; each comes with its root.
///
/// # Errors
/// When the proof does not show that.
pub fn verify_consistency(
    (older, older_root): (u64, Sha256),
    (newer, newer_root): (u64, Sha256),
    proof: &[Sha256],
) -> Result<(), BadProof> {
    let old = Head { size: older, root: older_root };
    let new = Head { size: newer, root: newer_root };
    let length = BadProof::Length { hashes: proof.len() };
    if new.size < old.size {
        return Err(BadProof::Beyond { position: old.size, size: new.size });
    }
    if PROOF_HASHES_MAX < proof.len() {
        return Err(length);
    }
    if old.size == 0 || old.size == new.size {
        let expected = if old.size == 0 { empty_root() } else { new.root };
        return match (proof.is_empty(), old.root == expected) {
            (true, true) => Ok(()),
            (true, false) => Err(BadProof::Root),
            (false, _) => Err(length),
        };
    }
    verify_growth(old, new, proof)
}

/// RFC 9162, 2.1.4.2, for an older tree that is neither empty nor the newer one.
fn verify_growth(old: Head, new: Head, proof: &[Sha256]) -> Result<(), BadProof> {
    let length = BadProof::Length { hashes: proof.len() };
    let (mut place, mut last) = (old.size - 1, new.size - 1);
    while place & 1 == 1 {
        place >>= 1;
        last >>= 1;
    }
    let mut rest = proof.iter();
    // A complete older tree is its own first hash and is left out of the proof.
    let first = if old.size.is_power_of_two() { old.root } else { *rest.next().ok_or(length)? };
    let (mut old_hash, mut new_hash) = (first, first);
    for sibling in rest {
        if last == 0 {
            return Err(length);
        }
        if place & 1 == 1 || place == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        place >>= 1;
        last >>= 1;
    }
    match (last, old_hash == old.root && new_hash == new.root) {
        (0, true) => Ok(()),
        (0, false) => Err(BadProof::Root),
        (1.., _) => Err(length),
    }
}
