//! Name constraints (RFC 5280, 4.2.1.10): what an authority may not name is refused, and so is what
//! we do not understand.

use countersign_identity::Code;

use crate::der::{self, BadDer, Reader, Value};
use crate::extension::{GeneralName, NameKind};
use crate::{Certificate, Refused};

/// The most comparisons for one certificate under one authority.
const COMPARISONS_MAX: usize = 100_000;
/// `emailAddress` (PKCS #9), under which a subject may have an address.
const EMAIL_ADDRESS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x01];
const PRINTABLE_STRING: u8 = 0x13;
const T61_STRING: u8 = 0x14;
const IA5_STRING: u8 = 0x16;
const UNIVERSAL_STRING: u8 = 0x1c;
const BMP_STRING: u8 = 0x1e;

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
    let networks = constraints.permitted.iter().chain(&constraints.excluded);
    networks.filter(|base| base.kind == NameKind::Ip).try_for_each(check_network)?;
    let emails = constraints.permitted.iter().chain(&constraints.excluded);
    let emails = emails.into_iter().any(|base| base.kind == NameKind::Email);
    let permitted = in_one_form(&constraints.permitted)?;
    let excluded = in_one_form(&constraints.excluded)?;
    for (position, certificate) in path.iter().enumerate() {
        // A certificate that only renews the authority's key is not constrained, unless it is the leaf.
        if 0 < position && certificate.is_self_issued() {
            continue;
        }
        if emails
            && has_email_address(certificate.subject_contents()).map_err(|bad| unread(&bad))?
        {
            let why = "a constraint on email names is not understood for an address in a subject";
            return Err(refused(why.to_owned()));
        }
        let names = names(certificate)?;
        let bases = permitted.len() + excluded.len();
        if COMPARISONS_MAX < names.len().saturating_mul(bases) {
            let why = format!("{} names under {bases} constraints are too many", names.len());
            return Err(refused(why));
        }
        for name in names {
            check_permitted(&name, &permitted)?;
            check_excluded(&name, &excluded)?;
        }
    }
    Ok(())
}

fn refused(why: String) -> Refused {
    Refused::new(Code::NameConstraint, why)
}

/// The alternative names, and the subject as a directory name. URIs cannot be constrained here.
fn names(certificate: &Certificate) -> Result<Vec<GeneralName>, Refused> {
    let mut names = certificate
        .extensions()
        .alt_names
        .as_ref()
        .map_or_else(Vec::new, |names| names.names.clone());
    if !certificate.has_empty_subject() {
        let bytes = certificate.subject_contents().to_vec();
        names.push(GeneralName { kind: NameKind::Directory, bytes });
    }
    in_one_form(&names)
}

