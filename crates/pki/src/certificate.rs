//! A certificate as it was received: parsed strictly, with its very bytes kept.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use countersign_identity::{Code, KeyId, Serial, Sha256, SpiffeId, Timestamp, Validity};

use crate::algorithm::{BadKey, NoSignature, VerifyingKey, split_spki};
use crate::der::{self, BadDer, Reader, Value};
use crate::extension::{BadExtension, Extensions, Purpose, check_name};
use crate::key::sha256;
use crate::pem;
use crate::{Provenance, PublicKey, Refused};

/// The longest certificate that is read.
pub(crate) const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;
const SERIAL_BYTES_MAX: usize = 20;

/// An X.509 certificate, version 3, in strict DER. Cheap to clone.
///
/// It is what was received: [`der`](Self::der) and [`tbs`](Self::tbs) are the bytes themselves,
/// never a second encoding. That it parses says nothing about trust; [`verify`](crate::verify) does.
#[derive(Clone)]
pub struct Certificate(Arc<Parsed>);

struct Parsed {
    der: Vec<u8>,
    tbs: Range<usize>,
    serial: Range<usize>,
    issuer: Range<usize>,
    subject: Range<usize>,
    spki: Range<usize>,
    algorithm: Range<usize>,
    signature: Range<usize>,
    key_id: KeyId,
    validity: Validity,
    extensions: Extensions,
    digest: OnceLock<Sha256>,
}

/// Why bytes are not a certificate that is accepted for reading.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCertificate {
    /// Over the bound.
    #[error("a certificate of {bytes} bytes is over the limit of {CERTIFICATE_BYTES_MAX}")]
    Long {
        /// How many.
        bytes: usize,
    },
    /// Not the DER of a certificate.
    #[error("the certificate does not parse: {0}")]
    Malformed(String),
    /// An extension that stands there twice.
    #[error("the certificate is refused: {0}")]
    Extension(String),
}

impl BadCertificate {
    /// The stable code.
    pub fn code(&self) -> Code {
        match self {
            Self::Long { .. } | Self::Malformed(_) => Code::Malformed,
            Self::Extension(_) => Code::BadExtension,
        }
    }
}

impl From<BadCertificate> for Refused {
    fn from(bad: BadCertificate) -> Self {
        Self::new(bad.code(), bad.to_string())
    }
}

impl From<BadDer> for BadCertificate {
    fn from(bad: BadDer) -> Self {
        Self::Malformed(bad.to_string())
    }
}

impl From<BadExtension> for BadCertificate {
    fn from(bad: BadExtension) -> Self {
        if bad.code == Code::BadExtension {
            return Self::Extension(bad.why);
        }
        Self::Malformed(bad.why)
    }
}

impl Certificate {
    /// Reads a PEM text that holds one certificate and nothing else.
    ///
    /// # Errors
    /// When it holds none, several, something else, or a broken one.
    pub fn from_pem(text: &str) -> Result<Self, BadCertificate> {
        let malformed = |why: String| BadCertificate::Malformed(why);
        let ders = pem::decode_certificates(text).map_err(|bad| malformed(bad.to_string()))?;
        let [der] = ders.as_slice() else {
            return Err(malformed(format!("{} certificates, expected 1", ders.len())));
        };
        Self::parse(der)
    }

    /// SHA-256 of its DER: the name of these very bytes.
    pub fn digest(&self) -> Sha256 {
        // Asked several times in a handshake, and not at all where a certificate is only shown.
        *self.0.digest.get_or_init(|| Sha256::from_bytes(sha256(self.der())))
    }

    /// Writes it as PEM.
    pub fn to_pem(&self) -> String {
        pem::encode_certificate(self.der())
    }

