//! An issuer that somebody else's authority signed: whether it may sign SVIDs of this trust domain, and how it stands
//! under a root.

use countersign_identity::{Code, Timestamp, TrustDomain};

use crate::algorithm::VerifyingKey;
use crate::path::Search;
use crate::{Bundle, Certificate, Issuer, Refused, Role};

/// Authorities between an issuer and its root. What a server shows (a leaf, its issuer, these, and roots) has to fit into
/// one chain.
pub const ABOVE_MAX: usize = 2;

/// An issuer with the way up to its root.
#[derive(Clone, Debug)]
pub struct IssuerPath {
    /// The issuer.
    pub issuer: Issuer,
    /// The authorities between the issuer and the root, the nearest first.
    pub above: Vec<Certificate>,
    /// The root.
    pub root: Certificate,
}

/// Whether this certificate may stand as the issuer of a trust domain: it names that domain and no other, may sign SVIDs and
/// lists and nothing below it, no path through `others` to one of the `roots` breaks a rule, and nothing that it hangs on
/// ends before it. What is found holds for clients and for servers.
///
/// # Errors
/// With the rule that is broken.
pub fn verify_issuer(
    certificate: &Certificate,
    others: &[Certificate],
    domain: &TrustDomain,
    roots: Vec<Certificate>,
    now: Timestamp,
) -> Result<IssuerPath, Refused> {
    let issuer = check_issuer(certificate, domain)?;
    let bundle = Bundle::new(domain.clone(), roots, 1);
    // An authority's extended key usage may allow one of the two only.
    Search::new(&bundle, others, Role::Server, now).run_issuer(certificate)?;
    let (path, root) = Search::new(&bundle, others, Role::Client, now).run_issuer(certificate)?;
    let above: Vec<_> = path.into_iter().skip(1).collect();
    if ABOVE_MAX < above.len() {
        let why = format!(
            "{} authorities stand between the issuer and its root, over the limit of {ABOVE_MAX}",
            above.len()
        );
        return Err(Refused::new(Code::TooManyCertificates, why));
    }
    let ends = certificate.validity().not_after;
    let outlived = above.iter().chain([&root]).map(|one| one.validity().not_after).min();
    match outlived {
        Some(sooner) if sooner < ends => {
            let why = format!(
                "the issuer's certificate ends at {ends}, after an authority above it, which ends at {sooner}"
            );
            Err(Refused::new(Code::Expired, why))
        }
        Some(_) | None => Ok(IssuerPath { issuer, above, root }),
    }
}

/// The rules of an issuer by itself.
fn check_issuer(certificate: &Certificate, domain: &TrustDomain) -> Result<Issuer, Refused> {
    if !certificate.is_authority() {
        let why = "the issuer's certificate is not an authority's: its basic constraints must say `CA:TRUE` and its key usage `keyCertSign`";
        return Err(Refused::new(Code::IssuerNotAuthority, why));
    }
    let wanted = domain.id();
    let named: Vec<_> =
        certificate.uri_names().iter().map(|uri| String::from_utf8_lossy(uri)).collect();
    if named.len() != 1 || named.iter().any(|name| **name != *wanted.as_str()) {
        let found = match named.as_slice() {
            [] => "none".to_owned(),
            names => names.join(", ").escape_debug().to_string(),
        };
        let why = format!(
            "the issuer's certificate must have the URI name `{wanted}` and no other, and it has {found}"
        );
        return Err(Refused::new(Code::BadIdentity, why));
    }
    if certificate.path_length() != Some(0) {
        let why = "the issuer's certificate must not allow authorities below it: its basic constraints must say `pathlen:0`";
        return Err(Refused::new(Code::PathLength, why));
    }
    if !certificate.extensions().key_usage.is_some_and(|usage| usage.crl_sign()) {
        let why = "the issuer's certificate does not allow to sign revocation lists: its key usage must say `cRLSign`";
        return Err(Refused::new(Code::BadKeyUsage, why));
    }
    Issuer::from_certificate(certificate.clone())
        .map_err(|refusal| Refused::new(Code::IssuerNotAuthority, refusal.to_string()))
}

impl Certificate {
    /// Whether its own key signed it, as a root's does.
    pub fn is_self_signed(&self) -> bool {
        self.is_self_issued()
            && VerifyingKey::from_spki(self.spki())
                .is_ok_and(|key| self.check_signed_by(&key).is_ok())
    }
}
