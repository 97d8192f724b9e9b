//! The extensions of a certificate (RFC 5280, 4.2), read strictly and all of them.

use countersign_identity::{Attested, Code, NodeTag, Revision};

use crate::der::{self, BadDer, Reader, Value};
use crate::oid;

/// Under which revision an SVID was authorised, through which node it was issued, and by which kinds of facts its holder was
/// attested there.
///
/// A private, non-critical extension of every SVID, under the identifier
/// `2.25.14296939048434451238334504876767025306`, which carries the DER of
///
/// ```text
/// SEQUENCE {
///     incarnation  INTEGER (0..18446744073709551615),
///     number       INTEGER (0..18446744073709551615),
///     node         OCTET STRING (SIZE (8)),
///     attested [0] IMPLICIT OCTET STRING (SIZE (2)) OPTIONAL,
///     ...
/// }
/// ```
///
/// `attested` is a number of 16 bits, one for each kind of selector ([`Attested`]); it is left out where there is none. What a later
/// version adds at the end is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Provenance {
    /// The revision of the state on which the issuance was authorised.
    pub revision: Revision,
    /// The opaque name of the node.
    pub node: NodeTag,
    /// The kinds of facts that the workload's entry asked for when it was authorised: no agent hands it out without all of them.
    pub attested: Attested,
}

impl Provenance {
    /// The extension's value.
    pub(crate) fn to_der(self) -> Vec<u8> {
        let attested = match self.attested.is_empty() {
            true => Vec::new(),
            false => der::write(der::context(0), &[&self.attested.bits().to_be_bytes()]),
        };
        der::write(
            der::SEQUENCE,
            &[
                &der::write_unsigned(&self.revision.incarnation.to_be_bytes()),
                &der::write_unsigned(&self.revision.number.to_be_bytes()),
                &der::write(der::OCTET_STRING, &[self.node.as_bytes()]),
                &attested,
            ],
        )
    }

    fn parse(value: &Value<'_>) -> Result<Self, BadDer> {
        let mut reader = value.inside();
        let mut fields = reader.take(der::SEQUENCE, "provenance")?.inside();
        reader.end("provenance")?;
        let incarnation = fields.take(der::INTEGER, "incarnation")?.unsigned()?;
        let number = fields.take(der::INTEGER, "revision")?.unsigned()?;
        let tag = fields.take(der::OCTET_STRING, "node tag")?;
        let node = tag.content.try_into().map_err(|_| tag.bad("a node tag is 8 bytes"))?;
        let attested = match fields.optional(der::context(0), "attested")? {
            None => Attested::default(),
            Some(bits) => {
                let both = bits.content.try_into();
                Attested::from_bits(u16::from_be_bytes(
                    both.map_err(|_| bits.bad("kinds of attestation are 2 bytes"))?,
                ))
            }
        };
        let revision = Revision { incarnation, number };
        Ok(Self { revision, node: NodeTag::from_bytes(node), attested })
    }
}

/// Each is compared with each.
const EXTENSIONS_MAX: usize = 64;

/// BasicConstraints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BasicConstraints {
    pub(crate) critical: bool,
    pub(crate) authority: bool,
    pub(crate) path_length: Option<u64>,
}

/// KeyUsage, bit 0 the highest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyUsage {
    pub(crate) critical: bool,
    bits: u16,
}

/// One purpose in ExtendedKeyUsage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    ServerAuth,
    ClientAuth,
    OcspSigning,
    Any,
    Other,
}

/// The kinds of GeneralName, by their context tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameKind {
    Other,
    Email,
    Dns,
    X400,
    Directory,
    EdiParty,
    Uri,
    Ip,
    Registered,
}

/// A GeneralName: its kind and its contents (of a directory name: the contents of the Name).
#[derive(Clone, Debug)]
pub(crate) struct GeneralName {
    pub(crate) kind: NameKind,
    pub(crate) bytes: Vec<u8>,
}

/// SubjectAltName.
#[derive(Clone, Debug, Default)]
pub(crate) struct AltNames {
    pub(crate) critical: bool,
    pub(crate) names: Vec<GeneralName>,
    pub(crate) uris: Vec<Vec<u8>>,
}

/// NameConstraints.
#[derive(Clone, Debug, Default)]
pub(crate) struct NameConstraints {
    pub(crate) permitted: Vec<GeneralName>,
    pub(crate) excluded: Vec<GeneralName>,
}

