//! A server in this process: it issues real certificates, and can be taken away.

mod link;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign_agent::core::{Record, RecordKey, SyncMessage};
use countersign_agent::server_link::LinkFault;
use countersign_api::v1;
use countersign_identity::{
    Attested, Clock, Code, KeyId, Lifetime, NodeId, NodeTag, Reason, Revision, Revocation,
    Revocations, Revoked, SeededEntropy, Serial, SimClock, SpiffeId, Suspended, Suspension,
    Timestamp, TrustDomain,
};
use countersign_pki::{
    AuthorityDraft, Bundle, Certificate, Chain, CrlDraft, CrlNumber, CrlOf, Draft, Issuer, KeyKind,
    PrivateKey, Profile, ProvenKey, Provenance, Receipt, Reserved, Reviewed, RevokedSerial,
    SoftwareSigner,
};
use tokio::sync::{mpsc, watch};

pub(crate) const NODE: NodeId = NodeId::from_bytes([5; 16]);
pub(crate) const TAG: NodeTag = NodeTag::from_bytes([7; 8]);
/// How long after it was made something can be valid that a rule covers.
pub(crate) const RULE_LASTS: Duration = Duration::from_secs(3600);

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
    acks_taken: std::sync::atomic::AtomicUsize,
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
    /// What those who attested said of whether they are the first.
    firsts: Vec<bool>,
    issued: usize,
    have: Vec<Option<Revision>>,
    renewals: usize,
    incarnation: u64,
    /// The number under which it authorises, when that is behind.
    authorises_at: Option<u64>,
    suspended: Vec<String>,
    refuses_node: Option<Code>,
    renewals_tried: usize,
    rules: Arc<Revocations>,
    svids: Vec<Chain>,
    /// The revocation lists that it gives, and whose revocations they tell.
    lists: Option<(Revision, Vec<bytes::Bytes>)>,
    /// The sequence numbers of the bundles by which the agent has verified servers.
    presented: Vec<u64>,
}

impl State {
    fn revision(&self) -> Revision {
        Revision { incarnation: self.incarnation, number: self.number }
    }

