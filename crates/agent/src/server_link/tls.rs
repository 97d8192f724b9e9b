//! The real link, over TLS: gRPC to join and to renew, and a standing connection for all the rest.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use countersign_api::attestation::machine_statement;
use countersign_api::renewal::{EXPORTER_LABEL, renewal_statement};
use countersign_api::standing::{self, Failed, Standing};
use countersign_api::v1;
use countersign_api::v1::node_client::NodeClient;
use countersign_identity::{Clock, Code, Revision, Revocations, Sha256, Timestamp, TrustDomain};
use countersign_pki::{Bundle, Bundles};
use countersign_program::trace::Context;
use countersign_tls::{
    Expected, FirstContact, HANDSHAKE_TIMEOUT, Identity, Outbound, Present, Slice, Stream, Trust,
    connect_pinned, dial,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;

use super::alert::{Alerted, Alerts};
use super::channel::{self, DIAL_TIMEOUT};
use super::wire::{self, broken, fault};
use super::{
    AttestAsk, Attested, Calls, Evidence, LinkFault, MachineCredential, NodeCredential, Quiet,
    RenewAsk, Renewed, ServerLink, Session, SignAnswer, SignItem, Subject,
};

/// Reaches servers over the network. What it trusts and shows is what [`ServerLink::present`] said last.
pub struct TlsLink {
    clock: Arc<dyn Clock>,
    trust: Arc<Trust>,
    trusted: Mutex<Trusted>,
    witnessed: Arc<Witnessed>,
}

/// The highest revision that a server has vouched for, so that one whose store lost its tail can be told.
#[derive(Default)]
struct Witnessed(Mutex<Option<(Revision, Bytes)>>);

impl Witnessed {
    fn get(&self) -> Option<(Revision, Bytes)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn see(&self, more: (Revision, Bytes)) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|(reached, _)| *reached < more.0) {
            *known = Some(more);
        }
    }
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
/// A server that was silent for so many times as long as it said is lost, whatever the connection says.
const SILENCES: u32 = 2;
/// Messages of the stream that wait to be taken.
const MESSAGES_MAX: usize = 16;
const ACKS_MAX: usize = 4;

