//! What the machine knows of a credential that is held: its term, and what revocations speak of.

use std::sync::Arc;

use countersign_identity::{
    Attested, KeyId, NodeTag, Presented, Revision, Serial, Sha256, SpiffeId, Spread, Timestamp,
    renewal_due,
};
use countersign_pki::{Bundle, Bundles, Chain, Role, Verified, verify};

/// When a credential was issued, and when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// SHA-256 of the leaf, by which this credential is told from the ones before it.
    pub digest: Sha256,
    /// The moment of issue, by the server's clock.
    pub issued: Timestamp,
    /// The end of the whole chain: never beyond the issuer's.
    pub expires: Timestamp,
}

/// All of a chain that revocations speak of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Whom the leaf names.
    pub id: SpiffeId,
    /// The leaf's serial; none when it is not of our form.
    pub serial: Option<Serial>,
    /// The leaf's key.
    pub key: KeyId,
    /// The keys of all authorities on the path.
    pub authorities: Vec<KeyId>,
    /// Under which revision and through which node it was issued, when it says so.
    pub provenance: Option<(Revision, NodeTag)>,
    /// By which kinds of facts it says that its holder was attested.
    pub attested: Attested,
}

/// A credential without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// From when to when.
    pub term: Term,
    /// What revocations speak of.
    pub shown: Arc<Shown>,
}

impl Term {
    /// When its successor is due.
    pub fn due(&self) -> Timestamp {
        renewal_due(self.issued, self.expires, Spread::of(&self.digest))
    }

    pub(super) fn lifetime(&self) -> std::time::Duration {
        self.expires.since(self.issued)
    }
}

impl Shown {
    /// As rules are asked for it.
    pub fn presented(&self) -> Presented<'_> {
        Presented {
            id: &self.id,
            serial: self.serial,
            key: self.key,
            authorities: &self.authorities,
            provenance: self.provenance,
        }
    }

    fn of(id: SpiffeId, chain: &Chain, anchor: Option<KeyId>) -> Self {
        let leaf = chain.leaf();
        let above = chain.certificates().iter().skip(1).map(countersign_pki::Certificate::key_id);
        Self {
            id,
            serial: leaf.serial(),
            key: leaf.key_id(),
            authorities: above.chain(anchor).collect(),
            provenance: leaf.provenance().map(|one| (one.revision, one.node)),
            attested: leaf.provenance().map(|one| one.attested).unwrap_or_default(),
        }
    }
}

impl Credential {
    /// What a chain shows that our verifier has just accepted.
    pub fn verified(chain: &Chain, verified: &Verified, issued: Timestamp) -> Self {
        let shown = Shown::of(verified.id.clone(), chain, Some(verified.anchor));
        let digest = chain.leaf().fingerprint();
        let term = Term { digest, issued, expires: verified.expires };
        Self { term, shown: Arc::new(shown) }
    }

    /// What a chain shows that was written down earlier, and may have expired since. When it does not lead to an authority
    /// of the bundle any more, only the authorities that it carries itself are known.
    pub fn remembered(id: SpiffeId, chain: &Chain, bundle: &Bundle, issued: Timestamp) -> Self {
        let bundles = Bundles::of(bundle.clone());
        let anchor = verify(&chain.ders(), &bundles, Role::Client, issued).ok();
        let shown = Shown::of(id, chain, anchor.map(|verified| verified.anchor));
        let ends = chain.certificates().iter().map(|one| one.validity().not_after);
        let expires = ends.min().expect("a chain is never empty");
        let term = Term { digest: chain.leaf().fingerprint(), issued, expires };
        Self { term, shown: Arc::new(shown) }
    }
}
