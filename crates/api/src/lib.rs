//! The wire: gRPC for agents and enforcement points, HTTP and JSON for operators, and the conversions.

mod generated;
mod secret_debug;

pub use generated::{v1, workload};
