//! Whether a chain of an operator's own authorities stands behind a machine that wants to become a node.
//!
//! Such certificates are of anybody's making: they name a host and no SPIFFE ID, so RFC 5280 alone says what is right
//! (section 6). What is required beyond it is little, and what is not understood is refused.

use countersign_identity::{Code, KeyId, Timestamp};

use crate::extension::Purpose;
use crate::names::check_constraints;
use crate::path::{PATH_MAX, check_path_length, check_signature, check_time, refused_key};
use crate::verify::parse;
use crate::{Certificate, PublicKey, Refused};

/// A machine whose chain was verified. Nothing else makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedMachine {
    leaf: Certificate,
    key: PublicKey,
    anchor: KeyId,
}

impl VerifiedMachine {
    /// Claims that the chain was verified. Only [`verify_machine`] may.
    fn assertion(leaf: Certificate, key: PublicKey, anchor: KeyId) -> Self {
        Self { leaf, key, anchor }
    }

    /// The certificate that was verified.
    pub fn leaf(&self) -> &Certificate {
        &self.leaf
    }

    /// The key in it. That the machine holds it is for the caller to ask.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The key of the authority that was trusted for it.
    pub fn anchor(&self) -> KeyId {
        self.anchor
    }
}

/// Verifies a machine's chain, the leaf first and each next one above the one before, at the moment `now`.
///
/// The number of signatures that it verifies is bounded by the chain and by how many anchors share a name.
///
/// # Errors
/// With the rule that is broken.
pub fn verify_machine(
    chain: &[&[u8]],
    anchors: &[Certificate],
    now: Timestamp,
) -> Result<VerifiedMachine, Refused> {
    let (leaf, above) = parse(chain)?;
    check_machine(&leaf)?;
    check_time("machine", &leaf, now)?;
    let key = leaf.public_key().map_err(|bad| refused_key("machine", &bad))?;
    let mut path = vec![leaf.clone()];
    let mut above = above.into_iter();
    let mut refusal = None;
    loop {
        for anchor in anchors {
            match check_step(&path, anchor, now) {
                Ok(()) => return Ok(VerifiedMachine::assertion(leaf, key, anchor.key_id())),
                Err(Some(refused)) => refusal = Some(refused),
                // It is not the one that signed.
                Err(None) => {}
            }
        }
        let unknown = || {
            let why = "no authority that this server trusts for machines signed the chain";
            Refused::new(Code::UnknownIssuer, why)
        };
        let next = above.next().filter(|_| path.len() < PATH_MAX);
        let Some(next) = next else { return Err(refusal.unwrap_or_else(unknown)) };
        match check_step(&path, &next, now) {
            Ok(()) => path.push(next),
            Err(refused) => return Err(refused.or(refusal).unwrap_or_else(unknown)),
        }
    }
}

/// Whether the authority may stand above the path, and signed its last certificate. `None`: it has another name.
fn check_step(
    path: &[Certificate],
    authority: &Certificate,
    now: Timestamp,
) -> Result<(), Option<Refused>> {
    let Some(child) = path.last() else { return Err(None) };
    if authority.subject() != child.issuer() {
        return Err(None);
    }
    check_machine_authority(authority)?;
    check_time("authority", authority, now)?;
    check_path_length(authority, path)?;
    if path.iter().any(|below| below.spki() == authority.spki()) {
        return Err(Some(Refused::new(Code::UnknownIssuer, "a key in the chain signed itself")));
    }
    check_signature(child, authority)?;
    Ok(check_constraints(authority, path)?)
}

/// Checks that a certificate is one of an authority that may vouch for machines, without asking when it is valid.
///
/// # Errors
/// With the rule that is broken.
pub fn check_machine_authority(authority: &Certificate) -> Result<(), Refused> {
    // Other software leaves key usage out, and does not always make this one critical.
    if !authority.extensions().basic.is_some_and(|basic| basic.authority) {
        let why = "a certificate that signed another is not an authority's";
        return Err(Refused::new(Code::IssuerNotAuthority, why));
    }
    let extensions = authority.extensions();
    if extensions.key_usage.is_some_and(|usage| !usage.cert_sign()) {
        let why = "an authority's key usage does not allow to sign certificates";
        return Err(Refused::new(Code::BadKeyUsage, why));
    }
    if let Some(id) = &extensions.unknown_critical {
        let why = format!("an authority has a critical extension `{id}`, which is not understood");
        return Err(Refused::new(Code::BadExtension, why));
    }
    check_purposes("an authority", authority)
}

/// The rules of a machine's own certificate: it is no authority, and may sign for itself, as a client.
fn check_machine(leaf: &Certificate) -> Result<(), Refused> {
    let extensions = leaf.extensions();
    if leaf.is_authority() || extensions.basic.is_some_and(|basic| basic.authority) {
        return Err(Refused::new(
            Code::LeafIsAuthority,
            "the machine's certificate is an authority's",
        ));
    }
    if let Some(usage) = extensions.key_usage {
        if usage.cert_sign() || usage.crl_sign() {
            let why = "the machine's certificate may sign certificates or revocation lists";
            return Err(Refused::new(Code::LeafIsAuthority, why));
        }
        if !usage.digital_signature() {
            let why = "the machine's key usage does not allow digital signatures";
            return Err(Refused::new(Code::BadKeyUsage, why));
        }
    }
    if let Some(id) = &extensions.unknown_critical {
        let why = format!(
            "the machine's certificate has a critical extension `{id}`, which is not understood"
        );
        return Err(Refused::new(Code::BadExtension, why));
    }
    if extensions.constraints.is_some() || leaf.path_length().is_some() {
        let why = "the machine's certificate has a constraint that only authorities may have";
        return Err(Refused::new(Code::BadExtension, why));
    }
    check_purposes("the machine", leaf)
}

fn check_purposes(who: &str, certificate: &Certificate) -> Result<(), Refused> {
    let Some(purposes) = &certificate.extensions().purposes else { return Ok(()) };
    if purposes.contains(&Purpose::ClientAuth) || purposes.contains(&Purpose::Any) {
        return Ok(());
    }
    let why = format!("{who}'s extended key usage does not allow to be a client");
    Err(Refused::new(Code::BadExtendedKeyUsage, why))
}
