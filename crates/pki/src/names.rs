//! Name constraints (RFC 5280, 4.2.1.10): what an authority may not name is refused, and so is what
//! we do not understand.

use countersign_identity::Code;

use crate::extension::{GeneralName, NameKind};
use crate::{Certificate, Refused};

/// The most comparisons for one certificate under one authority.
const COMPARISONS_MAX: usize = 100_000;

/// Whether the authority's constraints allow every name in the path below it.
pub(crate) fn check_constraints(
    authority: &Certificate,
    path: &[Certificate],
) -> Result<(), Refused> {
    let Some(constraints) = &authority.extensions().constraints else { return Ok(()) };
    let mut bases = constraints.permitted.iter().chain(&constraints.excluded);
    // Software differs on what a URI constraint means for `spiffe://`, so none is accepted.
    if bases.any(|base| base.kind == NameKind::Uri) {
        return Err(refused("a constraint on URI names is not understood".to_owned()));
    }
    for (position, certificate) in path.iter().enumerate() {
        // A certificate that only renews the authority's key is not constrained, unless it is the leaf.
        if 0 < position && certificate.is_self_issued() {
            continue;
        }
        let names = names(certificate);
        let bases = constraints.permitted.len() + constraints.excluded.len();
        if COMPARISONS_MAX < names.len().saturating_mul(bases) {
            let why = format!("{} names under {bases} constraints are too many", names.len());
            return Err(refused(why));
        }
        for name in names {
            check_permitted(&name, &constraints.permitted)?;
            check_excluded(&name, &constraints.excluded)?;
        }
    }
    Ok(())
}

fn refused(why: String) -> Refused {
    Refused::new(Code::NameConstraint, why)
}

/// The alternative names, and the subject as a directory name. URIs cannot be constrained here.
fn names(certificate: &Certificate) -> Vec<GeneralName> {
    let mut names = certificate
        .extensions()
        .alt_names
        .as_ref()
        .map_or_else(Vec::new, |names| names.names.clone());
    if !certificate.has_empty_subject() {
        let bytes = certificate.subject_contents().to_vec();
        names.push(GeneralName { kind: NameKind::Directory, bytes });
    }
    names
}

fn check_permitted(name: &GeneralName, permitted: &[GeneralName]) -> Result<(), Refused> {
    let mut same_kind = permitted.iter().filter(|base| base.kind == name.kind).peekable();
    if same_kind.peek().is_none() {
        return Ok(());
    }
    for base in same_kind {
        if within(name, base)? {
            return Ok(());
        }
    }
    Err(refused(format!("the name `{}` is not among the permitted ones", shown(name))))
}

fn check_excluded(name: &GeneralName, excluded: &[GeneralName]) -> Result<(), Refused> {
    for base in excluded.iter().filter(|base| base.kind == name.kind) {
        if within(name, base)? || wildcard_reaches(name, base) {
            return Err(refused(format!("the name `{}` is excluded", shown(name))));
        }
    }
    Ok(())
}

fn shown(name: &GeneralName) -> String {
    match name.kind {
        NameKind::Dns | NameKind::Email => String::from_utf8_lossy(&name.bytes).into_owned(),
        NameKind::Ip => format!("{:?}", name.bytes),
        kind => format!("{kind:?}"),
    }
}

/// Whether a name lies within a subtree of its own kind.
fn within(name: &GeneralName, base: &GeneralName) -> Result<bool, Refused> {
    match name.kind {
        NameKind::Dns => Ok(dns_within(&name.bytes, &base.bytes)),
        NameKind::Ip => ip_within(&name.bytes, &base.bytes),
        // Parts are self-delimiting, so a prefix of the bytes is a prefix of the parts.
        NameKind::Directory => Ok(name.bytes.starts_with(&base.bytes)),
        NameKind::Other
        | NameKind::Email
        | NameKind::X400
        | NameKind::EdiParty
        | NameKind::Uri
        | NameKind::Registered => {
            Err(refused(format!("a constraint on names of kind {:?} is not understood", name.kind)))
        }
    }
}

/// `example.org` holds itself and what ends in `.example.org`; `.example.org` only the latter.
fn dns_within(name: &[u8], base: &[u8]) -> bool {
    let Some(at) = name.len().checked_sub(base.len()) else { return false };
    let (front, back) = name.split_at(at);
    back.eq_ignore_ascii_case(base)
        && (front.is_empty() || base.is_empty() || base[0] == b'.' || front.ends_with(b"."))
        && !(front.is_empty() && base.starts_with(b"."))
}

/// Whether `*.example.org` could stand for something in an excluded subtree below `example.org`.
fn wildcard_reaches(name: &GeneralName, base: &GeneralName) -> bool {
    name.kind == NameKind::Dns
        && name.bytes.strip_prefix(b"*.").is_some_and(|rest| dns_within(&base.bytes, rest))
}

/// The base is an address and a mask of the same length.
fn ip_within(address: &[u8], base: &[u8]) -> Result<bool, Refused> {
    let (network, mask) = base.split_at(base.len() / 2);
    if !matches!(base.len(), 8 | 32) {
        return Err(refused("a constraint on addresses has a wrong length".to_owned()));
    }
    // An IPv4 subtree says nothing about IPv6 addresses, so it does not hold them.
    Ok(address.len() == network.len()
        && address
            .iter()
            .zip(mask)
            .map(|(byte, mask)| byte & mask)
            .eq(network.iter().zip(mask).map(|(byte, mask)| byte & mask)))
}
