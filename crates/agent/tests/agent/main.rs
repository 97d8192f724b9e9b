//! A whole agent in this process, on simulated time, with a server that lives in the same process and clients that are
//! not ours.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod enforcement;
mod hostile;
mod link;
mod revocation;
mod server;
mod start;
mod trial;
mod workload_api;
mod world;
