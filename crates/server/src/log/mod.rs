//! The audit log as a transparency log: signed at least every second while there are events, readable in tiles, with proofs.
//!
//! What is computed is `countersign-audit`'s; here it is read from the store, signed and written down.

mod offline;
mod reader;
mod retention;
mod served;
mod shown;
mod signer;

pub use offline::OfflineLog;
pub(crate) use reader::LogReader;
pub(crate) use retention::Retention;
pub(crate) use served::router;
pub(crate) use shown::{leaves, log, tile_hashes};
pub(crate) use signer::{Signer, Signing};
