//! Real rustls at both ends of loopback connections, under simulated time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod canary;
mod circumstances;
mod ends;
mod handshake;
mod lifetime;
mod profiles;
mod realm;
mod remembered;
mod reproof;
mod resumption;
mod retirement;
mod revocation;
