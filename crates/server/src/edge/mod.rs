//! The agents' port: TLS, gRPC for machines that join or renew, and agents' standing connections; bounded before anybody has
//! said who they are.

mod agents;
mod conduct;
mod crowd;
mod listen;
mod service;
mod standing;

use std::net::IpAddr;

use countersign_pki::Verified;

pub(crate) use conduct::Conduct;
pub(crate) use crowd::Crowd;
pub(crate) use listen::Edge;
pub(crate) use service::{NodeRoutes, NodeService};
pub(crate) use standing::read;

/// Who is at the other end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    /// From where. For limits and for people; nothing is allowed because of it.
    pub(crate) address: IpAddr,
    /// What its certificate proved; nothing when it showed none.
    pub(crate) verified: Option<Verified>,
    /// A secret that only the two ends of this connection know.
    pub(crate) exporter: [u8; 32],
    /// What came of the proofs that were shown on it.
    pub(crate) conduct: Conduct,
}
