//! What outlives an agent: the node as it was registered, and the records that were written down.

use std::sync::Arc;

use countersign_agent::core::{Credential, Remembered, Replica};
use countersign_identity::{NodeId, Timestamp};
use countersign_pki::{Bundle, Chain, PrivateKey};

/// What outlives an agent.
pub(crate) struct Disk {
    pub(crate) node: Node,
    /// The key that shall follow, written down before the server hears of it.
    pub(super) successor: Option<Arc<PrivateKey>>,
    pub(crate) remembered: Remembered,
    /// The records that were written down before those.
    pub(super) older: Option<Replica>,
}

impl Disk {
    /// What an attestation leaves behind.
    pub(crate) fn of(node: Node) -> Self {
        Self { node, successor: None, remembered: Remembered::nothing(), older: None }
    }

    /// The process ends, perhaps before its last records are written.
    pub(crate) fn crash(&mut self, unwritten: bool) {
        if unwritten && self.older.is_some() {
            self.remembered.replica = self.older.take();
        }
    }
}

/// The node as it was registered.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) generation: u64,
    pub(crate) key: Arc<PrivateKey>,
    pub(crate) chain: Chain,
    pub(crate) issued: Timestamp,
    pub(crate) bundle: Bundle,
}

impl Node {
    pub(super) fn credential(&self) -> Credential {
        let id = self.chain.leaf().spiffe_id().expect("an agent has an identity");
        Credential::remembered(id, &self.chain, &self.bundle, self.issued)
    }

    pub(super) fn shown(&self) -> Vec<bytes::Bytes> {
        self.chain.ders().into_iter().map(bytes::Bytes::copy_from_slice).collect()
    }
}
