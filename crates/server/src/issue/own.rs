//! The server's own credential: issued by itself to itself on the same path as all others, in memory only.

use std::sync::Arc;

use arc_swap::ArcSwap;
use countersign_identity::{
    Attested, Backoff, BackoffPolicy, Clock, Code, Entropy, Lifetime, Presented, SpiffeId, Spread,
    Timestamp, Vital, renewal_due,
};
use countersign_pki::{Certificate, Chain, DnsName, KeyKind, PrivateKey, ProvenKey, Reserved};
use countersign_tls::{Identity, Trust};
use tokio_util::sync::CancellationToken;

use crate::authority::{Authorities, internal};
use crate::control::Control;
use crate::issue::{Cause, Wanted};
use crate::refusal::Refused;
use crate::state::State;

/// The waits after a renewal that failed.
const BACKOFF: BackoffPolicy = BackoffPolicy {
    first: std::time::Duration::from_secs(1),
    longest: std::time::Duration::from_secs(60),
};

/// How soon to look again whether the issuer under the new root is here.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(200);

/// The longest life of the server's own credential.
fn lifetime_max() -> Lifetime {
    Lifetime::from_secs(86_400).expect("a day is a lifetime")
}

/// Keeps the server's own credential fresh.
pub(crate) struct Own {
    pub(crate) control: Arc<Control>,
    pub(crate) trust: Arc<Trust>,
    pub(crate) authorities: Arc<ArcSwap<Authorities>>,
    pub(crate) id: SpiffeId,
    /// Names for clients that know no SPIFFE.
    pub(crate) dns_names: Vec<DnsName>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
}

impl Own {
    /// Makes a new key and a certificate for it, shows them from now on, and says when the next are due.
    ///
    /// # Errors
    /// When it was not issued, or our own verifier does not accept it. The one before stays then.
    pub(crate) async fn renew(&self) -> Result<Timestamp, Refused> {
        let key = PrivateKey::generate(KeyKind::P256).map_err(internal)?;
        let decide = |state: &State| {
            let wanted = Wanted {
                id: self.id.clone(),
                key: ProvenKey::of(&key),
                lifetime: state.domain().lifetime_max.min(lifetime_max()),
                dns_names: self.dns_names.clone(),
                attested: Attested::default(),
                reserved: Reserved::Allow,
            };
            let actor = self.id.to_string();
            Ok((wanted, Cause { actor, node: None, ops: Vec::new(), events: Vec::new() }))
        };
        let (svid, _state) = self.control.issue_one(decide).await?;
        let authorities = self.authorities.load_full();
        if svid.chain.get(1).map(Certificate::key_id) != Some(authorities.issuer.key_id()) {
            // With the newer issuer's root it would be a chain that leads nowhere, and would not be seen to be leaving.
            return Err(Refused::new(Code::Unavailable, "the issuer changed while it signed"));
        }
        // A joining agent knows the root by its fingerprint only, so the server shows it too.
        let root = authorities.root_certificate().clone();
        let certificates =
            svid.chain.iter().cloned().chain([root]).chain(self.crosses()?).collect();
        let chain = Chain::from_certificates(certificates).map_err(internal)?;
        let leaf = chain.leaf().clone();
        let identity = Identity::new(chain, key.pkcs8()).map_err(internal)?;
        self.trust.set_identity(identity)?;
        let ends = leaf.validity().not_after;
        self.control.watch.good(Vital::Leaf, svid.issued, Some(ends));
        let due =
            renewal_due(svid.issued, leaf.validity().not_after, Spread::of(&leaf.fingerprint()));
        tracing::info!(id = %self.id, serial = %svid.serial, renewal = %due, "own credential issued");
        Ok(due)
    }

    /// The active root's key as older roots certify it, so that an agent which missed a rotation finds its way.
    fn crosses(&self) -> Result<Option<Certificate>, Refused> {
        let state = self.control.feed.current();
        let (walk, now) = (state.walk()?, self.clock.now());
        let cross = walk.active()?.cross()?;
        Ok(cross.filter(|cross| cross.validity().contains(now)))
    }

    /// Whether what is shown now stands under a root that is on its way out.
    fn is_leaving(&self, state: &State) -> bool {
        let (Some(own), Ok(walk)) = (self.trust.identity(), state.walk()) else { return false };
        let shown = own.chain().certificates();
        walk.retiring().any(|root| shown.iter().any(|one| one.key_id() == root.key))
    }

    /// Whether another issuer signs here by now than the one that signed what is shown.
    fn is_succeeded(&self) -> bool {
        let Some(own) = self.trust.identity() else { return true };
        let issuer = own.chain().certificates().get(1).map(Certificate::key_id);
        issuer != Some(self.authorities.load().issuer.key_id())
    }

    /// Whether a rule covers what is shown now, or took it away.
    fn is_revoked(&self, state: &State) -> bool {
        // Whoever enforces the rule may have been faster, and shows nothing any more.
        let Some(own) = self.trust.identity() else { return true };
        let leaf = own.chain().leaf();
        let authorities: Vec<_> =
            own.chain().certificates().iter().skip(1).map(|authority| authority.key_id()).collect();
        let presented = Presented {
            id: own.id(),
            serial: leaf.serial(),
            key: leaf.key_id(),
            authorities: &authorities,
            provenance: leaf.provenance().map(|from| (from.revision, from.node)),
        };
        state.revocations().covering(&presented).is_some()
    }

    /// Whether a clock that was ahead dated what is shown, so that nobody takes it yet.
    fn is_of_later(&self, now: Timestamp) -> bool {
        let own = self.trust.identity();
        own.is_some_and(|own| now < own.chain().leaf().validity().not_before)
    }

    /// Renews when due, and at once when what is shown is revoked or of a time to come, until stopped.
    pub(crate) async fn run(self, mut due: Timestamp, stop: CancellationToken) {
        let mut backoff = Backoff::new(BACKOFF);
        let mut states = self.control.feed.watch();
        let mut again = Timestamp::LAST;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.clock.sleep_until(due.min(again)) => {}
                Ok(()) = states.changed() => {}
            }
            let state = Arc::clone(&states.borrow_and_update());
            let now = self.clock.now();
            again = Timestamp::LAST;
            if now < due && !self.is_revoked(&state) && !self.is_of_later(now) {
                if !self.is_leaving(&state) {
                    continue;
                }
                if !self.is_succeeded() {
                    // The state says already what this server does in a moment.
                    again = now + LOOK_AGAIN;
                    continue;
                }
            }
            due = match self.renew().await {
                Ok(due) => {
                    backoff.reset();
                    due
                }
                Err(refused) => {
                    tracing::warn!(code = %refused.code, why = %refused.why, "could not renew the own credential");
                    self.control.watch.failed(Vital::Leaf, self.clock.now(), &refused.why);
                    backoff.failed(self.clock.now(), &*self.entropy)
                }
            };
            // A newer issuer under the root that leaves may have signed it, and no change of the state follows.
            if self.is_leaving(&self.control.feed.current()) {
                again = self.clock.now() + LOOK_AGAIN;
            }
        }
    }
}
