//! Keys, signers, certificates and their verification: bytes in, bytes out.
//!
//! A certificate comes into being in four steps, none of which can be left out: a [`Draft`] is
//! reviewed against a [`Profile`], the [`Reviewed`] contents are recorded by a store, which gives a
//! [`Receipt`], and only with it they are signed. What a peer shows goes through [`verify`], which
//! keeps to the SPIFFE X.509-SVID standard and RFC 5280 where other software is lenient.
//!
//! The crate refuses to know files, sockets, clocks, databases and TLS.

mod algorithm;
mod bundle;
mod certificate;
mod chain;
mod csr;
mod der;
mod draft;
mod extension;
mod issuer;
mod json;
mod key;
mod names;
mod oid;
mod path;
mod pem;
mod refused;
mod sign;
mod signer;
mod verify;
mod write;

pub use algorithm::BadKey;
pub use bundle::{BadBundle, Bundle, Bundles};
pub use certificate::{BadCertificate, Certificate};
pub use chain::{BadChain, CHAIN_CERTIFICATES_MAX, Chain};
pub use csr::{CSR_BYTES_MAX, CsrRefused, ProvenKey, make_csr, open_csr};
pub use draft::{AuthorityDraft, BadDnsName, DnsName, Draft, Profile, Refusal, Reserved};
pub use extension::Provenance;
pub use issuer::Issuer;
pub use key::{BadKeyKind, BadSignature, KeyFault, KeyKind, PrivateKey, PublicKey, SignFault};
pub use pem::{BadPem, decode_certificates, encode_certificate, encode_private_key};
pub use refused::Refused;
pub use sign::{Receipt, Reviewed, Summary};
pub use signer::{Signer, SoftwareSigner};
pub use verify::{Role, Verified, check_leaf, verify, verify_pinned};
