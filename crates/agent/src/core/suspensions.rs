//! What is not issued any more on this node.

use std::collections::BTreeMap;

use countersign_identity::{NodeId, Reason, SpiffeId, Suspended};

use super::replica::Replica;

/// The suspensions that touch a node's workloads.
pub(super) struct Suspensions<'a> {
    identities: BTreeMap<&'a SpiffeId, Reason>,
    node: Option<Reason>,
}

impl<'a> Suspensions<'a> {
    pub(super) fn of(replica: &'a Replica, ours: NodeId) -> Self {
        let mut suspensions = Self { identities: BTreeMap::new(), node: None };
        for suspension in replica.suspensions() {
            match &suspension.target {
                Suspended::Identity(id) => {
                    suspensions.identities.insert(id, suspension.reason);
                }
                Suspended::Node(node) if *node == ours => {
                    suspensions.node = Some(suspension.reason);
                }
                Suspended::Node(_) => {}
            }
        }
        suspensions
    }

    /// Why nothing is issued for this identity here, when it is so.
    pub(super) fn why(&self, id: &SpiffeId) -> Option<String> {
        let identity =
            self.identities.get(id).map(|reason| format!("`{id}` is suspended ({reason})"));
        identity.or_else(|| self.node.map(|reason| format!("this node is suspended ({reason})")))
    }
}
