//! Writes the contents of certificates: every byte of them comes from here, never from a request.

use countersign_identity::{Lifetime, Serial, Timestamp, TrustDomain, Validity, backdate};

use crate::crl::distribution_points;
use crate::draft::{AuthorityDraft, Draft, Rank, ResponderDraft};
use crate::key::sha256;
use crate::{Issuer, Pointers, PublicKey, der, oid};

const VERSION_3: &[u8] = &[0xa0, 0x03, 0x02, 0x01, 0x02];
const EMPTY_SEQUENCE: &[u8] = &[0x30, 0x00];
const TRUE: &[u8] = &[0x01, 0x01, 0xff];
/// KeyUsage of a leaf: digitalSignature, bit 0.
const SIGNS_MESSAGES: &[u8] = &[0x03, 0x02, 0x07, 0x80];
/// KeyUsage of an authority: keyCertSign and cRLSign, bits 5 and 6.
const SIGNS_CERTIFICATES: &[u8] = &[0x03, 0x02, 0x01, 0x06];
/// X.520's upper bound for a common name.
const COMMON_NAME_MAX: usize = 64;
const ORGANISATION: &str = "Countersign";

/// From a little before the moment of issue to the end of the lifetime, or the issuer's end if that is
/// sooner. The end is rounded down to a whole second: nothing lives longer than was asked.
pub(crate) fn validity(issued: Timestamp, lifetime: Lifetime, issuer: Option<&Issuer>) -> Validity {
    let last = issuer.map_or(Timestamp::LAST, |issuer| issuer.certificate().validity().not_after);
    Validity {
        not_before: (issued - backdate(lifetime)).floor_secs(),
        not_after: (issued + lifetime.duration()).min(last).floor_secs(),
    }
}

/// The contents of an SVID.
pub(crate) fn leaf(
    draft: &Draft,
    issuer: &Issuer,
    validity: Validity,
    pointers: Option<&Pointers>,
) -> Vec<u8> {
    let purposes = der::write(
        der::SEQUENCE,
        &[&der::write(der::OID, &[oid::SERVER_AUTH]), &der::write(der::OID, &[oid::CLIENT_AUTH])],
    );
    let mut names = der::write(der::context(6), &[draft.id.as_str().as_bytes()]);
    for name in &draft.dns_names {
        names.extend(der::write(der::context(2), &[name.as_str().as_bytes()]));
    }
    let extensions = [
        critical(oid::BASIC_CONSTRAINTS, EMPTY_SEQUENCE),
        critical(oid::KEY_USAGE, SIGNS_MESSAGES),
        plain(oid::EXTENDED_KEY_USAGE, &purposes),
        // The subject is empty, so this is critical (RFC 5280, 4.2.1.6).
        critical(oid::SUBJECT_ALT_NAME, &der::write(der::SEQUENCE, &[&names])),
        authority_key_id(&issuer_key_id(issuer)),
        subject_key_id(draft.key.public()),
        pointing(pointers, issuer, draft.serial),
        plain(oid::PROVENANCE, &draft.provenance.to_der()),
    ];
    Tbs {
        serial: draft.serial,
        algorithm: issuer.key().kind().signature_algorithm(),
        issuer: issuer.certificate().subject(),
        validity,
        subject: EMPTY_SEQUENCE,
        key: draft.key.public(),
        extensions: &extensions.concat(),
    }
    .write()
}

/// Where revocation is told: `CRLDistributionPoints`, and the responder in `AuthorityInfoAccess` (RFC 5280, 4.2.1.13
/// and 4.2.2.1).
fn pointing(pointers: Option<&Pointers>, issuer: &Issuer, serial: Serial) -> Vec<u8> {
    let Some(pointers) = pointers else { return Vec::new() };
    let list = distribution_points(&pointers.list_for(issuer.key_id(), serial));
    let list = plain(oid::CRL_DISTRIBUTION_POINTS, &list);
    let Some(responder) = pointers.responder() else { return list };
    let method = der::write(der::OID, &[oid::OCSP]);
    let place = der::write(der::context(6), &[responder.as_bytes()]);
    let access = der::write(der::SEQUENCE, &[&der::write(der::SEQUENCE, &[&method, &place])]);
    [list, plain(oid::AUTHORITY_INFO_ACCESS, &access)].concat()
}

/// The contents of an OCSP responder's certificate (RFC 6960, 4.2.2.2). It names no SPIFFE ID, so it is no SVID.
pub(crate) fn responder(draft: &ResponderDraft, validity: Validity) -> Vec<u8> {
    let subject = authority_name(draft.issuer.domain(), "OCSP responder");
    let purposes = der::write(der::SEQUENCE, &[&der::write(der::OID, &[oid::OCSP_SIGNING])]);
    let extensions = [
        critical(oid::BASIC_CONSTRAINTS, EMPTY_SEQUENCE),
        critical(oid::KEY_USAGE, SIGNS_MESSAGES),
        critical(oid::EXTENDED_KEY_USAGE, &purposes),
        authority_key_id(&issuer_key_id(&draft.issuer)),
        subject_key_id(&draft.key),
        plain(oid::OCSP_NO_CHECK, &der::write(der::NULL, &[])),
    ];
    Tbs {
        serial: draft.serial,
        algorithm: draft.issuer.key().kind().signature_algorithm(),
        issuer: draft.issuer.certificate().subject(),
        validity,
        subject: &subject,
        key: &draft.key,
        extensions: &extensions.concat(),
    }
    .write()
}

