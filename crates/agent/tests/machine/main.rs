//! The agent's machine under simulated time: no keys, no sockets, no waiting.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fresh;
mod revocation;
mod world;