impl TlsLink {
    /// A link that trusts nobody yet. `trust` must be run beside it ([`Trust::run`]).
    pub fn new(clock: Arc<dyn Clock>, trust: Arc<Trust>) -> Self {
        Self { clock, trust, trusted: Mutex::default(), witnessed: Arc::default() }
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

/// Shows a machine's certificate, and signs the server's nonce with its key.
async fn attest_machine(
    client: &mut NodeClient<Channel>,
    machine: &MachineCredential,
    csr: Vec<u8>,
    host: String,
    exporter: &[u8; 32],
) -> Result<v1::AttestResponse, LinkFault> {
    use v1::attest_x509_request::Step as Out;
    use v1::attest_x509_response::Step as In;
    let (outgoing, requests) = mpsc::channel(2);
    let closed = |_closed| LinkFault::new(Code::Unavailable, "the server ended the attestation");
    let say = |step| v1::AttestX509Request { step: Some(step) };
    let hello = v1::AttestX509Hello { version: env!("CARGO_PKG_VERSION").to_owned() };
    outgoing.send(say(Out::Hello(hello))).await.map_err(closed)?;
    let answer = client.attest_x509(ReceiverStream::new(requests)).await;
    let mut incoming = answer.map_err(|status| fault(&status))?.into_inner();

    let first = incoming.message().await.map_err(|status| fault(&status))?;
    let Some(In::Nonce(nonce)) = first.and_then(|response| response.step) else {
        return Err(broken("a nonce was expected"));
    };
    let nonce: [u8; 32] =
        nonce.as_ref().try_into().map_err(|_other_length| broken("the nonce has not 32 bytes"))?;
    let certificate = machine.chain.leaf().fingerprint();
    let statement = machine_statement(&nonce, exporter, certificate, sha256(&csr));
    let signed = machine.key.sign(&statement);
    let signature = signed.map_err(|why| LinkFault::new(Code::Internal, why.to_string()))?.into();
    let chain = machine.chain.ders().into_iter().map(Bytes::copy_from_slice).collect();
    let proof = v1::AttestX509Proof { chain, signature, csr: csr.into(), host };
    outgoing.send(say(Out::Proof(proof))).await.map_err(closed)?;

    let last = incoming.message().await.map_err(|status| fault(&status))?;
    match last.and_then(|response| response.step) {
        Some(In::Attested(attested)) => Ok(attested),
        Some(In::Nonce(_)) | None => Err(broken("the node's certificate was expected")),
    }
}

async fn renew(
    client: &mut NodeClient<Channel>,
    ask: &RenewAsk,
    exporter: &[u8; 32],
) -> Result<Renewed, LinkFault> {
    use v1::renew_request::Step as Out;
    use v1::renew_response::Step as In;
    let (outgoing, requests) = mpsc::channel(2);
    let closed = |_closed| LinkFault::new(Code::Unavailable, "the server ended the renewal");
    let node_id = ask.node.as_bytes().to_vec().into();
    let chain = ask.chain.ders().into_iter().map(Bytes::copy_from_slice).collect();
    let hello = v1::RenewHello { node_id, generation: ask.generation, chain };
    outgoing.send(v1::RenewRequest { step: Some(Out::Hello(hello)) }).await.map_err(closed)?;
    let answer = client.renew(ReceiverStream::new(requests)).await;
    let mut incoming = answer.map_err(|status| fault(&status))?.into_inner();

    let first = incoming.message().await.map_err(|status| fault(&status))?;
    let Some(In::Nonce(nonce)) = first.and_then(|response| response.step) else {
        return Err(broken("a nonce was expected"));
    };
    let nonce: [u8; 32] =
        nonce.as_ref().try_into().map_err(|_other_length| broken("the nonce has not 32 bytes"))?;
    let digest = sha256(&ask.successor_csr);
    let statement = renewal_statement(&nonce, exporter, ask.node, ask.generation, digest);
    let signature =
        ask.key.sign(&statement).map_err(|why| LinkFault::new(Code::Internal, why.to_string()))?;
    let proof = v1::RenewProof {
        signature: signature.into(),
        successor_csr: ask.successor_csr.clone().into(),
    };
    outgoing.send(v1::RenewRequest { step: Some(Out::Proof(proof)) }).await.map_err(closed)?;

    let second = incoming.message().await.map_err(|status| fault(&status))?;
    match second.and_then(|response| response.step) {
        Some(In::Renewed(answer)) => wire::renewed(answer),
        Some(In::Nonce(_)) | None => Err(broken("a certificate was expected")),
    }
}

fn sha256(bytes: &[u8]) -> Sha256 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    Sha256::from_bytes(digest.as_ref().try_into().expect("a SHA-256 digest has 32 bytes"))
}

/// Moves messages between the wire and the session's queues.
struct Pump {
    calls: standing::Calls,
    ears: Ears,
    alerts: Alerts,
    clock: Arc<dyn Clock>,
    witnessed: Arc<Witnessed>,
    quiet: Quiet,
    /// When the server has been silent for longer than it said it would be.
    quiet_until: Timestamp,
}

/// What is heard, and what moves the bytes meanwhile.
struct Ears {
    told: mpsc::Receiver<v1::SyncResponse>,
    _moving: AbortOnDropHandle<()>,
}

type Said = Result<crate::core::SyncMessage, LinkFault>;

impl Pump {
    /// Says hello; gives the first thing that the server says.
    async fn begin(&mut self, have: Option<Revision>) -> Said {
        let (reached, witness) = self.witnessed.get().unzip();
        let hello = v1::SyncHello {
            have: have.map(Into::into),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            clock_micros: self.clock.now().micros(),
            reached: reached.map(Into::into),
            witness: witness.unwrap_or_default(),
        };
        // Why it could not be sent is what is heard next.
        self.calls.sync(v1::sync_request::Step::Hello(hello)).await.ok();
        let first = self.ears.told.recv().await;
        self.read(first)
    }

