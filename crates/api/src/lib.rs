//! The wire: gRPC for agents and enforcement points, HTTP and JSON for operators, and the conversions.
//!
//! It knows how things are written, and refuses to know what is done with them: no server logic, no TLS,
//! no Cedar, no SQL. Whatever comes in is bounded and parsed once, into types that cannot hold a bad
//! value.
//!
//! ```
//! use countersign_api::resource::{Resource, Spec, Tree};
//!
//! let manifest = serde_json::json!({
//!     "apiVersion": "countersign.dev/v1alpha1",
//!     "kind": "Workload",
//!     "metadata": { "name": "web" },
//!     "spec": { "selectors": ["launch:web"], "lifetme": "15m" },
//! });
//! let problems = Resource::read(&Tree::from_value(&manifest)).unwrap_err();
//! assert_eq!(
//!     problems[0].to_string(),
//!     "Workload/web: spec.lifetme: unknown field: did you mean `lifetime`?"
//! );
//! ```

pub mod admin;
pub mod attestation;
mod codec;
mod generated;
pub mod renewal;
pub mod resource;
mod secret_debug;
pub mod standing;
pub mod wire;

pub use generated::{envoy, v1, workload};
/// What makes bytes of a message and reads them, for whoever speaks the wire without a generated client.
pub use prost::Message;
