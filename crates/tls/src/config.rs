//! What we offer and accept: the versions, key exchanges and suites of a profile, and nothing that is remembered between handshakes.

use std::fmt;
use std::sync::Arc;

use countersign_identity::{TlsGroup, TlsProfile, TlsSuite, TlsTerms, TlsVersion};
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, CommonState, ProtocolVersion, ServerConfig, SupportedCipherSuite,
    SupportedProtocolVersion,
};

use crate::Trust;
use crate::canary::CANARY_ALPN;
use crate::rule::{Clients, Inbound, Outbound, Present, Rule};
use crate::verifier::{ALGORITHMS, Asked, SharedShower, Shower, Slot, Verifier};

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

/// On what a handshake has agreed, or could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) version: TlsVersion,
    pub(crate) group: TlsGroup,
    pub(crate) suite: TlsSuite,
}

impl Agreed {
    /// None before the end of the handshake, or where it is nothing that is known here.
    pub(crate) fn of(ended: &CommonState) -> Option<Self> {
        let version = match ended.protocol_version()? {
            ProtocolVersion::TLSv1_3 => TlsVersion::V13,
            ProtocolVersion::TLSv1_2 => TlsVersion::V12,
            _ => return None,
        };
        let (group, suite) = (
            ended.negotiated_key_exchange_group()?.name(),
            ended.negotiated_cipher_suite()?.suite(),
        );
        let (group, _) = GROUPS.iter().find(|(_, known)| known.name() == group)?;
        let (_, suite, _) = SUITES.iter().find(|(_, _, known)| known.suite() == suite)?;
        Some(Self { version, group: *group, suite: *suite })
    }

    /// Whether a handshake may agree on it.
    pub(crate) const fn fits(self, terms: TlsTerms) -> bool {
        terms.has_version(self.version)
            && terms.has_group(self.group)
            && terms.has_suite(self.suite)
    }

    /// All that these terms let agree on.
    pub(crate) fn all(terms: TlsTerms) -> impl Iterator<Item = Self> {
        let suites = SUITES.iter().map(|(version, suite, _)| (*version, *suite));
        suites.flat_map(move |(version, suite)| {
            let groups =
                GROUPS.iter().map(move |(group, _)| Self { version, group: *group, suite });
            groups.filter(move |agreed| agreed.fits(terms) && agreed.is_spoken())
        })
    }

    /// The hybrid is of 1.3.
    fn is_spoken(self) -> bool {
        (self.version, self.group) != (TlsVersion::V12, TlsGroup::X25519Mlkem768)
    }

    /// Whether whoever sends this hello could agree on it.
    pub(crate) fn is_offered(self, hello: &ClientHello<'_>) -> bool {
        let mut suites = SUITES
            .iter()
            .filter(|(version, suite, _)| (*version, *suite) == (self.version, self.suite));
        let mut groups = GROUPS.iter().filter(|(group, _)| *group == self.group);
        suites.any(|(_, _, suite)| hello.cipher_suites().contains(&suite.suite()))
            && groups.any(|(_, group)| {
                hello.named_groups().is_none_or(|named| named.contains(&group.name()))
            })
    }

    /// By the name that handshakes know it by.
    pub(crate) fn group_name(self) -> &'static str {
        let group = GROUPS.iter().find(|(group, _)| *group == self.group);
        group.and_then(|(_, group)| group.name().as_str()).unwrap_or_default()
    }
}

impl fmt::Display for Agreed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TLS {} with {} and {}", self.version, self.group, self.suite)
    }
}

/// For those who dial us. With a slot, for one connection only.
pub(crate) fn server(
    trust: &Arc<Trust>,
    inbound: &Inbound,
    slot: Option<&Arc<Slot>>,
    asked: Asked,
) -> Arc<ServerConfig> {
    let rule = Rule::inbound(inbound);
    let terms = rule.terms(&trust.slice());
    let verifier = Verifier {
        trust: Arc::clone(trust),
        rule: rule.clone(),
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
    let shower: Arc<dyn ResolvesServerCert> = match slot {
        Some(_) => Arc::new(shower),
        None => Arc::new(SharedShower { shower, rule, terms }),
    };
    let mut config = ServerConfig::builder_with_provider(trust.provider(terms))
        .with_protocol_versions(versions(terms))
        .expect("terms hold a suite and a group for each of their versions")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(shower);
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
    let rule = Rule::outbound(outbound);
    let terms = rule.terms(&trust.slice());
    let verifier = Verifier {
        trust: Arc::clone(trust),
        rule,
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
    ///
    /// What it can agree on is what the TLS profile of the service says when it is made. When the profile comes to ask for more,
    /// callers are refused with whom it could agree on less, until there is a new one: make one for each connection, or
    /// whenever what is enforced changes. Nobody gets in by less than the profile asks for.
    pub fn server_config(self: &Arc<Self>, inbound: &Inbound) -> Arc<ServerConfig> {
        server(self, inbound, None, Asked::Entry)
    }

    /// A rustls configuration for those who dial by other means than [`connect`](crate::connect), with the same limits as
    /// [`server_config`](Self::server_config). Any server name will do: only [`Expected`](crate::Expected) counts. What it offers
    /// is what the profile says when it is made; that the door agrees to no less than what it says later is for the door to see to.
    pub fn client_config(self: &Arc<Self>, outbound: &Outbound) -> Arc<ClientConfig> {
        client(self, outbound, None)
    }
}
