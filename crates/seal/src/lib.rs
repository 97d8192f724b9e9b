//! Sealed bytes: what must lie on disk but must not be read there.
//!
//! Envelope encryption: each plaintext is encrypted under a fresh data key, and the data key under a
//! key-encryption key ([`Kek`]) that lives elsewhere, in a file of its own ([`KekFile`]): as it is, or wrapped by something that
//! has a key of its own ([`KeyWrap`]), such as a [`Passphrase`]. The form of sealed bytes is fixed and versioned; see
//! [`seal`]. This crate refuses to know what is sealed and where it is kept.

mod envelope;
mod kek;
mod passphrase;
mod wrap;

pub use envelope::{OpenRefused, PLAINTEXT_BYTES_MAX, SealRefused, open, seal};
pub use kek::{Kek, KekFile, KekFileRefused, KekId};
pub use passphrase::Passphrase;
pub use wrap::{KeyWrap, WrapMethod, WrapRefused};
