//! A small trust domain in memory, made through the same steps as a real one.

use anyhow::{Context, Result};
use countersign_identity::{
    Attested, Lifetime, NodeTag, Revision, Serial, SystemEntropy, Timestamp, TrustDomain,
};
use countersign_pki::{
    AuthorityDraft, Bundle, Certificate, Chain, Draft, Issuer, KeyKind, PrivateKey, Profile,
    ProvenKey, Provenance, Receipt, Reserved, Reviewed, Signer, SoftwareSigner, encode_private_key,
};

pub(crate) struct Domain {
    pub domain: TrustDomain,
    pub bundle: Bundle,
    pub issuer: Issuer,
    pub signer: SoftwareSigner,
    pub now: Timestamp,
    root: Issuer,
    root_signer: SoftwareSigner,
}

/// A chain and its key.
pub(crate) struct Credential {
    pub chain: Chain,
    pub key: PrivateKey,
}

/// Nothing here is kept, so the benchmark itself stands for the record.
async fn sign(reviewed: Reviewed, signer: &dyn Signer) -> Result<Certificate> {
    let receipt = Receipt::assertion(reviewed.summary().tbs, 0);
    Ok(reviewed.sign(receipt, signer).await?)
}

async fn certify(
    root: &Issuer,
    root_signer: &SoftwareSigner,
    now: Timestamp,
) -> Result<(Issuer, SoftwareSigner)> {
    let key = PrivateKey::generate(KeyKind::P256)?;
    let (week, serial) = (Lifetime::from_secs(7 * 86_400)?, Serial::draw(now, &SystemEntropy)?);
    let draft = AuthorityDraft::issuer(root, key.public().clone(), serial, now, week);
    let issuer = Issuer::from_certificate(sign(draft.review()?, root_signer).await?)?;
    Ok((issuer, SoftwareSigner::from(key)))
}

impl Domain {
    pub(crate) async fn make(now: Timestamp) -> Result<Self> {
        let domain: TrustDomain = "bench.example".parse()?;
        let year = Lifetime::from_secs(365 * 86_400)?;
        let serial = Serial::draw(now, &SystemEntropy)?;
        let root_key = PrivateKey::generate(KeyKind::P256)?;
        let root_public = root_key.public().clone();
        let root_signer = SoftwareSigner::from(root_key);
        let draft = AuthorityDraft::root(domain.clone(), root_public, serial, now, year);
        let root = sign(draft.review()?, &root_signer).await?;

        let bundle = Bundle::new(domain.clone(), vec![root.clone()], 1);
        let root = Issuer::from_certificate(root)?;
        let (issuer, signer) = certify(&root, &root_signer, now).await?;
        Ok(Self { domain, bundle, issuer, signer, now, root, root_signer })
    }

    /// Goes on under another issuer.
    pub(crate) async fn change_issuer(&mut self) -> Result<()> {
        (self.issuer, self.signer) = certify(&self.root, &self.root_signer, self.now).await?;
        Ok(())
    }

    /// Of this moment, as a server does it: by their serials, rows go where the last one went.
    pub(crate) fn draft(&self, path: &str, key: ProvenKey, now: Timestamp) -> Result<Draft> {
        Ok(Draft {
            id: self.domain.with_path(path)?,
            key,
            serial: Serial::draw(now, &SystemEntropy)?,
            issued: now,
            lifetime: Lifetime::from_secs(3600)?,
            dns_names: Vec::new(),
            provenance: Provenance {
                revision: Revision { incarnation: 1, number: 0 },
                node: NodeTag::from_bytes([7; 8]),
                attested: Attested::default(),
            },
            reserved: Reserved::Refuse,
        })
    }

    pub(crate) fn profile(&self) -> Result<Profile> {
        Ok(Profile {
            domain: self.domain.clone(),
            lifetime_max: Lifetime::from_secs(86_400)?,
            pointers: None,
        })
    }

    pub(crate) async fn issue(&self, path: &str) -> Result<Credential> {
        let key = PrivateKey::generate(KeyKind::P256)?;
        let draft = self.draft(path, ProvenKey::of(&key), self.now)?;
        let leaf = sign(draft.review(&self.profile()?, &self.issuer)?, &self.signer).await?;
        let chain = Chain::from_ders([leaf.der(), self.issuer.certificate().der()])?;
        Ok(Credential { chain, key })
    }
}

impl Credential {
    pub(crate) fn write(&self, folder: &std::path::Path, name: &str) -> Result<()> {
        let write = |end: &str, text: &str| {
            let path = folder.join(format!("{name}{end}"));
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write(".pem", &self.chain.pem())?;
        write(".key", &encode_private_key(&self.key))
    }
}
