//! The whole system in one process: servers, agents and enforcement points as steps on simulated time and network.
//!
//! One thread, one queue of things that are due, one seed. What is decided is decided by the code that ships:
//!
//! - each *server* of those on one store by `countersign_server::steps`: attestation, renewal by registered key, authorisation, recording in a
//!   `MemoryStore`, signing with real keys, the snapshot and its feed, slices, and what each stream is told;
//! - the *agent* by `countersign_agent::core::State` with its wire conversions, and `enforcement::cut`;
//! - the *enforcement points* by `countersign::steps` (which slice replaces which) and `countersign_tls::Trust`, with real
//!   handshakes over loopback sockets where a run asks for connections, and `countersign_proxy::retire`;
//! - the *proxy* beside a program that calls a service of several instances by `countersign_proxy::health` (which address is next,
//!   which one rests and when it is probed), `tries` (what is sent again), `retire` (when a connection gets a successor, when it is
//!   left, when its end is announced), and by the re-proof of `countersign_tls`, with its handshakes, for streams that outlive certificates.
//!
//! Every server and every machine has a clock of its own. How far those of servers are off is drawn from the seed, and they are
//! stepped forth and back while they run. Further off than certificates are backdated, nobody can be promised service, but
//! what may not happen still may not: a server whose clock is behind what it knows issues nothing, and no point lets go of a
//! rule before the less wrong of two clocks, the servers' and its machine's, has passed the rule's end.
//!
//! What is not: gRPC, HTTP/2 and sockets between agent and server, the tasks around the agent's machine (this crate has a
//! driver of its own that does what `driver.rs` does), SQL, files, attestation of processes, the succession of issuers.
//!
//! Handshakes stay on loopback sockets: `countersign_tls` sets options of TCP on what it is given, and asks the kernel about it, so
//! it takes a `TcpStream` and no other stream. Both ends run to their end within one step of the world, on its thread, so nothing of the
//! kernel's timing reaches the trace. What carries a request or a stream between two proxies is played: the pool that picks
//! a connection, what HTTP/2 tells of a request without an answer, when a probe or a re-proof is started. In the proxy these are
//! tasks over connections of hyper, not steps, and are tested beside sockets.
//!
//! [`Fleet`] is another world, for ten thousand agents: their machines are real, everything else is played.
//!
//! All keys are Ed25519 made from the seed: its signatures hold no chance, so a run can be repeated byte for byte. Within
//! one stream messages keep their order, as on TCP, and a message that is lost ends its stream; everything else may
//! be late, lost, doubled or overtaken.

mod chaos;
mod checks;
mod clocks;
mod control;
mod fleet;
mod keys;
mod links;
mod machine;
mod manifests;
mod mesh;
mod messages;
mod network;
mod points;
mod revocations;
mod settings;
mod trace;
mod world;

pub use fleet::{Fleet, FleetSettings};
pub use links::LinkReport;
pub use mesh::MeshReport;
pub use revocations::Leaked;
pub use settings::{Renewal, Settings};
pub use trace::Trace;
pub use world::World;
