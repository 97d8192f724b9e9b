//! From reviewed contents, through a durable record, to a signature.

use countersign_identity::{KeyId, Serial, Sha256, SpiffeId, Validity};

use crate::der;
use crate::draft::{AuthorityDraft, Draft, ResponderDraft};
use crate::key::sha256;
use crate::memory::Step;
use crate::verify::check_parsed_leaf;
use crate::{Certificate, Issuer, Pointers, Provenance, PublicKey, SignFault, Signer, write};

/// The final contents of a certificate, which passed review and wait to be recorded and signed.
///
/// There is no other way to a certificate: without a review it does not compile,
///
/// ```compile_fail,E0451
/// # use countersign_pki::{PublicKey, Reviewed, Summary};
/// fn forge(tbs: Vec<u8>, summary: Summary, signed_by: PublicKey) -> Reviewed {
///     Reviewed { tbs, summary, signed_by }
/// }
/// ```
///
/// nor without the receipt of a durable record,
///
/// ```compile_fail,E0061
/// # use countersign_pki::{Certificate, Reviewed, SignFault, Signer};
/// async fn unrecorded(reviewed: Reviewed, signer: &dyn Signer) -> Result<Certificate, SignFault> {
///     reviewed.sign(signer).await
/// }
/// ```
///
/// and neither can be used twice.
///
/// ```compile_fail,E0382
/// # use countersign_pki::{Receipt, Reviewed, SignFault, Signer};
/// async fn twice(reviewed: Reviewed, receipt: Receipt, signer: &dyn Signer) -> Result<(), SignFault> {
///     reviewed.sign(receipt, signer).await?;
///     reviewed.sign(receipt, signer).await?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Reviewed {
    tbs: Vec<u8>, // INVARIANT: the TBSCertificate that the summary is of
    summary: Summary,
    signed_by: PublicKey,
}

/// What the record of an issuance holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The serial number.
    pub serial: Serial,
    /// SHA-256 of the complete TBSCertificate.
    pub tbs: Sha256,
    /// Whose it is; `None` for an authority and for a responder.
    pub id: Option<SpiffeId>,
    /// The certified key.
    pub key: KeyId,
    /// From when to when it will be valid.
    pub validity: Validity,
    /// The key that signs it.
    pub issuer: KeyId,
    /// Under which revision it was authorised, and for which node; `None` unless it is an SVID.
    pub provenance: Option<Provenance>,
}

/// The proof that a certificate's contents are durably recorded.
#[derive(Debug)]
#[must_use = "a receipt is what allows to sign"]
pub struct Receipt {
    tbs: Sha256,
    index: u64,
}

impl Receipt {
    /// Claims that the leaf at `index` of the audit log, which holds this digest, is durable. Only a
    /// store may, after its commit.
    pub const fn assertion(tbs: Sha256, index: u64) -> Self {
        Self { tbs, index }
    }

    /// The recorded digest.
    pub const fn tbs(&self) -> Sha256 {
        self.tbs
    }

    /// The place in the audit log.
    pub const fn index(&self) -> u64 {
        self.index
    }
}

/// A certificate that was signed a moment ago, its signature verified by the key that should have made it. Nothing else makes one.
#[derive(Debug)]
pub struct Fresh {
    certificate: Certificate,
    signed_by: KeyId, // INVARIANT: of the key by which its signature was verified
}

impl Fresh {
    /// The certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The signature that was verified.
    pub(crate) fn step(&self) -> Step {
        Step::verified(&self.certificate, self.signed_by)
    }
}

impl Reviewed {
    pub(crate) fn leaf(draft: &Draft, issuer: &Issuer, pointers: Option<&Pointers>) -> Self {
        let validity = write::validity(draft.issued, draft.lifetime, Some(issuer));
        let tbs = write::leaf(draft, issuer, validity, pointers);
        let summary = Summary {
            serial: draft.serial,
            tbs: Sha256::from_bytes(sha256(&tbs)),
            id: Some(draft.id.clone()),
            key: draft.key.public().id(),
            validity,
            issuer: issuer.key_id(),
            provenance: Some(draft.provenance),
        };
        Self { tbs, summary, signed_by: issuer.key().clone() }
    }

