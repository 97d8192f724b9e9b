//! What the agent serves at one moment: one value, published as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::v1;
use countersign_identity::{Code, Name, NodeId, Revision, SpiffeId, Timestamp};
use countersign_pki::{Chain, PrivateKey};

use crate::core::{Knowledge, LinkView, Replica, Standing, Term, Workload};
use crate::lists::RevocationLists;

/// Everything that answers are made of.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) knowledge: Knowledge,
    pub(crate) replica: Arc<Replica>,
    /// The revision that may be acknowledged: it is in force here, and its revocations are on the disk.
    pub(crate) enforced: Option<Revision>,
    pub(crate) svids: BTreeMap<Name, Arc<Svid>>,
    /// The server's word that a workload gets nothing, where nothing is held.
    pub(crate) refusals: BTreeMap<Name, (Code, String)>,
    pub(crate) standings: BTreeMap<Name, Standing>,
    /// The workloads that the server has issued for on this node.
    pub(crate) ours: BTreeSet<Name>,
    /// How many SVIDs took the place of revoked ones.
    pub(crate) reissued: u64,
    pub(crate) node: NodeView,
    pub(crate) link: LinkView,
    pub(crate) budget_ends: Option<Timestamp>,
    /// Revocation lists for programs that read them, once the server gave any.
    pub(crate) lists: Option<Arc<RevocationLists>>,
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

/// Of a caller that matches some workloads, which of them it is here.
#[derive(Debug)]
pub(crate) enum Own {
    /// These, whether an SVID is held just now or not.
    These(Vec<Arc<Workload>>),
    /// Nobody has said yet.
    Pending,
    /// The server gives nothing for any of them.
    Refused(Code, String),
}

impl View {
    /// Whether a workload of this node has programs that read revocation lists.
    pub(crate) fn wants_lists(&self) -> bool {
        let mut workloads = self.replica.workloads().iter();
        workloads.any(|(name, workload)| workload.spec.crl && self.ours.contains(name))
    }

    /// Which of these workloads a caller is on this node. One whose SVID was revoked is itself still: what it enforces must
    /// not wait for the next.
    pub(crate) fn own(&self, workloads: &[Arc<Workload>], now: Timestamp) -> Own {
        let mut own = Vec::new();
        let mut refused = None;
        for workload in workloads {
            let svid = self.svids.get(&workload.name).filter(|svid| now <= svid.term.expires);
            match (svid, self.refusals.get(&workload.name)) {
                (Some(_), _) => own.push(Arc::clone(workload)),
                (None, Some((code, why))) => refused = Some((*code, why.clone())),
                (None, None) if self.ours.contains(&workload.name) => {
                    own.push(Arc::clone(workload));
                }
                (None, None) => return Own::Pending,
            }
        }
        match refused {
            Some((code, why)) if own.is_empty() => Own::Refused(code, why),
            Some(_) | None => Own::These(own),
        }
    }

    /// The same for a caller of whom it is known that it is about this one of them. It does not wait for what else it may turn out
    /// to be: of a workload that was declared since, it may take long until anybody says something, and rules go to whoever
    /// enforces them meanwhile as well.
    pub(crate) fn own_about(
        &self,
        workloads: &[Arc<Workload>],
        about: &Name,
        now: Timestamp,
    ) -> Own {
        let waits = |workload: &Arc<Workload>| {
            workload.name != *about
                && matches!(self.own(std::slice::from_ref(workload), now), Own::Pending)
        };
        let known: Vec<_> = workloads.iter().filter(|one| !waits(one)).cloned().collect();
        if known.is_empty() { Own::Pending } else { self.own(&known, now) }
    }

    /// When the last of the SVIDs that are held for these workloads ends.
    pub(crate) fn last_expiry(&self, workloads: &[Arc<Workload>]) -> Option<Timestamp> {
        let held = workloads.iter().filter_map(|workload| self.svids.get(&workload.name));
        held.map(|svid| svid.term.expires).max()
    }

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
        // What is known of this very workload says more than that the server is away.
        let trouble = standing.or_else(|| self.link.trouble.clone());
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
