//! Finds a path from a leaf to an anchor, and checks every step of it (RFC 5280, 6.1).
//!
//! The anchors are checked like every other authority, which RFC 5280 leaves open: a root that has
//! expired or was never an authority vouches for nobody.

use countersign_identity::{Code, SpiffeId, Timestamp, TrustDomain};

use crate::algorithm::{BadKey, NoSignature, VerifyingKey};
use crate::extension::Purpose;
use crate::memory::{ChainMemory, Findings, Step};
use crate::names::check_constraints;
use crate::{Bundle, Certificate, Refused, Role};

/// A hostile chain may offer many certificates of one name; each costs a signature verification.
const SIGNATURES_MAX: u32 = 24;
/// Leaf and authorities, without the anchor.
pub(crate) const PATH_MAX: usize = 8;

/// One search for a path.
pub(crate) struct Search<'a> {
    bundle: &'a Bundle,
    others: &'a [Certificate],
    role: Role,
    now: Timestamp,
    memory: Option<&'a ChainMemory>,
    /// A signature that this process has verified a moment ago.
    fresh: Option<Step>,
    signatures_left: u32,
    /// The signatures that were verified, where there is a memory for them.
    verified: Vec<Step>,
    refusal: Option<Refused>,
}

impl<'a> Search<'a> {
    pub(crate) fn new(
        bundle: &'a Bundle,
        others: &'a [Certificate],
        role: Role,
        now: Timestamp,
    ) -> Self {
        Self {
            bundle,
            others,
            role,
            now,
            memory: None,
            fresh: None,
            signatures_left: SIGNATURES_MAX,
            verified: Vec::new(),
            refusal: None,
        }
    }

    /// Does not verify again what this memory holds.
    pub(crate) fn recalling(mut self, memory: Option<&'a ChainMemory>) -> Self {
        self.memory = memory;
        self
    }

    /// Nor this one.
    pub(crate) fn knowing(mut self, fresh: Option<Step>) -> Self {
        self.fresh = fresh;
        self
    }

    /// What is to be remembered of the path that was found.
    pub(crate) fn findings(&self, path: &[Certificate], anchor: &Certificate) -> Findings {
        let whole: Vec<&Certificate> = path.iter().chain([anchor]).collect();
        Findings::on_path(self.bundle.domain.clone(), &whole, &self.verified)
    }

    /// Gives the path from the leaf upwards, and its anchor.
    pub(crate) fn run(
        &mut self,
        leaf: &Certificate,
    ) -> Result<(Vec<Certificate>, Certificate), Refused> {
        check_time("leaf", leaf, self.now)?;
        let mut path = vec![leaf.clone()];
        match self.extend(&mut path) {
            Some(anchor) => Ok((path, anchor)),
            None => Err(self.refusal.take().unwrap_or_else(|| {
                let domain = &self.bundle.domain;
                let why = format!("no authority of trust domain `{domain}` signed the chain");
                Refused::new(Code::UnknownIssuer, why)
            })),
        }
    }

    /// The same for an authority that signs leaves and nothing else. It gives the path without a leaf.
    pub(crate) fn run_issuer(
        &mut self,
        issuer: &Certificate,
    ) -> Result<(Vec<Certificate>, Certificate), Refused> {
        check_authority(issuer, &self.bundle.domain, self.role)?;
        check_time("issuer", issuer, self.now)?;
        // It stands in for a leaf of its own, so that lengths and names are counted as they will be for leaves.
        let mut path = vec![issuer.clone(), issuer.clone()];
        match self.extend(&mut path) {
            Some(anchor) => Ok((path.split_off(1), anchor)),
            None => Err(self.refusal.take().unwrap_or_else(|| {
                let why = "nobody who is trusted signed the issuer's certificate";
                Refused::new(Code::UnknownIssuer, why)
            })),
        }
    }

