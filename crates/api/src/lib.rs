//! The wire: gRPC for agents and enforcement points, HTTP and JSON for operators, and the conversions.
//!
//! It knows how things are written, and refuses to know what is done with them: no server logic, no TLS,
//! no Cedar, no SQL. Whatever comes in is bounded and parsed once, into types that cannot hold a bad
//! value.

pub mod admin;
mod generated;
pub mod renewal;
pub mod resource;
mod secret_debug;
pub mod wire;

pub use generated::{v1, workload};