    async fn run(
        mut self,
        first: crate::core::SyncMessage,
        mut acks: mpsc::Receiver<v1::SyncAck>,
        messages: mpsc::Sender<Said>,
    ) {
        if messages.send(Ok(first)).await.is_err() {
            return;
        }
        loop {
            tokio::select! {
                () = self.clock.sleep_until(self.quiet_until) => {
                    if self.was_set_back() {
                        continue;
                    }
                    return silent(&messages).await;
                }
                ack = acks.recv() => {
                    let Some(ack) = ack else { return };
                    let say = self.calls.sync(v1::sync_request::Step::Ack(ack));
                    tokio::select! {
                        // Why it could not be sent is what is heard next.
                        _said = say => {}
                        // Also where the clock was set back: what was not said here is said on the next session.
                        () = self.clock.sleep_until(self.quiet_until) => return silent(&messages).await,
                    }
                }
                told = self.ears.told.recv() => {
                    let message = self.read(told);
                    let ends = message.is_err();
                    if messages.send(message).await.is_err() || ends {
                        return;
                    }
                }
            }
        }
    }

    fn read(&mut self, told: Option<v1::SyncResponse>) -> Said {
        let Some(response) = told else {
            return Err(self.alerts.explain(wire::failed(self.calls.why_ended())));
        };
        self.compare_clocks(&response);
        self.quiet.told(response.quiet_millis);
        self.listen_anew();
        if let Some(witness) = wire::witness(&response) {
            self.witnessed.see(witness);
        }
        wire::sync_message(response)
    }

    /// From now on the server may say nothing for as long as it has promised to say something.
    fn listen_anew(&mut self) {
        let quiet = self.quiet.get();
        self.quiet_until =
            quiet.map_or(Timestamp::LAST, |quiet| self.clock.now() + SILENCES * quiet);
    }

    /// Whether a sleep ended because the clock was set back, before its moment: it says nothing of the server, to which it is
    /// listened anew.
    fn was_set_back(&mut self) -> bool {
        let set_back = self.clock.now() < self.quiet_until;
        if set_back {
            self.listen_anew();
        }
        set_back
    }

    fn compare_clocks(&self, response: &v1::SyncResponse) {
        let Some(theirs) = wire::server_clock(response) else { return };
        let ours = self.clock.now();
        let apart = ours.since(theirs).max(theirs.since(ours));
        if countersign_identity::SKEW_ALLOWED / 12 < apart {
            let apart = countersign_identity::DurationText(apart);
            tracing::warn!(%apart, "this machine's clock and the server's differ");
        }
    }
}

/// Ends the session of a server that has broken its promise.
async fn silent(messages: &mpsc::Sender<Said>) {
    let why = "the server says nothing any more, and had promised to";
    // Nobody hears it when the session has ended meanwhile.
    messages.send(Err(LinkFault::new(Code::TimedOut, why))).await.ok();
}

struct StandingCalls {
    calls: standing::Calls,
}

#[async_trait]
impl Calls for StandingCalls {
    async fn sign(
        &self,
        items: Vec<SignItem>,
        from: Option<Context>,
    ) -> Result<Vec<SignAnswer>, LinkFault> {
        let asked = items.len();
        let items = items
            .into_iter()
            .map(|SignItem { subject, csr }| {
                let (workload, canary) = match subject {
                    Subject::Workload(name) => (name.to_string(), String::new()),
                    Subject::Canary(id) => (String::new(), id.to_string()),
                };
                v1::SignItem { workload, csr: csr.into(), canary }
            })
            .collect();
        let traceparent = from.map(|from| from.to_string()).unwrap_or_default();
        let answer = answered(self.calls.sign(v1::SignRequest { items, traceparent })).await?;
        if answer.results.len() != asked {
            return Err(broken(format!("{} results for {asked} items", answer.results.len())));
        }
        Ok(answer.results.into_iter().map(wire::sign_answer).collect())
    }

    async fn report(&self, report: v1::ReportRequest) -> Result<(), LinkFault> {
        answered(self.calls.report(report)).await.map(|_answer| ())
    }

    async fn lists(&self, revision: Revision) -> Result<Vec<Bytes>, LinkFault> {
        let request = v1::ListsRequest { revision: Some(revision.into()) };
        answered(self.calls.lists(request)).await.map(|answer| answer.lists)
    }

    async fn hand_back(&self, records: Vec<v1::SignedRecord>) -> Result<u64, LinkFault> {
        let request = v1::HandBackRequest { records };
        answered(self.calls.hand_back(request)).await.map(|answer| answer.taken)
    }
}

/// A call and its time limit.
async fn answered<T>(call: impl Future<Output = Result<T, Failed>>) -> Result<T, LinkFault> {
    timed(async { call.await.map_err(wire::failed) }).await
}
