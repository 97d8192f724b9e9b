//! Where rustls asks us: who is this, did they prove it, and what do we show?

use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use countersign_identity::{Attested, Code, TlsTerms, TlsVersion};
use countersign_pki::{Findings, Refused, Role, Verified};
use countersign_policy::Context;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::aws_lc_rs as algorithms;

use crate::alert::alerting;
use crate::canary;
use crate::config::Agreed;
use crate::identity::Own;
use crate::revoked::revoked;
use crate::rule::{Clients, Present, Rule, decide, no_own_identity};
use crate::{Direction, Identity, Trust};

/// How a peer may prove possession of its key. One algorithm a scheme, so that a scheme fixes the curve
/// (RFC 8446, 4.2.3). Which keys may be in a certificate at all is for `countersign_pki::verify` to say.
pub(crate) static ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[
        algorithms::ECDSA_P256_SHA256,
        algorithms::ED25519,
        algorithms::ECDSA_P384_SHA384,
        algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
        algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
        algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
    ],
    mapping: &[
        (SignatureScheme::ECDSA_NISTP256_SHA256, &[algorithms::ECDSA_P256_SHA256]),
        (SignatureScheme::ED25519, &[algorithms::ED25519]),
        (SignatureScheme::ECDSA_NISTP384_SHA384, &[algorithms::ECDSA_P384_SHA384]),
        (SignatureScheme::RSA_PSS_SHA256, &[algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA384, &[algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA512, &[algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY]),
    ],
};

/// What one handshake has found out, beside what rustls can carry.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    verified: OnceLock<Verified>,
    /// What is to be remembered of the chain once the proof is there.
    findings: Mutex<Option<Findings>>,
    proven: OnceLock<()>,
    refused: OnceLock<Refused>,
    shown: OnceLock<Arc<Own>>,
    /// The address that whoever dials comes from, where it is known.
    source: OnceLock<IpAddr>,
}

impl Slot {
    /// The caller comes from here. Told before the handshake begins.
    pub(crate) fn comes_from(&self, source: Option<IpAddr>) {
        if let Some(source) = source {
            self.source.get_or_init(|| source);
        }
    }

    /// From where the caller comes.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        self.source.get().copied()
    }

    /// Whom the presented certificates name, once the peer has also proved that it holds the key.
    pub(crate) fn peer(&self) -> Option<&Verified> {
        self.proven.get().and_then(|()| self.verified.get())
    }

    /// Why our side refused.
    pub(crate) fn refused(&self) -> Option<&Refused> {
        self.refused.get()
    }

    /// What we showed.
    pub(crate) fn shown(&self) -> Option<&Arc<Own>> {
        self.shown.get()
    }

    fn findings(&self) -> std::sync::MutexGuard<'_, Option<Findings>> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, refused: Refused) -> Error {
        let error = alerting(refused.code);
        // The first reason is the one that counts; a handshake does not go on after it.
        self.refused.get_or_init(|| refused);
        error
    }
}

/// What a caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To be let in.
    Entry,
    /// As a canary: to hear whether it would get through the verifier.
    Trial,
}

/// Verifies peers on the slice that is current when they show themselves.
#[derive(Debug)]
pub(crate) struct Verifier {
    pub(crate) trust: Arc<Trust>,
    pub(crate) rule: Rule,
    pub(crate) clients: Clients,
    /// On what the handshake may agree.
    pub(crate) terms: TlsTerms,
    pub(crate) asked: Asked,
    /// Of this one connection; none in a configuration that many connections share.
    pub(crate) slot: Option<Arc<Slot>>,
}

