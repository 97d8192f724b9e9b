//! What the agent serves at one moment: one value, published as a whole.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::v1;
use countersign_identity::{Code, Name, NodeId, SpiffeId, Timestamp};
use countersign_pki::{Chain, PrivateKey};

use crate::core::{Knowledge, LinkView, Replica, Standing, Term, Workload};

/// Everything that answers are made of.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) knowledge: Knowledge,
    pub(crate) replica: Arc<Replica>,
    pub(crate) svids: BTreeMap<Name, Arc<Svid>>,
    /// The server's word that a workload gets nothing, where nothing is held.
    pub(crate) refusals: BTreeMap<Name, (Code, String)>,
    pub(crate) standings: BTreeMap<Name, Standing>,
    pub(crate) node: NodeView,
    pub(crate) link: LinkView,
    pub(crate) budget_ends: Option<Timestamp>,
}

/// The agent itself.
#[derive(Clone, Debug)]
pub(crate) struct NodeView {
    pub(crate) id: NodeId,
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) standing: Standing,
}

/// One workload's SVID, verified by our own verifier, with its key.
pub(crate) struct Svid {
    pub(crate) id: SpiffeId,
    pub(crate) chain: Chain,
    pub(crate) key: PrivateKey,
    pub(crate) term: Term,
}

/// What there is for a caller that is these workloads.
#[derive(Debug)]
pub(crate) enum Holdings {
    /// These, in the order of the workloads.
    Svids(Vec<(Arc<Workload>, Arc<Svid>)>),
    /// Not all of them yet, and nobody said that there is none. A shorter list only on the server's word.
    Pending(String),
    /// The server gives nothing for any of them.
    Refused(Code, String),
}

impl View {
    /// What a caller that is these workloads is given now.
    pub(crate) fn holdings(&self, workloads: &[Arc<Workload>], now: Timestamp) -> Holdings {
        let mut svids = Vec::new();
        let mut refused = None;
        for workload in workloads {
            let svid = self.svids.get(&workload.name).filter(|svid| now <= svid.term.expires);
            match (svid, self.refusals.get(&workload.name)) {
                (Some(svid), _) => svids.push((Arc::clone(workload), Arc::clone(svid))),
                (None, Some((code, why))) => refused = Some((*code, why.clone())),
                (None, None) => return Holdings::Pending(self.why_pending(&workload.name)),
            }
        }
        match refused {
            Some((code, why)) if svids.is_empty() => Holdings::Refused(code, why),
            Some(_) | None => Holdings::Svids(svids),
        }
    }

    fn why_pending(&self, name: &Name) -> String {
        let standing = self.standings.get(name).and_then(|standing| standing.trouble.clone());
        let trouble = self.link.trouble.clone().or(standing);
        trouble.unwrap_or_else(|| format!("the certificate of workload `{name}` is not there yet"))
    }

    /// The outage that whatever is in use is guaranteed to survive, whenever it begins.
    pub(crate) fn guaranteed_budget(&self) -> Option<Duration> {
        let lifetimes = self.svids.keys().filter_map(|name| self.replica.lifetime(name));
        Some(lifetimes.min()?.guaranteed_budget())
    }

    /// How all credentials stand, as reports and `status` tell it.
    pub(crate) fn credentials(&self) -> Vec<v1::CredentialStatus> {
        let status = |(name, standing): (&Name, &Standing)| {
            let svid = self.svids.get(name);
            let id = self.replica.workloads().get(name).map(|workload| workload.id.to_string());
            let micros = |moment: fn(&Term) -> Timestamp| {
                standing.term.as_ref().map_or(0, |term| moment(term).micros())
            };
            v1::CredentialStatus {
                workload: name.to_string(),
                spiffe_id: id.unwrap_or_default(),
                serial: svid
                    .and_then(|svid| svid.chain.leaf().serial())
                    .map(|serial| serial.as_bytes().to_vec().into())
                    .unwrap_or_default(),
                issued_micros: micros(|term| term.issued),
                expires_micros: micros(|term| term.expires),
                renewal_micros: micros(Term::due),
                trouble: standing.trouble.clone().unwrap_or_default(),
            }
        };
        self.standings.iter().map(status).collect()
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Svid({}, until {})", self.id, self.term.expires)
    }
}
