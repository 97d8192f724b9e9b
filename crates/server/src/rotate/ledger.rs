//! What is out under which authority, by the rows of what was issued.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use countersign_identity::{
    KeyId, NodeId, Revision, Revocations, Revoked, SKEW_ALLOWED, Serial, SpiffeId, Suspended,
    Timestamp,
};
use countersign_pki::Certificate;
use countersign_store::{IssuedRow, PAGE_MAX, Store};

use crate::refusal::Refused;
use crate::revoke::is_covered;
use crate::rotate::gate::Left;
use crate::rotate::walk::Walk;
use crate::state::State;

/// Every certificate that has not ended by anybody's clock.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    leaves: Vec<IssuedRow>,
    issuers: Vec<IssuedRow>,
}

type Holder<'a> = (&'a SpiffeId, Option<NodeId>);

impl Ledger {
    /// Reads it. It takes the time that the number of live certificates takes.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(crate) async fn read(
        store: &dyn Store,
        walk: &Walk,
        now: Timestamp,
    ) -> Result<Self, Refused> {
        let mut ledger = Self::default();
        let mut after: Option<Serial> = None;
        loop {
            let page = store.issued_after(after, PAGE_MAX).await?;
            after = page.last().map(|issued| issued.row.serial);
            let last = page.len() < PAGE_MAX;
            for row in page.into_iter().map(|issued| issued.row) {
                if row.validity.not_after + SKEW_ALLOWED < now {
                    continue;
                }
                match row.spiffe_id.is_root() {
                    false => ledger.leaves.push(row),
                    // A cross-certificate is a row for a root's key; what an issuer signed for itself is no issuer.
                    true if walk.is_root(row.key) || !walk.is_root(row.issuer) => {}
                    true => ledger.issuers.push(row),
                }
            }
            if last {
                break;
            }
        }
        ledger.add_imported(walk, now)?;
        Ok(ledger)
    }

    /// The issuers that roots outside have signed: no log of ours records their issue, the walk does.
    fn add_imported(&mut self, walk: &Walk, now: Timestamp) -> Result<(), Refused> {
        for root in &walk.roots {
            for certificate in root.imported()? {
                let validity = certificate.validity();
                if now <= validity.not_after + SKEW_ALLOWED {
                    self.issuers.push(imported_row(root.key, &certificate));
                }
            }
        }
        Ok(())
    }

    /// The issuers, oldest first.
    pub(crate) fn issuers(&self) -> &[IssuedRow] {
        &self.issuers
    }

    /// The issuers that a root signed.
    pub(crate) fn issuers_of(&self, root: KeyId) -> impl Iterator<Item = &IssuedRow> {
        self.issuers.iter().filter(move |row| row.issuer == root)
    }

    /// When an authority of this key ends: the root's end as given, an issuer's by its row.
    pub(crate) fn issuer(&self, key: KeyId) -> Option<&IssuedRow> {
        self.issuers.iter().find(|row| row.key == key)
    }

    /// The last end of anything that is out.
    pub(crate) fn last_end(&self) -> Option<Timestamp> {
        self.leaves.iter().map(|row| row.validity.not_after).max()
    }

    /// The SVIDs that these issuers signed and no rule covers.
    pub(crate) fn signed_by(
        &self,
        issuers: &BTreeSet<KeyId>,
        rules: &Revocations,
    ) -> Vec<&IssuedRow> {
        let theirs = self.leaves.iter().filter(|row| issuers.contains(&row.issuer));
        theirs.filter(|row| !is_covered(row, rules)).collect()
    }

    /// How many SVIDs each issuer has out that no rule covers.
    pub(crate) fn counts(&self, rules: &Revocations) -> HashMap<KeyId, u64> {
        let mut counts = HashMap::new();
        for row in self.leaves.iter().filter(|row| !is_covered(row, rules)) {
            *counts.entry(row.issuer).or_insert(0) += 1;
        }
        counts
    }

    /// The credentials under these issuers whose holder has none under another yet, and should get one.
    pub(crate) fn left(&self, issuers: &BTreeSet<KeyId>, state: &State) -> Vec<Left> {
        let rules = others(&state.revocations(), issuers);
        let newer: BTreeSet<Holder<'_>> = self
            .leaves
            .iter()
            .filter(|row| !issuers.contains(&row.issuer) && !is_covered(row, &rules))
            .map(holder)
            .collect();
        let mut left: BTreeMap<Holder<'_>, Timestamp> = BTreeMap::new();
        for row in self.leaves.iter().filter(|row| issuers.contains(&row.issuer)) {
            let done = newer.contains(&holder(row)) || is_covered(row, &rules);
            // Nobody needs a canary again.
            if done || is_stopped(row, state) || row.spiffe_id.is_canary() {
                continue;
            }
            let until = left.entry(holder(row)).or_insert(Timestamp::EPOCH);
            *until = (*until).max(row.validity.not_after);
        }
        left.into_iter()
            .map(|((id, node), until)| Left { holder: named(id, node), until })
            .collect()
    }
}

/// An issuer of a root outside, in the form of what was issued here.
fn imported_row(root: KeyId, certificate: &Certificate) -> IssuedRow {
    let domain = certificate.uri_names().iter().find_map(|name| {
        let name = std::str::from_utf8(name).ok()?;
        name.parse::<SpiffeId>().ok()
    });
    IssuedRow {
        // Its own may have any form; nothing looks an authority up by serial.
        serial: certificate.serial().unwrap_or_else(nobodys_serial),
        tbs: certificate.tbs_digest(),
        spiffe_id: domain.expect("a certificate without the trust domain's name is not taken in"),
        key: certificate.key_id(),
        issuer: root,
        node: None,
        validity: certificate.validity(),
        revision: Revision::default(),
    }
}

fn nobodys_serial() -> Serial {
    Serial::from_bytes([1; 16]).expect("its first bit is 0")
}

fn holder(row: &IssuedRow) -> Holder<'_> {
    (&row.spiffe_id, row.node)
}

fn named(id: &SpiffeId, node: Option<NodeId>) -> String {
    node.map_or_else(|| id.to_string(), |node| format!("{id} on node {node}"))
}

/// Whether an operator stopped that its holder gets anything.
fn is_stopped(row: &IssuedRow, state: &State) -> bool {
    state.is_suspended(&Suspended::Identity(row.spiffe_id.clone()))
        || row.node.is_some_and(|node| state.is_suspended(&Suspended::Node(node)))
}

/// The rules that are not about these authorities: what else is out of service needs no successor.
fn others(rules: &Revocations, authorities: &BTreeSet<KeyId>) -> Arc<Revocations> {
    let kept = rules.iter().filter(|(_, rule)| match &rule.target {
        Revoked::Authority(key) => !authorities.contains(key),
        Revoked::Serial(_)
        | Revoked::Identity { .. }
        | Revoked::Key(_)
        | Revoked::Node { .. }
        | Revoked::Earlier { .. } => true,
    });
    Arc::new(Revocations::new(kept.map(|(name, rule)| (Arc::clone(name), Arc::clone(rule)))))
}
