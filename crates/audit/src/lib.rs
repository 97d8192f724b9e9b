//! The transparency log: what its leaves say, its Merkle tree and its proofs.
//!
//! A leaf is a small canonical JSON object ([`Leaf`], [`Entry`]); the tree over the leaves is that of RFC 6962,
//! so any verifier of such logs can check it: in tiles ([`Tile`]), with signed checkpoints ([`Checkpoint`], [`Note`]) and with
//! proofs that need nothing but a public key ([`Bundle`]), all by the formats of C2SP. [`Review`] says what was done to a
//! log that is not as it was. This crate computes what to write and writes nothing: no I/O, no
//! clock, no randomness of its own. Where leaves are kept is the store's business.

mod bundle;
mod canonical;
mod checkpoint;
mod event;
mod leaf;
mod note;
mod proof;
mod review;
mod schema;
mod tile;
mod tree;

pub use bundle::{BUNDLE_BYTES_MAX, BadBundle, Bundle, Proven};
pub use canonical::{INTEGER_MAX, NotCanonical};
pub use checkpoint::{BadCheckpoint, BadOrigin, Checkpoint, Origin};
pub use event::{Event, EventKind, UnknownEventKind};
pub use leaf::{BadLeaf, DETAILS_BYTES_MAX, Entry, LEAF_BYTES_MAX, Leaf, LeafRefused, body};
pub use note::{BadNote, BadNoteKey, NOTE_BYTES_MAX, Note, NoteKey, NoteKeyKind, Signed, cosigned};
pub use proof::{
    BadProof, consistency_proof, inclusion_proof, verify_consistency, verify_inclusion,
};
pub use review::{Finding, Review, Reviewed, StoredLeaf};
pub use schema::Field;
pub use tile::{BadTile, Edge, Plan, TILE_WIDTH, Tile, TileHash, Tiles};
pub use tree::{Tree, leaf_hash, root_of};