    /// Depth first, anchors before presented certificates, those with a fitting key id before the others.
    fn extend(&mut self, path: &mut Vec<Certificate>) -> Option<Certificate> {
        let child = path.last()?.clone();
        for anchor in candidates(&child, &self.bundle.authorities) {
            let step = self.check_step(path, &child, anchor);
            // Last, so that a stranger's long lists of names are never compared with each other.
            match step.and_then(|()| check_all_constraints(path, anchor)) {
                Ok(()) => return Some(anchor.clone()),
                Err(refused) => self.keep(refused),
            }
        }
        if PATH_MAX <= path.len() {
            return None;
        }
        let others = self.others;
        for authority in candidates(&child, others) {
            if path.iter().any(|before| before.spki() == authority.spki()) {
                continue; // A path does not visit one key twice.
            }
            match self.check_step(path, &child, authority) {
                Ok(()) => {
                    path.push(authority.clone());
                    if let Some(anchor) = self.extend(path) {
                        return Some(anchor);
                    }
                    path.pop();
                }
                Err(refused) => self.keep(refused),
            }
        }
        None
    }

    /// Keeps the reason that says most: a broken rule over a wrong signature over nothing found.
    fn keep(&mut self, refused: Refused) {
        let order = [Code::UnknownIssuer, Code::BadSignature];
        let weight =
            |code: Code| order.iter().position(|known| *known == code).unwrap_or(order.len());
        let kept = self.refusal.as_ref().map(|kept| weight(kept.code));
        if kept.is_none_or(|kept| kept < weight(refused.code)) {
            self.refusal = Some(refused);
        }
    }

    /// Whether `authority` may stand above `path`, and signed its last certificate.
    fn check_step(
        &mut self,
        path: &[Certificate],
        child: &Certificate,
        authority: &Certificate,
    ) -> Result<(), Refused> {
        check_authority(authority, &self.bundle.domain, self.role)?;
        check_time("authority", authority, self.now)?;
        check_path_length(authority, path)?;
        if self.signatures_left == 0 {
            let why = format!("no path was found with {SIGNATURES_MAX} signatures verified");
            return Err(Refused::new(Code::TooManyCertificates, why));
        }
        // Counted also when it is remembered, so that a search is the same with a memory as without.
        self.signatures_left -= 1;
        self.check_signature(child, authority)
    }

    /// Verifies a signature, unless this very one was verified before.
    fn check_signature(
        &mut self,
        child: &Certificate,
        authority: &Certificate,
    ) -> Result<(), Refused> {
        let Some(memory) = self.memory else { return check_signature(child, authority) };
        let step = Step::of(child, authority);
        if self.fresh == Some(step) {
            return Ok(());
        }
        if !memory.recalls(&self.bundle.domain, &step, self.now) {
            check_signature(child, authority)?;
            self.verified.push(step);
        }
        Ok(())
    }
}

/// The certificates whose subject is the child's issuer, those with the key id that it names first.
fn candidates<'a>(
    child: &Certificate,
    from: &'a [Certificate],
) -> impl Iterator<Item = &'a Certificate> + use<'a> {
    let named = |authority: &&Certificate| authority.subject() == child.issuer();
    let key_id = child.extensions().authority_key_id.as_deref();
    let fits = |authority: &Certificate| {
        key_id.is_some() && authority.extensions().subject_key_id.as_deref() == key_id
    };
    let (first, second): (Vec<_>, Vec<_>) = from.iter().filter(named).partition(|it| fits(it));
    first.into_iter().chain(second)
}

/// The rules of a signing certificate (X.509-SVID, section 4; RFC 5280, 6.1.4 k to o).
fn check_authority(
    authority: &Certificate,
    domain: &TrustDomain,
    role: Role,
) -> Result<(), Refused> {
    let refused = |code, why: &str| Err(Refused::new(code, why));
    let extensions = authority.extensions();
    match extensions.basic {
        Some(basic) if basic.authority && basic.critical => {}
        Some(basic) if basic.authority => {
            let why = "an authority's basic constraints are not critical";
            return refused(Code::IssuerNotAuthority, why);
        }
        Some(_) | None => {
            let why = "a certificate that signed another is not an authority's";
            return refused(Code::IssuerNotAuthority, why);
        }
    }
    match extensions.key_usage {
        Some(usage) if usage.cert_sign() && usage.critical => {}
        Some(usage) if usage.cert_sign() => {
            return refused(Code::BadKeyUsage, "an authority's key usage is not critical");
        }
        Some(_) => {
            let why = "an authority's key usage does not allow to sign certificates";
            return refused(Code::BadKeyUsage, why);
        }
        None => return refused(Code::BadKeyUsage, "an authority has no key usage"),
    }
    if let Some(id) = &extensions.unknown_critical {
        let why = format!("an authority has extension `{id}`, which must be understood and is not");
        return Err(Refused::new(Code::BadExtension, why));
    }
    if let Some(purposes) = &extensions.purposes
        && !purposes.contains(&role.purpose())
        && !purposes.contains(&Purpose::Any)
    {
        let why = "an authority's extended key usage does not allow what the leaf does";
        return refused(Code::BadExtendedKeyUsage, why);
    }
    check_authority_names(authority, domain)
}

