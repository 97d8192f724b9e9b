//! The data plane: programs that know nothing of TLS talk to each other over mutual TLS.
//!
//! A proxy stands beside a program. *Inbound*, it opens the service's door: peers prove who they are, policy decides,
//! and what they send goes on to the program in clear, on this machine. *Outbound*, it opens one local
//! listener for each upstream, to which the program talks in clear, and which leads to the one peer that is meant.
//!
//! # What the program sees
//!
//! HTTP/1.1, HTTP/2 and upgrades (WebSocket) are passed on request by request; other protocols as bytes. Between two proxies
//! HTTP/2 is spoken where both can; the program behind a door is spoken to in HTTP/1.1, and in HTTP/2 without TLS for
//! `content-type: application/grpc…`. On its way out a program may speak either.
//!
//! The program learns who calls from `x-countersign-peer: spiffe://…`. Whatever a peer sends under that name, any other
//! `x-countersign-…`, or `x-forwarded-client-cert` and its like ([`is_reserved`](countersign::is_reserved)), also spelt with
//! `_`, also in trailers, is taken out first. Path, query and host are passed as they are. What two readers could take for two different requests is refused with 400.
//!
//! A request that cannot be passed on is answered with a problem (RFC 9457) whose `code` is one of the closed list: 403 our
//! own policy denies it, 502 the peer is somebody else, refuses us or broke off, 503 nobody can be reached, 504 it took too
//! long. A caller that is refused by a *peer's* policy sees 502 and `peer-refused`; the reason is in the peer's own facts.
//!
//! Whoever may use an outbound listener *is* the workload: a Unix socket of mode 0600 by default, and in either case
//! only for processes of the proxy's own user.
//!
//! # Connections
//!
//! Certificates are renewed under it without a request being lost: see the module `retire` for when a connection is
//! left, and `session` and `pool` for how. A request is sent a second time only when it provably was not read.
//! What cannot be drained (bytes over TCP, upgraded connections, one long response) ends when the first certificate of
//! the two ends expires; revocation and policy end everything at once.
//!
//! The crate knows no database, no server and no agent; it knows the Workload API through the library `countersign`.

mod acceptors;
mod alarms;
mod body;
mod bounds;
pub mod command;
mod complaints;
mod config;
mod dial;
mod door;
mod facts;
mod gather;
mod guard;
mod headers;
pub mod health;
mod lease;
mod listener;
mod metrics;
mod outlet;
mod plan;
mod plane;
mod pool;
mod problem;
pub mod proxy_protocol;
mod relay;
mod replay;
mod rest;
pub mod retire;
mod route;
mod run;
mod session;
mod shares;
pub mod steps;
mod stream;
mod supervise;
mod target;
mod tasks;
mod trace;
pub mod tries;
mod tunnel;
mod unsent;
mod upstream;
mod way;
mod wire;

pub use config::{
    BoundInbound, BoundOutbound, Config, FixedInbound, FixedOutbound, IdentitySource, Listeners,
    LocalPlace, Protocol, Ready,
};
pub use dial::Target;
pub use facts::{Facts, Sink};
pub use listener::ListenFault;
pub use metrics::{METRICS, Metrics, Row};
pub use run::run;

#[cfg(test)]
mod tests;
