//! SPIFFE IDs and trust domains (SPIFFE-ID standard, section 2).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

/// The name under which a deployment issues identities, such as `prod.example`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>); // INVARIANT: 1 to 255 bytes of a-z 0-9 . - _

/// A workload's name, `spiffe://prod.example/payments`, or, without a path, a trust domain's own.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>, // INVARIANT: canonical, at most 2048 bytes
    domain: TrustDomain,
}

impl Hash for SpiffeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The domain is part of it.
        self.text.hash(state);
    }
}

/// Why a text is not a SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Another scheme, or none.
    #[error("`{0}` does not begin with `spiffe://`")]
    Scheme(String),
    /// Nothing between the scheme and the path.
    #[error("trust domain is empty")]
    EmptyTrustDomain,
    /// A byte that a trust domain may not hold: also a port, user info, an escape or an upper-case letter.
    #[error("trust domain `{0}` may hold only a-z, 0-9, `.`, `-` and `_`")]
    TrustDomainCharacter(String),
    /// Over 255 bytes.
    #[error("trust domain of {bytes} bytes is over the limit of {TRUST_DOMAIN_BYTES_MAX}")]
    LongTrustDomain {
        /// How many.
        bytes: usize,
    },
    /// Over 2048 bytes in all.
    #[error("SPIFFE ID of {bytes} bytes is over the limit of {SPIFFE_ID_BYTES_MAX}")]
    LongId {
        /// How many.
        bytes: usize,
    },
    /// A path that ends in `/`, or holds `//`.
    #[error("path `{0}` has an empty segment")]
    EmptySegment(String),
    /// `.` or `..`.
    #[error("path `{0}` has a segment `.` or `..`")]
    DotSegment(String),
    /// A byte that a path may not hold: also `%`, `?` and `#`.
    #[error("path `{0}` may hold only a-z, A-Z, 0-9, `.`, `-`, `_` and `/`")]
    PathCharacter(String),
}

const TRUST_DOMAIN_BYTES_MAX: usize = 255;
const SPIFFE_ID_BYTES_MAX: usize = 2048;
const SCHEME: &str = "spiffe://";
/// The first path segment that belongs to servers and agents in every trust domain.
const RESERVED: &str = "/countersign";

impl TrustDomain {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain's own SPIFFE ID, without a path.
    pub fn id(&self) -> SpiffeId {
        SpiffeId { text: format!("{SCHEME}{self}").into(), domain: self.clone() }
    }

    /// The SPIFFE ID with this path, which begins with `/`.
    ///
    /// # Errors
    /// When the path is not one.
    pub fn with_path(&self, path: &str) -> Result<SpiffeId, IdError> {
        format!("{SCHEME}{self}{path}").parse()
    }
}

impl SpiffeId {
    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain that it belongs to.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The path with its leading `/`; empty for a trust domain's own ID.
    pub fn path(&self) -> &str {
        &self.text[SCHEME.len() + self.domain.0.len()..]
    }

    /// Whether it names the trust domain itself.
    pub fn is_root(&self) -> bool {
        self.path().is_empty()
    }

    /// Whether it lies under `/countersign`, which belongs to servers and agents.
    pub fn is_reserved(&self) -> bool {
        self.path()
            .strip_prefix(RESERVED)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let allowed = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        match text.len() {
            0 => Err(IdError::EmptyTrustDomain),
            1..=TRUST_DOMAIN_BYTES_MAX if text.bytes().all(allowed) => Ok(Self(text.into())),
            1..=TRUST_DOMAIN_BYTES_MAX => Err(IdError::TrustDomainCharacter(text.to_owned())),
            bytes => Err(IdError::LongTrustDomain { bytes }),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if SPIFFE_ID_BYTES_MAX < text.len() {
            return Err(IdError::LongId { bytes: text.len() });
        }
        // The scheme alone is compared without case (RFC 3986, 3.1); the canonical form is lower case.
        let rest = text
            .get(..SCHEME.len())
            .filter(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
            .map(|_| &text[SCHEME.len()..])
            .ok_or_else(|| IdError::Scheme(text.chars().take(80).collect()))?;
        let slash = rest.find('/').unwrap_or(rest.len());
        let domain: TrustDomain = rest[..slash].parse()?;
        check_path(&rest[slash..])?;
        let canonical = text.starts_with(SCHEME);
        let text = if canonical { text.into() } else { format!("{SCHEME}{rest}").into() };
        Ok(Self { text, domain })
    }
}

fn check_path(path: &str) -> Result<(), IdError> {
    let allowed =
        |byte| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    // Before the first slash there is nothing, which is not a segment.
    for segment in path.split('/').skip(1) {
        match segment {
            "" => return Err(IdError::EmptySegment(path.to_owned())),
            "." | ".." => return Err(IdError::DotSegment(path.to_owned())),
            _ if segment.bytes().all(allowed) => {}
            _ => return Err(IdError::PathCharacter(path.to_owned())),
        }
    }
    Ok(())
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

macro_rules! serde_as_text {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

serde_as_text!(TrustDomain);
serde_as_text!(SpiffeId);