    pub(crate) fn authority(draft: &AuthorityDraft) -> Self {
        let signed_by = draft.parent.as_ref().map_or(&draft.key, Issuer::key).clone();
        let validity = write::validity(draft.issued, draft.lifetime, draft.parent.as_ref());
        let tbs = write::authority(draft, validity);
        let summary = Summary {
            serial: draft.serial,
            tbs: Sha256::from_bytes(sha256(&tbs)),
            id: None,
            key: draft.key.id(),
            validity,
            issuer: signed_by.id(),
            provenance: None,
        };
        Self { tbs, summary, signed_by }
    }

    pub(crate) fn responder(draft: &ResponderDraft) -> Self {
        let validity = write::validity(draft.issued, draft.lifetime, Some(&draft.issuer));
        let tbs = write::responder(draft, validity);
        let summary = Summary {
            serial: draft.serial,
            tbs: Sha256::from_bytes(sha256(&tbs)),
            id: None,
            key: draft.key.id(),
            validity,
            issuer: draft.issuer.key_id(),
            provenance: None,
        };
        Self { tbs, summary, signed_by: draft.issuer.key().clone() }
    }

    /// What to record.
    pub fn summary(&self) -> Summary {
        self.summary.clone()
    }

    /// The bytes that will be signed.
    pub fn tbs(&self) -> &[u8] {
        &self.tbs
    }

    /// Signs, once. The receipt shows that the log already holds these contents.
    ///
    /// The signature is verified and the finished certificate read back before anybody gets it, so
    /// that a faulty signer is found here and not by a peer.
    ///
    /// # Errors
    /// When the receipt is for other contents, the signer is not the issuer's, fails, or signs wrongly.
    pub async fn sign(
        self,
        receipt: Receipt,
        signer: &dyn Signer,
    ) -> Result<Certificate, SignFault> {
        self.sign_fresh(receipt, signer).await.map(|fresh| fresh.certificate)
    }

    /// The same; what comes of it says, too, that its signature was verified, so that
    /// [`verify_fresh`](crate::verify_fresh) need not do so again.
    ///
    /// # Errors
    /// As for [`sign`](Self::sign).
    pub async fn sign_fresh(
        self,
        receipt: Receipt,
        signer: &dyn Signer,
    ) -> Result<Fresh, SignFault> {
        if receipt.tbs != self.summary.tbs {
            let (reviewed, recorded) = (self.summary.tbs, receipt.tbs);
            return Err(SignFault::WrongReceipt { reviewed, recorded });
        }
        if *signer.public() != self.signed_by {
            let (expected, found) = (self.signed_by.id(), signer.public().id());
            return Err(SignFault::WrongKey { expected, found });
        }
        let signature = signer.sign(&self.tbs).await?;
        self.signed_by.verify(&self.tbs, &signature).map_err(|_bad| SignFault::BadSignature)?;
        let algorithm = self.signed_by.kind().signature_algorithm();
        let bits = der::write_bytes_as_bits(&signature);
        let certificate =
            Certificate::parse(&der::write(der::SEQUENCE, &[&self.tbs, algorithm, &bits]))
                .map_err(|bad| SignFault::BadResult(bad.to_string()))?;
        self.check(&certificate)?;
        Ok(Fresh { certificate, signed_by: self.signed_by.id() })
    }

    /// Reads the finished certificate with the eyes of a verifier.
    fn check(&self, certificate: &Certificate) -> Result<(), SignFault> {
        let bad = |why: String| SignFault::BadResult(why);
        if certificate.tbs() != self.tbs || certificate.validity() != self.summary.validity {
            return Err(bad("it does not hold what was reviewed".to_owned()));
        }
        let Some(id) = &self.summary.id else {
            return match certificate.is_authority() || certificate.is_ocsp_responder() {
                true => Ok(()),
                false => Err(bad("it is neither an authority's nor a responder's".to_owned())),
            };
        };
        match check_parsed_leaf(certificate) {
            Ok(found) if found == *id => Ok(()),
            Ok(found) => Err(bad(format!("it names `{found}`"))),
            Err(refused) => Err(bad(refused.why)),
        }
    }
}
