//! Revocation lists as they were received: read strictly, as far as ours go.

use std::collections::HashMap;
use std::ops::Range;

use countersign_identity::{Serial, Timestamp};

use crate::algorithm::VerifyingKey;
use crate::certificate::{algorithm, time};
use crate::crl::{CrlNumber, CrlOf, ONLY_AUTHORITIES, ONLY_USERS};
use crate::der::{self, BadDer, Reader, Value};
use crate::extension::{authority_key_id, check_name, only};
use crate::{Certificate, oid};

/// The longest list that is read: some 400,000 entries.
pub const CRL_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A list whose signature nobody has looked at yet: [`is_of`](Self::is_of) does.
#[derive(Clone, Debug)]
pub struct Crl {
    der: Vec<u8>,
    contents: Range<usize>,
    signature: Range<usize>,
    algorithm: Range<usize>,
    issuer: Range<usize>,
    /// Its number.
    pub number: CrlNumber,
    /// Since when it is true.
    pub this_update: Timestamp,
    /// When the next comes at the latest.
    pub next_update: Timestamp,
    /// Whose certificates it tells of.
    pub of: CrlOf,
    /// Where it is found, if it is only a part of the issuer's list.
    pub part: Option<String>,
    /// On which list it builds, if it tells changes only.
    pub base: Option<CrlNumber>,
    /// What it lists: since when, and the CRLReason.
    pub entries: HashMap<Serial, (Timestamp, u8)>,
}

/// Why bytes are not a list of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCrl {
    /// Over the bound.
    #[error("a revocation list of {bytes} bytes is over the limit of {CRL_BYTES_MAX}")]
    Long {
        /// How many.
        bytes: usize,
    },
    /// Not the DER of a list.
    #[error("the revocation list does not parse: {0}")]
    Malformed(String),
}

impl From<BadDer> for BadCrl {
    fn from(bad: BadDer) -> Self {
        Self::Malformed(bad.to_string())
    }
}

impl Crl {
    /// Reads one list, and nothing after it.
    ///
    /// # Errors
    /// When it is over 16 MiB, is not strict DER, or says what we do not understand: what is skipped in a
    /// revocation list is a revocation that is missed.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadCrl> {
        if CRL_BYTES_MAX < bytes.len() {
            return Err(BadCrl::Long { bytes: bytes.len() });
        }
        let mut reader = Reader::new(bytes);
        let whole = reader.take(der::SEQUENCE, "revocation list")?;
        reader.end("revocation list")?;
        let mut outer = whole.inside();
        let contents = outer.take(der::SEQUENCE, "contents")?;
        let outside = algorithm(&mut outer)?;
        let signature = outer.take(der::BIT_STRING, "signature")?;
        signature.whole_bytes()?;
        outer.end("revocation list")?;
        let mut fields = contents.inside();
        let version = fields.take(der::INTEGER, "version")?;
        if version.unsigned()? != 1 {
            return Err(version.bad("the version is not 2").into());
        }
        let inside = algorithm(&mut fields)?;
        if inside.raw() != outside.raw() {
            return Err(outside.bad("signature algorithm: another one than inside").into());
        }
        let issuer = fields.take(der::SEQUENCE, "issuer")?;
        check_name(&issuer)?;
        let this_update = time(&fields.any()?)?;
        let next_update = time(&fields.any()?)?;
        let entries = match fields.optional(der::SEQUENCE, "entries")? {
            Some(list) => entries(&list)?,
            None => HashMap::new(),
        };
        let wrapped = fields.take(der::context_constructed(0), "extensions")?;
        fields.end("contents")?;
        let said = Said::parse(&only(&wrapped, der::SEQUENCE, "extensions")?)?;
        let missing = |what: &str| wrapped.bad(format!("{what} is missing"));
        Ok(Self {
            contents: contents.range(),
            signature: signature.content_range(),
            algorithm: outside.range(),
            issuer: issuer.range(),
            number: said.number.ok_or_else(|| missing("its number"))?,
            of: said.of.ok_or_else(|| missing("its scope"))?,
            this_update,
            next_update,
            part: said.part,
            base: said.base,
            entries,
            der: bytes.to_vec(),
        })
    }

    /// Whether this authority issued it: its name stands there, and its key signed the contents.
    pub fn is_of(&self, authority: &Certificate) -> bool {
        let signature = self.der[self.signature.clone()].get(1..).unwrap_or_default();
        let (algorithm, contents) =
            (&self.der[self.algorithm.clone()], &self.der[self.contents.clone()]);
        self.der[self.issuer.clone()] == *authority.subject()
            && VerifyingKey::from_spki(authority.spki())
                .is_ok_and(|key| key.verify(algorithm, contents, signature).is_ok())
    }
}