impl Verifier {
    /// The chain: does it lead to an authority of the peer's own trust domain, and is all of it in order?
    fn chain(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        role: Role,
    ) -> Result<(), Error> {
        let chain: Vec<&[u8]> = std::iter::once(leaf).chain(others).map(AsRef::as_ref).collect();
        let found = self.trust.verify(&chain, role);
        match (&self.slot, found) {
            (Some(slot), Ok((verified, findings))) => {
                *slot.findings() = Some(findings);
                slot.verified.get_or_init(|| verified);
                Ok(())
            }
            (Some(slot), Err(refused)) => Err(slot.refuse(refused)),
            (None, Ok((verified, _unproven))) => {
                let local = self.trust.identity();
                // Which version is agreed on cannot be told here, so every one that could be has to be let in; one that may not be
                // any more is refused with the proof.
                let holding = self.rule.terms(&self.trust.slice());
                let could =
                    |it: &&TlsVersion| self.terms.has_version(**it) && holding.has_version(**it);
                let mut versions = TlsVersion::ALL.iter().filter(could).peekable();
                if versions.peek().is_none() {
                    return Err(alerting(Code::NoSharedProtocol));
                }
                versions.try_for_each(|version| {
                    let foreseen = self.foresee(&verified, local.as_deref(), *version);
                    foreseen.map_err(|refused| alerting(refused.code))
                })
            }
            (None, Err(refused)) => Err(alerting(refused.code)),
        }
    }

    /// The proof: does the peer hold the leaf's private key? And, as far as can be told before the handshake
    /// ends, may the connection exist?
    ///
    /// Only from here on is the peer's name more than a claim, so only here it is used in a refusal.
    fn proof(
        &self,
        leaf: &CertificateDer<'_>,
        (message, signature): (&[u8], &DigitallySignedStruct),
        version: TlsVersion,
    ) -> Result<HandshakeSignatureValid, Error> {
        let valid = match version {
            TlsVersion::V13 => verify_tls13_signature(message, leaf, signature, &ALGORITHMS),
            TlsVersion::V12 if self.terms.has_version(version) => {
                verify_tls12_signature(message, leaf, signature, &ALGORITHMS)
            }
            TlsVersion::V12 => Err(no_tls12()),
        }?;
        let Some(slot) = &self.slot else {
            let holding = self.rule.terms(&self.trust.slice());
            return if holding.has_version(version) {
                Ok(valid)
            } else {
                Err(alerting(Code::NoSharedProtocol))
            };
        };
        slot.proven.get_or_init(|| ());
        // Only now: a chain that somebody copied takes no room from those who hold its key.
        if let Some(findings) = slot.findings().take() {
            self.trust.remember(&findings);
        }
        let Some(peer) = slot.peer() else {
            let why = "the peer's signature came before its certificates".to_owned();
            return Err(slot.refuse(Refused { code: Code::Internal, why }));
        };
        let local = slot.shown().map(|own| &*own.identity);
        self.foresee(peer, local, version).map_err(|refused| slot.refuse(refused))?;
        Ok(valid)
    }

    /// Refuses what admission is going to refuse, while an alert can still tell the peer why.
    ///
    /// Policy may read the key exchange, which rustls does not tell at this point. So every one that we can agree on is
    /// tried: refused is what none of them lets pass. Admission decides again, on what was really agreed.
    fn foresee(
        &self,
        peer: &Verified,
        local: Option<&Identity>,
        version: TlsVersion,
    ) -> Result<(), Refused> {
        let slice = self.trust.slice();
        if self.asked == Asked::Trial {
            return canary::alive(peer, &slice);
        }
        revoked(peer, &slice.revocations).map_err(|covered| covered.refused)?;
        let (mut last, now) = (None, self.trust.now());
        let source = self.slot.as_ref().and_then(|slot| slot.source());
        // What was offered, of what may be agreed on by now.
        let holding = self.rule.terms(&slice);
        let could = Agreed::all(self.terms);
        let could = could.filter(|it| it.version == version && it.fits(holding));
        // The first one will do, as a rule.
        let mut refused = Vec::new();
        for group in could.map(Agreed::group_name) {
            if refused.contains(&group) {
                continue;
            }
            let shown = Shown { peer, local, source, version: version.as_str(), group };
            let context = shown.context(self.rule.direction, &self.trust);
            match decide(&self.rule, peer, local.map(Identity::id), (&context, now), &slice) {
                Ok(_policies) => return Ok(()),
                Err(why) => {
                    refused.push(group);
                    last = Some(why);
                }
            }
        }
        Err(last.unwrap_or_else(|| {
            let why = "what both ends agreed to is not what the TLS profile of the service lets agree on any more";
            Refused { code: Code::NoSharedProtocol, why: why.to_owned() }
        }))
    }
}