    fn authorises(&self) -> Revision {
        let number = self.authorises_at.unwrap_or(self.number);
        Revision { number, ..self.revision() }
    }
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
            firsts: Vec::new(),
            issued: 0,
            have: Vec::new(),
            renewals: 0,
            incarnation: 1,
            authorises_at: None,
            suspended: Vec::new(),
            refuses_node: None,
            renewals_tried: 0,
            rules: Arc::default(),
            svids: Vec::new(),
            lists: None,
            presented: Vec::new(),
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
            acks_taken: std::sync::atomic::AtomicUsize::new(0),
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
        let revision = state.revision();
        let message = SyncMessage::Changes { revision, put: vec![record], gone: Vec::new() };
        push(&mut state, &Ok(message));
    }

    pub(crate) fn remove(&self, kind: &str, name: &str) {
        let key = RecordKey::read(kind, name).unwrap();
        let mut state = self.lock();
        state.number += 1;
        state.records.remove(&key);
        let revision = state.revision();
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

    /// Nothing has changed, and this is the time.
    pub(crate) fn mark(&self) {
        let mut state = self.lock();
        let (revision, clock) = (state.revision(), Some(self.0.clock.now()));
        push(&mut state, &Ok(SyncMessage::Mark { revision, clock }));
    }

    /// A rule in force from now on.
    pub(crate) fn revoke(&self, name: &str, target: Revoked, reason: Reason) {
        let at = self.0.clock.now();
        let rule = Revocation { target, about: None, reason, at, until: at + RULE_LASTS };
        self.put_value("Revocation", name, &serde_json::to_vec(&rule).unwrap());
    }

    /// Gives the root's list with these serials from now on, as one that tells all revocations so far.
    pub(crate) async fn tell_lists(&self, revoked: &[RevokedSerial]) -> bytes::Bytes {
        let (now, revision) = (self.0.clock.now(), self.lock().revision());
        let root = Issuer::from_certificate(self.0.root.clone()).unwrap();
        let draft = CrlDraft {
            issuer: &root,
            number: CrlNumber::new(revision, now),
            this_update: now,
            next_update: now + RULE_LASTS,
            of: CrlOf::Authorities,
            part: None,
            base: None,
            freshest: None,
            entries: revoked,
        };
        let list = bytes::Bytes::from(draft.sign(&self.0.root_key).await.unwrap());
        self.lock().lists = Some((revision, vec![list.clone()]));
        list
    }

    /// Nothing is issued for this identity from now on.
    pub(crate) fn suspend(&self, name: &str) {
        let target = Suspended::Identity(self.0.domain.with_path(&format!("/{name}")).unwrap());
        let suspension =
            Suspension { target, reason: Reason::ProcessCompromise, at: self.0.clock.now() };
        self.lock().suspended.push(name.to_owned());
        self.put_value("Suspension", name, &serde_json::to_vec(&suspension).unwrap());
    }

    /// As [`suspend`](Self::suspend), while the record is not on its way yet.
    pub(crate) fn refuse_as_suspended(&self, name: &str) {
        self.lock().suspended.push(name.to_owned());
    }

    pub(crate) fn resume(&self, name: &str) {
        self.lock().suspended.retain(|one| one != name);
        self.remove("Suspension", name);
    }

    /// The first revision that a rule does not cover which is made now.
    pub(crate) fn next(&self) -> Revision {
        let state = self.lock();
        Revision { incarnation: state.incarnation, number: state.number + 1 }
    }

    /// SVIDs are authorised on an old snapshot, or not any more.
    pub(crate) fn authorise_at(&self, number: Option<u64>) {
        self.lock().authorises_at = number;
    }

    /// The node itself is refused from now on, on its stream and when it renews.
    pub(crate) fn refuse_node(&self, code: Option<Code>) {
        let mut state = self.lock();
        state.refuses_node = code;
        if let Some(code) = code {
            push(&mut state, &Err(LinkFault::new(code, "this node is refused")));
            state.streams.clear();
        }
    }

    /// A backup is put in place: another incarnation, without these records.
    pub(crate) fn restore_without(&self, kind: &str, name: &str) {
        let mut state = self.lock();
        state.incarnation += 1;
        state.number = 1;
        state.records.remove(&RecordKey::read(kind, name).unwrap());
    }

    /// What the agent was told last that servers are verified by.
    pub(crate) fn rules(&self) -> Arc<Revocations> {
        Arc::clone(&self.lock().rules)
    }

    pub(crate) fn renewals_tried(&self) -> usize {
        self.lock().renewals_tried
    }

    /// All that was issued for workloads.
    pub(crate) fn svids(&self) -> Vec<Chain> {
        self.lock().svids.clone()
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

    pub(crate) fn firsts(&self) -> Vec<bool> {
        self.lock().firsts.clone()
    }

    pub(crate) fn haves(&self) -> Vec<Option<Revision>> {
        self.lock().have.clone()
    }

    /// The sequence numbers of the bundles by which the agent has verified servers.
    pub(crate) fn presented(&self) -> Vec<u64> {
        self.lock().presented.clone()
    }

    pub(crate) fn acks(&self) -> watch::Receiver<v1::SyncAck> {
        self.0.acks.subscribe()
    }

    /// How many acknowledgements have come.
    pub(crate) fn acks_taken(&self) -> usize {
        self.0.acks_taken.load(std::sync::atomic::Ordering::Relaxed)
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
                revision: self.lock().authorises(),
                node: TAG,
                attested: Attested::default(),
            },
            reserved,
        };
        let profile =
            Profile { domain: self.0.domain.clone(), lifetime_max: lifetime, pointers: None };
        let (certificate, key) = {
            let issuer = self.0.issuer.lock().unwrap();
            (issuer.certificate.clone(), Arc::clone(&issuer.key))
        };
        let issuer = Issuer::from_certificate(certificate.clone()).unwrap();
        let leaf = sign(draft.review(&profile, &issuer).unwrap(), &key).await;
        Chain::from_ders([leaf.der(), certificate.der()]).unwrap()
    }

    /// An SVID of this path under a key of its own.
    pub(crate) async fn identity(&self, path: &str) -> (Chain, PrivateKey) {
        let id = self.0.domain.with_path(path).unwrap();
        let key = PrivateKey::generate(KeyKind::P256).unwrap();
        let lifetime = Duration::from_secs(3600);
        let reserved = if id.is_reserved() { Reserved::Allow } else { Reserved::Refuse };
        (self.svid(&id, ProvenKey::of(&key), lifetime, reserved).await, key)
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
