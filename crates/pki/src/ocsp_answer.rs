//! Answers about certificates (OCSP, RFC 6960, 4.2): written, and signed by a delegated responder.

use countersign_identity::{Reason, Timestamp};

use crate::crl::sign_with;
use crate::ocsp::{OcspQuestion, key_hash};
use crate::write::plain;
use crate::{Certificate, PublicKey, SignFault, Signer, der, oid};

/// What is known of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OcspStatus {
    /// It was issued, and is not revoked.
    Good,
    /// It is out of service.
    Revoked {
        /// Since when.
        at: Timestamp,
        /// Why.
        reason: Reason,
    },
    /// Nothing is known of it.
    Unknown,
}

/// Why there is no answer. It is said without a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OcspFault {
    /// The request does not parse.
    MalformedRequest,
    /// The fault is ours.
    InternalError,
    /// It can be answered, and not now.
    TryLater,
    /// It is about nothing that we speak for.
    Unauthorized,
}

impl OcspFault {
    /// The complete response.
    pub fn to_der(self) -> Vec<u8> {
        let code = match self {
            Self::MalformedRequest => 1,
            Self::InternalError => 2,
            Self::TryLater => 3,
            Self::Unauthorized => 6,
        };
        der::write(der::SEQUENCE, &[&der::write(der::ENUMERATED, &[&[code]])])
    }
}

/// An answer before it is signed.
#[derive(Clone, Debug)]
pub struct OcspAnswer<'a> {
    /// What was asked, with what is known of each.
    pub statuses: Vec<(&'a OcspQuestion, OcspStatus)>,
    /// When it is made.
    pub produced: Timestamp,
    /// Since when it is true.
    pub this_update: Timestamp,
    /// When more is known at the latest.
    pub next_update: Timestamp,
    /// What the request brought, to be repeated.
    pub nonce: Option<&'a [u8]>,
}

impl OcspAnswer<'_> {
    /// Signs it with the key of a responder, whose certificate goes with it. Gives the complete response.
    ///
    /// # Errors
    /// When the certificate's key is none of ours or not the signer's, or the signer fails or signs wrongly.
    pub async fn sign(
        &self,
        responder: &Certificate,
        signer: &dyn Signer,
    ) -> Result<Vec<u8>, SignFault> {
        let key = responder.public_key().map_err(|bad| SignFault::BadResult(bad.to_string()))?;
        let certificates = der::write(der::SEQUENCE, &[responder.der()]);
        let certificates = der::write(der::context_constructed(0), &[&certificates]);
        let basic = sign_with(&key, signer, self.contents(&key), &certificates).await?;
        let bytes = der::write(
            der::SEQUENCE,
            &[&der::write(der::OID, &[oid::OCSP_BASIC]), &der::write(der::OCTET_STRING, &[&basic])],
        );
        let bytes = der::write(der::context_constructed(0), &[&bytes]);
        Ok(der::write(der::SEQUENCE, &[SUCCESSFUL, &bytes]))
    }

    /// The `ResponseData`.
    fn contents(&self, key: &PublicKey) -> Vec<u8> {
        let by_key = der::write(der::OCTET_STRING, &[&key_hash(key.spki())]);
        let singles: Vec<u8> = self
            .statuses
            .iter()
            .flat_map(|(question, status)| self.single(question, *status))
            .collect();
        let extensions = self.nonce.map(|nonce| {
            let nonce = plain(oid::OCSP_NONCE, &der::write(der::OCTET_STRING, &[nonce]));
            der::write(der::context_constructed(1), &[&der::write(der::SEQUENCE, &[&nonce])])
        });
        der::write(
            der::SEQUENCE,
            &[
                &der::write(der::context_constructed(2), &[&by_key]),
                &generalized(self.produced),
                &der::write(der::SEQUENCE, &[&singles]),
                &extensions.unwrap_or_default(),
            ],
        )
    }

    fn single(&self, question: &OcspQuestion, status: OcspStatus) -> Vec<u8> {
        let next = der::write(der::context_constructed(0), &[&generalized(self.next_update)]);
        let status = status.to_der();
        der::write(der::SEQUENCE, &[&question.id, &status, &generalized(self.this_update), &next])
    }
}

impl OcspStatus {
    fn to_der(self) -> Vec<u8> {
        match self {
            Self::Good => der::write(der::context(0), &[]),
            Self::Unknown => der::write(der::context(2), &[]),
            Self::Revoked { at, reason } => {
                let code = der::write(der::ENUMERATED, &[&[reason.crl_code()]]);
                let code = der::write(der::context_constructed(0), &[&code]);
                // As in a list, nothing is said when nobody said why.
                let code = if reason.crl_code() == 0 { Vec::new() } else { code };
                der::write(der::context_constructed(1), &[&generalized(at), &code])
            }
        }
    }
}

/// `responseStatus`, successful.
const SUCCESSFUL: &[u8] = &[0x0a, 0x01, 0x00];

/// `YYYYMMDDHHMMSSZ`, in every year (RFC 6960, 4.2.2.1).
fn generalized(moment: Timestamp) -> Vec<u8> {
    let (year, month, day, hour, minute, second) = moment.civil();
    let text = format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}Z");
    der::write(der::GENERALIZED_TIME, &[text.as_bytes()])
}
