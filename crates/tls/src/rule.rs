//! What a connection is for, and what that asks of it.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use countersign_identity::{Code, Mode, Name, SpiffeId, Timestamp, TlsTerms, TrustDomain};
use countersign_pki::{Refused, Verified};
use countersign_policy::{ConnectRequest, Context, Principal, Verdict};

use crate::canary::let_in_nowhere;
use crate::{Direction, Slice};

/// How long a handshake may take when nobody says otherwise.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// To use this service: policy decides whether the one who dials may.
    Service(Name),
    /// To reach the control plane: any identity that the bundles vouch for, and each call is authorised by its own
    /// rules. No policy is asked.
    Control,
}

/// Whom we dial. There is no "anybody".
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// This one.
    Id(SpiffeId),
    /// One of these; nobody, when there are none.
    AnyOf(Vec<SpiffeId>),
    /// A server of this trust domain's control plane: `/countersign/server/…`.
    Server(TrustDomain),
}

impl Expected {
    /// Whether this is one that we meant.
    pub fn admits(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Id(expected) => expected == id,
            Self::AnyOf(expected) => expected.contains(id),
            Self::Server(domain) => {
                id.trust_domain() == domain && id.path().starts_with(SERVER_PATH)
            }
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Id(id) => format!("`{id}`"),
            Self::AnyOf(ids) => match ids.as_slice() {
                [] => "nobody".to_owned(),
                [id] => format!("`{id}`"),
                [first, rest @ ..] => format!("`{first}` or one of {} others", rest.len()),
            },
            Self::Server(domain) => format!("`{}{SERVER_PATH}…`", domain.id()),
        }
    }
}

/// Whether those who dial us must show a certificate. A bad one is refused in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Clients {
    /// They must.
    Required,
    /// They may: for a door behind which some calls need no identity.
    Optional,
    /// They are not asked for one: for browsers, which would ask their users.
    Unasked,
}

/// Whether we show a certificate to those whom we dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Present {
    /// Without a valid one there is no connection.
    Required,
    /// When there is a valid one.
    IfAny,
    /// Never.
    Nothing,
}

/// What becomes of a connection when the certificate that its peer showed has expired, and the peer is one that cannot
/// prove it anew. What revocation and policy end, they end in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Expired {
    /// It ends.
    #[default]
    End,
    /// It goes on.
    Keep,
}

/// Whose address it is that is known of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AddressOf {
    /// The peer's: facts, limits and policies take it for where the peer comes from.
    #[default]
    Peer,
    /// That of something in between, which does not say for whom it connects: facts and limits take it, and policies are told
    /// of no source.
    Relay,
}

/// How to treat those who dial us.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// What the door leads to.
    pub purpose: Purpose,
    /// Whether a certificate is needed.
    pub clients: Clients,
    /// Application protocols, best first.
    pub alpn: Vec<Vec<u8>>,
    /// On what handshakes may agree, where the slice holds no profile of the service.
    pub terms: TlsTerms,
    /// How long a handshake may take.
    pub timeout: Duration,
    /// What becomes of connections that outlive their peers' certificates.
    pub expired: Expired,
    /// Where the peer is, when it is known better than from the socket.
    pub peer_address: Option<SocketAddr>,
    /// Whose address that is.
    pub address_of: AddressOf,
    /// How many connections one identity may have, over all doors of the process. None: as many as there are places.
    pub each_max: Option<NonZeroUsize>,
}

impl Inbound {
    /// The door of a service.
    pub const fn service(name: Name) -> Self {
        Self::to(Purpose::Service(name))
    }

    /// The door of the control plane.
    pub const fn control() -> Self {
        Self::to(Purpose::Control)
    }

    const fn to(purpose: Purpose) -> Self {
        Self {
            purpose,
            clients: Clients::Required,
            alpn: Vec::new(),
            terms: TlsTerms::MODERN,
            timeout: HANDSHAKE_TIMEOUT,
            expired: Expired::End,
            peer_address: None,
            address_of: AddressOf::Peer,
            each_max: None,
        }
    }
}

/// How to treat those whom we dial.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// What we want there.
    pub purpose: Purpose,
    /// Whom we mean.
    pub expected: Expected,
    /// Whether we show who we are.
    pub present: Present,
    /// Application protocols, best first.
    pub alpn: Vec<Vec<u8>>,
    /// What is offered, where the slice holds no profile of the service.
    pub terms: TlsTerms,
    /// How long the handshake may take; [`dial`](crate::dial) counts the way there as well.
    pub timeout: Duration,
    /// What becomes of connections that outlive their peers' certificates.
    pub expired: Expired,
}

impl Outbound {
    /// To use a service.
    pub const fn service(name: Name, expected: Expected) -> Self {
        Self::to(Purpose::Service(name), expected)
    }

    /// To talk with the control plane.
    pub const fn control(expected: Expected) -> Self {
        Self::to(Purpose::Control, expected)
    }

    const fn to(purpose: Purpose, expected: Expected) -> Self {
        let present = Present::Required;
        Self {
            purpose,
            expected,
            present,
            alpn: Vec::new(),
            terms: TlsTerms::MODERN,
            timeout: HANDSHAKE_TIMEOUT,
            expired: Expired::End,
        }
    }
}

