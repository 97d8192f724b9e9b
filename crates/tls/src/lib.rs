//! rustls with SVIDs: whom a connection belongs to, whether it may exist, and for how long.
//!
//! A [`Trust`] holds what this process enforces (one [`Slice`], swapped as a whole) and who it is (one
//! [`Identity`], swapped on renewal). [`accept`], [`connect`] and [`dial`] make mutual TLS 1.3 connections under it. Each of
//! them is *admitted*: entered in the register under what authenticated it, then decided on the slice that
//! is current after that. [`Trust::apply`] swaps the slice and then scans the register, so one of the two
//! always sees the other, and no connection outlives the trust that let it in. [`Trust::run`] ends
//! connections when the certificate of their peer expires.
//!
//! Resumption, tickets and early data are off at both ends: every handshake is a full one, verified anew.
//! Renewing one's own certificate never closes a connection.
//!
//! The crate refuses to know where identities, bundles and policies come from, what bytes flow inside, and
//! DNS names: the peer's identity is the one URI name of its certificate.

mod admission;
mod alert;
mod config;
mod fact;
mod handshake;
mod identity;
mod pinned;
mod register;
mod rule;
mod stream;
mod trust;
mod verifier;

pub use admission::Admitted;
pub use alert::{code_of, code_of_io};
pub use fact::{DETAIL_CHARS_MAX, Direction, HandshakeFact, HandshakeFailure};
pub use handshake::{Established, accept, connect, dial};
pub use identity::{BadOwnIdentity, Identity};
pub use pinned::{FirstContact, Pinned, connect_pinned};
pub use rule::{Clients, Expected, HANDSHAKE_TIMEOUT, Inbound, Outbound, Present, Purpose};
pub use stream::Stream;
pub use trust::{Applied, Limits, Slice, Trust};
