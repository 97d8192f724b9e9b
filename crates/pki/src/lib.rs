//! Keys, signers, certificates and their verification: bytes in, bytes out.
//!
//! A certificate comes into being in four steps, none of which can be left out: a [`Draft`] is
//! reviewed against a [`Profile`], the [`Reviewed`] contents are recorded by a store, which gives a
//! [`Receipt`], and only with it they are signed. What a peer shows goes through [`verify`], which
//! keeps to the SPIFFE X.509-SVID standard and RFC 5280 where other software is lenient.
//!
//! ```
//! # use countersign_identity::{Attested, NodeTag, Revision, SeededEntropy, Serial, Timestamp};
//! # use countersign_pki::*;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (now, entropy) = (Timestamp::from_secs(1_795_262_400), SeededEntropy::new(1));
//! # let domain: countersign_identity::TrustDomain = "shop.example".parse()?;
//! // A root that signs itself. A store records what is signed, and gives the receipt.
//! let root_key = SoftwareSigner::from(PrivateKey::generate(KeyKind::P256)?);
//! let (key, serial) = (root_key.public().clone(), Serial::draw(now, &entropy)?);
//! let root = AuthorityDraft::root(domain.clone(), key, serial, now, "365d".parse()?).review()?;
//! let receipt = Receipt::assertion(root.summary().tbs, 0);
//! let root = Issuer::from_certificate(root.sign(receipt, &root_key).await?)?;
//!
//! // A workload asks, and gets its SVID.
//! let workload_key = PrivateKey::generate(KeyKind::P256)?;
//! let draft = Draft {
//!     id: domain.with_path("/orders")?,
//!     key: open_csr(&make_csr(&workload_key)?)?,
//!     serial: Serial::draw(now, &entropy)?,
//!     issued: now,
//!     lifetime: "1h".parse()?,
//!     dns_names: Vec::new(),
//!     provenance: Provenance {
//!         revision: Revision::default(),
//!         node: NodeTag::from_bytes([7; 8]),
//!         attested: Attested::default(),
//!     },
//!     reserved: Reserved::Refuse,
//! };
//! let profile = Profile { domain: domain.clone(), lifetime_max: "24h".parse()?, pointers: None };
//! let reviewed = draft.review(&profile, &root)?;
//! let receipt = Receipt::assertion(reviewed.summary().tbs, 1);
//! let leaf = reviewed.sign(receipt, &root_key).await?;
//!
//! // A peer shows it.
//! let bundles = Bundles::of(Bundle::new(domain, vec![root.certificate().clone()], 1));
//! let peer = verify(&[leaf.der()], &bundles, Role::Client, now)?;
//! assert_eq!(peer.id.as_str(), "spiffe://shop.example/orders");
//! # Ok(())
//! # }
//! ```
//!
//! What is taken out of service is told to the rest of the world by lists ([`CrlDraft`]) and by answers to questions
//! ([`OcspAnswer`]), both of which [`Signer`]s sign as they sign certificates.
//!
//! The crate refuses to know files, sockets, clocks, databases and TLS.

mod algorithm;
mod bundle;
mod certificate;
mod chain;
mod crl;
mod crl_read;
mod csr;
mod der;
mod draft;
mod extension;
mod issuer;
mod issuer_path;
mod json;
mod jws;
mod key;
mod machine;
mod memory;
mod names;
mod ocsp;
mod ocsp_answer;
mod oid;
mod path;
mod pem;
mod pointers;
mod refused;
mod sign;
mod signer;
mod verify;
mod write;

pub use algorithm::BadKey;
pub use bundle::{BadBundle, Bundle, Bundles};
pub use certificate::{BadCertificate, Certificate};
pub use chain::{BadChain, CHAIN_CERTIFICATES_MAX, Chain};
pub use crl::{CrlDraft, CrlNumber, CrlOf, RevokedSerial};
pub use crl_read::{BadCrl, CRL_BYTES_MAX, Crl};
pub use csr::{CSR_BYTES_MAX, CsrRefused, ProvenKey, make_authority_csr, make_csr, open_csr};
pub use draft::{
    AuthorityDraft, BadDnsName, DnsName, Draft, Profile, Refusal, Reserved, ResponderDraft,
};
pub use extension::Provenance;
pub use issuer::Issuer;
pub use issuer_path::{ABOVE_MAX, IssuerPath, verify_issuer};
pub use jws::Jws;
pub use key::{
    BadKeyKind, BadSignature, KeyFault, KeyKind, PrivateKey, PublicKey, SignFault, ecdsa_signature,
};
pub use machine::{VerifiedMachine, check_machine_authority, verify_machine};
pub use memory::{ChainMemory, Findings, SignatureCounts};
pub use ocsp::{
    BadOcspRequest, OCSP_QUESTIONS_MAX, OCSP_REQUEST_BYTES_MAX, OcspIssuer, OcspQuestion,
    OcspRequest,
};
pub use ocsp_answer::{OcspAnswer, OcspFault, OcspStatus};
pub use pem::{
    BadPem, decode_certificates, encode_certificate, encode_crl, encode_csr, encode_private_key,
};
pub use pointers::{
    BadShard, BadShards, BadViewsUrl, OcspNamed, Pointers, SHARDS_MAX, Shard, Shards, ViewsUrl,
};
pub use refused::Refused;
pub use sign::{Fresh, Receipt, Reviewed, Summary};
pub use signer::{KeyVault, NoVault, Signer, SoftwareSigner};
pub use verify::{
    Role, Verified, check_leaf, verify, verify_fresh, verify_pinned, verify_recalling,
};
