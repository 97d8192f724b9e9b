//! A trust domain made by hand: authorities, certificates and bundles, without a server.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use countersign_api::workload::X509svid;
use countersign_identity::{
    Attested, Lifetime, NodeTag, Revision, SeededEntropy, Serial, SpiffeId, Timestamp, TrustDomain,
};
use countersign_pki::{
    AuthorityDraft, Bundle, Certificate, Chain, Draft, Issuer, KeyKind, PrivateKey, Profile,
    ProvenKey, Provenance, Receipt, Reserved, Reviewed, SoftwareSigner,
};

/// A chain, leaf first, and the leaf's private key.
pub(crate) struct Svid {
    pub(crate) id: SpiffeId,
    pub(crate) chain: Chain,
    pub(crate) pkcs8: Vec<u8>,
}

pub(crate) struct Realm {
    domain: TrustDomain,
    pub(crate) root: Certificate,
    issuer: Certificate,
    issuer_key: SoftwareSigner,
    entropy: SeededEntropy,
}

impl Realm {
    /// Authorities that are an hour old.
    pub(crate) fn new(domain: &str, seed: u64, now: Timestamp) -> Self {
        let now = now - Duration::from_secs(3600);
        let domain: TrustDomain = domain.parse().unwrap();
        let entropy = SeededEntropy::new(seed);
        let year = Lifetime::from_secs(365 * 86_400).unwrap();
        let serial = |moment| Serial::draw(moment, &entropy).unwrap();
        let root_key = PrivateKey::generate(KeyKind::P256).unwrap();
        let public = root_key.public().clone();
        let draft = AuthorityDraft::root(domain.clone(), public, serial(now), now, year);
        let root_key = SoftwareSigner::from(root_key);
        let root = sign(draft.review().unwrap(), &root_key);
        let key = PrivateKey::generate(KeyKind::P256).unwrap();
        let parent = Issuer::from_certificate(root.clone()).unwrap();
        let week = Lifetime::from_secs(30 * 86_400).unwrap();
        let draft = AuthorityDraft::issuer(&parent, key.public().clone(), serial(now), now, week);
        let issuer = sign(draft.review().unwrap(), &root_key);
        Self { domain, root, issuer, issuer_key: SoftwareSigner::from(key), entropy }
    }

    /// An SVID that is issued at this moment.
    pub(crate) fn svid(&self, path: &str, issued: Timestamp, lifetime_secs: u64) -> Svid {
        let id = self.domain.with_path(path).unwrap();
        let key = PrivateKey::generate(KeyKind::P256).unwrap();
        let lifetime = Lifetime::from_secs(lifetime_secs).unwrap();
        let draft = Draft {
            id: id.clone(),
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
        let leaf = sign(draft.review(&profile, &issuer).unwrap(), &self.issuer_key);
        let chain = Chain::from_ders([leaf.der(), self.issuer.der()]).unwrap();
        Svid { id, chain, pkcs8: key.pkcs8().to_vec() }
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle::new(self.domain.clone(), vec![self.root.clone()], 1)
    }
}

impl Svid {
    /// As the Workload API sends it, with this bundle beside it.
    pub(crate) fn wire(&self, bundle: &Bundle) -> X509svid {
        let ders = self.chain.certificates().iter().flat_map(Certificate::der);
        X509svid {
            spiffe_id: self.id.to_string(),
            x509_svid: ders.copied().collect(),
            x509_svid_key: self.pkcs8.clone(),
            bundle: bundle.authorities_der_concat(),
            hint: String::new(),
        }
    }

    pub(crate) fn serial(&self) -> Serial {
        self.chain.leaf().serial().unwrap()
    }
}

fn sign(reviewed: Reviewed, signer: &SoftwareSigner) -> Certificate {
    let receipt = Receipt::assertion(reviewed.summary().tbs, 0);
    at_once(reviewed.sign(receipt, signer)).unwrap()
}

/// The outcome of what a software signer does, which never waits.
fn at_once<T>(doing: impl Future<Output = T>) -> T {
    match pin!(doing).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("it waits"),
    }
}