    /// Reads one certificate, and nothing after it.
    ///
    /// # Errors
    /// When it is over 16 KiB, is not strict DER, not version 3, or holds an extension twice.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadCertificate> {
        if CERTIFICATE_BYTES_MAX < bytes.len() {
            return Err(BadCertificate::Long { bytes: bytes.len() });
        }
        let mut reader = Reader::new(bytes);
        let whole = reader.take(der::SEQUENCE, "certificate")?;
        reader.end("certificate")?;
        let mut outer = whole.inside();
        let tbs = outer.take(der::SEQUENCE, "contents")?;
        let algorithm = algorithm(&mut outer)?;
        let signature = outer.take(der::BIT_STRING, "signature")?;
        signature.whole_bytes()?;
        outer.end("certificate")?;
        let contents = Contents::parse(&tbs)?;
        if contents.algorithm.raw() != algorithm.raw() {
            let bad = algorithm.bad("signature algorithm: another one than inside");
            return Err(bad.into());
        }
        Ok(Self(Arc::new(Parsed {
            der: bytes.to_vec(),
            tbs: tbs.range(),
            serial: contents.serial.content_range(),
            issuer: contents.issuer.range(),
            subject: contents.subject.range(),
            spki: contents.spki.range(),
            algorithm: algorithm.range(),
            signature: signature.content_range(),
            key_id: KeyId::from_bytes(sha256(contents.spki.raw())),
            validity: contents.validity,
            extensions: contents.extensions,
            digest: OnceLock::new(),
        })))
    }

    /// The certificate's bytes.
    pub fn der(&self) -> &[u8] {
        &self.0.der
    }

    /// The bytes that are signed.
    pub fn tbs(&self) -> &[u8] {
        &self.0.der[self.0.tbs.clone()]
    }

    /// SHA-256 of the bytes that are signed: what the audit log holds.
    pub fn tbs_digest(&self) -> Sha256 {
        Sha256::from_bytes(sha256(self.tbs()))
    }

    /// The serial number's digits without leading zeros.
    pub fn serial_bytes(&self) -> &[u8] {
        match &self.0.der[self.0.serial.clone()] {
            [0, digits @ ..] if !digits.is_empty() => digits,
            digits => digits,
        }
    }

    /// The serial number, if it has the form of ours.
    pub fn serial(&self) -> Option<Serial> {
        let digits = self.serial_bytes();
        let mut bytes = [0; 16];
        bytes.get_mut(16_usize.checked_sub(digits.len())?..)?.copy_from_slice(digits);
        Serial::from_bytes(bytes)
    }

    /// From when to when it is valid.
    pub fn validity(&self) -> Validity {
        self.0.validity
    }

    /// The key, if it is of a kind that we make.
    ///
    /// # Errors
    /// When it is of another kind.
    pub fn public_key(&self) -> Result<PublicKey, BadKey> {
        PublicKey::from_spki(self.spki())
    }

    /// The DER of the `SubjectPublicKeyInfo`.
    pub fn spki(&self) -> &[u8] {
        &self.0.der[self.0.spki.clone()]
    }

    /// What the certificate says of the key that signed it (RFC 5280, 4.2.1.1); of authorities of ours it is how their
    /// [`KeyId`] begins.
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.extensions().authority_key_id.as_deref()
    }

    /// SHA-256 of the `SubjectPublicKeyInfo`.
    pub fn key_id(&self) -> KeyId {
        self.0.key_id
    }

    /// SHA-256 of the certificate.
    pub fn fingerprint(&self) -> Sha256 {
        self.digest()
    }

    /// The URI names as they stand there, whatever bytes they hold.
    pub fn uri_names(&self) -> &[Vec<u8>] {
        self.0.extensions.alt_names.as_ref().map_or(&[], |names| &names.uris)
    }

    /// The SPIFFE ID: the one URI name. DNS names, addresses and the subject are never looked at.
    ///
    /// # Errors
    /// When there is no URI name or more than one, or it is no SPIFFE ID of a workload.
    pub fn spiffe_id(&self) -> Result<SpiffeId, Refused> {
        let uri = match self.uri_names() {
            [] => return Err(Refused::new(Code::NoIdentity, "the leaf has no URI name")),
            [uri] => uri,
            several => {
                let why = format!("the leaf has {} URI names where one is allowed", several.len());
                return Err(Refused::new(Code::SeveralIdentities, why));
            }
        };
        let bad = |why: String| Refused::new(Code::BadIdentity, why);
        let text = std::str::from_utf8(uri)
            .map_err(|_| bad("the leaf's URI name is not UTF-8".to_owned()))?;
        let id: SpiffeId = text.parse().map_err(|error| {
            bad(format!("the leaf's URI name is not a SPIFFE ID: {error}")
                .escape_debug()
                .to_string())
        })?;
        if id.is_root() {
            return Err(bad(format!("`{id}` names a trust domain and no workload")));
        }
        Ok(id)
    }

    /// Our own extension, if it is there.
    pub fn provenance(&self) -> Option<Provenance> {
        self.0.extensions.provenance
    }

    /// Whether it may sign other certificates.
    pub fn is_authority(&self) -> bool {
        let extensions = &self.0.extensions;
        extensions.basic.is_some_and(|basic| basic.authority)
            && extensions.key_usage.is_some_and(|usage| usage.cert_sign())
    }

    /// Whether it may sign answers about its issuer's certificates, and nothing else.
    pub fn is_ocsp_responder(&self) -> bool {
        let extensions = &self.0.extensions;
        extensions.purposes.as_deref() == Some(&[Purpose::OcspSigning])
            && !extensions.basic.is_some_and(|basic| basic.authority)
    }

    /// How many authorities may follow below this one, if that is limited.
    pub(crate) fn path_length(&self) -> Option<u64> {
        self.0.extensions.basic.and_then(|basic| basic.path_length)
    }

    pub(crate) fn extensions(&self) -> &Extensions {
        &self.0.extensions
    }

    /// The DER of the issuer's Name.
    pub(crate) fn issuer(&self) -> &[u8] {
        &self.0.der[self.0.issuer.clone()]
    }

    /// The DER of the subject's Name.
    pub(crate) fn subject(&self) -> &[u8] {
        &self.0.der[self.0.subject.clone()]
    }

    /// The parts of the subject's Name, without the SEQUENCE around them.
    pub(crate) fn subject_contents(&self) -> &[u8] {
        Reader::new(self.subject()).any().map_or(&[], |name| name.content)
    }

    pub(crate) fn has_empty_subject(&self) -> bool {
        self.subject() == EMPTY_NAME
    }

    /// Subject and issuer are the same name: a root, or an authority under a new key of its own.
    pub(crate) fn is_self_issued(&self) -> bool {
        self.subject() == self.issuer()
    }

    /// Whether this key signed these contents.
    pub(crate) fn check_signed_by(&self, key: &VerifyingKey<'_>) -> Result<(), NoSignature> {
        // The first byte counts unused bits, and was checked to be 0.
        let signature = self.0.der[self.0.signature.clone()].get(1..).unwrap_or_default();
        key.verify(&self.0.der[self.0.algorithm.clone()], self.tbs(), signature)
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.der() == other.der()
    }
}

