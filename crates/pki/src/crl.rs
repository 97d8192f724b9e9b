//! Certificate revocation lists (RFC 5280, section 5): what one says, written and signed.

use std::fmt;

use countersign_identity::{Reason, Revision, Serial, Timestamp};

use crate::write::{authority_key_id, critical, issuer_key_id, plain, time};
use crate::{Issuer, PublicKey, SignFault, Signer, der, oid};

/// One certificate that is out of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RevokedSerial {
    /// Which.
    pub serial: Serial,
    /// Since when.
    pub at: Timestamp,
    /// Why.
    pub reason: Reason,
}

/// The number of a list: lists of one issuer that say more have a higher one.
///
/// It is made of the revision whose revocations the list tells and of the second of its issue, so that every replica
/// numbers alike, and a newer revision comes after an older one whatever the clocks say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CrlNumber([u8; 20]); // INVARIANT: the first bit is 0 (RFC 5280, 5.2.3: at most 20 bytes)

impl CrlNumber {
    /// The number that is below every other: what a delta is based on that goes with any list.
    pub const ZERO: Self = Self([0; 20]);

    /// The number of a list at this revision and moment.
    pub fn new(revision: Revision, at: Timestamp) -> Self {
        const INCARNATION_MAX: u64 = (1 << 55) - 1;
        const SECS_MAX: i64 = (1 << 40) - 1;
        let mut bytes = [0; 20];
        let incarnation = revision.incarnation.min(INCARNATION_MAX).to_be_bytes();
        let secs = at.secs().clamp(0, SECS_MAX).to_be_bytes();
        bytes[..7].copy_from_slice(&incarnation[1..]);
        bytes[7..15].copy_from_slice(&revision.number.to_be_bytes());
        bytes[15..].copy_from_slice(&secs[3..]);
        Self(bytes)
    }

    /// Takes the contents of a DER INTEGER that is not negative.
    pub(crate) fn from_integer(content: &[u8]) -> Option<Self> {
        let mut bytes = [0; 20];
        bytes.get_mut(20_usize.checked_sub(content.len())?..)?.copy_from_slice(content);
        (content.first().is_some_and(|first| first & 0x80 == 0)).then_some(Self(bytes))
    }

    fn to_der(self) -> Vec<u8> {
        der::write_unsigned(&self.0)
    }
}

/// Lower hex without leading zeros, as other tools show it.
impl fmt::Display for CrlNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.write_str(match text.trim_start_matches('0') {
            "" => "0",
            digits => digits,
        })
    }
}

impl serde::Serialize for CrlNumber {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whose certificates a list tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrlOf {
    /// Leaves: an issuer's list.
    Users,
    /// Authorities: a root's list.
    Authorities,
}

/// What a list is to say.
#[derive(Clone, Debug)]
pub struct CrlDraft<'a> {
    /// Who signs it.
    pub issuer: &'a Issuer,
    /// Its number.
    pub number: CrlNumber,
    /// Since when it is true.
    pub this_update: Timestamp,
    /// When the next comes at the latest.
    pub next_update: Timestamp,
    /// Whose certificates it tells of.
    pub of: CrlOf,
    /// Where it is found, when it is only a part of the issuer's list. A list without an address is about everything
    /// in its scope (RFC 5280, 5.2.5), and fits certificates whatever address they name.
    pub part: Option<&'a str>,
    /// On which list it builds, when it tells changes only.
    pub base: Option<CrlNumber>,
    /// Where the changes are told that come after it.
    pub freshest: Option<&'a str>,
    /// What it lists, in the order of the serials, none twice.
    pub entries: &'a [RevokedSerial],
}