/// What a handshake has shown.
pub(crate) struct Shown<'a> {
    pub(crate) peer: &'a Verified,
    pub(crate) local: Option<&'a Identity>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) version: &'a str,
    pub(crate) group: &'a str,
}

impl Shown<'_> {
    /// For policies. An age is taken once: a connection does not end because it grows.
    pub(crate) fn context(&self, direction: Direction, trust: &Trust) -> Context {
        let not_before = self.peer.leaf.validity().not_before;
        Context {
            tls_version: self.version.to_owned(),
            group: self.group.to_owned(),
            peer_age_seconds: trust.now().since(not_before).as_secs(),
            source: self.source,
            attested: self.attested(direction),
        }
    }

    /// What the certificate of whoever dials says of attestation. Of another trust domain's it is that domain's word, which is
    /// not ours: nothing is taken from it.
    fn attested(&self, direction: Direction) -> Attested {
        let ours = self.local.map(|own| own.id().trust_domain());
        let said = match direction {
            Direction::Inbound if ours == Some(self.peer.id.trust_domain()) => {
                self.peer.provenance()
            }
            Direction::Inbound => None,
            Direction::Outbound => self.local.and_then(|own| own.leaf().provenance()),
        };
        said.map(|said| said.attested).unwrap_or_default()
    }
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        match self.clients {
            Clients::Required | Clients::Optional => true,
            Clients::Unasked => false,
        }
    }

    fn client_auth_mandatory(&self) -> bool {
        match self.clients {
            Clients::Required => true,
            Clients::Optional | Clients::Unasked => false,
        }
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Nobody needs to know whom we trust, and our peers have one certificate to show anyway.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.chain(leaf, others, Role::Client).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.proof(leaf, (message, signature), TlsVersion::V12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.proof(leaf, (message, signature), TlsVersion::V13)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.chain(leaf, others, Role::Server).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.proof(leaf, (message, signature), TlsVersion::V12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.proof(leaf, (message, signature), TlsVersion::V13)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}

/// Where TLS 1.2 is not spoken, no signature of it is ever good.
pub(crate) fn no_tls12() -> Error {
    Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)
}

/// Shows the identity that is current when it is asked for.
#[derive(Debug)]
pub(crate) struct Shower {
    pub(crate) trust: Arc<Trust>,
    pub(crate) present: Present,
    pub(crate) slot: Option<Arc<Slot>>,
}

impl Shower {
    fn show(&self) -> Option<Arc<CertifiedKey>> {
        if self.present == Present::Nothing {
            return None;
        }
        let own = self.trust.valid_own();
        match (&self.slot, own) {
            (Some(slot), Some(own)) => {
                Some(slot.shown.get_or_init(|| own).identity.certified_key())
            }
            (None, Some(own)) => Some(own.identity.certified_key()),
            (Some(slot), None) if self.present == Present::Required => {
                slot.refuse(no_own_identity());
                None
            }
            (_, None) => None,
        }
    }
}

impl ResolvesServerCert for Shower {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.show()
    }
}

/// In a configuration that many connections share, for as long as that is: shows nothing to those with whom it could agree on
/// something that may not be agreed on any more.
#[derive(Debug)]
pub(crate) struct SharedShower {
    pub(crate) shower: Shower,
    pub(crate) rule: Rule,
    /// On what it can agree.
    pub(crate) terms: TlsTerms,
}

impl ResolvesServerCert for SharedShower {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let holding = self.rule.terms(&self.shower.trust.slice());
        let weaker = |agreed: Agreed| !agreed.fits(holding) && agreed.is_offered(&hello);
        if Agreed::all(self.terms).any(weaker) {
            tracing::debug!("a configuration refuses a caller, being older than the TLS profile");
            return None;
        }
        self.shower.show()
    }
}

impl ResolvesClientCert for Shower {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        // A key that the server cannot check is not shown, so that it says what it misses.
        self.show().filter(|own| own.key.choose_scheme(schemes).is_some())
    }

    fn has_certs(&self) -> bool {
        self.present != Present::Nothing
    }
}