/// The same names, of which those of directories are written in the form in which they are compared.
fn in_one_form(names: &[GeneralName]) -> Result<Vec<GeneralName>, Refused> {
    let one = |name: &GeneralName| {
        let mut name = name.clone();
        if name.kind == NameKind::Directory {
            name.bytes = compared(&name.bytes).map_err(|bad| unread(&bad))?;
        }
        Ok(name)
    };
    names.iter().map(one).collect()
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
        NameKind::Ip => Ok(ip_within(&name.bytes, &base.bytes)),
        // Both in their one form, whose parts are self-delimiting, so that a prefix of the bytes is a prefix of the parts.
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

fn unread(bad: &BadDer) -> Refused {
    refused(bad.to_string())
}

/// A name as it is compared (RFC 5280, 7.1): which kind of text a value is written in, upper and lower case, and blanks at its
/// ends or more than one of them do not tell one from another.
fn compared(name: &[u8]) -> Result<Vec<u8>, BadDer> {
    let (mut whole, mut parts) = (Vec::new(), Reader::new(name));
    while !parts.is_empty() {
        let mut pairs = parts.take(der::SET, "name part")?.inside();
        let mut part = Vec::new();
        while !pairs.is_empty() {
            let mut pair = pairs.take(der::SEQUENCE, "name attribute")?.inside();
            let attribute = pair.take(der::OID, "name attribute")?.raw();
            let value = pair.any()?;
            let value = match text(&value) {
                Some(Some(text)) => der::write(der::UTF8_STRING, &[text.as_bytes()]),
                // Others may read in it what is excluded.
                Some(None) => return Err(value.bad("text that is not of its kind")),
                None => value.raw().to_vec(),
            };
            part.push([attribute, &value].concat());
        }
        part.sort();
        whole.extend(der::write(der::SET, &[&part.concat()]));
    }
    Ok(whole)
}

/// What a value says, if it is text, and if it can be read.
fn text(value: &Value<'_>) -> Option<Option<String>> {
    let wide = |width: usize| -> Option<String> {
        let number = |unit: &[u8]| unit.iter().fold(0, |sum, byte| (sum << 8) | u32::from(*byte));
        let units = value.content.chunks(width);
        units.map(|unit| char::from_u32(number(unit)).filter(|_| unit.len() == width)).collect()
    };
    let text = match value.tag {
        der::UTF8_STRING | PRINTABLE_STRING | IA5_STRING => {
            str::from_utf8(value.content).ok().map(str::to_owned)
        }
        T61_STRING => Some(value.content.iter().map(|byte| char::from(*byte)).collect()),
        BMP_STRING => wide(2),
        UNIVERSAL_STRING => wide(4),
        _ => return None,
    };
    let in_words = |text: String| {
        let words: Vec<&str> = text.split_whitespace().collect();
        words.join(" ").to_lowercase()
    };
    Some(text.map(in_words))
}

fn has_email_address(subject: &[u8]) -> Result<bool, BadDer> {
    let mut parts = Reader::new(subject);
    while !parts.is_empty() {
        let mut pairs = parts.take(der::SET, "name part")?.inside();
        while !pairs.is_empty() {
            let mut pair = pairs.take(der::SEQUENCE, "name attribute")?.inside();
            if pair.take(der::OID, "name attribute")?.oid()? == EMAIL_ADDRESS {
                return Ok(true);
            }
        }
    }
    Ok(false)
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

/// Whether the base is an address and a mask of the same length, in the style of CIDR (RFC 4632), which knows no mask with holes.
fn check_network(base: &GeneralName) -> Result<(), Refused> {
    if !matches!(base.bytes.len(), 8 | 32) {
        return Err(refused("a constraint on addresses has a wrong length".to_owned()));
    }
    let (_network, mask) = base.bytes.split_at(base.bytes.len() / 2);
    let mut after = mask.iter().skip_while(|byte| **byte == 255);
    let edge = after.next().copied().unwrap_or(0);
    if edge.leading_ones() != edge.count_ones() || after.any(|byte| *byte != 0) {
        return Err(refused("the mask of a constraint on addresses has holes".to_owned()));
    }
    Ok(())
}

/// The base is such a network.
fn ip_within(address: &[u8], base: &[u8]) -> bool {
    let (network, mask) = base.split_at(base.len() / 2);
    // An IPv4 subtree says nothing about IPv6 addresses, so it does not hold them.
    address.len() == network.len()
        && address
            .iter()
            .zip(mask)
            .map(|(byte, mask)| byte & mask)
            .eq(network.iter().zip(mask).map(|(byte, mask)| byte & mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    const O: &[u8] = &[0x55, 0x04, 0x0a];
    const C: &[u8] = &[0x55, 0x04, 0x06];

    /// A name of one part after another, each one attribute.
    fn name(attributes: &[(&[u8], u8, &[u8])]) -> Vec<u8> {
        let part = |(oid, tag, text): &(&[u8], u8, &[u8])| {
            let pair = [der::write(der::OID, &[oid]), der::write(*tag, &[text])].concat();
            der::write(der::SET, &[&der::write(der::SEQUENCE, &[&pair])])
        };
        attributes.iter().flat_map(part).collect()
    }

    fn directory(bytes: Vec<u8>) -> GeneralName {
        let name = GeneralName { kind: NameKind::Directory, bytes };
        in_one_form(&[name]).unwrap().remove(0)
    }

    #[test]
    fn directory_name_is_excluded_however_it_is_written() {
        let utf8 = der::UTF8_STRING;
        let excluded = [directory(name(&[(O, utf8, b"Evil Corp")]))];
        for (tag, text) in [
            (utf8, b"Evil Corp".as_slice()),
            (utf8, b"EVIL corp"),
            (utf8, b"  Evil   Corp "),
            (PRINTABLE_STRING, b"evil corp"),
            (T61_STRING, b"Evil Corp"),
            (BMP_STRING, b"\0E\0v\0i\0l\0 \0C\0o\0r\0p"),
            (UNIVERSAL_STRING, b"\0\0\0e\0\0\0v\0\0\0i\0\0\0l\0\0\0 \0\0\0c\0\0\0o\0\0\0r\0\0\0p"),
        ] {
            let below = directory(name(&[(O, tag, text), (C, PRINTABLE_STRING, b"DE")]));
            assert!(check_excluded(&below, &excluded).is_err(), "{tag:x} {text:?}");
        }
        for other in [
            name(&[(O, utf8, b"Evil Corps")]),
            name(&[(C, utf8, b"Evil Corp")]),
            name(&[(C, PRINTABLE_STRING, b"DE"), (O, utf8, b"Evil Corp")]),
            name(&[(O, der::OCTET_STRING, b"Evil Corp")]),
        ] {
            assert!(check_excluded(&directory(other.clone()), &excluded).is_ok(), "{other:x?}");
            let permitted = [directory(other)];
            assert!(check_permitted(&excluded[0], &permitted).is_err());
        }
        assert!(
            check_permitted(&directory(name(&[(O, PRINTABLE_STRING, b"EVIL CORP")])), &excluded)
                .is_ok()
        );
    }

    #[test]
    fn text_that_is_not_of_its_kind_is_not_compared() {
        for (tag, text) in [(BMP_STRING, b"\0E\0v\0i\0l\0".as_slice()), (der::UTF8_STRING, b"\xff")]
        {
            let bytes = name(&[(O, tag, text)]);
            assert!(in_one_form(&[GeneralName { kind: NameKind::Directory, bytes }]).is_err());
        }
    }

    #[test]
    fn address_in_a_subject_is_found_in_whichever_part() {
        let plain = name(&[(O, der::UTF8_STRING, b"a@evil.example")]);
        assert_eq!(has_email_address(&plain), Ok(false));
        let with =
            name(&[(O, der::UTF8_STRING, b"Shop"), (EMAIL_ADDRESS, IA5_STRING, b"a@evil.example")]);
        assert_eq!(has_email_address(&with), Ok(true));
    }
}
