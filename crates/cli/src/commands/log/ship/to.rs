//! Where events go: a kind of receiver, its address, and how it is known to be the right one.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use countersign_identity::Incarnation;
use countersign_program::otlp::Collector;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::pem;
use crate::exit::Failure;

/// The port of syslog over TLS (RFC 5425, 4.1).
const SYSLOG_PORT: u16 = 6514;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Syslog,
    Otlp,
}

/// The number by which an organisation is known, from IANA's list of private enterprise numbers (RFC 9371).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands::log) struct Enterprise(NonZeroU32);

impl Enterprise {
    /// The number of an organisation that has none of its own: it is set aside for examples (RFC 5612).
    pub(in crate::commands::log) const DOCUMENTATION: Self =
        Self(NonZeroU32::new(32_473).expect("it is not 0"));
}

impl FromStr for Enterprise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        let number = text.parse().ok().filter(|_| is_plain);
        number.map(Self).ok_or_else(|| "expected a number from 1 to 4294967295".to_owned())
    }
}

impl fmt::Display for Enterprise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A receiver.
#[derive(Clone)]
pub(in crate::commands::log) struct Destination {
    pub(super) way: Way,
    pub(super) at: Collector,
    /// Of syslog: whose names the structured data has.
    pub(super) enterprise: Enterprise,
    /// Of a receiver over TLS: what it is known by.
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    named: String,
}

/// Whose events they are.
pub(super) struct Origin {
    pub(super) incarnation: Incarnation,
    pub(super) domain: String,
}

/// A receiver as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::commands::log) struct Named {
    way: Way,
    at: Collector,
    is_tls: bool,
    text: String,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            "expected `syslog+tls://HOST:PORT`, `otlp+https://HOST:PORT` or `otlp+http://HOST:PORT`"
                .to_owned()
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(refuse)?;
        let (way, is_tls) = match scheme {
            "syslog+tls" => (Way::Syslog, true),
            "otlp+https" => (Way::Otlp, true),
            "otlp+http" => (Way::Otlp, false),
            _ => return Err(refuse()),
        };
        let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| !port.contains([']', '/']));
        let rest = match way {
            Way::Syslog if rest.contains('/') => return Err(refuse()),
            Way::Syslog if !has_port => format!("{rest}:{SYSLOG_PORT}"),
            Way::Syslog | Way::Otlp => rest.to_owned(),
        };
        let at = Collector::behind_scheme(&rest).ok_or_else(refuse)?;
        Ok(Self { way, at, is_tls, text: text.to_owned() })
    }
}

/// By what ends know each other.
pub(in crate::commands::log) struct Credentials<'a> {
    pub(in crate::commands::log) ca: Option<&'a PathBuf>,
    pub(in crate::commands::log) certificate: Option<&'a PathBuf>,
    pub(in crate::commands::log) key: Option<&'a PathBuf>,
}

impl Destination {
    /// Reads what the ends know each other by.
    ///
    /// # Errors
    /// When a file is missing that TLS needs, or cannot be used, or a number is given that this kind of receiver does not know.
    pub(in crate::commands::log) fn new(
        named: &Named,
        enterprise: Option<Enterprise>,
        by: &Credentials<'_>,
    ) -> Result<Self> {
        if enterprise.is_some() && named.way != Way::Syslog {
            let why = "`--enterprise-number` is for receivers of syslog";
            return Err(Failure::not_understood(why).into());
        }
        let enterprise = enterprise.unwrap_or(Enterprise::DOCUMENTATION);
        let tls = match (named.is_tls, by.ca) {
            (true, Some(_)) => {
                let (host, _port) = named.at.authority().rsplit_once(':').unwrap_or_default();
                let host = host.trim_matches(['[', ']']).to_owned();
                let name = ServerName::try_from(host)
                    .map_err(|_bad| Failure::not_understood("the receiver's host is no name"))?;
                Some((Arc::new(config(by)?), name))
            }
            (true, None) => {
                let why = "name who vouches for the receiver: `--ca FILE`, certificates in PEM";
                return Err(Failure::not_understood(why).into());
            }
            (false, None) if by.certificate.is_none() => None,
            (false, _) => {
                let why = "`--ca` and `--certificate` are for receivers over TLS";
                return Err(Failure::not_understood(why).into());
            }
        };
        let (way, at, named) = (named.way, named.at.clone(), named.text.clone());
        Ok(Self { way, at, enterprise, tls, named })
    }
}

/// Trusts the given authorities, and nobody else.
fn config(by: &Credentials<'_>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = by.ca {
        for certificate in CertificateDer::pem_slice_iter(&pem(path)?) {
            let certificate = certificate.with_context(|| format!("`{}`", path.display()))?;
            roots.add(certificate).with_context(|| format!("`{}`", path.display()))?;
        }
    }
    if roots.is_empty() {
        return Err(Failure::not_understood("`--ca`: there is no certificate in it").into());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    match (by.certificate, by.key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(certificate), Some(key)) => {
            let chain =
                CertificateDer::pem_slice_iter(&pem(certificate)?).collect::<Result<Vec<_>, _>>();
            let chain = chain.with_context(|| format!("`{}`", certificate.display()))?;
            let bytes = zeroize::Zeroizing::new(pem(key)?);
            let key = PrivateKeyDer::from_pem_slice(&bytes)
                .with_context(|| format!("`{}` holds no key", key.display()))?;
            builder.with_client_auth_cert(chain, key).context("the certificate and its key")
        }
        (_, _) => Err(Failure::not_understood("`--certificate` and `--key` go together").into()),
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_is_a_scheme_a_host_and_a_port() {
        let at = |text: &str| {
            let named = text.parse::<Named>()?;
            Ok::<_, String>((named.at.authority().to_owned(), named.is_tls))
        };
        assert_eq!(
            at("syslog+tls://logs.example").unwrap(),
            ("logs.example:6514".to_owned(), true)
        );
        assert_eq!(at("syslog+tls://[::1]:1").unwrap(), ("[::1]:1".to_owned(), true));
        assert_eq!(at("otlp+http://c:4318/x").unwrap(), ("c:4318".to_owned(), false));
        for bad in
            ["logs.example", "syslog://a:1", "syslog+tls://a:1/x", "otlp+https://", "http://a"]
        {
            assert!(at(bad).is_err(), "{bad}");
        }
    }
}
