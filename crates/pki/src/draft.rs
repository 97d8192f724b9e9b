//! What is to be certified, and the rules that it must pass before anything is signed.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use countersign_identity::{Code, Lifetime, Serial, SpiffeId, Timestamp, TrustDomain};

use crate::{Issuer, Pointers, ProvenKey, Provenance, PublicKey, Reviewed};

/// The rules of a trust domain for what is issued in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The trust domain, outside of which nothing is issued.
    pub domain: TrustDomain,
    /// The longest lifetime.
    pub lifetime_max: Lifetime,
    /// What certificates say about where their revocation is told; nothing when nobody asked for it.
    pub pointers: Option<Pointers>,
}

/// Whether a draft may name what lies under `/countersign`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// A workload: it may not.
    Refuse,
    /// A server or an agent: it must.
    Allow,
}

/// A DNS name for a certificate, such as `orders.shop.example`; no wildcard.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsName(Arc<str>); // INVARIANT: 1 to 253 bytes, labels of 1 to 63 of a-z 0-9 - _, no - first or last

/// A text that is not a DNS name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a DNS name: expected labels of a-z, 0-9 and `-`, separated by `.`")]
pub struct BadDnsName(String);

/// An SVID before it is reviewed.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Whose it will be.
    pub id: SpiffeId,
    /// The key, with the proof that its holder asked.
    pub key: ProvenKey,
    /// The serial number.
    pub serial: Serial,
    /// The moment of issue; the certificate becomes valid a little earlier.
    pub issued: Timestamp,
    /// How long it is to live from then; less if the issuer ends before.
    pub lifetime: Lifetime,
    /// Further names, for peers that know no SPIFFE.
    pub dns_names: Vec<DnsName>,
    /// Under which revision it was authorised, and for which node.
    pub provenance: Provenance,
    /// Whether it is for a server or an agent.
    pub reserved: Reserved,
}

/// A root's or an issuer's certificate before it is reviewed.
#[derive(Clone, Debug)]
pub struct AuthorityDraft {
    pub(crate) domain: TrustDomain,
    pub(crate) key: PublicKey,
    pub(crate) serial: Serial,
    pub(crate) issued: Timestamp,
    pub(crate) lifetime: Lifetime,
    pub(crate) rank: Rank,
    pub(crate) parent: Option<Issuer>,
}

/// The certificate of a delegated OCSP responder before it is reviewed: it signs answers about an issuer's certificates,
/// and nothing else.
#[derive(Clone, Debug)]
pub struct ResponderDraft {
    /// Whose certificates it answers for.
    pub issuer: Issuer,
    /// Its key.
    pub key: PublicKey,
    /// The serial number.
    pub serial: Serial,
    /// The moment of issue.
    pub issued: Timestamp,
    /// How long it is to live from then: short, because nobody asks whether it is revoked; less if the issuer ends before.
    pub lifetime: Lifetime,
}

/// What an authority may sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rank {
    /// Issuers.
    Root,
    /// SVIDs.
    Issuer,
}

/// Why a certificate is not issued. None of these is a fault of the server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another trust domain's name.
    #[error("`{id}` is outside trust domain `{domain}`")]
    ForeignDomain {
        /// What was asked.
        id: SpiffeId,
        /// What is ours.
        domain: TrustDomain,
    },
    /// The trust domain's own name, which belongs to authorities.
    #[error("`{0}` has no path, so it names the trust domain and no workload")]
    NoPath(SpiffeId),
    /// A workload under `/countersign`.
    #[error("`{0}` lies under `/countersign`, which belongs to servers and agents")]
    ReservedPath(SpiffeId),
    /// A server or an agent outside of `/countersign`.
    #[error("`{0}` does not lie under `/countersign`, as servers and agents do")]
    UnreservedPath(SpiffeId),
    /// Too long.
    #[error("lifetime of {asked} is over the limit of {limit}")]
    LongLifetime {
        /// What was asked.
        asked: Lifetime,
        /// The profile's.
        limit: Lifetime,
    },
    /// Too many names.
    #[error("{found} DNS names are over the limit of {DNS_NAMES_MAX}")]
    ManyDnsNames {
        /// How many.
        found: usize,
    },
    /// The certificate would hold its own issuer's key.
    #[error("the key is the issuer's own")]
    IssuerKey,
    /// The issuer cannot sign this.
    #[error("the issuer's certificate {0}")]
    Issuer(String),
    /// The issuer is not valid at the moment of issue.
    #[error("the issuer is valid from {not_before} to {not_after}, and not at {issued}")]
    IssuerNotValid {
        /// The issuer's first moment.
        not_before: Timestamp,
        /// The issuer's last moment.
        not_after: Timestamp,
        /// The moment of issue.
        issued: Timestamp,
    },
}

/// The most DNS names in one certificate.
pub(crate) const DNS_NAMES_MAX: usize = 32;
/// The longest life of a responder's certificate, which cannot be revoked (`id-pkix-ocsp-nocheck`).
const RESPONDER_LIFETIME_SECS_MAX: u64 = 7 * 86_400;

