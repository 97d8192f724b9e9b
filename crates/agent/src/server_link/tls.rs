//! The real link, over TLS: gRPC to join and to renew, and a standing connection for all the rest.

mod calls;
mod proof;
mod pump;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use countersign_api::renewal::EXPORTER_LABEL;
use countersign_api::standing::{self, Standing};
use countersign_api::v1;
use countersign_api::v1::node_client::NodeClient;
use countersign_identity::{Clock, Code, Revision, Revocations, Timestamp, TrustDomain};
use countersign_pki::{Bundle, Bundles};
use countersign_tls::{
    Expected, FirstContact, HANDSHAKE_TIMEOUT, Identity, Outbound, Present, Slice, Stream, Trust,
    connect_pinned, dial,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

use self::calls::StandingCalls;
use self::proof::{attest_machine, renew};
use self::pump::{Ears, Pump, Witnessed};
use super::alert::Alerted;
use super::channel::{self, DIAL_TIMEOUT};
use super::wire::{self, fault};
use super::{
    AttestAsk, Attested, Evidence, LinkFault, NodeCredential, Quiet, RenewAsk, Renewed, ServerLink,
    Session,
};

/// Reaches servers over the network. What it trusts and shows is what [`ServerLink::present`] said last.
pub struct TlsLink {
    clock: Arc<dyn Clock>,
    /// What the clock had run when this agent began.
    began: Duration,
    /// Whether no other agent was this node before.
    first: AtomicBool,
    trust: Arc<Trust>,
    trusted: Mutex<Trusted>,
    witnessed: Arc<Witnessed>,
}

/// What servers are verified by.
#[derive(Default)]
struct Trusted {
    bundle: Option<Bundle>,
    rules: Arc<Revocations>,
}

/// A unary call takes at most this long; signing waits for the server's disk.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A server whose machine has vanished is noticed by then.
const VANISHED: Duration = Duration::from_secs(10);
/// Messages of the stream that wait to be taken.
const MESSAGES_MAX: usize = 16;
const ACKS_MAX: usize = 4;

impl TlsLink {
    /// A link that trusts nobody yet. `trust` must be run beside it ([`Trust::run`]). Each agent has one of its own, made
    /// when it begins: it tells servers how long its agent has run.
    pub fn new(clock: Arc<dyn Clock>, trust: Arc<Trust>) -> Self {
        let began = clock.ran();
        Self {
            clock,
            began,
            first: AtomicBool::new(false),
            trust,
            trusted: Mutex::default(),
            witnessed: Arc::default(),
        }
    }

    fn domain(&self) -> Result<TrustDomain, LinkFault> {
        let trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        let domain = trusted.bundle.as_ref().map(|bundle| bundle.domain.clone());
        domain.ok_or_else(|| LinkFault::new(Code::NotReady, "no trust domain is known yet"))
    }

    /// Changes what servers are verified by, and enforces it. Under the lock, so that neither half is lost to the other.
    fn enforce(&self, change: impl FnOnce(&mut Trusted)) {
        let mut trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut trusted);
        let bundles = Arc::new(trusted.bundle.clone().map(Bundles::of).unwrap_or_default());
        let revocations = Arc::clone(&trusted.rules);
        self.trust.apply(Slice { bundles, revocations, ..Slice::nothing() });
    }

    async fn dial(
        &self,
        server: &str,
        domain: TrustDomain,
        present: Present,
        alpn: &[u8],
    ) -> Result<Stream, LinkFault> {
        let mut outbound = Outbound::control(Expected::Server(domain));
        outbound.present = present;
        outbound.alpn = vec![alpn.to_vec()];
        outbound.timeout = DIAL_TIMEOUT;
        let mut last = None;
        for address in channel::resolve(server).await? {
            match dial(&self.trust, address, &outbound).await {
                Ok(established) => return Ok(established.stream),
                Err(failure) => {
                    last = Some(LinkFault::new(of_server(failure.code), failure.detail));
                }
            }
        }
        Err(last
            .unwrap_or_else(|| LinkFault::new(Code::PeerUnreachable, format!("server `{server}`"))))
    }
}

#[async_trait]
impl ServerLink for TlsLink {
    fn present(
        &self,
        credential: Option<NodeCredential<'_>>,
        bundle: &Bundle,
    ) -> Result<(), LinkFault> {
        self.enforce(|trusted| trusted.bundle = Some(bundle.clone()));
        let Some(NodeCredential { chain, key }) = credential else { return Ok(()) };
        let identity = Identity::new(chain.clone(), key.pkcs8())
            .map_err(|why| LinkFault::new(Code::Internal, why.to_string()))?;
        self.trust
            .set_identity(identity)
            .map_err(|refused| LinkFault::new(refused.code, refused.why))
    }

