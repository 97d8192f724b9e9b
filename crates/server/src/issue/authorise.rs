//! Which certificate a node may have for one of its workloads. A pure decision on one snapshot.

use std::collections::BTreeSet;

use countersign_identity::{Attested, Code, Lifetime, Name, SpiffeId, Suspended};
use countersign_pki::{DnsName, KeyKind};

use crate::refusal::Refused;
use crate::state::State;

/// What a certificate will say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The identity.
    pub(crate) id: SpiffeId,
    /// How long it lives.
    pub(crate) lifetime: Lifetime,
    /// The kind of key that it must be for.
    pub(crate) key_kind: KeyKind,
    /// The names besides.
    pub(crate) dns_names: Vec<DnsName>,
    /// The kinds of facts that a process must have been attested by.
    pub(crate) attested: Attested,
}

/// Whether a workload may run on a node with these labels: the node has every label that the workload asks for.
pub(crate) fn open_to(asked: &[Name], labels: &BTreeSet<Name>) -> bool {
    asked.iter().all(|label| labels.contains(label))
}

/// Decides what a node with these labels gets for the workload of this name.
///
/// # Errors
/// `unknown-workload`, in the same words whether there is none or it is not open to this node, so that a node
/// cannot learn which workloads run elsewhere; `suspended` when an operator stopped its identity.
pub(crate) fn authorise(
    state: &State,
    labels: &BTreeSet<Name>,
    workload: &str,
) -> Result<Grant, Refused> {
    let unknown = || {
        let shown: String = workload.chars().take(80).collect();
        Refused::new(Code::UnknownWorkload, format!("no workload `{shown}` is open to this node"))
    };
    let (name, spec) = state.workload(workload).ok_or_else(unknown)?;
    if !open_to(&spec.nodes, labels) {
        return Err(unknown());
    }
    let domain = state.domain();
    let id = spec.spiffe_id_in(name, &domain.trust_domain);
    if state.is_suspended(&Suspended::Identity(id.clone())) {
        let why = format!("an operator suspended `{id}`: `countersign resume {id}` lifts it");
        return Err(Refused::new(Code::Suspended, why));
    }
    Ok(Grant {
        id,
        lifetime: spec.lifetime.unwrap_or(domain.svid_lifetime).min(domain.lifetime_max),
        key_kind: spec.key_type,
        dns_names: spec.dns_names.clone(),
        attested: Attested::by(&spec.selectors),
    })
}
