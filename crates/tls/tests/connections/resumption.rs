//! What a peer with another TLS stack can and cannot get out of ours.

use std::sync::Arc;

use crate::ends::{Shop, door, revoking, rules_on, tcp_pair};
use crate::realm::{START, Svid};
use countersign_identity::{Code, Reason, Revoked};
use countersign_tls::{Established, HandshakeFailure, accept, code_of_io};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group, sign::any_supported_type};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, HandshakeKind, SignatureScheme,
    SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A stranger's TLS: it believes every server, and shows what it is told to show.
#[derive(Debug)]
pub(crate) struct Stranger {
    shown: Option<Arc<CertifiedKey>>,
}

impl Stranger {
    /// Shows a chain, and signs with a key that need not belong to it.
    pub(crate) fn showing(ders: &[&[u8]], pkcs8: &[u8]) -> Self {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.to_vec()));
        let chain = ders.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        Self { shown: Some(Arc::new(CertifiedKey::new(chain, any_supported_type(&key).unwrap()))) }
    }

    fn with(svid: &Svid) -> Self {
        let ders: Vec<&[u8]> = svid.chain.certificates().iter().map(|c| c.der()).collect();
        Self::showing(&ders, &svid.pkcs8)
    }

    pub(crate) fn config(self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        self.config_with(default_provider(), versions)
    }

    fn config_with(
        self,
        provider: CryptoProvider,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let stranger = Arc::new(self);
        ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&stranger) as _)
            .with_client_cert_resolver(stranger)
    }
}

/// The stranger's handshake with `orders`: what the server made of it, and what kind of handshake it was.
pub(crate) async fn meet(
    shop: &Shop,
    config: &Arc<ClientConfig>,
) -> (Result<Established, HandshakeFailure>, Option<HandshakeKind>) {
    let (near, far) = tcp_pair().await;
    let calling = async {
        let name = ServerName::try_from("orders.example").unwrap();
        let mut tls = TlsConnector::from(Arc::clone(config)).connect(name, near).await.ok()?;
        // Reads whatever tickets the server may have sent.
        let kind = tls.get_ref().1.handshake_kind();
        tls.read_exact(&mut [0; 5]).await.ok()?;
        kind
    };
    let greeting = async {
        let mut done = accept(&shop.orders, far, &door()).await;
        if let Ok(established) = &mut done {
            established.stream.write_all(b"hello").await.unwrap();
            established.stream.flush().await.unwrap();
        }
        done
    };
    tokio::join!(greeting, calling)
}

#[tokio::test]
async fn a_client_that_wants_to_resume_makes_a_full_handshake_every_time() {
    let shop = Shop::open();
    let mut config = Stranger::with(&shop.realm.svid("/web", START, 3600)).config(&[&TLS13]);
    config.resumption = Resumption::in_memory_sessions(16);
    config.enable_early_data = true;
    let config = Arc::new(config);
    for _ in 0..3 {
        let (server, kind) = meet(&shop, &config).await;
        assert!(!server.unwrap().fact.resumed);
        assert_eq!(kind, Some(HandshakeKind::Full));
    }
    // And so the policy of today is asked, not that of the first time.
    shop.orders.apply(crate::ends::slice(&[&shop.realm], ""));
    let (server, _kind) = meet(&shop, &config).await;
    assert_eq!(server.unwrap_err().code, Code::PolicyDenied);
}

#[tokio::test]
async fn what_a_client_remembers_from_before_a_revocation_is_of_no_use() {
    let shop = Shop::open();
    let web = shop.realm.svid("/web", START, 3600);
    let mut config = Stranger::with(&web).config(&[&TLS13]);
    config.resumption = Resumption::in_memory_sessions(16);
    config.enable_early_data = true;
    let config = Arc::new(config);
    let (server, kind) = meet(&shop, &config).await;
    assert_eq!((server.unwrap().fact.resumed, kind), (false, Some(HandshakeKind::Full)));
    // Those that do not cover our own certificate as well.
    for rule in &rules_on(&web, &shop.realm)[..3] {
        let rule = std::slice::from_ref(rule);
        shop.orders.apply(revoking(&shop.orders, Reason::Unspecified, rule));
        let (server, _kind) = meet(&shop, &config).await;
        assert_eq!(server.unwrap_err().code, Code::Revoked);
    }
}