/// An authority that has a SPIFFE ID has one without a path, of the trust domain it signs for.
fn check_authority_names(authority: &Certificate, domain: &TrustDomain) -> Result<(), Refused> {
    for uri in authority.uri_names() {
        if !uri.get(..9).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"spiffe://")) {
            continue;
        }
        let found = String::from_utf8_lossy(uri);
        match found.parse::<SpiffeId>() {
            Ok(id) if id.is_root() && id.trust_domain() == domain => {}
            Ok(id) if id.is_root() => {
                let why = format!("the chain leads to an authority of `{id}`, not of `{domain}`");
                return Err(Refused::new(Code::UnknownIssuer, why));
            }
            Ok(_) | Err(_) => {
                let why = format!(
                    "an authority is named `{}`, where only a trust domain may be",
                    found.escape_debug()
                );
                return Err(Refused::new(Code::IssuerNotAuthority, why));
            }
        }
    }
    Ok(())
}

pub(crate) fn check_time(
    who: &str,
    certificate: &Certificate,
    now: Timestamp,
) -> Result<(), Refused> {
    let validity = certificate.validity();
    if now < validity.not_before {
        let why = format!("the {who}'s certificate is not valid before {}", validity.not_before);
        return Err(Refused::new(Code::NotYetValid, why));
    }
    if validity.not_after < now {
        let why = format!("the {who}'s certificate expired at {}", validity.not_after);
        return Err(Refused::new(Code::Expired, why));
    }
    Ok(())
}

/// Counts the authorities below, without those that only renewed their own key (RFC 5280, 6.1.4 l).
pub(crate) fn check_path_length(
    authority: &Certificate,
    path: &[Certificate],
) -> Result<(), Refused> {
    let Some(limit) = authority.path_length() else { return Ok(()) };
    let below = path.iter().skip(1).filter(|below| !below.is_self_issued()).count() as u64;
    if below <= limit {
        return Ok(());
    }
    let why = format!("{below} authorities stand below one that allows {limit}");
    Err(Refused::new(Code::PathLength, why))
}

/// Each authority constrains everything below it.
fn check_all_constraints(path: &[Certificate], anchor: &Certificate) -> Result<(), Refused> {
    for (position, authority) in path.iter().enumerate().skip(1) {
        check_constraints(authority, &path[..position])?;
    }
    check_constraints(anchor, path)
}

/// Whether the authority signed the child.
pub(crate) fn check_signature(child: &Certificate, authority: &Certificate) -> Result<(), Refused> {
    let key =
        VerifyingKey::from_spki(authority.spki()).map_err(|bad| refused_key("authority", &bad))?;
    child.check_signed_by(&key).map_err(|no| match no {
        NoSignature::WeakAlgorithm => Refused::new(Code::WeakAlgorithm, no.to_string()),
        NoSignature::WrongAlgorithm | NoSignature::Wrong => {
            Refused::new(Code::BadSignature, no.to_string())
        }
    })
}

/// The refusal of a certificate for its key.
pub(crate) fn refused_key(who: &str, bad: &BadKey) -> Refused {
    let code = match bad {
        BadKey::Malformed(_) => Code::Malformed,
        BadKey::Weak(_) => Code::WeakAlgorithm,
    };
    Refused::new(code, format!("the {who}'s certificate is refused: {bad}"))
}