const SERVER_PATH: &str = "/countersign/server/";

/// All that a decision about a connection reads, besides the slice and the time.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) direction: Direction,
    pub(crate) purpose: Purpose,
    pub(crate) expected: Option<Expected>,
    pub(crate) expired: Expired,
    /// On what handshakes may agree, where the slice holds no profile of the service.
    pub(crate) usual: TlsTerms,
    /// How many connections one that comes to us may have.
    pub(crate) each_max: Option<NonZeroUsize>,
}

impl Rule {
    pub(crate) fn inbound(inbound: &Inbound) -> Self {
        let purpose = inbound.purpose.clone();
        let Inbound { expired, terms: usual, each_max, .. } = *inbound;
        Self { direction: Direction::Inbound, purpose, expected: None, expired, usual, each_max }
    }

    pub(crate) fn outbound(outbound: &Outbound) -> Self {
        let expected = Some(outbound.expected.clone());
        let (purpose, expired) = (outbound.purpose.clone(), outbound.expired);
        let (usual, each_max) = (outbound.terms, None);
        Self { direction: Direction::Outbound, purpose, expected, expired, usual, each_max }
    }

    /// On what handshakes may agree.
    pub(crate) fn terms(&self, slice: &Slice) -> TlsTerms {
        match &self.purpose {
            Purpose::Service(name) => slice.profiles.get(name).map_or(self.usual, |it| it.terms),
            Purpose::Control => self.usual,
        }
    }
}

/// May this connection exist, on this slice, now? Names the policies that say so.
///
/// `local` is who we were when it was made, and `context` what its handshake showed, so a connection is
/// not ended because a certificate ages or our own is renewed; what policies say of `now` itself can end it.
pub(crate) fn decide(
    rule: &Rule,
    peer: &Verified,
    local: Option<&SpiffeId>,
    (context, now): (&Context, Timestamp),
    slice: &Slice,
) -> Result<Vec<String>, Refused> {
    holds(peer, slice)?;
    let_in_nowhere(peer)?;
    if let Some(expected) = &rule.expected
        && !expected.admits(&peer.id)
    {
        let why = format!("`{}` answered, expected {}", peer.id, expected.text());
        return Err(Refused { code: Code::UnexpectedPeer, why });
    }
    let service = match &rule.purpose {
        Purpose::Service(service) => service,
        Purpose::Control => return Ok(Vec::new()),
    };
    let dialler = match rule.direction {
        Direction::Inbound => {
            let profile = slice.profiles.get(service);
            profile.map_or(Ok(()), |profile| profile.accepted.takes(peer, service))?;
            &peer.id
        }
        Direction::Outbound => local.ok_or_else(no_own_identity)?,
    };
    let principal = principal(dialler, slice);
    let service_name = service.as_str();
    let request = ConnectRequest { principal: &principal, service: service_name, context, now };
    let decision = match rule.direction {
        Direction::Inbound => slice.policies.decide(&request),
        Direction::Outbound => slice.policies.decide_outbound(&request),
    };
    match (decision.verdict, decision.mode) {
        // A denial that is only observed lets pass, too.
        (Verdict::Allow, _) | (Verdict::Deny(_), Mode::Observe) => Ok(decision.policies),
        (Verdict::Deny(code), Mode::Enforce) => {
            let why = denial(&principal, service, &decision.policies);
            Err(Refused { code, why })
        }
    }
}

/// Whether the peer is still vouched for: the authority that its chain led to is in the bundle of its trust domain.
pub(crate) fn holds(peer: &Verified, slice: &Slice) -> Result<(), Refused> {
    let domain = peer.id.trust_domain();
    let Some(bundle) = slice.bundles.get(domain) else {
        let why = format!("there is no bundle for trust domain `{domain}`");
        return Err(Refused { code: Code::UnknownTrustDomain, why });
    };
    if bundle.authorities.iter().any(|authority| authority.key_id() == peer.anchor) {
        return Ok(());
    }
    let why = format!("authority `{}` is not in the bundle of `{domain}`", peer.anchor);
    Err(Refused { code: Code::UnknownIssuer, why })
}

/// Whether the peer's certificates are still valid at this moment.
pub(crate) fn lasts(peer: &Verified, now: Timestamp) -> Result<(), Refused> {
    if now <= peer.expires {
        return Ok(());
    }
    let why = format!("the certificate of `{}` expired at {}", peer.id, peer.expires);
    Err(Refused { code: Code::Expired, why })
}

pub(crate) fn no_own_identity() -> Refused {
    let why = "there is no valid certificate of our own to show".to_owned();
    Refused { code: Code::NoOwnIdentity, why }
}

pub(crate) fn principal(id: &SpiffeId, slice: &Slice) -> Principal {
    let name = slice.names.get(id).cloned();
    name.map_or_else(|| Principal::Id(id.clone()), Principal::Named)
}

fn denial(principal: &Principal, service: &Name, policies: &[String]) -> String {
    match policies {
        [] => format!("no policy lets `{principal}` connect to `{service}`"),
        policies => {
            let policies = policies.join("`, `");
            format!("policy `{policies}` keeps `{principal}` from `{service}`")
        }
    }
}
