//! The first authorities of a trust domain: a root, and an issuer that the root signs.

use std::sync::Arc;

use countersign_api::admin::RootKey;
use countersign_api::resource::{Spec, TrustDomainSpec};
use countersign_audit::{Event, EventKind};
use countersign_identity::{Code, Entropy, KeyId, Lifetime, Name, Serial, Timestamp, TrustDomain};
use countersign_pki::{
    AuthorityDraft, Bundle, Certificate, Issuer, KeyKind, PrivateKey, Reviewed, Signer,
    SoftwareSigner,
};
use countersign_seal::Kek;
use countersign_store::{Batch, Change, IssuedRow, Kind, Op, Record, Store};

use crate::authority::Imported;
use crate::authority::sealed::{ISSUER, KeyToKeep, ROOT, issuer_name, keep};
use crate::refusal::Refused;
use crate::rotate::Walk;

/// Who makes authorities.
const ACTOR: &str = "server";

/// What the first authorities are made with.
pub(crate) struct First<'a> {
    pub(crate) ceremony: Ceremony<'a>,
    pub(crate) kek: &'a Kek,
    pub(crate) domain: TrustDomain,
    pub(crate) root_lifetime: Lifetime,
    pub(crate) issuer_lifetime: Lifetime,
}

/// The key of a root that is to be made.
pub(crate) enum NewRoot<'a> {
    /// Kept here.
    Here(&'a PrivateKey),
    /// In a token, under this name.
    Token(&'a str, Arc<dyn Signer>),
}

impl NewRoot<'_> {
    /// What signs with it.
    ///
    /// # Errors
    /// When a key here is none, which is a defect.
    pub(crate) fn signer(&self) -> Result<Arc<dyn Signer>, Refused> {
        match self {
            Self::Here(key) => Ok(Arc::new(SoftwareSigner::from(copy(key)?))),
            Self::Token(_, signer) => Ok(Arc::clone(signer)),
        }
    }

    /// How it is kept.
    pub(crate) fn to_keep(&self) -> KeyToKeep<'_> {
        match self {
            Self::Here(key) => KeyToKeep::Here(key),
            Self::Token(uri, _) => KeyToKeep::Token(uri),
        }
    }

    /// Where it is, for people.
    pub(crate) fn held(&self) -> RootKey {
        match self {
            Self::Here(_) => RootKey::Here,
            Self::Token(..) => RootKey::Token,
        }
    }
}

/// Makes the root, the issuer, the first bundle and the trust domain's own record. Says the root's key id.
///
/// # Errors
/// When the store or the system refuses. What was recorded before stays in the log and is harmless: a record
/// without its certificate.
pub(crate) async fn create_first(first: First<'_>) -> Result<KeyId, Refused> {
    let root_key = PrivateKey::generate(KeyKind::P256).map_err(internal)?;
    let issuer_key = PrivateKey::generate(KeyKind::P256).map_err(internal)?;
    create_first_of(first, &NewRoot::Here(&root_key), &issuer_key).await
}

/// The same, of these keys.
///
/// # Errors
/// As [`create_first`].
pub(crate) async fn create_first_of(
    first: First<'_>,
    root_key: &NewRoot<'_>,
    issuer_key: &PrivateKey,
) -> Result<KeyId, Refused> {
    let First { ceremony, kek, domain, .. } = first;
    // 1. A root, which signs itself.
    let root_signer = root_key.signer()?;
    let root = ceremony.root(&domain, &*root_signer, first.root_lifetime).await?;
    // 2. An issuer, which the root signs.
    let parent = Issuer::from_certificate(root.clone()).map_err(internal)?;
    let issuer = ceremony.issuer(&parent, &*root_signer, issuer_key, first.issuer_lifetime).await?;
    // 3. All of it becomes the state of the trust domain at once.
    let issuer_key = KeyToKeep::Here(issuer_key);
    let ops = vec![
        keep(ROOT, &[&root], root_key.to_keep(), kek, ceremony.entropy)?,
        keep(ISSUER, &[&issuer], issuer_key, kek, ceremony.entropy)?,
        keep(&issuer_name(issuer.key_id()), &[&issuer], issuer_key, kek, ceremony.entropy)?,
    ];
    let mut walk = Walk::first(&root, ceremony.now);
    walk.hold(root.key_id(), root_key.held())?;
    ceremony.store.commit(beginning(&domain, &root, &walk, ops, ceremony.now)).await?;
    Ok(parent.key_id())
}

/// Makes the first bundle and the trust domain's own record, of a root that is held outside and an issuer that it signed. Says
/// the root's key id.
///
/// # Errors
/// As [`create_first`].
pub(crate) async fn create_outside(
    ceremony: Ceremony<'_>,
    kek: &Kek,
    imported: &Imported,
    key: &PrivateKey,
) -> Result<KeyId, Refused> {
    let (root, domain) = (&imported.root, imported.issuer.domain());
    let mut ops = keep_outside(imported, key, kek, ceremony.entropy)?;
    ops.push(keep(ROOT, &[root], KeyToKeep::Outside, kek, ceremony.entropy)?);
    let mut walk = Walk::first(root, ceremony.now);
    walk.take_in(imported)?;
    let mut batch = beginning(domain, root, &walk, ops, ceremony.now);
    batch.events.push(imported_event(imported, ACTOR, ceremony.now));
    ceremony.store.commit(batch).await?;
    Ok(root.key_id())
}

