//! First contact: a server whose root's key is all that is known of it.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use countersign_identity::{Clock, Code, KeyId, TlsTerms, TrustDomain};
use countersign_pki::{Bundle, Refused, Role, Verified, verify_pinned};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::alert::{alerting, code_of_io, sentence};
use crate::config::{client_with, provider};
use crate::handshake::{nobody, tune};
use crate::rule::Expected;
use crate::verifier::{ALGORITHMS, no_tls12};

/// How to reach a server that was never spoken to.
#[derive(Clone, Debug)]
pub struct FirstContact {
    /// SHA-256 of the public key of a root, as told together with the join token.
    pub pin: KeyId,
    /// The trust domain, where it is known beforehand.
    pub domain: Option<TrustDomain>,
    /// Application protocols, best first.
    pub alpn: Vec<Vec<u8>>,
    /// How long the handshake may take.
    pub timeout: Duration,
}

/// A connection to a server whose chain led to the pinned root. We showed nothing.
///
/// It is not in any register: it is for one exchange, after which there is a bundle to trust.
#[derive(Debug)]
pub struct Pinned {
    /// The bytes.
    pub stream: TlsStream<TcpStream>,
    /// The server.
    pub peer: Verified,
    /// The pinned root, as a bundle of the server's trust domain.
    pub bundle: Bundle,
}

impl Pinned {
    /// A secret that only the two ends of this connection know (RFC 8446, 7.5).
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn export(&self, label: &str) -> Result<[u8; 32], Code> {
        let tls = self.stream.get_ref().1;
        let secret = tls.export_keying_material([0; 32], label.as_bytes(), None);
        secret.map_err(|error| crate::code_of(&error))
    }
}

/// Makes a TLS connection with a server of the control plane, trusting the pinned root and nothing else.
///
/// # Errors
/// When the chain does not lead to the pinned root, or to a server; and as [`connect`](crate::connect).
pub async fn connect_pinned(
    clock: &Arc<dyn Clock>,
    tcp: TcpStream,
    contact: &FirstContact,
) -> Result<Pinned, Refused> {
    let broken = |error: &std::io::Error| Refused { code: code_of_io(error), why: sentence(error) };
    tune(&tcp).map_err(|error| broken(&error))?;
    let verifier = Arc::new(PinVerifier {
        clock: Arc::clone(clock),
        contact: contact.clone(),
        found: OnceLock::new(),
    });
    let config = client_with(
        (provider(TlsTerms::MODERN), TlsTerms::MODERN),
        Arc::clone(&verifier) as Arc<_>,
        ShowsNothing,
        &contact.alpn,
    );
    let shaking = TlsConnector::from(config).connect(nobody(), tcp);
    let done = tokio::select! {
        biased;
        done = shaking => done,
        () = clock.sleep_until(clock.now() + contact.timeout) => {
            let why = format!("the handshake did not end within {:?}", contact.timeout);
            return Err(Refused { code: Code::HandshakeTimeout, why });
        }
    };
    let found = verifier.found.get().cloned();
    match (done, found) {
        (Ok(stream), Some(Ok((peer, bundle)))) => Ok(Pinned { stream, peer, bundle }),
        (_, Some(Err(refused))) => Err(refused),
        (Err(error), _) => Err(broken(&error)),
        (Ok(_), None) => {
            let why = "the handshake ended before the server was verified".to_owned();
            Err(Refused { code: Code::Internal, why })
        }
    }
}

struct PinVerifier {
    clock: Arc<dyn Clock>,
    contact: FirstContact,
    found: OnceLock<Result<(Verified, Bundle), Refused>>,
}

impl PinVerifier {
    fn find(&self, chain: &[&[u8]]) -> Result<(Verified, Bundle), Refused> {
        let now = self.clock.now();
        let (peer, bundle) = verify_pinned(chain, self.contact.pin, Role::Server, now)?;
        let domain = self.contact.domain.as_ref().unwrap_or(peer.id.trust_domain());
        if !Expected::Server(domain.clone()).admits(&peer.id) {
            let why = format!("`{}` answered, expected a server of `{domain}`", peer.id);
            return Err(Refused { code: Code::UnexpectedPeer, why });
        }
        Ok((peer, bundle))
    }
}

impl fmt::Debug for PinVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinVerifier({})", self.contact.pin)
    }
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain: Vec<&[u8]> = std::iter::once(leaf).chain(others).map(AsRef::as_ref).collect();
        match self.found.get_or_init(|| self.find(&chain)) {
            Ok(_found) => Ok(ServerCertVerified::assertion()),
            Err(refused) => Err(alerting(refused.code)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &ALGORITHMS)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}

#[derive(Debug)]
struct ShowsNothing;

impl rustls::client::ResolvesClientCert for ShowsNothing {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
