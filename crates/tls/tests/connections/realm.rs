//! A trust domain made by hand: authorities, certificates and bundles, without a server.

#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part of it")]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use countersign_identity::{
    Attested, Lifetime, NodeTag, Revision, SeededEntropy, Serial, SpiffeId, Timestamp, TrustDomain,
};
use countersign_pki::{
    AuthorityDraft, Bundle, Certificate, Chain, Draft, Issuer, KeyKind, PrivateKey, Profile,
    ProvenKey, Provenance, Receipt, Reserved, Reviewed, Signer, SoftwareSigner,
};

/// 2026-09-21, and a few hours.
pub(crate) const START: Timestamp = Timestamp::from_secs(1_790_000_000);

/// Through which SVIDs are issued here.
pub(crate) const NODE: NodeTag = NodeTag::from_bytes([7; 8]);

/// A chain, leaf first, and the leaf's private key.
pub(crate) struct Svid {
    pub(crate) id: SpiffeId,
    pub(crate) chain: Chain,
    pub(crate) pkcs8: Vec<u8>,
}

pub(crate) struct Realm {
    pub(crate) domain: TrustDomain,
    pub(crate) root: Certificate,
    pub(crate) issuer: Certificate,
    issuer_key: SoftwareSigner,
    entropy: SeededEntropy,
    /// By which its SVIDs say that their holders were attested.
    pub(crate) attested: Attested,
}

impl Realm {
    pub(crate) fn new(domain: &str, seed: u64) -> Self {
        let domain: TrustDomain = domain.parse().unwrap();
        let entropy = SeededEntropy::new(seed);
        let year = Lifetime::from_secs(365 * 86_400).unwrap();
        let serial = |moment| Serial::draw(moment, &entropy).unwrap();
        let root_key = PrivateKey::generate(KeyKind::P256).unwrap();
        let public = root_key.public().clone();
        let draft = AuthorityDraft::root(domain.clone(), public, serial(START), START, year);
        let root_key = SoftwareSigner::from(root_key);
        let root = sign(draft.review().unwrap(), &root_key);
        let key = PrivateKey::generate(KeyKind::P256).unwrap();
        let parent = Issuer::from_certificate(root.clone()).unwrap();
        let week = Lifetime::from_secs(30 * 86_400).unwrap();
        let draft =
            AuthorityDraft::issuer(&parent, key.public().clone(), serial(START), START, week);
        let issuer = sign(draft.review().unwrap(), &root_key);
        let (issuer_key, attested) = (SoftwareSigner::from(key), Attested::default());
        Self { domain, root, issuer, issuer_key, entropy, attested }
    }

    /// An SVID that is issued at this moment.
    pub(crate) fn svid(&self, path: &str, issued: Timestamp, lifetime_secs: u64) -> Svid {
        self.svid_from(path, issued, lifetime_secs, (NODE, 7))
    }

    /// An SVID that is issued at this moment through this node, authorised under this revision.
    pub(crate) fn svid_from(
        &self,
        path: &str,
        issued: Timestamp,
        lifetime_secs: u64,
        (node, number): (NodeTag, u64),
    ) -> Svid {
        let key = PrivateKey::generate(KeyKind::P256).unwrap();
        self.svid_for(&key, path, issued, lifetime_secs, (node, number))
    }

    /// The same, for this key.
    pub(crate) fn svid_for(
        &self,
        key: &PrivateKey,
        path: &str,
        issued: Timestamp,
        lifetime_secs: u64,
        (node, number): (NodeTag, u64),
    ) -> Svid {
        let issuer = Issuer::from_certificate(self.issuer.clone()).unwrap();
        let span = (issued, lifetime_secs);
        let (proven, provenance) = (ProvenKey::of(key), self.provenance(node, number));
        let leaf = self.certify(proven, path, span, provenance, &issuer);
        let id = self.domain.with_path(path).unwrap();
        let ders = [leaf.der(), self.issuer.der(), self.root.der()];
        let shown = if id.is_reserved() { 3 } else { 2 };
        let chain = Chain::from_ders(ders.into_iter().take(shown)).unwrap();
        Svid { id, chain, pkcs8: key.pkcs8().to_vec() }
    }

    /// What is known of how a certificate came about.
    pub(crate) fn provenance(&self, node: NodeTag, number: u64) -> Provenance {
        let revision = Revision { incarnation: 1, number };
        Provenance { revision, node, attested: self.attested }
    }

    /// A certificate for a key whose possession is proven, of this moment and for so many seconds.
    pub(crate) fn certify(
        &self,
        key: ProvenKey,
        path: &str,
        (issued, lifetime_secs): (Timestamp, u64),
        provenance: Provenance,
        issuer: &Issuer,
    ) -> Certificate {
        let id = self.domain.with_path(path).unwrap();
        let lifetime = Lifetime::from_secs(lifetime_secs).unwrap();
        let reserved = if id.is_reserved() { Reserved::Allow } else { Reserved::Refuse };
        let draft = Draft {
            id,
            key,
            serial: Serial::draw(issued, &self.entropy).unwrap(),
            issued,
            lifetime,
            dns_names: Vec::new(),
            provenance,
            reserved,
        };
        let profile =
            Profile { domain: self.domain.clone(), lifetime_max: lifetime, pointers: None };
        sign(draft.review(&profile, issuer).unwrap(), &self.issuer_key)
    }

    /// The chain with another leaf, in whose contents these bytes are exchanged, rightly signed by the issuer.
    pub(crate) fn altered(&self, svid: &Svid, from: &[u8], to: &[u8]) -> Vec<Vec<u8>> {
        let mut tbs = svid.chain.leaf().tbs().to_vec();
        let at = tbs.windows(from.len()).position(|window| window == from).unwrap();
        tbs[at..at + from.len()].copy_from_slice(to);
        let signature = at_once(self.issuer_key.sign(&tbs)).unwrap();
        // ecdsa-with-SHA256, and a bit string without unused bits.
        let algorithm: &[u8] = &[0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
        let bits =
            [&[0x03, u8::try_from(signature.len() + 1).unwrap(), 0], &signature[..]].concat();
        let body = [&tbs[..], algorithm, &bits].concat();
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        let leaf = [&[0x30, 0x82], &length[..], &body].concat();
        vec![leaf, self.issuer.der().to_vec()]
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle::new(self.domain.clone(), vec![self.root.clone()], 1)
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
