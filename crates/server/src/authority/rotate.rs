//! A new issuer before the old one ends.
//!
//! The root that signs both is in every bundle already, so verifiers accept the new issuer at once and nothing
//! has to be published first.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use countersign_identity::{Clock, Code, Entropy, KeyId, Lifetime, Timestamp, Vital};
use countersign_pki::{Issuer, KeyKind, KeyVault, PrivateKey, SoftwareSigner};
use countersign_seal::Kek;
use countersign_store::{Batch, Duties, Duty, Store};
use tokio_util::sync::CancellationToken;

use crate::authority::create::{Ceremony, copy, internal};
use crate::authority::sealed::{ISSUER, KeyToKeep, Unsealed, former, issuer_name, keep, unseal};
use crate::authority::{Authorities, Signing};
use crate::refusal::Refused;
use crate::state::{State, StateFeed};
use crate::watch::{TimeGuard, Watch, believed};

/// How often the issuer's age is looked at.
const LOOK: Duration = Duration::from_secs(60);
/// The duty of one replica to make the successor.
const DUTY: Duty = Duty { name: "authority/issuer", ttl: Duration::from_secs(120) };

/// The periodic duty of succeeding the issuer.
pub(crate) struct Rotation {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) authorities: Arc<ArcSwap<Authorities>>,
    pub(crate) kek: Kek,
    /// Where keys are that lie in tokens.
    pub(crate) vault: Arc<dyn KeyVault>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) time: Arc<TimeGuard>,
    pub(crate) duties: Arc<Duties>,
    pub(crate) lifetime: Lifetime,
    pub(crate) feed: StateFeed,
    pub(crate) watch: Arc<Watch>,
}

