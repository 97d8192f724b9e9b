//! One root as it is on record, and an issuer's key that waits for a root outside.

use countersign_api::admin::{Cause, RootKey, RootState};
use countersign_identity::{Code, KeyId, Revision, Timestamp};
use countersign_pki::Certificate;
use serde::{Deserialize, Serialize};

use crate::refusal::Refused;

/// One root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Root {
    /// Its key.
    pub(crate) key: KeyId,
    /// Its certificate, PEM.
    pub(crate) certificate: String,
    /// The same key, certified by the root that was active when this one was prepared; PEM.
    pub(crate) cross: Option<String>,
    /// Where it is.
    pub(crate) state: RootState,
    /// Since when.
    pub(crate) since: Timestamp,
    /// Why it must not be trusted any more.
    pub(crate) tainted: Option<Cause>,
    /// The revision that put it into the bundle.
    pub(crate) published: Option<Revision>,
    /// The revision that took out of service what it vouches for.
    pub(crate) superseded: Option<Revision>,
    /// The revision that took it out of the bundle.
    pub(crate) dropped: Option<Revision>,
    /// Where its key is.
    #[serde(default)]
    pub(crate) held: RootKey,
    /// The issuers that a root outside has signed, PEM, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) issuers: Vec<String>,
    /// The issuer whose end was told of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) told: Option<KeyId>,
}

/// An issuer's key that was made for an authority outside, which has to sign its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Request {
    /// The key.
    pub(crate) key: KeyId,
    /// The signing request (PKCS#10), PEM.
    pub(crate) csr: String,
    /// Who asked for it.
    pub(crate) actor: String,
    /// When.
    pub(crate) at: Timestamp,
}

impl Root {
    /// A root at the beginning of its walk.
    pub(crate) fn prepared(
        certificate: &Certificate,
        cross: Option<&Certificate>,
        at: Timestamp,
    ) -> Self {
        Self {
            key: certificate.key_id(),
            certificate: certificate.to_pem(),
            cross: cross.map(Certificate::to_pem),
            state: RootState::Prepared,
            since: at,
            tainted: None,
            published: None,
            superseded: None,
            dropped: None,
            held: RootKey::Here,
            issuers: Vec::new(),
            told: None,
        }
    }

    /// The certificates of the issuers that came from outside.
    ///
    /// # Errors
    /// When the record does not hold them.
    pub(crate) fn imported(&self) -> Result<Vec<Certificate>, Refused> {
        self.issuers.iter().map(|pem| parse(pem)).collect()
    }

    /// The issuer that a root outside signed last.
    pub(crate) fn issuer(&self) -> Option<KeyId> {
        let newest = self.issuers.last()?;
        parse(newest).ok().map(|certificate| certificate.key_id())
    }

    /// Its certificate.
    ///
    /// # Errors
    /// When the record does not hold one.
    pub(crate) fn certificate(&self) -> Result<Certificate, Refused> {
        parse(&self.certificate)
    }

    /// Its cross-certificate, if it has one.
    ///
    /// # Errors
    /// As for its own.
    pub(crate) fn cross(&self) -> Result<Option<Certificate>, Refused> {
        self.cross.as_deref().map(parse).transpose()
    }

    /// Whether it is in the bundle.
    pub(crate) fn is_trusted(&self) -> bool {
        matches!(self.state, RootState::Published | RootState::Active | RootState::Retiring)
    }

    pub(super) fn becomes(&mut self, state: RootState, at: Timestamp) {
        (self.state, self.since) = (state, at);
    }
}

pub(super) fn parse(pem: &str) -> Result<Certificate, Refused> {
    Certificate::from_pem(pem)
        .map_err(|bad| Refused::new(Code::Internal, format!("a root on record: {bad}")))
}
