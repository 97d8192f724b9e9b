//! Sealed bytes: what must lie on disk but must not be read there.
//!
//! Envelope encryption: each plaintext is encrypted under a fresh data key, and the data key under a
//! key-encryption key ([`Kek`]) that lives elsewhere, for now in a file of its own ([`KekFile`]). The form of
//! sealed bytes is fixed and versioned; see [`seal`]. This crate refuses to know what is sealed and where it
//! is kept.

mod envelope;
mod kek;

pub use envelope::{OpenRefused, PLAINTEXT_BYTES_MAX, SealRefused, open, seal};
pub use kek::{Kek, KekFile, KekFileRefused, KekId};