impl Refusal {
    /// The stable code.
    pub fn code(&self) -> Code {
        match self {
            Self::ForeignDomain { .. } => Code::ForeignDomain,
            Self::NoPath(_) | Self::UnreservedPath(_) | Self::ManyDnsNames { .. } => {
                Code::NotUnderstood
            }
            Self::ReservedPath(_) => Code::ReservedPath,
            Self::LongLifetime { .. } => Code::LongLifetime,
            Self::IssuerKey => Code::WeakKey,
            Self::Issuer(_) | Self::IssuerNotValid { .. } => Code::Unavailable,
        }
    }
}

impl DnsName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DnsName {
    type Err = BadDnsName;

    fn from_str(text: &str) -> Result<Self, BadDnsName> {
        let allowed = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(allowed)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let valid = text.len() <= 253 && text.split('.').all(label);
        if valid { Ok(Self(text.into())) } else { Err(BadDnsName(text.chars().take(80).collect())) }
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for DnsName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for DnsName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Draft {
    /// Checks every rule of the profile and of the standards. Only what passes can be signed.
    ///
    /// # Errors
    /// With the first rule that it breaks.
    pub fn review(self, profile: &Profile, issuer: &Issuer) -> Result<Reviewed, Refusal> {
        if *self.id.trust_domain() != profile.domain {
            return Err(Refusal::ForeignDomain { id: self.id, domain: profile.domain.clone() });
        }
        if self.id.is_root() {
            return Err(Refusal::NoPath(self.id));
        }
        match (self.reserved, self.id.is_reserved()) {
            (Reserved::Refuse, true) => return Err(Refusal::ReservedPath(self.id)),
            (Reserved::Allow, false) => return Err(Refusal::UnreservedPath(self.id)),
            (Reserved::Refuse, false) | (Reserved::Allow, true) => {}
        }
        if profile.lifetime_max < self.lifetime {
            let limit = profile.lifetime_max;
            return Err(Refusal::LongLifetime { asked: self.lifetime, limit });
        }
        if DNS_NAMES_MAX < self.dns_names.len() {
            return Err(Refusal::ManyDnsNames { found: self.dns_names.len() });
        }
        if self.key.public() == issuer.key() {
            return Err(Refusal::IssuerKey);
        }
        issuer.check(&profile.domain, self.issued)?;
        Ok(Reviewed::leaf(&self, issuer, profile.pointers.as_ref()))
    }
}

impl ResponderDraft {
    /// Checks the rules for responders.
    ///
    /// # Errors
    /// With the first rule that it breaks.
    pub fn review(self) -> Result<Reviewed, Refusal> {
        let limit =
            Lifetime::from_secs(RESPONDER_LIFETIME_SECS_MAX).expect("it is within the range");
        if limit < self.lifetime {
            return Err(Refusal::LongLifetime { asked: self.lifetime, limit });
        }
        if self.key == *self.issuer.key() {
            return Err(Refusal::IssuerKey);
        }
        self.issuer.check(self.issuer.domain(), self.issued)?;
        Ok(Reviewed::responder(&self))
    }
}

impl AuthorityDraft {
    /// A root, which signs itself: valid for 365 days by design, the anchor of the trust domain.
    pub fn root(
        domain: TrustDomain,
        key: PublicKey,
        serial: Serial,
        issued: Timestamp,
        lifetime: Lifetime,
    ) -> Self {
        Self { domain, key, serial, issued, lifetime, rank: Rank::Root, parent: None }
    }

    /// A newer root's key, certified by an older root: whoever knows only the older one reaches the newer through it
    /// (RFC 4210, 4.4, "new with old").
    pub fn cross(
        older: &Issuer,
        newer: &Issuer,
        serial: Serial,
        issued: Timestamp,
        lifetime: Lifetime,
    ) -> Self {
        let draft = Self::issuer(older, newer.key().clone(), serial, issued, lifetime);
        Self { rank: Rank::Root, ..draft }
    }

    /// An issuer, which a root signs: valid for 7 days by design, it signs SVIDs only.
    pub fn issuer(
        parent: &Issuer,
        key: PublicKey,
        serial: Serial,
        issued: Timestamp,
        lifetime: Lifetime,
    ) -> Self {
        let parent = parent.clone();
        Self {
            domain: parent.domain().clone(),
            key,
            serial,
            issued,
            lifetime,
            rank: Rank::Issuer,
            parent: Some(parent),
        }
    }

    /// Checks the rules for authorities.
    ///
    /// # Errors
    /// With the first rule that it breaks.
    pub fn review(self) -> Result<Reviewed, Refusal> {
        if let Some(parent) = &self.parent {
            if self.key == *parent.key() {
                return Err(Refusal::IssuerKey);
            }
            parent.check_may_certify_issuers(self.issued)?;
        }
        Ok(Reviewed::authority(&self))
    }
}