/// The operations that make an issuer from outside the one that signs.
///
/// # Errors
/// When the system gives no randomness.
pub(crate) fn keep_outside(
    imported: &Imported,
    key: &PrivateKey,
    kek: &Kek,
    entropy: &dyn Entropy,
) -> Result<Vec<Op>, Refused> {
    let issuer = imported.issuer.certificate();
    let certificates: Vec<_> = [issuer].into_iter().chain(&imported.above).collect();
    let named = issuer_name(imported.issuer.key_id());
    let key = KeyToKeep::Here(key);
    Ok(vec![
        keep(ISSUER, &certificates, key, kek, entropy)?,
        keep(&named, &certificates, key, kek, entropy)?,
    ])
}

/// What the log says of a certificate that came from outside.
pub(crate) fn imported_event(imported: &Imported, actor: &str, now: Timestamp) -> Event {
    let certificate = imported.issuer.certificate();
    let serial: String =
        certificate.serial_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let details = serde_json::json!({
        "root": imported.root.key_id(), "serial": serial, "tbs": certificate.tbs_digest(),
        "notAfter": certificate.validity().not_after,
    });
    let subject = imported.issuer.key_id().to_string();
    Event::new(EventKind::AuthorityImported, now, actor, subject).with_details(details)
}

/// The making of an authority: where it is recorded, and when.
#[derive(Clone, Copy)]
pub(crate) struct Ceremony<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) entropy: &'a dyn Entropy,
    pub(crate) now: Timestamp,
}

impl Ceremony<'_> {
    /// A root's certificate, recorded and signed by itself.
    ///
    /// # Errors
    /// When the store or the system refuses.
    pub(crate) async fn root(
        &self,
        domain: &TrustDomain,
        signer: &dyn Signer,
        lifetime: Lifetime,
    ) -> Result<Certificate, Refused> {
        let (key, serial) = (signer.public().clone(), self.serial()?);
        let draft = AuthorityDraft::root(domain.clone(), key, serial, self.now, lifetime);
        self.record(draft.review().map_err(internal)?, domain, signer).await
    }

    /// An issuer's certificate, recorded and signed by its root.
    ///
    /// # Errors
    /// As for the first one.
    pub(crate) async fn issuer(
        &self,
        parent: &Issuer,
        parent_signer: &dyn Signer,
        key: &PrivateKey,
        lifetime: Lifetime,
    ) -> Result<Certificate, Refused> {
        let (key, serial) = (key.public().clone(), self.serial()?);
        let draft = AuthorityDraft::issuer(parent, key, serial, self.now, lifetime);
        self.record(draft.review().map_err(internal)?, parent.domain(), parent_signer).await
    }

    /// A newer root's key, recorded and certified by an older root.
    ///
    /// # Errors
    /// As for a root.
    pub(crate) async fn cross(
        &self,
        older: &Issuer,
        older_signer: &dyn Signer,
        newer: &Issuer,
        lifetime: Lifetime,
    ) -> Result<Certificate, Refused> {
        let draft = AuthorityDraft::cross(older, newer, self.serial()?, self.now, lifetime);
        self.record(draft.review().map_err(internal)?, older.domain(), older_signer).await
    }

    /// Records an authority, and only then lets `signer` sign it.
    async fn record(
        &self,
        reviewed: Reviewed,
        domain: &TrustDomain,
        signer: &dyn Signer,
    ) -> Result<Certificate, Refused> {
        // What cannot be signed is not recorded.
        signer.ready().await?;
        let summary = reviewed.summary();
        let row = IssuedRow {
            serial: summary.serial,
            tbs: summary.tbs,
            spiffe_id: domain.id(),
            key: summary.key,
            issuer: summary.issuer,
            node: None,
            validity: summary.validity,
            revision: self.store.head().await?.revision,
        };
        let events = vec![row.event(EventKind::AuthorityCreated, self.now, ACTOR)];
        let batch = Batch { events, issued: vec![row], ..Batch::default() };
        let receipt = self.store.commit(batch).await?.receipts.into_iter().next();
        let receipt = receipt.ok_or_else(|| internal("the store gave no receipt"))?;
        Ok(reviewed.sign(receipt, signer).await?)
    }

    fn serial(&self) -> Result<Serial, Refused> {
        Serial::draw(self.now, self.entropy).map_err(internal)
    }
}

/// The records with which a trust domain begins.
fn beginning(
    domain: &TrustDomain,
    root: &Certificate,
    walk: &Walk,
    ops: Vec<Op>,
    now: Timestamp,
) -> Batch {
    let bundle = Bundle::new(domain.clone(), vec![root.clone()], 1);
    let records = [
        Record {
            kind: Kind::TrustDomain,
            name: label(domain).to_string(),
            value: Spec::TrustDomain(TrustDomainSpec::of(domain.clone())).encode(),
        },
        Record { kind: Kind::Bundle, name: domain.to_string(), value: bundle.to_json().into() },
        walk.record(),
    ];
    let event = |record: &Record| {
        let subject = format!("{}/{}", record.kind, record.name);
        Event::new(EventKind::RecordPut, now, ACTOR, subject)
    };
    let events = records.iter().map(event).collect();
    let changes = records.into_iter().map(Change::Put).collect();
    Batch { changes, events, ops, ..Batch::default() }
}

/// A resource name for a trust domain that nobody has declared yet.
fn label(domain: &TrustDomain) -> Name {
    let dashed = |c| if matches!(c, '.' | '_') { '-' } else { c };
    let text: String = domain.as_str().chars().map(dashed).take(63).collect();
    let named = text.trim_matches('-').parse();
    named.unwrap_or_else(|_bad| "domain".parse().expect("`domain` is a name"))
}

/// The same key again, for a signer that consumes it.
pub(crate) fn copy(key: &PrivateKey) -> Result<PrivateKey, Refused> {
    PrivateKey::from_pkcs8(key.pkcs8()).map_err(internal)
}

pub(crate) fn internal(why: impl std::fmt::Display) -> Refused {
    Refused::new(Code::Internal, why.to_string())
}
