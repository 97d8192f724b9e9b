//! rustls with SVIDs: whom a connection belongs to, whether it may exist, and for how long.
//!
//! A [`Trust`] holds what this process enforces (one [`Slice`], swapped as a whole) and who it is (one
//! [`Identity`], swapped on renewal). [`accept`], [`connect`] and [`dial`] make mutual TLS 1.3 connections under it. Each of
//! them is *admitted*: entered in the register under what authenticated it, then decided on the slice that
//! is current after that. [`Trust::apply`] swaps the slice and then scans the register, so one of the two
//! always sees the other, and no connection outlives the trust that let it in: what a revocation covers is cut, or, when
//! nothing leaked, told to retire. [`Trust::run`] ends connections when the certificate of their peer expires.
//!
//! Resumption, tickets and early data are off at both ends: every handshake is a full one, verified anew.
//! Renewing one's own certificate never closes a connection, and where both ends take part in re-proof
//! ([`Trust::keep_proven`], [`answer_reproof`]) it does not end with the certificates by which it was made either.
//!
//! Who may try at all is bounded before any operation with a key: [`Standings`] by where a handshake comes from and what came
//! from there before, [`Room`] by how many are under way. Most of what all handshakes of a process keep books of is in [`Shards`], so
//! that those on different cores seldom wait for each other.
//!
//! The crate refuses to know where identities, bundles and policies come from, what bytes flow inside, and
//! DNS names: the peer's identity is the one URI name of its certificate.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use countersign_identity::{SystemClock, Name};
//! # use countersign_tls::{Identity, Inbound, Slice, Trust, accept};
//! # async fn serve(slice: Slice, identity: Identity) -> Result<(), Box<dyn std::error::Error>> {
//! let trust = Trust::new(Arc::new(SystemClock::new()), slice);
//! trust.set_identity(identity)?;
//! let stop = tokio_util::sync::CancellationToken::new();
//! let sweeper = tokio::spawn(Arc::clone(&trust).run(stop.clone()));
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8443").await?;
//! let door = Inbound::service("orders".parse::<Name>()?);
//! let (tcp, _address) = listener.accept().await?;
//! match accept(&trust, tcp, &door).await {
//!     Ok(connection) => println!("{:?} may come in", connection.fact.peer),
//!     Err(failure) => println!("refused: {failure}"),
//! }
//! stop.cancel();
//! sweeper.await?;
//! # Ok(())
//! # }
//! ```

mod admission;
mod alert;
mod allowance;
mod call;
mod canary;
mod config;
mod fact;
mod handshake;
mod identity;
mod limit;
mod pinned;
mod register;
mod reproof;
mod revoked;
mod room;
mod rule;
mod service_tls;
mod session;
mod shards;
mod shares;
mod soonest;
mod source;
mod standing;
mod stream;
mod trust;
mod verifier;

pub use admission::{Admitted, DRAIN_TIMEOUT};
pub use alert::{code_of, code_of_io};
pub use allowance::{Allowance, Rate};
pub use call::{Enforced, Grounds, LastingCall, LiveCall};
pub use canary::{CANARY_ALPN, CanaryAnswer, show_canary, show_former_canary};
pub use fact::{DETAIL_CHARS_MAX, Direction, HandshakeFact, HandshakeFailure};
pub use handshake::{Established, accept, connect, dial, tune_listener};
pub use identity::{BadOwnIdentity, Identity};
pub use limit::{Limit, Permit};
pub use pinned::{FirstContact, Pinned, connect_pinned};
pub use reproof::{
    REPROOF_ALPN, REPROOF_NAMES_MAX, REPROOF_TIMEOUT, Reproof, ReproofFault, answer_reproof,
};
pub use revoked::{Covered, revoked};
pub use room::{Rank, Room, RoomBounds, Stay};
pub use rule::{
    AddressOf, Clients, Expected, Expired, HANDSHAKE_TIMEOUT, Inbound, Outbound, Present, Purpose,
};
pub use service_tls::{Accepted, ServiceTls};
pub use shards::Shards;
pub use shares::{Share, Shares};
pub use soonest::Soonest;
pub use source::Source;
pub use standing::{Leave, Outcome, StandingRates, Standings, Unsaid};
pub use stream::Stream;
pub use trust::{Applied, Limits, Slice, TIME_REVIEW_EVERY, Trust};
