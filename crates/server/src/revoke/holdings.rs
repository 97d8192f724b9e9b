//! Which certificates are out and could still be used.

use std::collections::{BTreeSet, HashMap};

use countersign_identity::{
    NodeId, NodeTag, Presented, Revision, Revocations, SKEW_ALLOWED, Serial, SpiffeId, Timestamp,
    TrustDomain,
};
use countersign_store::{IssuedRow, PAGE_MAX, Store};

use crate::attest::node_of;
use crate::control::Control;
use crate::digest::node_tag;
use crate::refusal::Refused;

/// When credentials were issued, and when they end, by who holds them.
pub(crate) type Ends = HashMap<(NodeId, SpiffeId), Vec<(Timestamp, Timestamp)>>;

/// The rows of SVIDs that have not ended, by anybody's clock. Authorities, which have no path, are not among them.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    rows: Vec<IssuedRow>,
}

/// The time by which a certificate is taken for ended: what a clock that jumped ahead says ends none.
pub(super) fn ended_by(control: &Control) -> Timestamp {
    control.desk.time.certain(&*control.clock)
}

/// Reads what is out. It takes the time that the number of live certificates takes.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn held(store: &dyn Store, now: Timestamp) -> Result<Holdings, Refused> {
    let mut rows = Vec::new();
    let mut after: Option<Serial> = None;
    loop {
        let page = store.issued_after(after, PAGE_MAX).await?;
        after = page.last().map(|issued| issued.row.serial);
        let last = page.len() < PAGE_MAX;
        let live = page.into_iter().map(|issued| issued.row);
        rows.extend(live.filter(|row| {
            !row.spiffe_id.is_root() && now <= row.validity.not_after + SKEW_ALLOWED
        }));
        if last {
            return Ok(Holdings { rows });
        }
    }
}

impl Holdings {
    /// Those that these rules cover.
    pub(crate) fn covered(&self, rules: &Revocations) -> Self {
        let rows = self.rows.iter().filter(|row| is_covered(row, rules)).cloned();
        Self { rows: rows.collect() }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.rows.len() as u64
    }

    /// The last moment at which any of them is valid.
    pub(crate) fn last_end(&self) -> Option<Timestamp> {
        self.rows.iter().map(|row| row.validity.not_after).max()
    }

    /// Whom they name.
    pub(crate) fn identities(&self) -> BTreeSet<SpiffeId> {
        self.rows.iter().map(|row| row.spiffe_id.clone()).collect()
    }

    /// Who holds something that these rules cover and nothing later beside it, as far as that is a node: who renewed before
    /// this revision has a successor already. What came with it or since is what is waited for.
    pub(crate) fn waiting(
        &self,
        rules: &Revocations,
        revision: Revision,
    ) -> BTreeSet<(SpiffeId, NodeId)> {
        let mut latest: HashMap<(&SpiffeId, NodeId), bool> = HashMap::new();
        // In the order of their serials, which is the one in which they were issued.
        for row in &self.rows {
            let (covered, Some(node)) = (is_covered(row, rules), row.node) else { continue };
            if covered || row.revision < revision {
                latest.insert((&row.spiffe_id, node), covered);
            }
        }
        let waiting = latest.into_iter().filter(|(_, covered)| *covered);
        waiting.map(|((id, node), _)| (id.clone(), node)).collect()
    }

    /// The nodes that hold any of a workload.
    pub(crate) fn nodes_of_workloads(&self, domain: &TrustDomain) -> BTreeSet<NodeId> {
        let of_workload = |row: &&IssuedRow| {
            !row.spiffe_id.is_canary() && node_of(&row.spiffe_id, domain).is_none()
        };
        self.rows.iter().filter(of_workload).filter_map(|row| row.node).collect()
    }

    /// When the credentials of each identity on each node were issued, and when they end.
    pub(crate) fn ends(&self) -> Ends {
        let mut ends = Ends::new();
        for row in &self.rows {
            let Some(node) = row.node else { continue };
            let of_holder = ends.entry((node, row.spiffe_id.clone())).or_default();
            of_holder.push((row.serial.drawn_for(), row.validity.not_after));
        }
        ends
    }
}

pub(crate) fn is_covered(row: &IssuedRow, rules: &Revocations) -> bool {
    let tag = row.node.map_or(NodeTag::from_bytes([0; 8]), node_tag);
    let presented = Presented {
        id: &row.spiffe_id,
        serial: Some(row.serial),
        key: row.key,
        authorities: &[row.issuer],
        provenance: Some((row.revision, tag)),
    };
    rules.covering(&presented).is_some()
}