fn entries(list: &Value<'_>) -> Result<HashMap<Serial, (Timestamp, u8)>, BadDer> {
    let mut reader = list.inside();
    if reader.is_empty() {
        return Err(list.bad("an empty list of entries"));
    }
    let mut entries = HashMap::new();
    while !reader.is_empty() {
        let value = reader.take(der::SEQUENCE, "entry")?;
        let mut fields = value.inside();
        let serial = fields.take(der::INTEGER, "serial number")?;
        let serial = Serial::from_integer(serial.integer()?)
            .ok_or_else(|| serial.bad("a serial number that is none of ours"))?;
        let at = time(&fields.any()?)?;
        let reason = match fields.optional(der::SEQUENCE, "entry extensions")? {
            Some(extensions) => reason(&extensions)?,
            None => 0,
        };
        fields.end("entry")?;
        if entries.insert(serial, (at, reason)).is_some() {
            return Err(value.bad("a serial number that stands there twice"));
        }
    }
    Ok(entries)
}

/// The reason, which is the one extension of an entry that we understand.
fn reason(extensions: &Value<'_>) -> Result<u8, BadDer> {
    let mut list = extensions.inside();
    let mut fields = list.take(der::SEQUENCE, "entry extension")?.inside();
    list.end("entry extensions")?;
    let id = fields.take(der::OID, "entry extension")?;
    if id.oid()? != oid::CRL_REASON {
        return Err(id.bad("an entry extension that is not understood"));
    }
    let octets = fields.take(der::OCTET_STRING, "reason")?;
    fields.end("entry extension")?;
    match only(&octets, der::ENUMERATED, "reason")?.content {
        // 7 is not used, and 0 is left out (RFC 5280, 5.3.1).
        [code @ (1..=6 | 8..=10)] => Ok(*code),
        _ => Err(octets.bad("a reason that is none")),
    }
}

/// What the extensions of a list say.
#[derive(Debug, Default)]
struct Said {
    number: Option<CrlNumber>,
    base: Option<CrlNumber>,
    of: Option<CrlOf>,
    part: Option<String>,
}

/// Each is compared with each.
const EXTENSIONS_MAX: usize = 16;

impl Said {
    fn parse(list: &Value<'_>) -> Result<Self, BadDer> {
        let mut said = Self::default();
        let mut seen: Vec<&[u8]> = Vec::new();
        let mut reader = list.inside();
        while !reader.is_empty() {
            let value = reader.take(der::SEQUENCE, "extension")?;
            let mut fields = value.inside();
            let id = fields.take(der::OID, "extension")?.oid()?;
            let critical = fields.default_false("critical")?;
            let octets = fields.take(der::OCTET_STRING, "extension value")?;
            fields.end("extension")?;
            if seen.contains(&id) || EXTENSIONS_MAX <= seen.len() {
                return Err(value.bad("an extension that stands there twice, or too many"));
            }
            seen.push(id);
            if !said.take(id, &octets)? && critical {
                return Err(
                    value.bad(format!("`{}` is critical and not understood", oid::dotted(id)))
                );
            }
        }
        Ok(said)
    }

    /// Says whether it was understood.
    fn take(&mut self, id: &[u8], octets: &Value<'_>) -> Result<bool, BadDer> {
        match id {
            oid::CRL_NUMBER => self.number = Some(number(octets)?),
            oid::DELTA_CRL_INDICATOR => self.base = Some(number(octets)?),
            oid::ISSUING_DISTRIBUTION_POINT => self.scope(octets)?,
            oid::AUTHORITY_KEY_ID => drop(authority_key_id(octets)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn scope(&mut self, octets: &Value<'_>) -> Result<(), BadDer> {
        let scope = only(octets, der::SEQUENCE, "scope")?;
        let mut fields = scope.inside();
        if let Some(point) = fields.optional(der::context_constructed(0), "distribution point")? {
            let names = only(&point, der::context_constructed(0), "distribution point")?;
            let uri = only(&names, der::context(6), "distribution point")?;
            let text = std::str::from_utf8(uri.content).ok().filter(|text| text.is_ascii());
            self.part = Some(text.ok_or_else(|| uri.bad("not an address"))?.to_owned());
        }
        let of = fields.any()?;
        self.of = Some(match of.raw() {
            ONLY_USERS => CrlOf::Users,
            ONLY_AUTHORITIES => CrlOf::Authorities,
            _ => return Err(of.bad("a scope that is not understood")),
        });
        // Indirect lists and lists for some reasons only are not ours.
        fields.end("scope")
    }
}

fn number(octets: &Value<'_>) -> Result<CrlNumber, BadDer> {
    let value = only(octets, der::INTEGER, "number")?;
    CrlNumber::from_integer(value.integer()?)
        .ok_or_else(|| value.bad("a number that is negative or over 20 bytes"))
}
