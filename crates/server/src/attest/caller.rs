//! Which registered node a connection belongs to.

use std::collections::BTreeSet;

use countersign_identity::{Code, Name, NodeId, SpiffeId, Suspended, Timestamp, TrustDomain};
use countersign_pki::{Certificate, PublicKey, Verified};
use countersign_store::{NodeRow, Store};

use crate::control::Control;
use crate::edge::Peer;
use crate::refusal::Refused;
use crate::state::State;

/// The path under which agents have their identities.
const AGENT_PATH: &str = "/countersign/agent/";

/// A node that calls, looked up by what its certificate says, and by nothing that it sends.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Its record.
    pub(crate) row: NodeRow,
    /// Its labels.
    pub(crate) labels: BTreeSet<Name>,
    /// When its certificate ends.
    pub(crate) expires: Timestamp,
}

impl Caller {
    /// Goes on only while no operator has suspended the node.
    ///
    /// # Errors
    /// `suspended`.
    pub(crate) fn not_suspended(&self, state: &State) -> Result<(), Refused> {
        not_suspended(state, self.row.id)
    }

    /// Its name.
    pub(crate) fn id(&self) -> NodeId {
        self.row.id
    }
}

/// Goes on only while no operator has suspended this node.
///
/// # Errors
/// `suspended`.
pub(crate) fn not_suspended(state: &State, node: NodeId) -> Result<(), Refused> {
    if state.is_suspended(&Suspended::Node(node)) {
        let why = format!("an operator suspended node `{node}`: it comes back by attesting anew");
        return Err(Refused::new(Code::Suspended, why));
    }
    Ok(())
}

/// The identity of a node's agent.
pub(crate) fn agent_id(domain: &TrustDomain, node: NodeId) -> SpiffeId {
    domain.with_path(&format!("{AGENT_PATH}{node}")).expect("hexadecimal digits are a path segment")
}

/// Which node an agent's identity names.
pub(crate) fn node_of(id: &SpiffeId, domain: &TrustDomain) -> Option<NodeId> {
    (id.trust_domain() == domain).then(|| id.path().strip_prefix(AGENT_PATH))??.parse().ok()
}

/// Finds out who calls, and whether that node is still registered. Asked at every message.
///
/// # Errors
/// When the connection shows no identity, not an agent's, one that has ended, one of a node that was removed, or one
/// of a key which has a successor.
pub(crate) async fn caller(
    peer: &Peer,
    control: &Control,
    domain: &TrustDomain,
    now: Timestamp,
) -> Result<Caller, Refused> {
    let store = &*control.store;
    let Some(verified) = &peer.verified else {
        return Err(Refused::new(Code::Unauthenticated, "this needs an agent's certificate"));
    };
    let (id, expires) = agent(verified, domain, now)?;
    let row = store.node(id).await?;
    let row = row.ok_or_else(|| {
        Refused::new(Code::UnknownNode, format!("node `{id}` is not registered, or was removed"))
    })?;
    if row.spiffe_id != verified.id {
        return Err(Refused::new(Code::Forbidden, "the certificate is another node's"));
    }
    // The certificate of a key that has a successor may still run: the key counts, not the certificate.
    let registered = PublicKey::from_spki(&row.key_spki).map_err(crate::authority::internal)?;
    let is_lost = || async {
        Ok::<_, Refused>(
            was_lost(&verified.leaf, store).await? && !control.returned.has(row.id, store).await?,
        )
    };
    if registered.id() != verified.key && !is_lost().await? {
        return Err(Refused::new(
            Code::StaleGeneration,
            "the certificate's key has a successor: come with the certificate of that one",
        ));
    }
    let labels = row.labels.iter().cloned().collect();
    Ok(Caller { row, labels, expires })
}

/// Whether a verified certificate was issued in an earlier incarnation, and its record lost with the tail of the store.
/// Then the store may have lost as well that its key succeeded the one on record.
pub(crate) async fn was_lost(leaf: &Certificate, store: &dyn Store) -> Result<bool, Refused> {
    let (Some(serial), Some(provenance)) = (leaf.serial(), leaf.provenance()) else {
        return Ok(false);
    };
    let current = store.head().await?.revision;
    // Rows are kept until their certificates have ended, so one that is missing was never written here.
    Ok(provenance.revision.incarnation < current.incarnation
        && store.issued(serial).await?.is_none())
}

fn agent(
    verified: &Verified,
    domain: &TrustDomain,
    now: Timestamp,
) -> Result<(NodeId, Timestamp), Refused> {
    if verified.expires < now {
        return Err(Refused::new(
            Code::Expired,
            format!("the certificate of this connection ended at {}", verified.expires),
        ));
    }
    let id = node_of(&verified.id, domain).ok_or_else(|| {
        Refused::new(Code::Forbidden, format!("`{}` is not an agent of `{domain}`", verified.id))
    })?;
    Ok((id, verified.expires))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_form_of_an_agents_name_is_a_node() {
        let domain: TrustDomain = "shop.example".parse().unwrap();
        let node = NodeId::from_bytes([0xab; 16]);
        let id = agent_id(&domain, node);
        assert_eq!(node_of(&id, &domain), Some(node));
        let hex = node.to_string();
        for text in [
            format!("spiffe://other.example/countersign/agent/{hex}"),
            format!("spiffe://shop.example/agent/{hex}"),
            format!("spiffe://shop.example/countersign/agent/{hex}/x"),
            format!("spiffe://shop.example/countersign/agent/{}", hex.to_uppercase()),
            format!("spiffe://shop.example/countersign/agents/{hex}"),
            format!("spiffe://shop.example/x/countersign/agent/{hex}"),
            "spiffe://shop.example/countersign/agent".to_owned(),
        ] {
            assert_eq!(node_of(&text.parse().unwrap(), &domain), None, "{text}");
        }
    }
}
