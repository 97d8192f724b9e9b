//! A server in this process: it issues real certificates, and can be taken away.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use countersign_agent::core::{Record, RecordKey, SyncMessage};
use countersign_agent::server_link::{
    AttestAsk, Attested, Calls, LinkFault, NodeCredential, RenewAsk, Renewed, ServerLink, Session,
    SignAnswer, SignItem,
};
use countersign_api::v1;
use countersign_identity::{
    Clock, Code, KeyId, Lifetime, NodeId, NodeTag, Revision, SeededEntropy, Serial, SimClock,
    SpiffeId, Timestamp, TrustDomain,
};
use countersign_pki::{
    AuthorityDraft, Bundle, Certificate, Chain, Draft, Issuer, KeyKind, PrivateKey, Profile,
    ProvenKey, Provenance, Receipt, Reserved, Reviewed, SoftwareSigner, open_csr,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

const NODE: NodeId = NodeId::from_bytes([5; 16]);

#[derive(Clone)]
pub(crate) struct Server(Arc<Shared>);

struct Shared {
    clock: Arc<SimClock>,
    domain: TrustDomain,
    root: Certificate,
    root_key: SoftwareSigner,
    issuer: Mutex<Authority>,
    entropy: SeededEntropy,
    state: Mutex<State>,
    acks: watch::Sender<v1::SyncAck>,
    reports: watch::Sender<Vec<v1::ReportRequest>>,
}

struct Authority {
    certificate: Certificate,
    key: Arc<SoftwareSigner>,
}

struct State {
    number: u64,
    records: BTreeMap<RecordKey, Record>,
    up: bool,
    signs: bool,
    lifetime: Duration,
    wrong_identity: bool,
    elsewhere: Vec<String>,
    node_key: Option<KeyId>,
    generation: u64,
    lose_next_renewal: bool,
    lose_next_attestation: bool,
    streams: Vec<mpsc::Sender<Result<SyncMessage, LinkFault>>>,
    tokens: Vec<String>,
    issued: usize,
    have: Vec<Option<Revision>>,
    renewals: usize,
}

impl Server {
    pub(crate) async fn new(clock: Arc<SimClock>) -> Self {
        let born = clock.now() - Duration::from_secs(3600);
        let domain: TrustDomain = "shop.example".parse().unwrap();
        let entropy = SeededEntropy::new(1);
        let root_key = PrivateKey::generate(KeyKind::P256).unwrap();
        let public = root_key.public().clone();
        let year = Lifetime::from_secs(365 * 86_400).unwrap();
        let serial = Serial::draw(born, &entropy).unwrap();
        let draft = AuthorityDraft::root(domain.clone(), public, serial, born, year);
        let root_key = SoftwareSigner::from(root_key);
        let root = sign(draft.review().unwrap(), &root_key).await;
        let issuer = make_issuer(&root, &root_key, &entropy, born).await;
        let state = State {
            number: 1,
            records: BTreeMap::new(),
            up: true,
            signs: true,
            lifetime: Duration::from_secs(60),
            wrong_identity: false,
            elsewhere: Vec::new(),
            node_key: None,
            generation: 1,
            lose_next_renewal: false,
            lose_next_attestation: false,
            streams: Vec::new(),
            tokens: vec!["token".to_owned()],
            issued: 0,
            have: Vec::new(),
            renewals: 0,
        };
        let server = Self(Arc::new(Shared {
            clock,
            domain: domain.clone(),
            root: root.clone(),
            root_key,
            issuer: Mutex::new(issuer),
            entropy,
            state: Mutex::new(state),
            acks: watch::channel(v1::SyncAck::default()).0,
            reports: watch::channel(Vec::new()).0,
        }));
        let value = br#"{"agentLifetime":"24h","lifetimeMax":"24h","svidLifetime":"1h","trustDomain":"shop.example"}"#;
        server.put_value("TrustDomain", "shop", value);
        server.put_bundle(&server.bundle());
        server
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle::new(self.0.domain.clone(), vec![self.0.root.clone()], 1)
    }

    pub(crate) fn put_bundle(&self, bundle: &Bundle) {
        self.put_value("Bundle", "shop.example", bundle.to_json().as_bytes());
    }

    pub(crate) fn put_workload(&self, name: &str, selectors: &[&str], more: &str) {
        let selectors = serde_json::to_string(selectors).unwrap();
        let value = format!(r#"{{"keyType":"ecdsa-p256","selectors":{selectors}{more}}}"#);
        self.put_value("Workload", name, value.as_bytes());
    }

    /// One change, pushed to every open stream.
    pub(crate) fn put_value(&self, kind: &str, name: &str, value: &[u8]) {
        let record = Record::read(kind, name, value).unwrap();
        let mut state = self.lock();
        state.number += 1;
        state.records.insert(record.key.clone(), record.clone());
        let revision = Revision { incarnation: 1, number: state.number };
        let message = SyncMessage::Changes { revision, put: vec![record], gone: Vec::new() };
        push(&mut state, &Ok(message));
    }

    pub(crate) fn remove(&self, kind: &str, name: &str) {
        let key = RecordKey::read(kind, name).unwrap();
        let mut state = self.lock();
        state.number += 1;
        state.records.remove(&key);
        let revision = Revision { incarnation: 1, number: state.number };
        let message = SyncMessage::Changes { revision, put: Vec::new(), gone: vec![key] };
        push(&mut state, &Ok(message));
    }

    pub(crate) fn go(&self) {
        let mut state = self.lock();
        state.up = false;
        push(&mut state, &Err(LinkFault::new(Code::Unavailable, "the server went away")));
        state.streams.clear();
    }

    pub(crate) fn come_back(&self) {
        self.lock().up = true;
    }

    pub(crate) fn sign_nothing(&self) {
        self.lock().signs = false;
    }

    pub(crate) fn sign_for_somebody_else(&self) {
        self.lock().wrong_identity = true;
    }

    /// This workload is not open to this node.
    pub(crate) fn send_elsewhere(&self, name: &str) {
        self.lock().elsewhere.push(name.to_owned());
    }

    /// The next attestation is recorded, and its answer lost.
    pub(crate) fn lose_next_attestation(&self) {
        let mut state = self.lock();
        state.lose_next_attestation = true;
        state.tokens.push("another".to_owned());
    }

    pub(crate) fn lose_next_renewal(&self) {
        self.lock().lose_next_renewal = true;
    }

    pub(crate) fn issued(&self) -> usize {
        self.lock().issued
    }

    pub(crate) fn renewals(&self) -> usize {
        self.lock().renewals
    }

    pub(crate) fn generation(&self) -> u64 {
        self.lock().generation
    }

    pub(crate) fn number(&self) -> u64 {
        self.lock().number
    }

    pub(crate) fn haves(&self) -> Vec<Option<Revision>> {
        self.lock().have.clone()
    }

    pub(crate) fn acks(&self) -> watch::Receiver<v1::SyncAck> {
        self.0.acks.subscribe()
    }

    pub(crate) fn reports(&self) -> watch::Receiver<Vec<v1::ReportRequest>> {
        self.0.reports.subscribe()
    }

    /// Another issuer, under the same root.
    pub(crate) async fn change_issuer(&self) {
        let shared = &self.0;
        let born = shared.clock.now() - Duration::from_secs(60);
        let issuer = make_issuer(&shared.root, &shared.root_key, &shared.entropy, born).await;
        *shared.issuer.lock().unwrap() = issuer;
    }

    async fn svid(
        &self,
        id: &SpiffeId,
        key: ProvenKey,
        lifetime: Duration,
        reserved: Reserved,
    ) -> Chain {
        let issued = self.0.clock.now();
        let lifetime = Lifetime::from_secs(lifetime.as_secs()).unwrap();
        let draft = Draft {
            id: id.clone(),
            key,
            serial: Serial::draw(issued, &self.0.entropy).unwrap(),
            issued,
            lifetime,
            dns_names: Vec::new(),
            provenance: Provenance {
                revision: Revision { incarnation: 1, number: 1 },
                node: NodeTag::from_bytes([7; 8]),
            },
            reserved,
        };
        let profile = Profile { domain: self.0.domain.clone(), lifetime_max: lifetime };
        let (certificate, key) = {
            let issuer = self.0.issuer.lock().unwrap();
            (issuer.certificate.clone(), Arc::clone(&issuer.key))
        };
        let issuer = Issuer::from_certificate(certificate.clone()).unwrap();
        let leaf = sign(draft.review(&profile, &issuer).unwrap(), &key).await;
        Chain::from_ders([leaf.der(), certificate.der()]).unwrap()
    }

    async fn node_svid(&self, key: ProvenKey) -> Chain {
        let id = self.0.domain.with_path(&format!("/countersign/agent/{NODE}")).unwrap();
        self.svid(&id, key, Duration::from_secs(3600), Reserved::Allow).await
    }

    fn check_up(&self) -> Result<(), LinkFault> {
        let away = || LinkFault::new(Code::PeerUnreachable, "the server is away");
        self.lock().up.then_some(()).ok_or_else(away)
    }
}

fn push(state: &mut State, message: &Result<SyncMessage, LinkFault>) {
    state.streams.retain(|stream| stream.try_send(message.clone()).is_ok());
}

async fn make_issuer(
    root: &Certificate,
    root_key: &SoftwareSigner,
    entropy: &SeededEntropy,
    born: Timestamp,
) -> Authority {
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let parent = Issuer::from_certificate(root.clone()).unwrap();
    let serial = Serial::draw(born, entropy).unwrap();
    let month = Lifetime::from_secs(30 * 86_400).unwrap();
    let draft = AuthorityDraft::issuer(&parent, key.public().clone(), serial, born, month);
    let certificate = sign(draft.review().unwrap(), root_key).await;
    Authority { certificate, key: Arc::new(SoftwareSigner::from(key)) }
}

async fn sign(reviewed: Reviewed, signer: &SoftwareSigner) -> Certificate {
    let receipt = Receipt::assertion(reviewed.summary().tbs, 0);
    reviewed.sign(receipt, signer).await.unwrap()
}

#[async_trait]
impl ServerLink for Server {
    fn present(
        &self,
        _credential: Option<NodeCredential<'_>>,
        _bundle: &Bundle,
    ) -> Result<(), LinkFault> {
        Ok(())
    }

    async fn attest(&self, _server: &str, ask: AttestAsk) -> Result<Attested, LinkFault> {
        self.check_up()?;
        if self.lock().tokens.pop().is_none() {
            return Err(LinkFault::new(Code::SpentToken, "the join token was used already"));
        }
        let key = open_csr(&ask.csr).unwrap();
        {
            let mut state = self.lock();
            if state.node_key == Some(key.public().id()) {
                // Nothing of it is done, so the token stays.
                state.tokens.push("token".to_owned());
                return Err(LinkFault::new(Code::AlreadyExists, "the key is registered"));
            }
            state.node_key = Some(key.public().id());
            if std::mem::take(&mut state.lose_next_attestation) {
                return Err(LinkFault::new(Code::TimedOut, "the answer was lost"));
            }
        }
        let issued = self.0.clock.now();
        let chain = self.node_svid(key).await;
        Ok(Attested { node: NODE, chain, issued, bundle: self.bundle(), generation: 1 })
    }

    async fn renew(&self, _server: &str, ask: RenewAsk) -> Result<Renewed, LinkFault> {
        self.check_up()?;
        let fault = |code| Err(LinkFault::new(code, "renewal refused"));
        let proven = {
            let mut state = self.lock();
            if ask.generation < state.generation {
                return fault(Code::StaleGeneration);
            }
            if state.generation < ask.generation || state.node_key != Some(ask.key.public().id()) {
                return fault(Code::BadPossession);
            }
            let proven = if ask.successor_csr.is_empty() {
                ProvenKey::of(&ask.key)
            } else {
                state.generation += 1;
                open_csr(&ask.successor_csr).unwrap()
            };
            state.node_key = Some(proven.public().id());
            state.renewals += 1;
            if std::mem::take(&mut state.lose_next_renewal) {
                return fault(Code::TimedOut);
            }
            proven
        };
        let generation = self.generation();
        let issued = self.0.clock.now();
        let chain = self.node_svid(proven).await;
        Ok(Renewed { chain, issued, bundle: self.bundle(), generation })
    }

    async fn open(&self, _server: &str, have: Option<Revision>) -> Result<Session, LinkFault> {
        self.check_up()?;
        let (stream, messages) = mpsc::channel(64);
        let (acks, mut ack_queue) = mpsc::channel::<v1::SyncAck>(4);
        {
            let mut state = self.lock();
            state.have.push(have);
            let revision = Revision { incarnation: 1, number: state.number };
            let records = state.records.values().cloned().collect();
            stream.try_send(Ok(SyncMessage::Snapshot { revision, records })).unwrap();
            state.streams.push(stream);
        }
        let published = self.0.acks.clone();
        let pump = tokio::spawn(async move {
            while let Some(ack) = ack_queue.recv().await {
                published.send_replace(ack);
            }
        });
        Ok(Session {
            messages: ReceiverStream::new(messages),
            acks,
            calls: Arc::new(self.clone()),
            pump: AbortOnDropHandle::new(pump),
        })
    }
}

#[async_trait]
impl Calls for Server {
    async fn sign(&self, items: Vec<SignItem>) -> Result<Vec<SignAnswer>, LinkFault> {
        self.check_up()?;
        let mut answers = Vec::new();
        for item in items {
            let key = RecordKey::read("Workload", item.workload.as_str()).unwrap();
            let (known, signs, lifetime, wrong) = {
                let state = self.lock();
                (
                    state.records.get(&key).cloned(),
                    state.signs,
                    state.lifetime,
                    state.wrong_identity,
                )
            };
            if self.lock().elsewhere.contains(&item.workload.to_string()) {
                answers.push(SignAnswer::Refused(Code::UnknownWorkload, "not here".to_owned()));
                continue;
            }
            let Some(record) = known.filter(|_| signs) else {
                answers.push(SignAnswer::Refused(Code::LongLifetime, "over the limit".to_owned()));
                continue;
            };
            let spec: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
            let path = if wrong { "/admin".to_owned() } else { format!("/{}", item.workload) };
            let id = spec["spiffeId"].as_str().map_or_else(
                || self.0.domain.with_path(&path).unwrap(),
                |text| text.parse().unwrap(),
            );
            let proven = open_csr(&item.csr).unwrap();
            let chain = self.svid(&id, proven, lifetime, Reserved::Refuse).await;
            self.lock().issued += 1;
            answers.push(SignAnswer::Issued { chain, issued: self.0.clock.now() });
        }
        Ok(answers)
    }

    async fn report(&self, report: v1::ReportRequest) -> Result<(), LinkFault> {
        self.check_up()?;
        self.0.reports.send_modify(|reports| reports.push(report));
        Ok(())
    }
}
