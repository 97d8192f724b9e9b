//! A trust domain made by hand: authorities, certificates and bundles, without a server.

use std::sync::Arc;

use countersign_identity::{
    Attested, Clock, Lifetime, NodeTag, Revision, SeededEntropy, Serial, SpiffeId, SystemClock,
    Timestamp, TrustDomain,
};
use countersign_pki::{
    AuthorityDraft, Bundle, Certificate, Chain, Draft, Issuer, KeyKind, PrivateKey, Profile,
    ProvenKey, Provenance, Receipt, Reserved, Reviewed, SoftwareSigner,
};
use countersign_tls::Identity;

pub(super) struct Realm {
    pub(super) domain: TrustDomain,
    pub(super) clock: Arc<dyn Clock>,
    root: Certificate,
    issuer: Certificate,
    issuer_key: SoftwareSigner,
    entropy: SeededEntropy,
}

/// A certificate with its key.
pub(super) struct Svid {
    pub(super) identity: Identity,
    pub(super) key: PrivateKey,
}

impl Realm {
    pub(super) async fn new(domain: &str, seed: u64) -> Arc<Self> {
        Self::on(Arc::new(SystemClock::new()), domain, seed).await
    }

    /// On another clock than the system's.
    pub(super) async fn on(clock: Arc<dyn Clock>, domain: &str, seed: u64) -> Arc<Self> {
        let domain: TrustDomain = domain.parse().unwrap();
        let entropy = SeededEntropy::new(seed);
        let start = clock.now();
        let serial = || Serial::draw(start, &entropy).unwrap();
        let root_key = PrivateKey::generate(KeyKind::P256).unwrap();
        let year = Lifetime::from_secs(365 * 86_400).unwrap();
        let draft =
            AuthorityDraft::root(domain.clone(), root_key.public().clone(), serial(), start, year);
        let root_key = SoftwareSigner::from(root_key);
        let root = sign(draft.review().unwrap(), &root_key).await;
        let key = PrivateKey::generate(KeyKind::P256).unwrap();
        let parent = Issuer::from_certificate(root.clone()).unwrap();
        let week = Lifetime::from_secs(7 * 86_400).unwrap();
        let draft = AuthorityDraft::issuer(&parent, key.public().clone(), serial(), start, week);
        let issuer = sign(draft.review().unwrap(), &root_key).await;
        Arc::new(Self {
            domain,
            clock,
            root,
            issuer,
            issuer_key: SoftwareSigner::from(key),
            entropy,
        })
    }

    pub(super) fn id(&self, workload: &str) -> SpiffeId {
        self.domain.with_path(&format!("/{workload}")).unwrap()
    }

    /// An SVID that is issued now.
    pub(super) async fn identity(&self, workload: &str, lifetime_secs: u64) -> Svid {
        let issued: Timestamp = self.clock.now();
        let key = PrivateKey::generate(KeyKind::P256).unwrap();
        let lifetime = Lifetime::from_secs(lifetime_secs).unwrap();
        let draft = Draft {
            id: self.id(workload),
            key: ProvenKey::of(&key),
            serial: Serial::draw(issued, &self.entropy).unwrap(),
            issued,
            lifetime,
            dns_names: Vec::new(),
            provenance: Provenance {
                revision: Revision { incarnation: 1, number: 7 },
                node: NodeTag::from_bytes([7; 8]),
                attested: Attested::default(),
            },
            reserved: Reserved::Refuse,
        };
        let profile =
            Profile { domain: self.domain.clone(), lifetime_max: lifetime, pointers: None };
        let issuer = Issuer::from_certificate(self.issuer.clone()).unwrap();
        let leaf = sign(draft.review(&profile, &issuer).unwrap(), &self.issuer_key).await;
        let chain = Chain::from_ders([leaf.der(), self.issuer.der()]).unwrap();
        Svid { identity: Identity::new(chain, key.pkcs8()).unwrap(), key }
    }

    pub(super) fn bundle(&self) -> Bundle {
        Bundle::new(self.domain.clone(), vec![self.root.clone()], 1)
    }
}

async fn sign(reviewed: Reviewed, signer: &SoftwareSigner) -> Certificate {
    let receipt = Receipt::assertion(reviewed.summary().tbs, 0);
    reviewed.sign(receipt, signer).await.unwrap()
}