impl CrlDraft<'_> {
    /// Writes and signs it. What is signed is verified before anybody gets it.
    ///
    /// # Errors
    /// When the signer is not the issuer's, fails, or signs wrongly.
    pub async fn sign(&self, signer: &dyn Signer) -> Result<Vec<u8>, SignFault> {
        sign_with(self.issuer.key(), signer, self.contents(), &[]).await
    }

    /// The `TBSCertList`.
    fn contents(&self) -> Vec<u8> {
        let mut extensions = vec![
            authority_key_id(&issuer_key_id(self.issuer)),
            plain(oid::CRL_NUMBER, &self.number.to_der()),
            critical(oid::ISSUING_DISTRIBUTION_POINT, &self.distribution_point()),
        ];
        if let Some(base) = self.base {
            extensions.push(critical(oid::DELTA_CRL_INDICATOR, &base.to_der()));
        }
        if let Some(freshest) = self.freshest {
            extensions.push(plain(oid::FRESHEST_CRL, &distribution_points(freshest)));
        }
        let extensions = der::write(der::SEQUENCE, &[&extensions.concat()]);
        let mut entries = Vec::with_capacity(self.entries.len() * ENTRY_BYTES);
        for revoked in self.entries {
            entries.extend_from_slice(&entry(revoked));
        }
        // An empty list of entries is left out (RFC 5280, 5.1.2.6).
        let entries =
            if entries.is_empty() { entries } else { der::write(der::SEQUENCE, &[&entries]) };
        der::write(
            der::SEQUENCE,
            &[
                VERSION_2,
                self.issuer.key().kind().signature_algorithm(),
                self.issuer.certificate().subject(),
                &time(self.this_update),
                &time(self.next_update),
                &entries,
                &der::write(der::context_constructed(0), &[&extensions]),
            ],
        )
    }

    /// `IssuingDistributionPoint` (RFC 5280, 5.2.5).
    fn distribution_point(&self) -> Vec<u8> {
        let name = self.part.map(|url| der::write(der::context_constructed(0), &[&full_name(url)]));
        let scope = match self.of {
            CrlOf::Users => ONLY_USERS,
            CrlOf::Authorities => ONLY_AUTHORITIES,
        };
        der::write(der::SEQUENCE, &[&name.unwrap_or_default(), scope])
    }
}

/// What an entry usually takes.
const ENTRY_BYTES: usize = 49;
const VERSION_2: &[u8] = &[0x02, 0x01, 0x01];
/// `onlyContainsUserCerts [1] BOOLEAN`, true.
pub(crate) const ONLY_USERS: &[u8] = &[0x81, 0x01, 0xff];
/// `onlyContainsCACerts [2] BOOLEAN`, true.
pub(crate) const ONLY_AUTHORITIES: &[u8] = &[0x82, 0x01, 0xff];

/// One entry; a reason that is unspecified is left out (RFC 5280, 5.3.1).
fn entry(revoked: &RevokedSerial) -> Vec<u8> {
    let code = revoked.reason.crl_code();
    let reason = plain(oid::CRL_REASON, &der::write(der::ENUMERATED, &[&[code]]));
    let reason = if code == 0 { Vec::new() } else { der::write(der::SEQUENCE, &[&reason]) };
    let serial = der::write_unsigned(revoked.serial.as_bytes());
    der::write(der::SEQUENCE, &[&serial, &time(revoked.at), &reason])
}

/// The `fullName` of a distribution point: one URI.
fn full_name(url: &str) -> Vec<u8> {
    der::write(der::context_constructed(0), &[&der::write(der::context(6), &[url.as_bytes()])])
}

/// `CRLDistributionPoints` with one address (RFC 5280, 4.2.1.13); `FreshestCRL` has the same form.
pub(crate) fn distribution_points(url: &str) -> Vec<u8> {
    let name = der::write(der::context_constructed(0), &[&full_name(url)]);
    der::write(der::SEQUENCE, &[&der::write(der::SEQUENCE, &[&name])])
}

/// Signs contents and puts the signed thing together: contents, algorithm, signature, and what follows.
///
/// # Errors
/// When the signer holds another key, fails, or signs wrongly.
pub(crate) async fn sign_with(
    key: &PublicKey,
    signer: &dyn Signer,
    contents: Vec<u8>,
    after: &[u8],
) -> Result<Vec<u8>, SignFault> {
    if signer.public() != key {
        return Err(SignFault::WrongKey { expected: key.id(), found: signer.public().id() });
    }
    let signature = signer.sign(&contents).await?;
    key.verify(&contents, &signature).map_err(|_bad| SignFault::BadSignature)?;
    let bits = der::write_bytes_as_bits(&signature);
    let algorithm = key.kind().signature_algorithm();
    Ok(der::write(der::SEQUENCE, &[&contents, algorithm, &bits, after]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_revision_before_the_clock() {
        let number = |incarnation, number, secs| {
            CrlNumber::new(Revision { incarnation, number }, Timestamp::from_secs(secs))
        };
        assert!(number(1, 2, 900) > number(1, 1, 1000));
        assert!(number(1, 2, 901) > number(1, 2, 900));
        assert!(number(2, 1, 0) > number(1, u64::MAX, 1000));
        assert!(number(u64::MAX, u64::MAX, i64::MAX).0[0] & 0x80 == 0);
        assert!(CrlNumber::ZERO < number(0, 0, 1));
        assert_eq!(CrlNumber::ZERO.to_string(), "0");
        assert_eq!(number(1, 2, 3).to_string(), "100000000000000020000000003");
    }
}
