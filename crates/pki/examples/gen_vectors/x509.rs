//! A writer of certificates that obeys no rule, so that each can be broken alone. It shares nothing with
//! the crate that it tests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub(crate) const SAN: &[u8] = &[0x55, 0x1d, 0x11];
pub(crate) const BASIC: &[u8] = &[0x55, 0x1d, 0x13];
pub(crate) const USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
pub(crate) const PURPOSE: &[u8] = &[0x55, 0x1d, 0x25];
pub(crate) const CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
pub(crate) const SUBJECT_KEY: &[u8] = &[0x55, 0x1d, 0x0e];
pub(crate) const AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 0x23];

pub(crate) fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = match content.len() {
        short @ 0..=0x7f => vec![short as u8],
        middle @ 0x80..=0xff => vec![0x81, middle as u8],
        long => vec![0x82, (long >> 8) as u8, long as u8],
    };
    [&[tag], length.as_slice(), &content].concat()
}

pub(crate) fn seq(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, parts)
}

/// `CN=…`, or nothing.
pub(crate) fn name(common: &str) -> Vec<u8> {
    if common.is_empty() {
        return seq(&[]);
    }
    let pair = seq(&[&[0x06, 3, 0x55, 4, 3], &tlv(0x0c, &[common.as_bytes()])]);
    seq(&[&tlv(0x31, &[&pair])])
}

/// `YYMMDDHHMMSSZ`.
pub(crate) fn utc(text: &str) -> Vec<u8> {
    tlv(0x17, &[text.as_bytes()])
}

/// `YYYYMMDDHHMMSSZ`.
pub(crate) fn generalized(text: &str) -> Vec<u8> {
    tlv(0x18, &[text.as_bytes()])
}

pub(crate) fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let truth: &[u8] = if critical { &[1, 1, 0xff] } else { &[] };
    seq(&[&tlv(6, &[oid]), truth, &tlv(4, &[value])])
}

pub(crate) fn uri(text: &[u8]) -> Vec<u8> {
    tlv(0x86, &[text])
}

pub(crate) fn dns(text: &[u8]) -> Vec<u8> {
    tlv(0x82, &[text])
}

/// KeyUsage: the bits of the first byte, shortest form.
pub(crate) fn usage(bits: u8) -> Vec<u8> {
    tlv(3, &[&[bits.trailing_zeros() as u8, bits]])
}

pub(crate) const DIGITAL_SIGNATURE: u8 = 0x80;
pub(crate) const KEY_ENCIPHERMENT: u8 = 0x20;
pub(crate) const CERT_SIGN: u8 = 0x04;
pub(crate) const CRL_SIGN: u8 = 0x02;

/// ExtendedKeyUsage from the last bytes of `1.3.6.1.5.5.7.3.…`.
pub(crate) fn purposes(last: &[u8]) -> Vec<u8> {
    let each: Vec<Vec<u8>> =
        last.iter().map(|last| tlv(6, &[&[0x2b, 6, 1, 5, 5, 7, 3, *last]])).collect();
    seq(&[&each.concat()])
}

pub(crate) fn authority(path_length: Option<u8>) -> Vec<u8> {
    match path_length {
        None => seq(&[&[1, 1, 0xff]]),
        Some(length) => seq(&[&[1, 1, 0xff], &[2, 1, length]]),
    }
}

/// NameConstraints with one subtree: permitted (0) or excluded (1).
pub(crate) fn constraint(which: u8, base: &[u8]) -> Vec<u8> {
    seq(&[&tlv(0xa0 | which, &[&seq(&[base])])])
}

/// `AlgorithmIdentifier`s.
pub(crate) fn algorithm(name: &str) -> Vec<u8> {
    let rsa =
        |last: u8| seq(&[&tlv(6, &[&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, last]]), &[5, 0]]);
    let ecdsa = |last: u8| seq(&[&tlv(6, &[&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, last]])]);
    match name {
        "ed25519" => seq(&[&tlv(6, &[&[0x2b, 0x65, 0x70]])]),
        "ed448" => seq(&[&tlv(6, &[&[0x2b, 0x65, 0x71]])]),
        "ecdsa-sha256" => ecdsa(2),
        "ecdsa-sha384" => ecdsa(3),
        "ecdsa-sha1" => seq(&[&tlv(6, &[&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1]])]),
        "rsa-md5" => rsa(4),
        "rsa-sha1" => rsa(5),
        "rsa-sha256" => rsa(0x0b),
        "rsa-sha512" => rsa(0x0d),
        "rsa-pss-sha256" => pss(32),
        "rsa-pss-sha256-short-salt" => pss(20),
        other => panic!("no algorithm {other}"),
    }
}

fn pss(salt: u8) -> Vec<u8> {
    let hash = seq(&[&tlv(6, &[&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1]]), &[5, 0]]);
    let mask = seq(&[&tlv(6, &[&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 8]]), &hash]);
    let parameters =
        seq(&[&tlv(0xa0, &[&hash]), &tlv(0xa1, &[&mask]), &tlv(0xa2, &[&tlv(2, &[&[salt]])])]);
    seq(&[&tlv(6, &[&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10]]), &parameters])
}

/// Keys and signatures. Ed25519 keys come from their name; the others lie in `testdata/keys`, and
/// because openssl draws randomness for their signatures, these are kept.
pub(crate) struct Keys {
    folder: PathBuf,
    signatures: BTreeMap<String, String>,
}

