//! Which certificates of which authority are out of service, and which are good: the rules, expanded by what was issued.

use std::collections::HashMap;

use countersign_identity::{
    KeyId, NodeTag, Presented, Revocation, Revocations, SKEW_ALLOWED, Serial, Timestamp,
};
use countersign_pki::{OcspStatus, RevokedSerial};
use countersign_store::{IssuedRow, PAGE_MAX, Store};

use crate::digest::node_tag;
use crate::refusal::Refused;

/// A certificate that is out of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) revoked: RevokedSerial,
    /// The last moment at which it would have been valid.
    pub(crate) ends: Timestamp,
}

/// The certificates of one authority that have not ended.
#[derive(Debug, Default)]
pub(crate) struct Set {
    revoked: Vec<Listed>, // INVARIANT: in the order of the serials, none twice
    good: Vec<Serial>,    // INVARIANT: in order
}

/// Reads what is out, authority by authority. It takes the time that the number of live certificates takes.
///
/// # Errors
/// When the store does not answer.
pub(crate) async fn read(
    store: &dyn Store,
    rules: &Revocations,
    now: Timestamp,
) -> Result<HashMap<KeyId, Set>, Refused> {
    let mut sets: HashMap<KeyId, Set> = HashMap::new();
    let mut after: Option<Serial> = None;
    loop {
        let page = store.issued_after(after, PAGE_MAX).await?;
        after = page.last().map(|issued| issued.row.serial);
        let last = page.len() < PAGE_MAX;
        // The pages come in the order of the serials, so each set does.
        for row in page.into_iter().map(|issued| issued.row) {
            if now <= row.validity.not_after + SKEW_ALLOWED {
                sets.entry(row.issuer).or_default().add(&row, rules);
            }
        }
        if last {
            return Ok(sets);
        }
    }
}

/// The rule by which a certificate went out of service.
fn covering<'a>(row: &'a IssuedRow, rules: &'a Revocations) -> Option<&'a Revocation> {
    let tag = row.node.map_or(NodeTag::from_bytes([0; 8]), node_tag);
    // A rule about an authority covers its own certificate as well, which its root's list names.
    let own = [row.issuer, row.key];
    let authorities = if row.spiffe_id.is_root() { own.as_slice() } else { &own[..1] };
    let presented = Presented {
        id: &row.spiffe_id,
        serial: Some(row.serial),
        key: row.key,
        authorities,
        provenance: Some((row.revision, tag)),
    };
    rules.first_covering(&presented).map(|rule| &**rule)
}

/// What the rules say about one certificate.
pub(crate) fn status(row: &IssuedRow, rules: &Revocations) -> OcspStatus {
    match covering(row, rules) {
        Some(rule) => OcspStatus::Revoked { at: rule.at, reason: rule.reason },
        None => OcspStatus::Good,
    }
}

impl Set {
    fn add(&mut self, row: &IssuedRow, rules: &Revocations) {
        let serial = row.serial;
        match status(row, rules) {
            OcspStatus::Revoked { at, reason } => {
                let revoked = RevokedSerial { serial, at, reason };
                self.revoked.push(Listed { revoked, ends: row.validity.not_after });
            }
            OcspStatus::Good | OcspStatus::Unknown => self.good.push(serial),
        }
    }

    /// What is out of service.
    pub(crate) fn revoked(&self) -> &[Listed] {
        &self.revoked
    }

    /// What is known of a certificate.
    pub(crate) fn status(&self, serial: Serial) -> OcspStatus {
        let found = self.revoked.binary_search_by_key(&serial, |listed| listed.revoked.serial);
        if let Ok(at) = found {
            let RevokedSerial { at, reason, .. } = self.revoked[at].revoked;
            return OcspStatus::Revoked { at, reason };
        }
        match self.good.binary_search(&serial) {
            Ok(_at) => OcspStatus::Good,
            Err(_at) => OcspStatus::Unknown,
        }
    }
}
