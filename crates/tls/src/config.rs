//! What we offer and accept: the versions, key exchanges and suites of a profile, and nothing that is remembered between handshakes.

use std::sync::Arc;

use countersign_identity::{TlsGroup, TlsProfile, TlsSuite, TlsTerms, TlsVersion};
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::NoServerSessionStorage;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};

use crate::Trust;
use crate::canary::CANARY_ALPN;
use crate::rule::{Clients, Inbound, Outbound, Present, Purpose, Rule};
use crate::verifier::{ALGORITHMS, Asked, Shower, Slot, Verifier};

/// Best first. The hybrid costs a handshake 6 % more, and keeps what is recorded today from being read by a
/// quantum computer later.
static GROUPS: [(TlsGroup, &dyn SupportedKxGroup); 4] = [
    (TlsGroup::X25519Mlkem768, kx_group::X25519MLKEM768),
    (TlsGroup::X25519, kx_group::X25519),
    (TlsGroup::P256, kx_group::SECP256R1),
    (TlsGroup::P384, kx_group::SECP384R1),
];

/// Best first. Those of 1.2 are of the key exchange that forgets its keys, and seal as their namesakes of 1.3 do.
static SUITES: [(TlsVersion, TlsSuite, SupportedCipherSuite); 9] = [
    (TlsVersion::V13, TlsSuite::Aes128, cipher_suite::TLS13_AES_128_GCM_SHA256),
    (TlsVersion::V13, TlsSuite::Aes256, cipher_suite::TLS13_AES_256_GCM_SHA384),
    (TlsVersion::V13, TlsSuite::Chacha20, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256),
    (TlsVersion::V12, TlsSuite::Aes128, cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    (TlsVersion::V12, TlsSuite::Aes256, cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    (
        TlsVersion::V12,
        TlsSuite::Chacha20,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (TlsVersion::V12, TlsSuite::Aes128, cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    (TlsVersion::V12, TlsSuite::Aes256, cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    (
        TlsVersion::V12,
        TlsSuite::Chacha20,
        cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];

static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

/// For the builders of rustls. Terms have a version.
fn versions(terms: TlsTerms) -> &'static [&'static SupportedProtocolVersion] {
    match (terms.has_version(TlsVersion::V13), terms.has_version(TlsVersion::V12)) {
        (true, true) => &BOTH,
        (false, true) => &BOTH[1..],
        (_, false) => &BOTH[..1],
    }
}

/// One for each of the profiles that need no manifest.
#[derive(Debug)]
pub(crate) struct Providers {
    modern: Arc<CryptoProvider>,
    compatible: Arc<CryptoProvider>,
    pq_only: Arc<CryptoProvider>,
}

impl Providers {
    pub(crate) fn new() -> Self {
        Self {
            modern: provider(TlsTerms::of(TlsProfile::Modern)),
            compatible: provider(TlsTerms::of(TlsProfile::Compatible)),
            pq_only: provider(TlsTerms::of(TlsProfile::PqOnly)),
        }
    }

    pub(crate) fn of(&self, terms: TlsTerms) -> Arc<CryptoProvider> {
        let made = [
            (TlsProfile::Modern, &self.modern),
            (TlsProfile::Compatible, &self.compatible),
            (TlsProfile::PqOnly, &self.pq_only),
        ];
        let made = made.into_iter().find(|(profile, _)| TlsTerms::of(*profile) == terms);
        made.map_or_else(|| provider(terms), |(_, made)| Arc::clone(made))
    }
}

pub(crate) fn provider(terms: TlsTerms) -> Arc<CryptoProvider> {
    let taken = |(version, suite, taken): &(TlsVersion, TlsSuite, SupportedCipherSuite)| {
        (terms.has_version(*version) && terms.has_suite(*suite)).then_some(*taken)
    };
    let groups = GROUPS.iter().filter(|(group, _)| terms.has_group(*group));
    Arc::new(CryptoProvider {
        cipher_suites: SUITES.iter().filter_map(taken).collect(),
        kx_groups: groups.map(|(_, group)| *group).collect(),
        signature_verification_algorithms: ALGORITHMS,
        ..default_provider()
    })
}

/// The names of the key exchanges that can be agreed on.
pub(crate) fn group_names() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().map(|(_, group)| group.name().as_str().unwrap_or_default())
}

/// What the profile of the service says, on the slice that is current; where it has none, what the caller says.
fn terms_of(trust: &Trust, purpose: &Purpose, usual: TlsTerms) -> TlsTerms {
    match purpose {
        Purpose::Service(name) => trust.slice().profiles.get(name).map_or(usual, |it| it.terms),
        Purpose::Control => usual,
    }
}

/// For those who dial us. With a slot, for one connection only.
pub(crate) fn server(
    trust: &Arc<Trust>,
    inbound: &Inbound,
    slot: Option<&Arc<Slot>>,
    asked: Asked,
) -> Arc<ServerConfig> {
    let terms = terms_of(trust, &inbound.purpose, inbound.terms);
    let verifier = Verifier {
        trust: Arc::clone(trust),
        rule: Rule::inbound(inbound),
        clients: match asked {
            Asked::Entry => inbound.clients,
            Asked::Trial => Clients::Required,
        },
        terms,
        asked,
        slot: slot.cloned(),
    };
    let shower =
        Shower { trust: Arc::clone(trust), present: Present::Required, slot: slot.cloned() };
    let mut config = ServerConfig::builder_with_provider(trust.provider(terms))
        .with_protocol_versions(versions(terms))
        .expect("terms hold a suite and a group for each of their versions")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(shower));
    config.alpn_protocols = match asked {
        Asked::Entry => inbound.alpn.clone(),
        Asked::Trial => vec![CANARY_ALPN.to_vec()],
    };
    // A resumed session would not be verified again (RFC 8446, 2.2). rustls has it on by default.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    // What is exported of a session of TLS 1.2 names it only so (RFC 7627).
    config.require_ems = true;
    Arc::new(config)
}

/// For those whom we dial. With a slot, for one connection only.
pub(crate) fn client(
    trust: &Arc<Trust>,
    outbound: &Outbound,
    slot: Option<&Arc<Slot>>,
) -> Arc<ClientConfig> {
    let terms = terms_of(trust, &outbound.purpose, outbound.terms);
    let verifier = Verifier {
        trust: Arc::clone(trust),
        rule: Rule::outbound(outbound),
        clients: Clients::Required,
        terms,
        asked: Asked::Entry,
        slot: slot.cloned(),
    };
    let shower =
        Shower { trust: Arc::clone(trust), present: outbound.present, slot: slot.cloned() };
    let offered = (trust.provider(terms), terms);
    client_with(offered, Arc::new(verifier), shower, &outbound.alpn)
}

pub(crate) fn client_with(
    (provider, terms): (Arc<CryptoProvider>, TlsTerms),
    verifier: Arc<dyn ServerCertVerifier>,
    shower: impl rustls::client::ResolvesClientCert + 'static,
    alpn: &[Vec<u8>],
) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions(terms))
        .expect("terms hold a suite and a group for each of their versions")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(shower));
    config.alpn_protocols = alpn.to_vec();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.require_ems = true;
    // Names of hosts carry no identity, and need not be told to whoever listens on the way.
    config.enable_sni = false;
    Arc::new(config)
}

impl Trust {
    /// A rustls configuration for those who accept connections by other means than [`accept`](crate::accept).
    ///
    /// Peers are verified, and policy asked, at each handshake, on the slice that is current then. But such connections
    /// are *not* in the register: what they were admitted under is not looked at again, and they are not ended.
    pub fn server_config(self: &Arc<Self>, inbound: &Inbound) -> Arc<ServerConfig> {
        server(self, inbound, None, Asked::Entry)
    }

    /// A rustls configuration for those who dial by other means than [`connect`](crate::connect), with the same limits as
    /// [`server_config`](Self::server_config). Any server name will do: only [`Expected`](crate::Expected) counts.
    pub fn client_config(self: &Arc<Self>, outbound: &Outbound) -> Arc<ClientConfig> {
        client(self, outbound, None)
    }
}