impl Keys {
    pub(crate) fn open(folder: PathBuf) -> Self {
        let kept = std::fs::read_to_string(folder.join("signatures.json"));
        let signatures = kept.map(|text| serde_json::from_str(&text).unwrap()).unwrap_or_default();
        Self { folder, signatures }
    }

    pub(crate) fn save(&self) {
        let text = serde_json::to_string_pretty(&self.signatures).unwrap() + "\n";
        std::fs::write(self.folder.join("signatures.json"), text).unwrap();
    }

    fn ed25519(key: &str) -> Ed25519KeyPair {
        let seed = digest::digest(&digest::SHA256, format!("countersign vector {key}").as_bytes());
        Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).unwrap()
    }

    /// A key that has a file, or else the Ed25519 key of this name.
    pub(crate) fn spki(&self, key: &str) -> Vec<u8> {
        std::fs::read(self.folder.join(format!("{key}.spki.der"))).unwrap_or_else(|_| {
            let public = Self::ed25519(key).public_key().as_ref().to_vec();
            seq(&[&algorithm("ed25519"), &tlv(3, &[&[0], &public])])
        })
    }

    pub(crate) fn sign(&mut self, key: &str, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let file = format!("{key}.pem");
        if !self.folder.join(&file).exists() {
            return Self::ed25519(key).sign(message).as_ref().to_vec();
        }
        let hash = digest::digest(&digest::SHA256, message);
        let id = format!("{key} {algorithm} {}", STANDARD.encode(hash.as_ref()));
        if let Some(kept) = self.signatures.get(&id) {
            return STANDARD.decode(kept).unwrap();
        }
        let signature = self.openssl(&file, algorithm, message);
        self.signatures.insert(id, STANDARD.encode(&signature));
        signature
    }

    fn openssl(&self, file: &str, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let input = std::env::temp_dir().join(format!("countersign-vector-{}", std::process::id()));
        std::fs::write(&input, message).unwrap();
        let mut command = Command::new("openssl");
        command.current_dir(&self.folder);
        if algorithm == "ed448" {
            command.args(["pkeyutl", "-sign", "-rawin", "-inkey", file, "-in"]).arg(&input);
        } else {
            let parts: Vec<&str> = algorithm.split('-').collect();
            let hash =
                parts.iter().find(|part| part.starts_with("sha") || **part == "md5").unwrap();
            command.args(["dgst", &format!("-{hash}"), "-sign", file]);
            if parts.contains(&"pss") {
                let salt = if parts.contains(&"short") { "20" } else { "digest" };
                command.args(["-sigopt", "rsa_padding_mode:pss", "-sigopt"]);
                command.arg(format!("rsa_pss_saltlen:{salt}"));
            }
            command.arg(&input);
        }
        let output = command.output().expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::remove_file(input).unwrap();
        output.stdout
    }
}

/// A certificate before it is written.
#[derive(Clone)]
pub(crate) struct Cert {
    pub(crate) version: Vec<u8>,
    pub(crate) serial: Vec<u8>,
    /// The algorithm that signs, and that is named in both places.
    pub(crate) algorithm: &'static str,
    /// Another one to name inside.
    pub(crate) inner_algorithm: Option<&'static str>,
    pub(crate) issuer: Vec<u8>,
    pub(crate) subject: Vec<u8>,
    pub(crate) not_before: Vec<u8>,
    pub(crate) not_after: Vec<u8>,
    pub(crate) key: &'static str,
    /// Whole encodings, by identifier.
    pub(crate) extensions: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) before_extensions: Vec<u8>,
    pub(crate) signer: &'static str,
    pub(crate) signature_bits: u8,
    /// Changes the finished bytes.
    pub(crate) spoil: fn(Vec<u8>) -> Vec<u8>,
}

impl Cert {
    /// Replaces an extension, or adds it.
    pub(crate) fn set(&mut self, oid: &[u8], critical: bool, value: &[u8]) -> &mut Self {
        let written = extension(oid, critical, value);
        match self.extensions.iter_mut().find(|(id, _)| id == oid) {
            Some((_, before)) => *before = written,
            None => self.extensions.push((oid.to_vec(), written)),
        }
        self
    }

    pub(crate) fn add(&mut self, oid: &[u8], critical: bool, value: &[u8]) -> &mut Self {
        self.extensions.push((oid.to_vec(), extension(oid, critical, value)));
        self
    }

    pub(crate) fn remove(&mut self, oid: &[u8]) -> &mut Self {
        self.extensions.retain(|(id, _)| id != oid);
        self
    }

    /// Sets the alternative names, critically.
    pub(crate) fn names(&mut self, names: &[Vec<u8>]) -> &mut Self {
        self.set(SAN, true, &seq(&[&names.concat()]))
    }

    pub(crate) fn write(&self, keys: &mut Keys) -> Vec<u8> {
        let extensions: Vec<u8> =
            self.extensions.iter().flat_map(|(_, written)| written.clone()).collect();
        let extensions = match extensions.as_slice() {
            [] => Vec::new(),
            list => tlv(0xa3, &[&seq(&[list])]),
        };
        let tbs = seq(&[
            &self.version,
            &tlv(2, &[&self.serial]),
            &algorithm(self.inner_algorithm.unwrap_or(self.algorithm)),
            &self.issuer,
            &seq(&[&self.not_before, &self.not_after]),
            &self.subject,
            &keys.spki(self.key),
            &self.before_extensions,
            &extensions,
        ]);
        let signature = keys.sign(self.signer, self.algorithm, &tbs);
        let bits = tlv(3, &[&[self.signature_bits], &signature]);
        (self.spoil)(seq(&[&tbs, &algorithm(self.algorithm), &bits]))
    }
}
