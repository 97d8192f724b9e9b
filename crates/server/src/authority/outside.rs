//! What somebody else's authority signed for us, judged before anything is done with it.

use std::time::Duration;

use countersign_identity::{Code, DurationText, KeyId, Lifetime, Timestamp, TrustDomain};
use countersign_pki::{Certificate, Chain, IssuerPath, verify_issuer};

use crate::refusal::Refused;

/// How long an issuer may live whose root is held outside, when no manifest says more (design, section 6).
const ISSUER_LIFETIME_SECS: u64 = 90 * 86_400;
/// Authorities sign for whole days, and begin a little earlier.
const ROUNDING: Duration = Duration::from_secs(86_400);

/// An issuer whose certificate came from outside.
pub(crate) type Imported = IssuerPath;

/// What a chain is judged by.
pub(crate) struct Wanted<'a> {
    /// The key of the request.
    pub(crate) key: KeyId,
    /// The trust domain.
    pub(crate) domain: &'a TrustDomain,
    /// Roots that are trusted already.
    pub(crate) known: Vec<Certificate>,
    /// The longest life of what the issuer will sign.
    pub(crate) svid_lifetime: Lifetime,
    /// How long issuers may live by manifest, if one says so.
    pub(crate) declared: Option<Lifetime>,
    /// The time.
    pub(crate) now: Timestamp,
}

/// Reads the PEM text that an outside authority gave, in whatever order: the issuer's certificate, those between it and its
/// root, and the root, which may be left out if it is trusted already.
///
/// # Errors
/// With what is wrong, and what to do about it.
pub(crate) fn read_chain(text: &str, wanted: Wanted<'_>) -> Result<Imported, Refused> {
    let chain = Chain::from_pem(text)
        .map_err(|bad| Refused::new(Code::NotUnderstood, format!("the chain: {bad}")))?;
    let (ours, others): (Vec<_>, Vec<_>) =
        chain.certificates().iter().cloned().partition(|one| one.key_id() == wanted.key);
    let Some(issuer) = ours.first() else {
        let why = format!(
            "none of the {} certificates holds the key of the request, `{}`: have the request signed that waits here, and no \
             other",
            others.len(),
            wanted.key
        );
        return Err(Refused::new(Code::NotUnderstood, why));
    };
    let mut roots = wanted.known;
    // A root that is trusted already stays as it is trusted.
    let brought = others.iter().filter(|one| one.is_self_signed());
    let brought: Vec<_> =
        brought.filter(|one| roots.iter().all(|root| root.key_id() != one.key_id())).collect();
    roots.extend(brought.into_iter().cloned());
    if roots.is_empty() {
        let why = "the chain holds no root: put the certificate that signed itself into the file, after the others";
        return Err(Refused::new(Code::NotUnderstood, why));
    }
    let imported = verify_issuer(issuer, &others, wanted.domain, roots, wanted.now);
    let imported = imported.map_err(|refused| match refused.code {
        Code::UnknownIssuer => Refused::new(
            refused.code,
            format!(
                "{}: is the whole way up to the root in the file? Put every authority's certificate into it",
                refused.why
            ),
        ),
        code => Refused::new(code, refused.why),
    })?;
    check_life(issuer, wanted.svid_lifetime, wanted.declared, wanted.now)?;
    Ok(imported)
}

/// Not so short that what it signs would outlive it, not so long that nobody remembers how the ceremony went.
fn check_life(
    issuer: &Certificate,
    svid_lifetime: Lifetime,
    declared: Option<Lifetime>,
    now: Timestamp,
) -> Result<(), Refused> {
    let ends = issuer.validity().not_after;
    if ends < now + svid_lifetime.duration() {
        let why = format!(
            "the issuer's certificate ends at {ends}, before what it could sign now, which may live for {svid_lifetime}: have \
             it signed for longer"
        );
        return Err(Refused::new(Code::Expired, why));
    }
    let usual = Duration::from_secs(ISSUER_LIFETIME_SECS);
    let longest = declared.map_or(usual, |declared| usual.max(declared.duration()));
    if now + longest + ROUNDING < ends {
        let why = format!(
            "the issuer's certificate ends at {ends}, which is more than {} from now: have it signed for less, or declare a \
             longer `issuerLifetime` in the manifest of kind `Authority`",
            DurationText(longest)
        );
        return Err(Refused::new(Code::LongLifetime, why));
    }
    Ok(())
}