#[tokio::test]
async fn a_client_of_tls_1_2_shares_no_protocol_with_us() {
    let shop = Shop::open();
    let config = Stranger::with(&shop.realm.svid("/web", START, 3600)).config(&[&TLS12]);
    let (server, _kind) = meet(&shop, &Arc::new(config)).await;
    assert_eq!(server.unwrap_err().code, Code::NoSharedProtocol);
}

#[tokio::test]
async fn older_key_exchanges_are_accepted_and_others_refused() {
    let shop = Shop::open();
    for (group, agreed) in [
        (kx_group::X25519MLKEM768, Ok("X25519MLKEM768")),
        (kx_group::X25519, Ok("X25519")),
        (kx_group::SECP256R1, Ok("secp256r1")),
        (kx_group::SECP384R1, Err(Code::NoSharedProtocol)),
    ] {
        let provider = CryptoProvider { kx_groups: vec![group], ..default_provider() };
        let stranger = Stranger::with(&shop.realm.svid("/web", START, 3600));
        let config = stranger.config_with(provider, &[&TLS13]);
        let (server, _kind) = meet(&shop, &Arc::new(config)).await;
        assert_eq!(server.map(|done| done.fact.group).map_err(|failure| failure.code), agreed);
    }
}

#[tokio::test]
async fn a_certificate_without_its_key_proves_nothing() {
    let shop = Shop::open();
    let web = shop.realm.svid("/web", START, 3600);
    let thief = shop.realm.svid("/payments", START, 3600);
    let ders: Vec<&[u8]> = web.chain.certificates().iter().map(|c| c.der()).collect();
    let config = Stranger::showing(&ders, &thief.pkcs8).config(&[&TLS13]);
    let (server, _kind) = meet(&shop, &Arc::new(config)).await;
    let failure = server.unwrap_err();
    assert_eq!(failure.code, Code::BadSignature);
    assert_eq!(failure.fact.peer, None, "the name was not proven");
}

#[tokio::test]
async fn an_authority_is_not_a_peer() {
    let shop = Shop::open();
    let key = shop.realm.svid("/web", START, 3600).pkcs8;
    for ders in [vec![shop.realm.issuer.der(), shop.realm.root.der()], vec![shop.realm.root.der()]]
    {
        let config = Stranger::showing(&ders, &key).config(&[&TLS13]);
        let (server, _kind) = meet(&shop, &Arc::new(config)).await;
        let code = server.unwrap_err().code;
        assert!(matches!(code, Code::LeafIsAuthority | Code::BadIdentity), "{code}");
    }
}

#[tokio::test]
async fn a_leaf_that_signs_is_no_issuer() {
    let shop = Shop::open();
    let web = shop.realm.svid("/web", START, 3600);
    let orders = shop.realm.svid("/orders", START, 3600);
    // Another leaf where the issuer should be.
    let ders = [web.chain.leaf().der(), orders.chain.leaf().der()];
    let config = Stranger::showing(&ders, &web.pkcs8).config(&[&TLS13]);
    let (server, _kind) = meet(&shop, &Arc::new(config)).await;
    let code = server.unwrap_err().code;
    assert!(matches!(code, Code::UnknownIssuer | Code::IssuerNotAuthority), "{code}");
}

#[tokio::test]
async fn a_certificate_for_other_purposes_or_names_is_no_clients() {
    let shop = Shop::open();
    let web = shop.realm.svid("/web", START, 3600);
    let client_auth: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];
    let email: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 4];
    for (from, to, code) in [
        // Without a change it is good: the alteration itself breaks nothing.
        (client_auth, client_auth, None),
        (client_auth, email, Some(Code::BadExtendedKeyUsage)),
        (b"spiffe://shop.example/web", b"https:///shop.example/web", Some(Code::BadIdentity)),
        (b"spiffe://shop.example/web", b"spiffe://shop.example/w/.", Some(Code::BadIdentity)),
        (b"spiffe://shop.example/web", b"spiffe://Shop.example/web", Some(Code::BadIdentity)),
    ] {
        let ders = shop.realm.altered(&web, from, to);
        let ders: Vec<&[u8]> = ders.iter().map(Vec::as_slice).collect();
        let config = Stranger::showing(&ders, &web.pkcs8).config(&[&TLS13]);
        let (server, _kind) = meet(&shop, &Arc::new(config)).await;
        assert_eq!(server.err().map(|failure| failure.code), code, "{}", to.escape_ascii());
    }
}

