//! Tests of the crate from outside, in one program.

#![expect(clippy::unwrap_used, reason = "a test fails where it panics")]

mod attacks;
mod bundles;
mod issue;
mod issuer_path;
mod jws;
mod machine;
mod memory;
mod opinions;
mod parsers;
mod status;
mod support;
mod twins;
mod vectors;
