//! The whole system in one process: servers, agents and enforcement points as steps on simulated time and network.
//!
//! One thread, one queue of things that are due, one seed. What is decided is decided by the code that ships:
//!
//! - each *server* of those on one store by `countersign_server::steps`: attestation, renewal by registered key, authorisation, recording in a
//!   `MemoryStore`, signing with real keys, the snapshot and its feed, slices, and what each stream is told;
//! - the *agent* by `countersign_agent::core::State` with its wire conversions, and `enforcement::cut`;
//! - the *enforcement points* by `countersign::steps` (which slice replaces which) and `countersign_tls::Trust`, with real
//!   handshakes over loopback sockets where a run asks for connections, and `countersign_proxy::retire`.
//!
//! What is not: gRPC, HTTP/2 and sockets between agent and server, the tasks around the agent's machine (this crate has a
//! driver of its own that does what `driver.rs` does), SQL, files, attestation of processes, the succession of issuers.
//!
//! [`Fleet`] is another world, for ten thousand agents: their machines are real, everything else is played.
//!
//! All keys are Ed25519 made from the seed: its signatures hold no chance, so a run can be repeated byte for byte. Within
//! one stream messages keep their order, as on TCP, and a message that is lost ends its stream; everything else may
//! be late, lost, doubled or overtaken.

mod chaos;
mod checks;
mod control;
mod fleet;
mod keys;
mod links;
mod machine;
mod manifests;
mod messages;
mod network;
mod points;
mod revocations;
mod trace;
mod world;

pub use fleet::{Fleet, FleetSettings};
pub use links::LinkReport;
pub use revocations::Leaked;
pub use trace::Trace;
pub use world::{Renewal, Settings, World};
