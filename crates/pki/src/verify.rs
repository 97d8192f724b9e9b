//! Whether a chain that a peer shows proves a SPIFFE ID (SPIFFE X.509-SVID, section 5; RFC 5280, section 6).

use std::sync::Arc;

use countersign_identity::{Code, KeyId, SpiffeId, Timestamp};

use crate::algorithm::VerifyingKey;
use crate::chain::CHAIN_CERTIFICATES_MAX;
use crate::extension::Purpose;
use crate::memory::{ChainMemory, Findings, Step};
use crate::path::Search;
use crate::{Bundle, Bundles, Certificate, Fresh, Provenance, Refused};

/// On which side of the connection the presenter of a chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It dialled.
    Client,
    /// It was dialled.
    Server,
}

impl Role {
    pub(crate) const fn purpose(self) -> Purpose {
        match self {
            Self::Client => Purpose::ClientAuth,
            Self::Server => Purpose::ServerAuth,
        }
    }
}

/// A peer whose chain was verified. Nothing else makes one.
///
/// It is true of the moment and the bundles it was made with; [`expires`](Self::expires) is when it
/// ends at the latest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Who it is.
    pub id: SpiffeId,
    /// The certificate that was verified.
    pub leaf: Certificate,
    /// The earliest end of any certificate on the path, the root's included.
    pub expires: Timestamp,
    /// The leaf's key.
    pub key: KeyId,
    /// The key that signed the leaf.
    pub issuer: KeyId,
    /// The root's key.
    pub anchor: KeyId,
    /// The keys of all authorities on the path, upwards: the issuer's first, the root's last.
    pub authorities: Arc<[KeyId]>,
    /// Which of the certificates that were shown lie on the path, upwards: the leaf, 0, first. What else was shown was not
    /// verified, and an anchor that was not shown is not among them.
    pub shown: Arc<[usize]>,
    proof: Proof,
}

/// Keeps the struct from being made elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Proof;

impl Verified {
    /// Claims that this path was verified. Only [`verify`] may.
    fn assertion(
        id: SpiffeId,
        path: &[Certificate],
        anchor: &Certificate,
        others: &[Certificate],
    ) -> Option<Self> {
        let leaf = path.first()?;
        let place = |authority: &Certificate| {
            others.iter().position(|other| other.der() == authority.der()).map(|place| place + 1)
        };
        let above = path.iter().skip(1).chain([anchor]).filter_map(place);
        let ends = path.iter().map(|certificate| certificate.validity().not_after);
        let authorities: Arc<[_]> =
            path.iter().skip(1).chain([anchor]).map(Certificate::key_id).collect();
        Some(Self {
            id,
            leaf: leaf.clone(),
            expires: ends.fold(anchor.validity().not_after, Timestamp::min),
            key: leaf.key_id(),
            issuer: *authorities.first()?,
            anchor: anchor.key_id(),
            authorities,
            shown: [0].into_iter().chain(above).collect(),
            proof: Proof,
        })
    }

    /// The leaf's serial number without leading zeros.
    pub fn serial_bytes(&self) -> &[u8] {
        self.leaf.serial_bytes()
    }

    /// Under which revision it was issued and for which node, when it is one of ours.
    pub fn provenance(&self) -> Option<Provenance> {
        self.leaf.provenance()
    }
}

/// Verifies a chain, the leaf first, at the moment `now`, against the bundle of the leaf's own trust
/// domain and no other.
///
/// Further certificates may come in any order, and some may be of no use. Revocation, policy and
/// proof of possession are the caller's.
///
/// # Errors
/// With the rule that is broken.
pub fn verify(
    chain: &[&[u8]],
    bundles: &Bundles,
    role: Role,
    now: Timestamp,
) -> Result<Verified, Refused> {
    find(chain, bundles, (role, now), None, None).map(|(verified, _)| verified)
}

/// As [`verify`], with the same verdict; signatures that `memory` holds are not verified a second time, and what else was
/// found right is given for it.
///
/// # Errors
/// With the rule that is broken.
pub fn verify_recalling(
    chain: &[&[u8]],
    bundles: &Bundles,
    role: Role,
    now: Timestamp,
    memory: &ChainMemory,
) -> Result<(Verified, Findings), Refused> {
    find(chain, bundles, (role, now), Some(memory), None)
}

/// Verifies what we have just signed, with what is shown above it, as a peer will: with the verdict of [`verify`]. The signature
/// that was verified when it was made is not verified a second time, nor are those above it that `memory`
/// holds; it remembers the latter.
///
/// # Errors
/// With the rule that is broken.
pub fn verify_fresh(
    leaf: &Fresh,
    above: &[Certificate],
    bundles: &Bundles,
    (role, now): (Role, Timestamp),
    memory: &ChainMemory,
) -> Result<Verified, Refused> {
    let shown = [leaf.certificate()].into_iter().chain(above);
    let chain: Vec<&[u8]> = shown.map(Certificate::der).collect();
    let (verified, findings) = find(&chain, bundles, (role, now), Some(memory), Some(leaf.step()))?;
    memory.remember(&findings, now);
    Ok(verified)
}

fn find(
    chain: &[&[u8]],
    bundles: &Bundles,
    (role, now): (Role, Timestamp),
    memory: Option<&ChainMemory>,
    fresh: Option<Step>,
) -> Result<(Verified, Findings), Refused> {
    let (leaf, others) = parse(chain)?;
    let id = check_svid(&leaf)?;
    check_purpose(&leaf, role)?;
    let bundle = bundles.get(id.trust_domain()).ok_or_else(|| {
        let why = format!("there is no bundle for trust domain `{}`", id.trust_domain());
        Refused::new(Code::UnknownTrustDomain, why)
    })?;
    let mut search = Search::new(bundle, &others, role, now).recalling(memory).knowing(fresh);
    let (path, anchor) = search.run(&leaf)?;
    let verified = Verified::assertion(id, &path, &anchor, &others)
        .ok_or_else(|| Refused::new(Code::NoCertificate, "the path is empty"))?;
    Ok((verified, search.findings(&path, &anchor)))
}

