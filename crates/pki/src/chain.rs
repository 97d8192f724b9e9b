//! A chain of certificates, the leaf first.

use countersign_identity::Timestamp;

use crate::pem::{self, BadPem};
use crate::{BadCertificate, Certificate};

/// The longest chain that is read.
pub const CHAIN_CERTIFICATES_MAX: usize = 8;

/// A leaf and the authorities' certificates that lead to a root, as it is shown to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain(Vec<Certificate>); // INVARIANT: 1 to 8

/// Why something is not a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadChain {
    /// None in it.
    #[error("there is no certificate in it")]
    Empty,
    /// Over the bound.
    #[error("a chain of {found} certificates is over the limit of {CHAIN_CERTIFICATES_MAX}")]
    Long {
        /// How many.
        found: usize,
    },
    /// One of them.
    #[error("certificate {position}: {bad}")]
    Certificate {
        /// Which one, from 1.
        position: usize,
        /// What is wrong with it.
        bad: BadCertificate,
    },
    /// The text around them.
    #[error(transparent)]
    Pem(#[from] BadPem),
}

impl Chain {
    /// Takes certificates in DER, the leaf first.
    ///
    /// # Errors
    /// When there is none, more than eight, or one does not parse.
    pub fn from_ders<'a>(ders: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, BadChain> {
        let certificates: Result<Vec<_>, _> = (1..)
            .zip(ders)
            .map(|(position, der)| {
                if CHAIN_CERTIFICATES_MAX < position {
                    return Err(BadChain::Long { found: position });
                }
                Certificate::parse(der).map_err(|bad| BadChain::Certificate { position, bad })
            })
            .collect();
        Self::from_certificates(certificates?)
    }

    /// Takes parsed certificates, the leaf first.
    ///
    /// # Errors
    /// When there is none, or more than eight.
    pub fn from_certificates(certificates: Vec<Certificate>) -> Result<Self, BadChain> {
        match certificates.len() {
            0 => Err(BadChain::Empty),
            1..=CHAIN_CERTIFICATES_MAX => Ok(Self(certificates)),
            found => Err(BadChain::Long { found }),
        }
    }

    /// Takes certificates in DER one after the other, as the Workload API gives them.
    ///
    /// # Errors
    /// As for [`from_ders`](Self::from_ders).
    pub fn from_concatenated(bytes: &[u8]) -> Result<Self, BadChain> {
        Self::from_ders(split(bytes))
    }

    /// Takes a PEM text that holds certificates and nothing else.
    ///
    /// # Errors
    /// As for [`from_ders`](Self::from_ders), or when the text holds something else.
    pub fn from_pem(text: &str) -> Result<Self, BadChain> {
        let ders = pem::decode_certificates(text)?;
        Self::from_ders(ders.iter().map(Vec::as_slice))
    }

    /// The leaf.
    pub fn leaf(&self) -> &Certificate {
        &self.0[0]
    }

    /// All certificates, the leaf first.
    pub fn certificates(&self) -> &[Certificate] {
        &self.0
    }

    /// When the first of those ends that vouch for the leaf, as far as the chain shows them.
    pub fn issuers_end(&self) -> Option<Timestamp> {
        self.certificates().iter().skip(1).map(|issuer| issuer.validity().not_after).min()
    }

    /// The DER of each.
    pub fn ders(&self) -> Vec<&[u8]> {
        self.0.iter().map(Certificate::der).collect()
    }

    /// Their DER, one after the other.
    pub fn concatenated(&self) -> Vec<u8> {
        self.ders().concat()
    }

    /// The PEM text.
    pub fn pem(&self) -> String {
        self.0.iter().map(|certificate| pem::encode_certificate(certificate.der())).collect()
    }
}

/// Splits DER values that stand one after the other. What does not split comes last, whole, and is
/// refused by the parser that gets it.
pub(crate) fn split(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let length =
            crate::der::Reader::new(rest).any().map_or(rest.len(), |value| value.range().end);
        let (value, after) = rest.split_at(length);
        rest = after;
        Some(value)
    })
}
