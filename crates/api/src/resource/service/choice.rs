//! What a service may choose between, and how its manifest writes each choice.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::resource::problem::shorten;

/// What is spoken inside the mutual TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1 or HTTP/2; requests are seen one by one.
    #[default]
    Http,
    /// Bytes; a connection is one thing.
    Tcp,
}

/// A text that is no protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a protocol: expected `http` or `tcp`")]
pub struct UnknownProtocol(String);

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
        })
    }
}

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        match text {
            "http" => Ok(Self::Http),
            "tcp" => Ok(Self::Tcp),
            _ => Err(UnknownProtocol(shorten(text))),
        }
    }
}

impl Serialize for Protocol {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What becomes of a connection that outlives the certificate of a peer which cannot prove it anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Expired {
    /// It ends.
    #[default]
    End,
    /// It goes on, until revocation or policy end it.
    Keep,
}

/// A text that is neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not what may become of a connection: expected `end` or `keep`")]
pub struct UnknownExpired(String);

impl fmt::Display for Expired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::End => "end",
            Self::Keep => "keep",
        })
    }
}

impl FromStr for Expired {
    type Err = UnknownExpired;

    fn from_str(text: &str) -> Result<Self, UnknownExpired> {
        match text {
            "end" => Ok(Self::End),
            "keep" => Ok(Self::Keep),
            _ => Err(UnknownExpired(shorten(text))),
        }
    }
}

impl Serialize for Expired {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a service's program is told of its callers' certificates, in `x-forwarded-client-cert` as Envoy writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ForwardClientCertificate {
    /// The field is not there.
    #[default]
    Nothing,
    /// Who the two ends are, and the digest of the caller's certificate.
    Identity,
    /// The same, and the certificate.
    Certificate,
    /// The same, and those of the issuers on the path that was verified.
    Chain,
}

/// A text that is none of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not what may be told of a certificate: expected `nothing`, `identity`, `certificate` or `chain`"
)]
pub struct UnknownForward(String);

impl fmt::Display for ForwardClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Identity => "identity",
            Self::Certificate => "certificate",
            Self::Chain => "chain",
        })
    }
}

impl FromStr for ForwardClientCertificate {
    type Err = UnknownForward;

    fn from_str(text: &str) -> Result<Self, UnknownForward> {
        match text {
            "nothing" => Ok(Self::Nothing),
            "identity" => Ok(Self::Identity),
            "certificate" => Ok(Self::Certificate),
            "chain" => Ok(Self::Chain),
            _ => Err(UnknownForward(shorten(text))),
        }
    }
}

impl ForwardClientCertificate {
    pub(super) fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl Serialize for ForwardClientCertificate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A version of the PROXY protocol that is spoken here. There is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyVersion {
    /// The second, in bytes.
    V2,
}

/// A text that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a version of the PROXY protocol that is spoken here: expected `v2`")]
pub struct UnknownProxyVersion(String);

impl fmt::Display for ProxyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("v2")
    }
}

impl FromStr for ProxyVersion {
    type Err = UnknownProxyVersion;

    fn from_str(text: &str) -> Result<Self, UnknownProxyVersion> {
        match text {
            "v2" => Ok(Self::V2),
            _ => Err(UnknownProxyVersion(shorten(text))),
        }
    }
}

impl Serialize for ProxyVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
