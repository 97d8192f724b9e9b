//! What we offer and accept: TLS 1.3 with the key exchanges of a profile, and nothing that is remembered between handshakes.

use std::sync::Arc;

use countersign_identity::TlsProfile;
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

use crate::Trust;
use crate::canary::CANARY_ALPN;
use crate::rule::{Clients, Inbound, Outbound, Present, Rule};
use crate::verifier::{ALGORITHMS, Asked, Shower, Slot, Verifier};

/// Best first. The hybrid costs a handshake 6 % more, and keeps what is recorded today from being read by a
/// quantum computer later.
static GROUPS: [&dyn SupportedKxGroup; 4] =
    [kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];

/// How many of them a profile takes, from the first on.
const fn taken(profile: TlsProfile) -> usize {
    match profile {
        TlsProfile::PqOnly => 1,
        TlsProfile::Modern => 3,
        TlsProfile::Compatible => 4,
    }
}

/// One for each profile.
#[derive(Debug)]
pub(crate) struct Providers {
    modern: Arc<CryptoProvider>,
    compatible: Arc<CryptoProvider>,
    pq_only: Arc<CryptoProvider>,
}

impl Providers {
    pub(crate) fn new() -> Self {
        Self {
            modern: provider(TlsProfile::Modern),
            compatible: provider(TlsProfile::Compatible),
            pq_only: provider(TlsProfile::PqOnly),
        }
    }

    pub(crate) fn of(&self, profile: TlsProfile) -> Arc<CryptoProvider> {
        Arc::clone(match profile {
            TlsProfile::Modern => &self.modern,
            TlsProfile::Compatible => &self.compatible,
            TlsProfile::PqOnly => &self.pq_only,
        })
    }
}

pub(crate) fn provider(profile: TlsProfile) -> Arc<CryptoProvider> {
    let cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(CryptoProvider {
        cipher_suites,
        kx_groups: GROUPS[..taken(profile)].to_vec(),
        signature_verification_algorithms: ALGORITHMS,
        ..default_provider()
    })
}

/// The names of the key exchanges that can be agreed on.
pub(crate) fn group_names() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().map(|group| group.name().as_str().unwrap_or_default())
}

/// For those who dial us. With a slot, for one connection only.
pub(crate) fn server(
    trust: &Arc<Trust>,
    inbound: &Inbound,
    slot: Option<&Arc<Slot>>,
    asked: Asked,
) -> Arc<ServerConfig> {
    let verifier = Verifier {
        trust: Arc::clone(trust),
        rule: Rule::inbound(inbound),
        clients: match asked {
            Asked::Entry => inbound.clients,
            Asked::Trial => Clients::Required,
        },
        asked,
        slot: slot.cloned(),
    };
    let shower =
        Shower { trust: Arc::clone(trust), present: Present::Required, slot: slot.cloned() };
    let mut config = ServerConfig::builder_with_provider(trust.provider(inbound.profile))
        .with_protocol_versions(&[&TLS13])
        .expect("every suite and group of ours is of TLS 1.3")
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
    Arc::new(config)
}

/// For those whom we dial. With a slot, for one connection only.
pub(crate) fn client(
    trust: &Arc<Trust>,
    outbound: &Outbound,
    slot: Option<&Arc<Slot>>,
) -> Arc<ClientConfig> {
    let verifier = Verifier {
        trust: Arc::clone(trust),
        rule: Rule::outbound(outbound),
        clients: Clients::Required,
        asked: Asked::Entry,
        slot: slot.cloned(),
    };
    let shower =
        Shower { trust: Arc::clone(trust), present: outbound.present, slot: slot.cloned() };
    client_with(trust.provider(outbound.profile), Arc::new(verifier), shower, &outbound.alpn)
}

pub(crate) fn client_with(
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
    shower: impl rustls::client::ResolvesClientCert + 'static,
    alpn: &[Vec<u8>],
) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("every suite and group of ours is of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(shower));
    config.alpn_protocols = alpn.to_vec();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
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
