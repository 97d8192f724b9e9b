//! Countersign for Rust applications: an identity from the Workload API, ready-made mutual TLS out.
//!
//! A [`Source`] keeps what a process needs in order to prove who it is and to decide who may talk to it: its own
//! X.509-SVID, the bundles of the trust domains that it knows, and the policies. All three are replaced while
//! it runs, without a connection being dropped for it, and everything made from [`Source::trust`] follows.
//!
//! ```no_run
//! use countersign::{Expected, Inbound, Outbound, Source, WorkloadApiOptions, accept, dial};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! // The socket is told by SPIFFE_ENDPOINT_SOCKET, as for every SPIFFE library.
//! let source = Source::from_workload_api(WorkloadApiOptions::from_environment()?).await?;
//! source.ready().await?;
//! let trust = source.trust();
//!
//! // A server: whoever the policies let connect to the service `orders`.
//! let inbound = Inbound::service("orders".parse()?);
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8443").await?;
//! let (tcp, _) = listener.accept().await?;
//! let established = accept(&trust, tcp, &inbound).await?;
//! // `established.stream` is an AsyncRead + AsyncWrite; it ends when the peer loses the right to it.
//!
//! // A client: only this peer will do.
//! let peer = Expected::Id("spiffe://shop.example/payments".parse()?);
//! let outbound = Outbound::service("payments".parse()?, peer);
//! let established = dial(&trust, "127.0.0.1:9443".parse()?, &outbound).await?;
//! source.report(established.fact);
//! # source.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! [`accept`] and [`dial`] admit connections: they end when a changed policy or bundle denies them, and when the
//! certificate of the peer expires. [`Source::server_config`] and [`Source::client_config`] give plain rustls
//! configurations for frameworks that insist on making the connection themselves; these decide in the
//! handshake, and forget the connection after it. A [`Door`] accepts for hyper, tonic and axum;
//! `examples/hyper.rs` is a whole server and client.
//!
//! Where policies come from is said by [`Authorization`]. By default the agent tells, over its Enforcement
//! service. An agent that does not offer it (SPIRE's) leaves nothing allowed, and [`Source::status`] says so.
//!
//! The crate refuses to know what is spoken inside of the connections, and how SVIDs are issued.

mod authorization;
mod decider;
mod door;
mod endpoint;
mod enforcement;
mod fact;
mod fields;
mod files;
mod flow;
mod gate;
mod keeper;
mod layer;
mod limits;
mod options;
mod parts;
mod recent;
pub mod requests;
mod served;
mod services;
mod slice;
mod source;
mod status;
#[doc(hidden)]
pub mod steps;
mod svid;
mod workload_api;

pub use authorization::{Authorization, PolicyFileFault};
pub use decider::{Decider, Denied, Ruling, Told, Undecidable};
pub use door::{Connection, Door};
pub use endpoint::{BadEndpoint, ENDPOINT_VARIABLE, Endpoint};
pub use fact::Reporter;
pub use fields::{is_overriding, is_reserved};
pub use files::FilesFault;
pub use flow::{Asked, Flow, Flows};
pub use layer::{AskedBody, BrokenOff, Decided, DecidedBody, OfConnection, RequestLayer};
pub use options::{Choice, FileOptions, Point, PointKind, WorkloadApiOptions};
pub use parts::{METRICS, Parts};
pub use served::{Served, ServedAt};
pub use services::Services;
pub use source::{Announcement, NotReady, Source, SourceFault};
pub use status::{Enforcement, IdentityStatus, Link, Status, Topic};

pub use rustls;

pub use countersign_identity::{
    Code, Condition, Failed, Name, SpiffeId, Timestamp, TrustDomain, Vital, Vitals,
};
pub use countersign_policy::{Decision, TopicAct, Verdict};
pub use countersign_tls::{
    Admitted, Clients, Direction, Established, Expected, HandshakeFact, HandshakeFailure, Identity,
    Inbound, Outbound, Present, Stream, Trust, accept, connect, dial,
};