    fn revoke(&self, rules: &Arc<Revocations>) {
        let known = |trusted: &Trusted| Arc::ptr_eq(&trusted.rules, rules);
        if known(&self.trusted.lock().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        self.enforce(|trusted| trusted.rules = Arc::clone(rules));
    }

    async fn attest(&self, server: &str, ask: AttestAsk) -> Result<Attested, LinkFault> {
        let contact = FirstContact {
            pin: ask.pin,
            domain: ask.domain.clone(),
            alpn: vec![b"h2".to_vec()],
            timeout: HANDSHAKE_TIMEOUT,
        };
        let addresses = channel::resolve(server).await?;
        let reach = |why: String| {
            LinkFault::new(Code::PeerUnreachable, format!("server `{server}`: {why}"))
        };
        let dialling = tokio::net::TcpStream::connect(addresses.as_slice());
        let tcp = tokio::time::timeout(DIAL_TIMEOUT, dialling)
            .await
            .map_err(|_elapsed| reach("it did not answer in time".to_owned()))?
            .map_err(|why| reach(why.to_string()))?;
        let pinned = connect_pinned(&self.clock, tcp, &contact)
            .await
            .map_err(|refused| LinkFault::new(refused.code, refused.why))?;
        let exporter = pinned
            .export(EXPORTER_LABEL)
            .map_err(|code| LinkFault::new(code, "the TLS connection gives no exporter value"))?;
        let pinned_bundle = pinned.bundle;
        let mut client = NodeClient::new(channel::over(pinned.stream).await?);
        let answer = match &ask.evidence {
            Evidence::Token(token) => {
                let token = token.reveal().to_owned();
                let request = v1::AttestRequest {
                    evidence: Some(v1::attest_request::Evidence::JoinToken(token)),
                    csr: ask.csr.into(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    host: ask.host,
                };
                timely(client.attest(request)).await?
            }
            Evidence::Machine(machine) => {
                timed(attest_machine(&mut client, machine, ask.csr, ask.host, &exporter)).await?
            }
        };
        let attested = wire::attested(answer)?;
        // The bundle came over a connection to the pinned root's server; it must speak of the same trust.
        let holds_pin = attested.bundle.authorities.iter().any(|one| one.key_id() == ask.pin);
        if !holds_pin || attested.bundle.domain != pinned_bundle.domain {
            let why = "the bundle does not hold the root that this agent was told to trust";
            return Err(LinkFault::new(Code::UnknownIssuer, why));
        }
        self.first.store(ask.first, Ordering::Relaxed);
        Ok(attested)
    }

    async fn renew(&self, server: &str, ask: RenewAsk) -> Result<Renewed, LinkFault> {
        // One-way TLS: the registered key proves who we are, also when the SVID has expired.
        let stream = self.dial(server, ask.domain.clone(), Present::Nothing, b"h2").await?;
        let exporter = stream
            .export(EXPORTER_LABEL)
            .map_err(|code| LinkFault::new(code, "the TLS connection gives no exporter value"))?;
        let mut client = NodeClient::new(channel::over(stream).await?);
        timed(renew(&mut client, &ask, &exporter)).await
    }

    async fn open(&self, server: &str, have: Option<Revision>) -> Result<Session, LinkFault> {
        let alpn = standing::ALPN;
        let stream = self.dial(server, self.domain()?, Present::Required, alpn).await?;
        if stream.alpn() != Some(alpn) {
            let why = format!("server `{server}` offers agents no standing connection");
            return Err(LinkFault::new(Code::NoSharedProtocol, why));
        }
        stream
            .probe(VANISHED)
            .map_err(|why| LinkFault::new(Code::Unavailable, format!("the connection: {why}")))?;
        let (stream, alerts) = Alerted::new(stream);
        let (standing, moving) = Standing::over(stream);
        let mut pump = Pump {
            calls: standing.calls.clone(),
            ears: Ears {
                told: standing.told,
                _moving: AbortOnDropHandle::new(tokio::spawn(moving)),
            },
            alerts,
            clock: Arc::clone(&self.clock),
            began: self.began,
            first: self.first.load(Ordering::Relaxed),
            witnessed: Arc::clone(&self.witnessed),
            quiet: Quiet::default(),
            quiet_until: Timestamp::LAST,
        };
        let first = timed(pump.begin(have)).await?;
        let (acks, ack_queue) = mpsc::channel(ACKS_MAX);
        let (messages, message_queue) = mpsc::channel(MESSAGES_MAX);
        Ok(Session {
            messages: ReceiverStream::new(message_queue),
            acks,
            quiet: pump.quiet.clone(),
            calls: Arc::new(StandingCalls { calls: standing.calls }),
            pump: AbortOnDropHandle::new(tokio::spawn(pump.run(first, ack_queue, messages))),
        })
    }
}

/// The code of a dial that failed. That a server's certificate is revoked says nothing about ours: for us it is away.
fn of_server(code: Code) -> Code {
    if code == Code::Revoked { Code::Unavailable } else { code }
}

/// A call and its time limit; takes the answer out of its envelope.
async fn timely<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, LinkFault> {
    timed(async { call.await.map(tonic::Response::into_inner).map_err(|status| fault(&status)) })
        .await
}

async fn timed<T>(call: impl Future<Output = Result<T, LinkFault>>) -> Result<T, LinkFault> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(LinkFault::new(Code::TimedOut, "the server did not answer in time")),
    }
}
