//! The three services of the example: `web` asks `orders`, `orders` asks `payments`.
//!
//! They are ordinary HTTP programs and know nothing of TLS, certificates or Countersign. What they are told
//! comes from their environment: `LISTEN` says where to listen (`unix:/path` or `127.0.0.1:port`), and
//! `UPSTREAM_ORDERS` and `UPSTREAM_PAYMENTS` say where the next service is to be found.

mod address;
mod service;

pub use address::{Address, BadAddress};
pub use service::{Role, UnknownRole, run};