impl Rotation {
    /// Looks now and then until stopped. What fails is told and tried again.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        // An issuer that lives for less than the usual pause is looked at more often.
        let look = LOOK.min(self.lifetime.duration() / 20);
        let mut states = self.feed.watch();
        let mut watched = Timestamp::EPOCH;
        loop {
            // So that it is known, once this server wants the duty, whether another still renews it.
            if look / 2 <= self.clock.now().since(watched) {
                watched = self.clock.now();
                if let Err(error) = self.duties.watch(DUTY, watched).await {
                    tracing::debug!(%error, "could not see who succeeds the issuer");
                }
            }
            let outdated = self.is_outdated(&states.borrow_and_update());
            // Another replica has put a successor in the place of one that is out of service, or under another root.
            let looked = if outdated { self.reload().await } else { self.look().await };
            let now = self.clock.now();
            match looked {
                Ok(()) => {
                    let ends = self.authorities.load().issuer_validity().not_after;
                    self.watch.good(Vital::Issuer, now, Some(ends));
                }
                Err(refused) => {
                    tracing::warn!(code = %refused.code, why = %refused.why, "could not succeed the issuer");
                    self.watch.failed(Vital::Issuer, now, &refused.why);
                }
            }
            let again = now + look;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.clock.sleep_until(again) => {}
                Ok(()) = states.changed() => {}
            }
        }
    }

    /// Whether the issuer that signs here is out of service, or stands under a root that signs no more.
    fn is_outdated(&self, state: &State) -> bool {
        let authorities = self.authorities.load();
        let Ok(active) = state.walk().and_then(|walk| walk.active()) else { return false };
        let issuer = authorities.issuer.key_id();
        state.revocations().is_authority_revoked(issuer)
            || active.key != authorities.root.key_id()
            // One that came from outside is on record with its root.
            || active.issuer().is_some_and(|imported| imported != issuer)
    }

    /// Takes the issuer that the store keeps, if it is another.
    async fn reload(&self) -> Result<(), Refused> {
        let Unsealed::Open(kept) = unseal(&*self.store, &self.kek, &*self.vault).await? else {
            return Err(Refused::new(Code::Sealed, "the successor of the issuer does not open"));
        };
        if kept.issuer.key_id() == self.authorities.load().issuer.key_id() {
            return Err(Refused::new(
                Code::NotReady,
                "the issuer is revoked, and has no successor",
            ));
        }
        tracing::info!(issuer = %kept.issuer.key_id(), "took over the issuer that the store keeps");
        self.authorities.store(Arc::new(kept));
        Ok(())
    }

    /// What signs about the certificates of this authority: the root, the issuer, or one that a successor has taken the
    /// place of. Nothing when it is none of ours, or its key is gone.
    ///
    /// # Errors
    /// When the store does not answer, or what it keeps does not open.
    pub(crate) async fn signing(&self, key: KeyId) -> Result<Option<Signing>, Refused> {
        match self.authorities.load().signing(key) {
            Some(signing) => Ok(Some(signing)),
            None => former(&*self.store, &self.kek, &*self.vault, key).await,
        }
    }

    /// Puts a successor in the place of this issuer, if it is the one that signs now.
    ///
    /// # Errors
    /// When it is, and that did not happen.
    pub(crate) async fn replace(&self, issuer: KeyId) -> Result<(), Refused> {
        let authorities = self.authorities.load_full();
        if authorities.issuer.key_id() != issuer {
            return Ok(());
        }
        let now = believed(&self.time, &*self.clock, &*self.store).await?;
        if !self.duties.is_ours(DUTY, now).await? {
            let why = "another server is about to succeed the issuer: try again in two minutes";
            return Err(Refused::new(Code::Unavailable, why));
        }
        self.succeed(&authorities).await
    }

    /// Succeeds the issuer if that is due.
    ///
    /// # Errors
    /// When it is due and did not happen.
    pub(crate) async fn look(&self) -> Result<(), Refused> {
        let now = believed(&self.time, &*self.clock, &*self.store).await?;
        let authorities = self.authorities.load_full();
        // A token that was away is looked for, so that the warning ends when it is back.
        if let Some(signer) = &authorities.root_signer
            && signer.trouble().is_some()
        {
            let found = signer.ready().await;
            tracing::debug!(ready = found.is_ok(), "looked for the root's key");
        }
        // Who is told that a ceremony is due, is told elsewhere.
        if !authorities.successor_due(now) || authorities.is_outside() {
            return Ok(());
        }
        if !self.duties.is_ours(DUTY, now).await? {
            return Ok(());
        }
        // Another replica may have done it while this one looked elsewhere.
        if let Unsealed::Open(kept) = unseal(&*self.store, &self.kek, &*self.vault).await?
            && !kept.successor_due(now)
        {
            self.authorities.store(Arc::new(kept));
            return Ok(());
        }
        self.succeed(&authorities).await
    }

    /// Which key the next issuer gets, and how long it lives: as declared, or as this server was told.
    pub(crate) fn next_issuer(&self) -> (KeyKind, Lifetime) {
        let declared = self.feed.current().declared_authority();
        declared
            .map_or((KeyKind::P256, self.lifetime), |spec| (spec.key_type, spec.issuer_lifetime))
    }

    async fn succeed(&self, authorities: &Authorities) -> Result<(), Refused> {
        let now = self.clock.now();
        let (key_type, lifetime) = self.next_issuer();
        let key = PrivateKey::generate(key_type).map_err(internal)?;
        let (store, entropy) = (&*self.store, &*self.entropy);
        let ceremony = Ceremony { store, entropy, now };
        let Signing { issuer: root, signer, .. } = authorities.root_signing()?;
        let certificate = ceremony.issuer(&root, &*signer, &key, lifetime).await?;
        let named = issuer_name(certificate.key_id());
        let kept = KeyToKeep::Here(&key);
        let ops = vec![
            keep(ISSUER, &[&certificate], kept, &self.kek, entropy)?,
            keep(&named, &[&certificate], kept, &self.kek, entropy)?,
        ];
        // Only if the root that signed it is the one that signs still, whoever else is at work.
        let state = self.feed.current();
        if state.walk()?.active()?.key != root.key_id() {
            let why = "another root signs meanwhile; its own issuer is taken over";
            return Err(Refused::new(Code::StaleBase, why));
        }
        let expected = Some(state.revision);
        store.commit(Batch { expected, ops, ..Batch::default() }).await?;
        let next = Authorities {
            root: root.certificate().clone(),
            root_signer: Some(signer),
            issuer: Issuer::from_certificate(certificate).map_err(internal)?,
            above: Vec::new(),
            signer: Arc::new(SoftwareSigner::from(copy(&key)?)),
        };
        tracing::info!(issuer = %next.issuer.key_id(), until = %next.issuer_validity().not_after, "succeeded the issuer");
        self.authorities.store(Arc::new(next));
        Ok(())
    }
}