#[tokio::test]
async fn shared_configurations_refuse_and_rotate_as_well() {
    let shop = Shop::open();
    let server_config = shop.orders.server_config(&door());
    let client_config = shop.web.client_config(&shop.to_orders());
    let meet = async || {
        let (near, far) = tcp_pair().await;
        let name = ServerName::try_from("anything.example").unwrap();
        let calling = async {
            let connector = TlsConnector::from(Arc::clone(&client_config));
            let mut tls = connector.connect(name, near).await.map_err(|e| code_of_io(&e))?;
            tls.read_exact(&mut [0; 5]).await.map_err(|e| code_of_io(&e))?;
            let leaf = tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
            Ok((leaf, tls.get_ref().1.handshake_kind()))
        };
        let greeting = async {
            let acceptor = TlsAcceptor::from(Arc::clone(&server_config));
            let mut tls = acceptor.accept(far).await.map_err(|e| code_of_io(&e))?;
            tls.write_all(b"hello").await.unwrap();
            tls.flush().await.unwrap();
            Ok::<_, Code>(())
        };
        tokio::join!(calling, greeting)
    };
    let (client, server) = meet().await;
    let shown = shop.orders.identity().unwrap();
    assert_eq!(client, Ok((shown.leaf().der().to_vec(), Some(HandshakeKind::Full))));
    assert_eq!(server, Ok(()));

    let renewed = crate::ends::identity(&shop.realm.svid("/orders", START, 7200));
    let leaf = renewed.leaf().der().to_vec();
    shop.orders.set_identity(renewed).unwrap();
    assert_eq!(meet().await.0, Ok((leaf, Some(HandshakeKind::Full))));

    let web = shop.web.identity().unwrap().leaf().key_id();
    shop.orders.apply(revoking(&shop.orders, Reason::Unspecified, &[Revoked::Key(web)]));
    assert_eq!(meet().await, (Err(Code::PeerRefused), Err(Code::Revoked)));

    shop.orders.apply(crate::ends::slice(&[&shop.realm], ""));
    assert_eq!(meet().await, (Err(Code::PeerRefused), Err(Code::PolicyDenied)));
}

#[tokio::test]
async fn garbage_and_overlong_chains_are_refused() {
    let shop = Shop::open();
    let web = shop.realm.svid("/web", START, 3600);
    let mut trailing = web.chain.leaf().der().to_vec();
    trailing.push(0);
    let issuer = shop.realm.issuer.der();
    let long = [&[web.chain.leaf().der()][..], &[issuer; 20]].concat();
    for (ders, code) in [
        (vec![&b"no certificate"[..]], Code::Malformed),
        (vec![&trailing[..], issuer], Code::Malformed),
        (long, Code::TooManyCertificates),
    ] {
        let config = Stranger::showing(&ders, &web.pkcs8).config(&[&TLS13]);
        let (server, _kind) = meet(&shop, &Arc::new(config)).await;
        assert_eq!(server.unwrap_err().code, code);
    }
}

#[tokio::test]
async fn a_stranger_who_shows_nothing_is_refused() {
    let shop = Shop::open();
    let config = Stranger { shown: None }.config(&[&TLS13]);
    let (server, _kind) = meet(&shop, &Arc::new(config)).await;
    assert_eq!(server.unwrap_err().code, Code::NoCertificate);
}

impl ResolvesClientCert for Stranger {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.shown.clone()
    }

    fn has_certs(&self) -> bool {
        self.shown.is_some()
    }
}

impl ServerCertVerifier for Stranger {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
