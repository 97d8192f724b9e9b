//! One root in the place of another: what signs from then on, kept and committed at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Code, KeyId, Timestamp};
use countersign_pki::{Certificate, Issuer, PrivateKey, Signer, SoftwareSigner};
use countersign_store::Batch;

use super::{Draft, Walker};
use crate::authority::{
    Authorities, ISSUER, Kept, KeptKey, ROOT, copy, internal, issuer_name, open_authority,
    root_name,
};
use crate::refusal::Refused;
use crate::rotate::root::Root;
use crate::rotate::walk::Walk;
use crate::state::State;

/// Certificates that one core issues in a second, with much to spare: a mass re-issue is spread accordingly.
const ISSUES_PER_CORE: u64 = 1000;

impl Walker {
    /// Puts a root in the place of the one that signs now, with an issuer of its own.
    pub(super) async fn enthrone(
        &self,
        state: &State,
        walk: Walk,
        before: KeyId,
        active: KeyId,
        now: Timestamp,
    ) -> Result<Draft, Refused> {
        let (store, kek) = (&*self.control.store, &self.rotation.kek);
        let entropy = &*self.control.entropy;
        // 1. Both roots; the one before stays at hand, for a rollback.
        let old = open_authority(store, ROOT, kek).await?;
        let root = open_authority(store, &root_name(active), kek).await?;
        if old.certificate.key_id() != before || root.certificate.key_id() != active {
            return Err(internal("a kept root is not the one on record"));
        }
        // 2. An issuer under the new one.
        let issuer = self.issuer_under(&walk, &root, now).await?;
        // 3. All of it at once.
        let named = issuer_name(issuer.certificate.key_id());
        let ops = vec![
            old.keep_as(&root_name(before), kek, entropy)?,
            root.keep_as(ROOT, kek, entropy)?,
            issuer.keep_as(ISSUER, kek, entropy)?,
            issuer.keep_as(&named, kek, entropy)?,
        ];
        let within = self.spread(&walk, before).await?;
        let changes = vec![self.bundle(state, &walk, within)?];
        let authorities = Authorities::of(root, issuer, &*self.rotation.vault)?;
        let batch = Batch { changes, ops, ..Batch::default() };
        Ok(Draft { walk, batch, authorities: Some(authorities) })
    }

    /// An issuer under a root: a new one, or the one that the root outside has signed for us.
    async fn issuer_under(
        &self,
        walk: &Walk,
        root: &Kept,
        now: Timestamp,
    ) -> Result<Kept, Refused> {
        let certificate = root.certificate.clone();
        let signer: Arc<dyn Signer> = match &root.key {
            KeptKey::Here(root_key) => Arc::new(SoftwareSigner::from(copy(root_key)?)),
            KeptKey::Token(uri) => {
                let public = certificate.public_key().map_err(internal)?;
                self.rotation.vault.signer(uri, public)?
            }
            KeptKey::Outside => return self.imported_issuer(walk, &certificate, now).await,
        };
        let parent = Issuer::from_certificate(certificate).map_err(internal)?;
        let (key_type, lifetime) = self.rotation.next_issuer();
        let key = PrivateKey::generate(key_type).map_err(internal)?;
        let certificate = self.ceremony(now).issuer(&parent, &*signer, &key, lifetime).await?;
        Ok(Kept { certificate, above: Vec::new(), key: KeptKey::Here(key) })
    }

    /// The issuer that a root outside has signed for us.
    async fn imported_issuer(
        &self,
        walk: &Walk,
        root: &Certificate,
        now: Timestamp,
    ) -> Result<Kept, Refused> {
        let imported = walk.root(root.key_id()).and_then(Root::issuer);
        let imported = imported.ok_or_else(|| internal("a root outside has signed nothing"))?;
        let (store, kek) = (&*self.control.store, &self.rotation.kek);
        let issuer = open_authority(store, &issuer_name(imported), kek).await?;
        let validity = issuer.certificate.validity();
        if !validity.contains(now) {
            let why = format!(
                "the issuer that the root outside has signed ended at {}: roll back, and have another signed",
                validity.not_after
            );
            return Err(Refused::new(Code::Expired, why));
        }
        Ok(issuer)
    }

    /// The span over which everything under a root is issued anew: as long as this machine needs for it.
    async fn spread(&self, walk: &Walk, root: KeyId) -> Result<Duration, Refused> {
        let ledger = self.ledger(walk).await?;
        let issuers: BTreeSet<_> = ledger.issuers_of(root).map(|row| row.key).collect();
        let count = ledger.signed_by(&issuers, &self.control.feed.current().revocations()).len();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let rate = ISSUES_PER_CORE * cores as u64;
        Ok(Duration::from_millis(count as u64 * 1000 / rate))
    }
}