/// The contents of a root's or an issuer's certificate.
pub(crate) fn authority(draft: &AuthorityDraft, validity: Validity) -> Vec<u8> {
    let (word, path_length) = match draft.rank {
        Rank::Root => ("root", 1),
        Rank::Issuer => ("issuer", 0),
    };
    let subject = authority_name(&draft.domain, word);
    let signer = draft.parent.as_ref().map_or_else(|| key_id(&draft.key), issuer_key_id);
    let extensions = [
        authority_extensions(&draft.domain, path_length),
        authority_key_id(&signer),
        subject_key_id(&draft.key),
    ];
    Tbs {
        serial: draft.serial,
        algorithm: draft
            .parent
            .as_ref()
            .map_or(&draft.key, Issuer::key)
            .kind()
            .signature_algorithm(),
        issuer: draft.parent.as_ref().map_or(&subject, |parent| parent.certificate().subject()),
        validity,
        subject: &subject,
        key: &draft.key,
        extensions: &extensions.concat(),
    }
    .write()
}

/// What makes a certificate an authority's of a trust domain.
fn authority_extensions(domain: &TrustDomain, path_length: u8) -> Vec<u8> {
    let constraints = der::write(der::SEQUENCE, &[TRUE, &der::write_unsigned(&[path_length])]);
    let name = der::write(der::context(6), &[domain.id().as_str().as_bytes()]);
    [
        critical(oid::BASIC_CONSTRAINTS, &constraints),
        critical(oid::KEY_USAGE, SIGNS_CERTIFICATES),
        plain(oid::SUBJECT_ALT_NAME, &der::write(der::SEQUENCE, &[&name])),
    ]
    .concat()
}

/// The extensions of an issuer that do not depend on who signs it.
pub(crate) fn issuer_extensions(domain: &TrustDomain) -> Vec<u8> {
    authority_extensions(domain, 0)
}

/// The subject of an issuer.
pub(crate) fn issuer_name(domain: &TrustDomain) -> Vec<u8> {
    authority_name(domain, "issuer")
}

struct Tbs<'a> {
    serial: Serial,
    algorithm: &'a [u8],
    issuer: &'a [u8],
    validity: Validity,
    subject: &'a [u8],
    key: &'a PublicKey,
    extensions: &'a [u8],
}

impl Tbs<'_> {
    fn write(&self) -> Vec<u8> {
        let times = [time(self.validity.not_before), time(self.validity.not_after)].concat();
        let extensions = der::write(der::SEQUENCE, &[self.extensions]);
        der::write(
            der::SEQUENCE,
            &[
                VERSION_3,
                &der::write_unsigned(self.serial.as_bytes()),
                self.algorithm,
                self.issuer,
                &der::write(der::SEQUENCE, &[&times]),
                self.subject,
                self.key.spki(),
                &der::write(der::context_constructed(3), &[&extensions]),
            ],
        )
    }
}

pub(crate) fn critical(id: &[u8], value: &[u8]) -> Vec<u8> {
    let id = der::write(der::OID, &[id]);
    der::write(der::SEQUENCE, &[&id, TRUE, &der::write(der::OCTET_STRING, &[value])])
}

pub(crate) fn plain(id: &[u8], value: &[u8]) -> Vec<u8> {
    let id = der::write(der::OID, &[id]);
    der::write(der::SEQUENCE, &[&id, &der::write(der::OCTET_STRING, &[value])])
}

/// The first 20 bytes of the key id (RFC 7093, 2, method 4, shortened to the usual length).
pub(crate) fn key_id(key: &PublicKey) -> Vec<u8> {
    sha256(key.spki())[..20].to_vec()
}

/// What the issuer's own certificate calls its key.
pub(crate) fn issuer_key_id(issuer: &Issuer) -> Vec<u8> {
    let written = issuer.certificate().extensions().subject_key_id.clone();
    written.unwrap_or_else(|| key_id(issuer.key()))
}

pub(crate) fn authority_key_id(key_id: &[u8]) -> Vec<u8> {
    let field = der::write(der::context(0), &[key_id]);
    plain(oid::AUTHORITY_KEY_ID, &der::write(der::SEQUENCE, &[&field]))
}

fn subject_key_id(key: &PublicKey) -> Vec<u8> {
    plain(oid::SUBJECT_KEY_ID, &der::write(der::OCTET_STRING, &[&key_id(key)]))
}

/// `O=Countersign, CN=<trust domain> <word>`; a trust domain too long for a common name is left out.
fn authority_name(domain: &TrustDomain, word: &str) -> Vec<u8> {
    let long = format!("{domain} {word}");
    let common = if long.len() <= COMMON_NAME_MAX { long.as_str() } else { word };
    let part = |id: &[u8], text: &str| {
        let id = der::write(der::OID, &[id]);
        let text = der::write(der::UTF8_STRING, &[text.as_bytes()]);
        der::write(der::SET, &[&der::write(der::SEQUENCE, &[&id, &text])])
    };
    der::write(
        der::SEQUENCE,
        &[&part(oid::ORGANISATION, ORGANISATION), &part(oid::COMMON_NAME, common)],
    )
}

/// UTCTime through 2049, GeneralizedTime from 2050 on (RFC 5280, 4.1.2.5).
pub(crate) fn time(moment: Timestamp) -> Vec<u8> {
    let (year, month, day, hour, minute, second) = moment.civil();
    let text = format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}Z");
    match year {
        1950..2050 => der::write(der::UTC_TIME, &[&text.as_bytes()[2..]]),
        _ => der::write(der::GENERALIZED_TIME, &[text.as_bytes()]),
    }
}
