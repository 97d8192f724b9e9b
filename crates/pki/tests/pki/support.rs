//! A small trust domain for tests: a root, an issuer, and what they sign.

use countersign_identity::{
    Attested, Lifetime, NodeTag, Revision, SeededEntropy, Serial, Timestamp, TrustDomain,
};
use countersign_pki::{
    AuthorityDraft, Bundle, Bundles, Certificate, Chain, Draft, Issuer, KeyKind, PrivateKey,
    Profile, ProvenKey, Provenance, Receipt, Reserved, Reviewed, Signer, SoftwareSigner,
};

pub(crate) const NOW: i64 = 1_795_262_400; // 2026-11-21T12:00:00Z

pub(crate) fn now() -> Timestamp {
    Timestamp::from_secs(NOW)
}

pub(crate) fn lifetime(text: &str) -> Lifetime {
    text.parse().unwrap()
}

pub(crate) fn serial(seed: u64) -> Serial {
    Serial::draw(now(), &SeededEntropy::new(seed)).unwrap()
}

/// Signs as the server does, with a receipt that claims a record.
pub(crate) async fn signed(reviewed: Reviewed, signer: &dyn Signer) -> Certificate {
    let receipt = Receipt::assertion(reviewed.summary().tbs, 0);
    reviewed.sign(receipt, signer).await.unwrap()
}

pub(crate) struct Realm {
    pub(crate) domain: TrustDomain,
    pub(crate) root: Issuer,
    pub(crate) root_signer: SoftwareSigner,
    pub(crate) issuer: Issuer,
    pub(crate) signer: SoftwareSigner,
}

impl Realm {
    pub(crate) async fn new(domain: &str, kind: KeyKind) -> Self {
        let domain: TrustDomain = domain.parse().unwrap();
        let root_signer = SoftwareSigner::from(PrivateKey::generate(kind).unwrap());
        let signer = SoftwareSigner::from(PrivateKey::generate(kind).unwrap());
        let key = root_signer.public().clone();
        let draft = AuthorityDraft::root(domain.clone(), key, serial(1), now(), lifetime("365d"));
        let root = signed(draft.review().unwrap(), &root_signer).await;
        let root = Issuer::from_certificate(root).unwrap();
        let key = signer.public().clone();
        let draft = AuthorityDraft::issuer(&root, key, serial(2), now(), lifetime("7d"));
        let issuer = signed(draft.review().unwrap(), &root_signer).await;
        let issuer = Issuer::from_certificate(issuer).unwrap();
        Self { domain, root, root_signer, issuer, signer }
    }

    /// Another certificate for the key of another realm's issuer, under our root.
    pub(crate) async fn certify_issuer_of(&self, other: &Self) -> Certificate {
        let key = other.signer.public().clone();
        let draft = AuthorityDraft::issuer(&self.root, key, serial(4), now(), lifetime("7d"));
        signed(draft.review().unwrap(), &self.root_signer).await
    }

    pub(crate) fn profile(&self) -> Profile {
        Profile { domain: self.domain.clone(), lifetime_max: lifetime("24h"), pointers: None }
    }

    pub(crate) fn draft(&self, path: &str, key: &PrivateKey) -> Draft {
        Draft {
            id: self.domain.with_path(path).unwrap(),
            key: ProvenKey::of(key),
            serial: serial(3),
            issued: now(),
            lifetime: lifetime("1h"),
            dns_names: Vec::new(),
            provenance: Provenance {
                revision: Revision { incarnation: 1, number: 412 },
                node: NodeTag::from_bytes([7; 8]),
                attested: Attested::default(),
            },
            reserved: Reserved::Refuse,
        }
    }

    pub(crate) async fn leaf(&self, path: &str, key: &PrivateKey) -> Certificate {
        let reviewed = self.draft(path, key).review(&self.profile(), &self.issuer).unwrap();
        signed(reviewed, &self.signer).await
    }

    pub(crate) async fn chain(&self, path: &str, key: &PrivateKey) -> Chain {
        let leaf = self.leaf(path, key).await;
        Chain::from_certificates(vec![leaf, self.issuer.certificate().clone()]).unwrap()
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle::new(self.domain.clone(), vec![self.root.certificate().clone()], 1)
    }

    pub(crate) fn bundles(&self) -> Bundles {
        Bundles::of(self.bundle())
    }
}
