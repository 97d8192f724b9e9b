//! Which certificates are out and could still be used.

use std::collections::{BTreeSet, HashMap};

use countersign_identity::{
    NodeId, NodeTag, Presented, Revision, Revocations, SKEW_ALLOWED, Serial, SpiffeId, Timestamp,
    TrustDomain,
};
use countersign_store::{IssuedRow, PAGE_MAX, Store};
use tokio::sync::OnceCell;

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

/// What is out by one clock. It is read at most once, so that a look at who enforces a revision costs no more than that,
/// and is of one moment.
pub(super) struct Out<'a> {
    store: &'a dyn Store,
    /// What has ended is judged by this.
    pub(super) now: Timestamp,
    /// What the clock shows, which may be later.
    pub(super) shown: Timestamp,
    held: OnceCell<Holdings>,
}

impl<'a> Out<'a> {
    pub(super) fn of(control: &'a Control) -> Self {
        Self::at(&*control.store, ended_by(control), control.clock.now())
    }

    pub(super) fn at(store: &'a dyn Store, now: Timestamp, shown: Timestamp) -> Self {
        Self { store, now, shown, held: OnceCell::new() }
    }

    /// What has not ended.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(super) async fn held(&self) -> Result<&Holdings, Refused> {
        self.held.get_or_try_init(|| held(self.store, self.now)).await
    }

    /// Whether it was read already, so that to ask again costs nothing and is of this very look.
    pub(super) fn is_read(&self) -> bool {
        self.held.initialized()
    }

    /// Whether something that was issued then may have been issued before an agent began. Clocks differ; and what lies ahead
    /// of what the clock shows was issued by one that was wrong, at a time which says nothing.
    pub(super) fn may_precede(&self, issued: Timestamp, began: Timestamp) -> bool {
        issued <= began + SKEW_ALLOWED || self.shown.max(self.now) + SKEW_ALLOWED < issued
    }
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

    /// Those of workloads, and the nodes that hold them.
    pub(crate) fn of_workloads(
        &self,
        domain: &TrustDomain,
    ) -> impl Iterator<Item = (NodeId, &IssuedRow)> {
        let of_workload = |row: &&IssuedRow| {
            !row.spiffe_id.is_canary() && node_of(&row.spiffe_id, domain).is_none()
        };
        self.rows.iter().filter(of_workload).filter_map(|row| Some((row.node?, row)))
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use countersign_audit::EventKind;
    use countersign_identity::{KeyId, SystemEntropy, Validity};
    use countersign_store::{Batch, MemoryStore};

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_795_262_400);

    fn after(secs: u64) -> Timestamp {
        NOW + Duration::from_secs(secs)
    }

    async fn issue(store: &MemoryStore) {
        let row = IssuedRow {
            serial: Serial::draw(NOW, &SystemEntropy).unwrap(),
            tbs: crate::digest::sha256(&[]),
            spiffe_id: "spiffe://shop.example/web".parse().unwrap(),
            key: KeyId::from_bytes([1; 32]),
            issuer: KeyId::from_bytes([2; 32]),
            node: Some(NodeId::from_bytes([3; 16])),
            validity: Validity { not_before: NOW, not_after: after(900) },
            revision: store.head().await.unwrap().revision,
        };
        let events = vec![row.event(EventKind::SvidIssued, NOW, "a test")];
        store.commit(Batch { events, issued: vec![row], ..Batch::default() }).await.unwrap();
    }

    #[tokio::test]
    async fn one_look_reads_once_what_is_out() {
        let store = MemoryStore::new(Arc::new(SystemEntropy));
        issue(&store).await;
        let look = Out::at(&store, NOW, NOW);
        assert_eq!(look.held().await.unwrap().count(), 1);
        issue(&store).await;
        assert_eq!(look.held().await.unwrap().count(), 1, "it is of one moment");
        assert_eq!(Out::at(&store, NOW, NOW).held().await.unwrap().count(), 2);
    }

    #[test]
    fn what_lies_ahead_of_the_clock_may_have_been_issued_at_any_time() {
        let store = MemoryStore::new(Arc::new(SystemEntropy));
        let out = Out::at(&store, after(0), after(1000));
        let precedes = |issued, began| out.may_precede(after(issued), after(began));
        assert!(precedes(560, 500), "clocks may differ so far");
        assert!(!precedes(561, 500));
        assert!(!precedes(1060, 500));
        assert!(precedes(1061, 500), "nothing is issued so late yet");
    }
}
