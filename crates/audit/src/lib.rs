//! The transparency log: what its leaves say, its Merkle tree and its proofs.
//!
//! A leaf is a small canonical JSON object ([`Leaf`], [`Entry`]); the tree over the leaves is that of RFC 6962,
//! so any verifier of such logs can check it. This crate computes what to write and writes nothing: no I/O, no
//! clock, no randomness of its own. Where leaves are kept is the store's business.

mod canonical;
mod event;
mod leaf;
mod proof;
mod tree;

pub use canonical::{INTEGER_MAX, NotCanonical};
pub use event::{Event, EventKind, UnknownEventKind};
pub use leaf::{BadLeaf, DETAILS_BYTES_MAX, Entry, LEAF_BYTES_MAX, Leaf, LeafRefused, body};
pub use proof::{
    BadProof, consistency_proof, inclusion_proof, verify_consistency, verify_inclusion,
};
pub use tree::{Tree, leaf_hash, root_of};