impl Eq for Certificate {}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({})", self.fingerprint())
    }
}

const EMPTY_NAME: &[u8] = &[0x30, 0x00];
const VERSION_3: &[u8] = &[0xa0, 0x03, 0x02, 0x01, 0x02];

/// The parts of a `TBSCertificate`.
struct Contents<'a> {
    serial: Value<'a>,
    algorithm: Value<'a>,
    issuer: Value<'a>,
    validity: Validity,
    subject: Value<'a>,
    spki: Value<'a>,
    extensions: Extensions,
}

impl<'a> Contents<'a> {
    fn parse(tbs: &Value<'a>) -> Result<Self, BadCertificate> {
        let mut fields = tbs.inside();
        let version = fields.take(der::context_constructed(0), "version")?;
        if version.raw() != VERSION_3 {
            return Err(version.bad("the version is not 3").into());
        }
        let serial = fields.take(der::INTEGER, "serial number")?;
        let digits = serial.integer()?;
        if SERIAL_BYTES_MAX < digits.len() || digits[0] & 0x80 != 0 || digits == [0] {
            return Err(serial.bad("a serial number that is not positive or over 20 bytes").into());
        }
        let algorithm = algorithm(&mut fields)?;
        let issuer = fields.take(der::SEQUENCE, "issuer")?;
        if check_name(&issuer)?.is_empty() {
            return Err(issuer.bad("an issuer without a name").into());
        }
        let validity = validity(&fields.take(der::SEQUENCE, "validity")?)?;
        let subject = fields.take(der::SEQUENCE, "subject")?;
        check_name(&subject)?;
        let spki = fields.take(der::SEQUENCE, "public key")?;
        split_spki(&spki)?;
        // Unique identifiers ([1], [2]) are refused as left over: no CA writes them (RFC 5280, 4.1.2.8).
        let extensions = match fields.optional(der::context_constructed(3), "extensions")? {
            None => Extensions::default(),
            Some(wrapped) => {
                let mut inside = wrapped.inside();
                let list = inside.take(der::SEQUENCE, "extensions")?;
                inside.end("extensions")?;
                Extensions::parse(&list)?
            }
        };
        fields.end("contents")?;
        Ok(Self { serial, algorithm, issuer, validity, subject, spki, extensions })
    }
}

pub(crate) fn algorithm<'a>(fields: &mut Reader<'a>) -> Result<Value<'a>, BadDer> {
    let algorithm = fields.take(der::SEQUENCE, "signature algorithm")?;
    algorithm.inside().take(der::OID, "signature algorithm")?.oid()?;
    Ok(algorithm)
}

fn validity(value: &Value<'_>) -> Result<Validity, BadDer> {
    let mut fields = value.inside();
    let not_before = time(&fields.any()?)?;
    let not_after = time(&fields.any()?)?;
    fields.end("validity")?;
    if not_after < not_before {
        return Err(value.bad(format!("validity ends {not_after}, before it begins {not_before}")));
    }
    Ok(Validity { not_before, not_after })
}

/// `YYMMDDHHMMSSZ` through 2049, `YYYYMMDDHHMMSSZ` from 2050 on (RFC 5280, 4.1.2.5).
pub(crate) fn time(value: &Value<'_>) -> Result<Timestamp, BadDer> {
    let bad = || value.bad("a time that is not in the form of RFC 5280");
    let (digits, zulu) = value.content.split_at(value.content.len().saturating_sub(1));
    if zulu != b"Z" || !digits.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let number =
        |digits: &[u8]| digits.iter().fold(0_i64, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    let (year, rest) = match (value.tag, digits.len()) {
        (der::UTC_TIME, 12) => match number(&digits[..2]) {
            year @ 50.. => (1900 + year, &digits[2..]),
            year => (2000 + year, &digits[2..]),
        },
        (der::GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return Err(bad()),
    };
    if value.tag == der::GENERALIZED_TIME && (1950..2050).contains(&year) {
        return Err(value.bad("a time before 2050 that is not a UTCTime"));
    }
    let [month, day, hour, minute, second] = [0, 2, 4, 6, 8].map(|at| number(&rest[at..at + 2]));
    Timestamp::from_civil(year, month, day, (hour, minute, second)).ok_or_else(bad)
}