/// Everything that a certificate's extensions say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extensions {
    pub(crate) alt_names: Option<AltNames>,
    pub(crate) basic: Option<BasicConstraints>,
    pub(crate) key_usage: Option<KeyUsage>,
    pub(crate) purposes: Option<Vec<Purpose>>,
    pub(crate) constraints: Option<NameConstraints>,
    pub(crate) subject_key_id: Option<Vec<u8>>,
    pub(crate) authority_key_id: Option<Vec<u8>>,
    pub(crate) provenance: Option<Provenance>,
    /// The first extension that must be processed, and that we do not.
    pub(crate) unknown_critical: Option<String>,
}

/// Why extensions are not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadExtension {
    pub(crate) code: Code,
    pub(crate) why: String,
}

impl From<BadDer> for BadExtension {
    fn from(bad: BadDer) -> Self {
        Self { code: Code::Malformed, why: bad.to_string() }
    }
}

impl KeyUsage {
    pub(crate) fn digital_signature(self) -> bool {
        self.bits & 0x8000 != 0
    }

    pub(crate) fn cert_sign(self) -> bool {
        self.bits & 0x0400 != 0
    }

    pub(crate) fn crl_sign(self) -> bool {
        self.bits & 0x0200 != 0
    }
}

impl Extensions {
    /// Reads `SEQUENCE OF Extension`.
    pub(crate) fn parse(list: &Value<'_>) -> Result<Self, BadExtension> {
        let mut found = Self::default();
        let mut seen: Vec<&[u8]> = Vec::new();
        let mut reader = list.inside();
        if reader.is_empty() {
            return Err(list.bad("an empty list of extensions").into());
        }
        while !reader.is_empty() {
            let mut extension = reader.take(der::SEQUENCE, "extension")?.inside();
            let id = extension.take(der::OID, "extension")?.oid()?;
            let critical = extension.default_false("critical")?;
            let octets = extension.take(der::OCTET_STRING, "extension value")?;
            extension.end("extension")?;
            if EXTENSIONS_MAX <= seen.len() {
                let what = format!("more than {EXTENSIONS_MAX} extensions");
                return Err(list.bad(what).into());
            }
            if seen.contains(&id) {
                let why = format!("extension `{}` stands there twice", oid::dotted(id));
                return Err(BadExtension { code: Code::BadExtension, why });
            }
            seen.push(id);
            found.take(id, critical, &octets)?;
        }
        Ok(found)
    }

    fn take(&mut self, id: &[u8], critical: bool, value: &Value<'_>) -> Result<(), BadExtension> {
        // Key identifiers and our own are never critical (RFC 5280, 4.2.1.1 and 4.2.1.2).
        let understood = match id {
            oid::SUBJECT_ALT_NAME => {
                self.alt_names = Some(AltNames::parse(value, critical)?);
                true
            }
            oid::BASIC_CONSTRAINTS => {
                self.basic = Some(basic_constraints(value, critical)?);
                true
            }
            oid::KEY_USAGE => {
                let bits = only(value, der::BIT_STRING, "key usage")?.named_bits()?;
                self.key_usage = Some(KeyUsage { critical, bits });
                true
            }
            oid::EXTENDED_KEY_USAGE => {
                self.purposes = Some(purposes(value)?);
                true
            }
            oid::NAME_CONSTRAINTS => {
                self.constraints = Some(NameConstraints::parse(value)?);
                true
            }
            oid::SUBJECT_KEY_ID => {
                let key_id = only(value, der::OCTET_STRING, "subject key identifier")?;
                self.subject_key_id = Some(key_id.content.to_vec());
                false
            }
            oid::AUTHORITY_KEY_ID => {
                self.authority_key_id = authority_key_id(value)?;
                false
            }
            // An explicit policy may be asked for, and we process none. Critical it must be, but whoever wrote it meant it.
            oid::POLICY_CONSTRAINTS => {
                self.unknown_critical.get_or_insert_with(|| oid::dotted(id));
                true
            }
            oid::PROVENANCE => {
                self.provenance = Some(Provenance::parse(value)?);
                false
            }
            _ => false,
        };
        if critical && !understood && self.unknown_critical.is_none() {
            self.unknown_critical = Some(oid::dotted(id));
        }
        Ok(())
    }
}

/// The one value of this tag inside an extension.
pub(crate) fn only<'a>(octets: &Value<'a>, tag: u8, name: &str) -> Result<Value<'a>, BadDer> {
    let mut reader = octets.inside();
    let value = reader.take(tag, name)?;
    reader.end(name)?;
    Ok(value)
}

