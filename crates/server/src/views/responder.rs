//! The delegated key that signs OCSP answers for one authority: made here, in memory only, its certificate issued like
//! all others.

use std::time::Duration;

use countersign_audit::EventKind;
use countersign_identity::{Lifetime, Serial, SpiffeId, Timestamp};
use countersign_pki::{Certificate, KeyKind, PrivateKey, ResponderDraft, SoftwareSigner};
use countersign_store::{Batch, IssuedRow};

use crate::authority::{Signing, internal};
use crate::control::Control;
use crate::refusal::Refused;

/// How long a responder's certificate lives: nobody asks whether it is revoked.
const LIFETIME_SECS: u64 = 86_400;
/// How long before the end of its certificate a responder has signed its last answer.
const MARGIN: Duration = Duration::from_secs(60);

/// A key that signs answers, and what shows that it may.
pub(crate) struct Responder {
    pub(crate) certificate: Certificate,
    pub(crate) signer: SoftwareSigner,
    issued: Timestamp,
}

impl Responder {
    /// Makes one. Recorded before it is signed, on behalf of this server.
    ///
    /// # Errors
    /// When the store does not record it, or the authority's signer fails.
    pub(crate) async fn create(
        control: &Control,
        server: &SpiffeId,
        signing: &Signing,
    ) -> Result<Self, Refused> {
        let now = control.desk.now().await?;
        let key = PrivateKey::generate(KeyKind::P256).map_err(internal)?;
        let draft = ResponderDraft {
            issuer: signing.issuer.clone(),
            key: key.public().clone(),
            serial: Serial::draw(now, &*control.entropy).map_err(internal)?,
            issued: now,
            lifetime: Lifetime::from_secs(LIFETIME_SECS).map_err(internal)?,
        };
        let reviewed =
            draft.review().map_err(|refusal| Refused::new(refusal.code(), refusal.to_string()))?;
        let summary = reviewed.summary();
        let row = IssuedRow {
            serial: summary.serial,
            tbs: summary.tbs,
            // Of no workload and no node, and so of the trust domain, as authorities are.
            spiffe_id: signing.issuer.domain().id(),
            key: summary.key,
            issuer: summary.issuer,
            node: None,
            validity: summary.validity,
            revision: control.feed.current().revision,
        };
        let events = vec![row.event(EventKind::ResponderCreated, now, server.as_str())];
        let batch = Batch { events, issued: vec![row], ..Batch::default() };
        let receipt = control.store.commit(batch).await?.receipts.into_iter().next();
        control.desk.time.recorded(now);
        let receipt = receipt.ok_or_else(|| internal("the store gave no receipt"))?;
        let certificate = reviewed.sign(receipt, &*signing.signer).await.map_err(internal)?;
        Ok(Self { certificate, signer: SoftwareSigner::from(key), issued: now })
    }

    /// Whether a successor is due: past half of its life.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        let ends = self.certificate.validity().not_after;
        self.issued + ends.since(self.issued) / 2 <= now
    }

    /// The last moment until which an answer may be good that it signs.
    pub(crate) fn answers_until(&self) -> Timestamp {
        self.certificate.validity().not_after - MARGIN
    }
}
