//! PEM texts (RFC 7468): certificates in, certificates and keys out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::{KeyFault, PrivateKey};

/// The longest text that is read.
const PEM_BYTES_MAX: usize = 1024 * 1024;
const CERTIFICATE: &str = "CERTIFICATE";
const CRL: &str = "X509 CRL";
const CSR: &str = "CERTIFICATE REQUEST";
const PRIVATE_KEY: &str = "PRIVATE KEY";
const LINE: usize = 64;

/// Why a PEM text is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPem {
    /// Over the bound.
    #[error("a PEM text of {bytes} bytes is over the limit of {PEM_BYTES_MAX}")]
    Long {
        /// How many.
        bytes: usize,
    },
    /// Something else than what was asked for.
    #[error("line {line} begins a `{found}` where only `{expected}` is expected")]
    Label {
        /// The line, from 1.
        line: usize,
        /// Its label.
        found: String,
        /// The expected one.
        expected: &'static str,
    },
    /// A block that does not end, or ends as another.
    #[error("the block that line {line} begins has no fitting end")]
    Unended {
        /// The line, from 1.
        line: usize,
    },
    /// Bytes that are not base64.
    #[error("the block that line {line} begins is not base64")]
    Base64 {
        /// The line, from 1.
        line: usize,
    },
    /// None of what was asked for.
    #[error("the text holds no `{0}`")]
    Nothing(&'static str),
    /// A key that does not parse.
    #[error("the private key is refused: {0}")]
    Key(#[from] KeyFault),
}

/// The contents of each certificate in a text, which may hold nothing else but comments between them.
///
/// # Errors
/// When it holds no certificate, something else, or a broken block.
pub fn decode_certificates(text: &str) -> Result<Vec<Vec<u8>>, BadPem> {
    let blocks = decode(text, CERTIFICATE)?;
    Ok(blocks.into_iter().map(|block| block.to_vec()).collect())
}

/// Writes a certificate.
pub fn encode_certificate(der: &[u8]) -> String {
    encode(CERTIFICATE, der)
}

/// Writes a revocation list.
pub fn encode_crl(der: &[u8]) -> String {
    encode(CRL, der)
}

/// Writes a signing request.
pub fn encode_csr(der: &[u8]) -> String {
    encode(CSR, der)
}

/// Writes a private key as unencrypted PKCS#8.
pub fn encode_private_key(key: &PrivateKey) -> Zeroizing<String> {
    Zeroizing::new(encode(PRIVATE_KEY, key.pkcs8()))
}

impl PrivateKey {
    /// Reads a PEM text that holds one unencrypted PKCS#8 key and nothing else.
    ///
    /// # Errors
    /// When it holds anything else.
    pub fn from_pem(text: &str) -> Result<Self, BadPem> {
        match decode(text, PRIVATE_KEY)?.as_slice() {
            [pkcs8] => Ok(Self::from_pkcs8(pkcs8)?),
            _ => Err(BadPem::Key(KeyFault::Malformed)),
        }
    }
}

fn encode(label: &str, der: &[u8]) -> String {
    let base64 = Zeroizing::new(STANDARD.encode(der));
    let mut text = String::with_capacity(base64.len() + base64.len() / LINE + 80);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

fn decode(text: &str, expected: &'static str) -> Result<Vec<Zeroizing<Vec<u8>>>, BadPem> {
    if PEM_BYTES_MAX < text.len() {
        return Err(BadPem::Long { bytes: text.len() });
    }
    let mut blocks = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((line, begin)) = lines.next() {
        let Some(label) = begin.trim().strip_prefix("-----BEGIN ") else { continue };
        let label = label.strip_suffix("-----").ok_or(BadPem::Unended { line })?;
        if label != expected {
            let found = label.chars().take(40).collect();
            return Err(BadPem::Label { line, found, expected });
        }
        let mut base64 = Zeroizing::new(String::new());
        loop {
            let (_, inner) = lines.next().ok_or(BadPem::Unended { line })?;
            match inner.trim().strip_prefix("-----END ") {
                Some(end) if end.strip_suffix("-----") == Some(label) => break,
                Some(_) => return Err(BadPem::Unended { line }),
                None => base64.push_str(inner.trim()),
            }
        }
        let bytes = STANDARD.decode(base64.as_bytes());
        blocks.push(Zeroizing::new(bytes.map_err(|_bad| BadPem::Base64 { line })?));
    }
    if blocks.is_empty() { Err(BadPem::Nothing(expected)) } else { Ok(blocks) }
}