/// Checks one SVID's own rules, without asking who signed it or when it is valid.
///
/// # Errors
/// With the rule that is broken.
pub fn check_leaf(der: &[u8]) -> Result<SpiffeId, Refused> {
    check_parsed_leaf(&Certificate::parse(der)?)
}

/// The same of one that was read already.
pub(crate) fn check_parsed_leaf(leaf: &Certificate) -> Result<SpiffeId, Refused> {
    let id = check_svid(leaf)?;
    // An issuer includes both purposes or none (X.509-SVID, 4.4); a verifier asks for its own only.
    check_purpose(leaf, Role::Server)?;
    check_purpose(leaf, Role::Client)?;
    Ok(id)
}

/// Verifies the first chain that a joining agent sees: among it must be the root whose key has this
/// id, and only that root is trusted. Gives the bundle to go on with.
///
/// # Errors
/// With the rule that is broken; [`Code::UnknownIssuer`] when no certificate in it has the pinned key.
pub fn verify_pinned(
    chain: &[&[u8]],
    pin: KeyId,
    role: Role,
    now: Timestamp,
) -> Result<(Verified, Bundle), Refused> {
    let (leaf, others) = parse(chain)?;
    let root =
        others.into_iter().find(|certificate| certificate.key_id() == pin).ok_or_else(|| {
            Refused::new(
                Code::UnknownIssuer,
                format!("no certificate shown has the pinned key `{pin}`"),
            )
        })?;
    // The pin names a key. That the key's holder wrote this certificate shows only in its signature.
    VerifyingKey::from_spki(root.spki())
        .ok()
        .and_then(|key| root.check_signed_by(&key).ok())
        .ok_or_else(|| {
            Refused::new(Code::BadSignature, "the pinned root is not signed by its own key")
        })?;
    let domain = leaf.spiffe_id()?.trust_domain().clone();
    let bundle = Bundle::new(domain, vec![root], 0);
    let bundles = Bundles::of(bundle.clone());
    Ok((verify(chain, &bundles, role, now)?, bundle))
}

/// A leaf, and what was shown with it.
pub(crate) fn parse(chain: &[&[u8]]) -> Result<(Certificate, Vec<Certificate>), Refused> {
    let Some((leaf, others)) = chain.split_first() else {
        return Err(Refused::new(Code::NoCertificate, "no certificate was shown"));
    };
    if CHAIN_CERTIFICATES_MAX < chain.len() {
        let why = format!(
            "{} certificates were shown, over the limit of {CHAIN_CERTIFICATES_MAX}",
            chain.len()
        );
        return Err(Refused::new(Code::TooManyCertificates, why));
    }
    let others: Result<Vec<_>, _> = others.iter().map(|der| Certificate::parse(der)).collect();
    Ok((Certificate::parse(leaf)?, others?))
}

/// The rules of a leaf (X.509-SVID, sections 2 to 4).
fn check_svid(leaf: &Certificate) -> Result<SpiffeId, Refused> {
    let id = leaf.spiffe_id()?;
    let extensions = leaf.extensions();
    if extensions.basic.is_some_and(|basic| basic.authority) {
        return Err(Refused::new(Code::LeafIsAuthority, "the leaf is a certificate authority"));
    }
    let Some(usage) = extensions.key_usage else {
        return Err(Refused::new(Code::BadKeyUsage, "the leaf has no key usage"));
    };
    if usage.cert_sign() || usage.crl_sign() {
        let why = "the leaf may sign certificates or revocation lists";
        return Err(Refused::new(Code::LeafIsAuthority, why));
    }
    if !usage.critical {
        return Err(Refused::new(Code::BadKeyUsage, "the leaf's key usage is not critical"));
    }
    if !usage.digital_signature() {
        let why = "the leaf's key usage does not allow digital signatures";
        return Err(Refused::new(Code::BadKeyUsage, why));
    }
    if let Some(id) = &extensions.unknown_critical {
        let why = format!("the leaf has extension `{id}`, which must be understood and is not");
        return Err(Refused::new(Code::BadExtension, why));
    }
    if extensions.constraints.is_some() || leaf.path_length().is_some() {
        let why = "the leaf has a constraint that only authorities may have";
        return Err(Refused::new(Code::BadExtension, why));
    }
    let critical_names = extensions.alt_names.as_ref().is_some_and(|names| names.critical);
    if leaf.has_empty_subject() && !critical_names {
        let why = "the leaf has no subject, and its alternative names are not critical";
        return Err(Refused::new(Code::BadExtension, why));
    }
    VerifyingKey::from_spki(leaf.spki()).map_err(|bad| crate::path::refused_key("leaf", &bad))?;
    Ok(id)
}

fn check_purpose(leaf: &Certificate, role: Role) -> Result<(), Refused> {
    let Some(purposes) = &leaf.extensions().purposes else { return Ok(()) };
    if purposes.contains(&role.purpose()) {
        return Ok(());
    }
    let why = match role {
        Role::Client => "the leaf's extended key usage does not allow to be a client",
        Role::Server => "the leaf's extended key usage does not allow to be a server",
    };
    Err(Refused::new(Code::BadExtendedKeyUsage, why))
}