fn basic_constraints(octets: &Value<'_>, critical: bool) -> Result<BasicConstraints, BadDer> {
    let mut fields = only(octets, der::SEQUENCE, "basic constraints")?.inside();
    // The one departure from DER: rcgen and older software write out a flag that is FALSE.
    let authority = fields.optional(der::BOOLEAN, "authority flag")?;
    let authority = authority.map_or(Ok(false), |flag| flag.boolean())?;
    let path_length =
        fields.optional(der::INTEGER, "path length")?.map(|value| value.unsigned()).transpose()?;
    fields.end("basic constraints")?;
    Ok(BasicConstraints { critical, authority, path_length })
}

fn purposes(octets: &Value<'_>) -> Result<Vec<Purpose>, BadDer> {
    let list = only(octets, der::SEQUENCE, "extended key usage")?;
    let mut reader = list.inside();
    let mut purposes = Vec::new();
    while !reader.is_empty() {
        purposes.push(match reader.take(der::OID, "purpose")?.oid()? {
            oid::SERVER_AUTH => Purpose::ServerAuth,
            oid::CLIENT_AUTH => Purpose::ClientAuth,
            oid::OCSP_SIGNING => Purpose::OcspSigning,
            oid::ANY_EXTENDED_KEY_USAGE => Purpose::Any,
            _ => Purpose::Other,
        });
    }
    if purposes.is_empty() { Err(list.bad("an empty extended key usage")) } else { Ok(purposes) }
}

pub(crate) fn authority_key_id(octets: &Value<'_>) -> Result<Option<Vec<u8>>, BadDer> {
    let mut fields = only(octets, der::SEQUENCE, "authority key identifier")?.inside();
    let key_id = fields.optional(der::context(0), "key identifier")?;
    fields.optional(der::context_constructed(1), "issuer names")?;
    fields.optional(der::context(2), "serial number")?;
    fields.end("authority key identifier")?;
    Ok(key_id.map(|value| value.content.to_vec()))
}

impl AltNames {
    fn parse(octets: &Value<'_>, critical: bool) -> Result<Self, BadDer> {
        let list = only(octets, der::SEQUENCE, "alternative names")?;
        let mut reader = list.inside();
        let mut names = Self { critical, ..Self::default() };
        while !reader.is_empty() {
            let value = reader.any()?;
            let name = GeneralName::parse(&value)?;
            name.check_form(&value)?;
            if name.kind == NameKind::Uri {
                names.uris.push(name.bytes);
            } else {
                names.names.push(name);
            }
        }
        if names.uris.is_empty() && names.names.is_empty() {
            return Err(list.bad("an empty list of alternative names"));
        }
        Ok(names)
    }
}

impl GeneralName {
    fn parse(value: &Value<'_>) -> Result<Self, BadDer> {
        let kind = match value.tag {
            0xa0 => NameKind::Other,
            0x81 => NameKind::Email,
            0x82 => NameKind::Dns,
            0xa3 => NameKind::X400,
            0xa4 => NameKind::Directory,
            0xa5 => NameKind::EdiParty,
            0x86 => NameKind::Uri,
            0x87 => NameKind::Ip,
            0x88 => NameKind::Registered,
            tag => return Err(value.bad(format!("a name of unknown kind {tag:02x}"))),
        };
        if kind == NameKind::Other {
            check_other(value)?;
        }
        if kind == NameKind::Registered {
            value.oid()?;
        }
        // [4] is explicit around a Name, because a Name is a CHOICE.
        let bytes = if kind == NameKind::Directory {
            check_name(&only(value, der::SEQUENCE, "directory name")?)?
        } else {
            value.content
        };
        Ok(Self { kind, bytes: bytes.to_vec() })
    }

    /// The form of a name in SubjectAltName. URIs are judged later, where they get their own reasons.
    fn check_form(&self, value: &Value<'_>) -> Result<(), BadDer> {
        let dns = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_*".contains(byte);
        let good = match self.kind {
            // Also keeps `spiffe://` and NUL out of DNS names.
            // One that ends with a dot is another spelling of the same (RFC 5280, 4.2.1.6, has none).
            NameKind::Dns => {
                !self.bytes.is_empty() && self.bytes.iter().all(dns) && !self.bytes.ends_with(b".")
            }
            NameKind::Ip => matches!(self.bytes.len(), 4 | 16),
            NameKind::Email => self.bytes.iter().all(u8::is_ascii_graphic),
            NameKind::Other
            | NameKind::X400
            | NameKind::Directory
            | NameKind::EdiParty
            | NameKind::Uri
            | NameKind::Registered => true,
        };
        if good { Ok(()) } else { Err(value.bad(format!("a bad name of kind {:?}", self.kind))) }
    }
}

