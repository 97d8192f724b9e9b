//! A source beside an agent of the test's own, over a real socket, and beside files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod decider;
mod door;
mod enforcement;
mod files;
mod layer;
mod profiles;
mod realm;
mod revocation;
mod standing;
mod workload_api;
mod world;