/// A name of a kind that is named within it (RFC 5280, 4.2.1.6): its kind, and what it is, whatever that may be.
fn check_other(value: &Value<'_>) -> Result<(), BadDer> {
    let mut fields = value.inside();
    fields.take(der::OID, "kind of another name")?.oid()?;
    let mut named = fields.take(der::context_constructed(0), "another name")?.inside();
    named.any()?;
    named.end("another name")?;
    fields.end("another name")
}

impl NameConstraints {
    fn parse(octets: &Value<'_>) -> Result<Self, BadDer> {
        let list = only(octets, der::SEQUENCE, "name constraints")?;
        let mut fields = list.inside();
        let permitted = fields.optional(der::context_constructed(0), "permitted names")?;
        let excluded = fields.optional(der::context_constructed(1), "excluded names")?;
        fields.end("name constraints")?;
        if permitted.is_none() && excluded.is_none() {
            return Err(list.bad("empty name constraints"));
        }
        let subtrees = |value: Option<Value<'_>>| value.map_or(Ok(Vec::new()), |v| subtrees(&v));
        Ok(Self { permitted: subtrees(permitted)?, excluded: subtrees(excluded)? })
    }
}

fn subtrees(list: &Value<'_>) -> Result<Vec<GeneralName>, BadDer> {
    let mut reader = list.inside();
    let mut bases = Vec::new();
    while !reader.is_empty() {
        let mut subtree = reader.take(der::SEQUENCE, "subtree")?.inside();
        bases.push(GeneralName::parse(&subtree.any()?)?);
        // `minimum` is 0, which DER leaves out, and `maximum` absent (RFC 5280, 4.2.1.10).
        subtree.end("subtree")?;
    }
    if bases.is_empty() { Err(list.bad("an empty list of subtrees")) } else { Ok(bases) }
}

/// Walks a Name (a SEQUENCE OF SET OF pairs) and gives its contents.
pub(crate) fn check_name<'a>(name: &Value<'a>) -> Result<&'a [u8], BadDer> {
    let mut parts = name.inside();
    while !parts.is_empty() {
        let set = parts.take(der::SET, "name part")?;
        let mut pairs = set.inside();
        if pairs.is_empty() {
            return Err(set.bad("an empty name part"));
        }
        while !pairs.is_empty() {
            let mut pair: Reader<'a> = pairs.take(der::SEQUENCE, "name attribute")?.inside();
            pair.take(der::OID, "name attribute")?.oid()?;
            pair.any()?;
            pair.end("name attribute")?;
        }
    }
    Ok(name.content)
}

#[cfg(test)]
mod tests {
    use countersign_identity::SelectorKind;

    use super::*;

    fn read(der: &[u8]) -> Result<Provenance, BadDer> {
        let octets = der::write(der::OCTET_STRING, &[der]);
        Provenance::parse(&Reader::new(&octets).any()?)
    }

    #[test]
    fn provenance_is_read_as_it_was_written_and_what_comes_later_is_skipped() {
        let plain = Provenance {
            revision: Revision { incarnation: 1, number: u64::MAX },
            node: NodeTag::from_bytes([7; 8]),
            attested: Attested::default(),
        };
        assert_eq!(read(&plain.to_der()), Ok(plain));
        let attested = Attested::default().and(SelectorKind::Launch).and(SelectorKind::UnixUid);
        let said = Provenance { attested, ..plain };
        assert_eq!(read(&said.to_der()), Ok(said));
        assert_eq!(said.to_der().len(), plain.to_der().len() + 4);
        let fields = |more: &[u8]| {
            let der = plain.to_der();
            der::write(der::SEQUENCE, &[&der[2..], more])
        };
        let later = der::write(der::context(1), &[b"later"]);
        assert_eq!(read(&fields(&later)), Ok(plain));
        let kinds = |bytes: &[u8]| fields(&der::write(der::context(0), &[bytes]));
        let unknown = Provenance { attested: Attested::default(), ..plain };
        assert_eq!(read(&kinds(&[0x80, 0])), Ok(unknown), "a kind of a later version");
        for bytes in [&[][..], &[1], &[0, 0, 1]] {
            assert!(read(&kinds(bytes)).is_err(), "{bytes:?}");
        }
    }
}
