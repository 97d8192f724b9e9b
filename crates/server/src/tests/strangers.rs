//! Who is no agent: what the agents' port answers to them, call by call.
//!
//! Twice over: at the port, which hears agents alone, and behind it, where each call looks for itself who asks.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use countersign_api::standing::{ALPN, Reader, put};
use countersign_api::v1;
use countersign_api::v1::call::Asked;
use countersign_api::v1::from_agent::Step as Heard;
use countersign_api::v1::from_server::Step as Said;
use countersign_api::v1::sync_request::Step as Sync;
use countersign_identity::{
    Clock as _, Code, Entropy, Lifetime, SeededEntropy, SimClock, Timestamp,
};
use countersign_pki::{Bundle, Bundles, KeyKind, PrivateKey, Role, Verified, make_csr, verify};
use countersign_seal::Kek;
use countersign_store::{MemoryStore, Store};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client::{dialled, pinned_stander, shows, shows_as, try_dialled};
use super::renew::{Claim, renew};
use super::sign::{item, sign};
use super::{Agent, DOMAIN, Realm, Running, attest, code, soon, stranger, workload};
use crate::steps::{Ground, Steps, begin};

/// The call after this one. A new one does not compile until it has its place here.
fn after(call: Option<&Asked>) -> Option<Asked> {
    match call {
        None => Some(Asked::Sign(v1::SignRequest::default())),
        Some(Asked::Sign(_)) => Some(Asked::HandBack(v1::HandBackRequest::default())),
        Some(Asked::HandBack(_)) => Some(Asked::Report(v1::ReportRequest::default())),
        Some(Asked::Report(_)) => Some(Asked::Lists(v1::ListsRequest::default())),
        Some(Asked::Lists(_)) => None,
    }
}

fn every_call() -> impl Iterator<Item = Asked> {
    std::iter::successors(after(None), |call| after(Some(call)))
}

/// What an agent may say on its connection, all of it.
fn all_that_is_heard() -> Vec<Heard> {
    let call = |asked| Heard::Call(v1::Call { number: 1, asked: Some(asked) });
    let sync = |step| Heard::Sync(v1::SyncRequest { step: Some(step) });
    let hello = sync(Sync::Hello(v1::SyncHello::default()));
    let ack = sync(Sync::Ack(v1::SyncAck::default()));
    every_call().map(call).chain([hello, ack]).collect()
}

/// The calls of gRPC, which are for machines without a certificate of ours: open by design. What they ask for in its stead is
/// tried below.
const OPEN: [&str; 3] = ["Attest", "AttestX509", "Renew"];

/// All that is said to who says this, until the connection ends.
async fn told(mut stream: impl AsyncRead + AsyncWrite + Unpin, says: Heard) -> Vec<Said> {
    let mut out = BytesMut::new();
    put(&v1::FromAgent { step: Some(says) }, &mut out);
    // The other end may have closed already.
    let _broken = stream.write_all(&out).await;
    let mut reader = Reader::new(1 << 20, std::time::Duration::from_secs(60));
    let mut told = Vec::new();
    while let Ok(Some(message)) = soon(reader.next::<v1::FromServer>(&mut stream)).await {
        told.extend(message.step);
    }
    told
}

#[track_caller]
fn ended(told: &[Said], code: Code, what: &str) {
    match told {
        [Said::Ended(refusal)] => assert_eq!(refusal.code, code.as_str(), "{what}: {refusal:?}"),
        other => panic!("{what}: {other:?}"),
    }
}

/// What a workload of this agent shows.
async fn of_a_workload(
    realm: &Realm,
    running: &Running,
    agent: &Agent,
) -> (Vec<Bytes>, PrivateKey) {
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let mut client = agent.client(realm, running).await;
    let issued = sign(&mut client, vec![item("web", &key)]).await.remove(0).unwrap();
    (issued.chain, key)
}

#[tokio::test]
async fn nothing_that_an_agent_may_say_is_heard_of_who_is_none() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let (chain, key) = of_a_workload(&realm, &running, &agent).await;
    // An agent of another trust domain, which calls itself as ours, and one that does not.
    let other = Realm::begin().await;
    let theirs = other.serve().await;
    let foreign = Agent::join(&other, &theirs, &[]).await;
    theirs.stop().await;
    let elsewhere = Elsewhere::begin("other.example", realm.clock.now()).await;
    let (strange, strange_key) = elsewhere.joined().await;
    let mut both = agent.bundle.clone();
    both.authorities.extend(foreign.bundle.authorities.clone());
    let apart = vec![agent.bundle.clone(), elsewhere.bundle(&strange)];
    let foreigners = [
        shows_as(&realm, vec![both], &foreign.chain, &foreign.key),
        shows_as(&realm, apart, &strange.chain, &strange_key),
    ];
    let before = running.log_size().await;
    for says in all_that_is_heard() {
        let what = format!("{says:?}");
        let nobody = pinned_stander(&realm, &running).await;
        ended(&told(nobody.stream, says.clone()).await, Code::Unauthenticated, &what);
        let web = shows(&realm, &agent.bundle, &chain, &key);
        let web = dialled(&web, running.address(), ALPN).await;
        ended(&told(web, says.clone()).await, Code::Forbidden, &what);
        for trust in &foreigners {
            // Whether it is heard at the end of the handshake or after it that it failed.
            if let Ok(stream) = try_dialled(trust, running.address(), ALPN).await {
                let said = told(stream, says.clone()).await;
                assert!(said.is_empty(), "it is believed by nobody, and yet, to {what}: {said:?}");
            }
        }
        // The very same is answered to an agent.
        let trust = shows(&realm, &agent.bundle, &agent.chain, &agent.key);
        let mut stream = dialled(&trust, running.address(), ALPN).await;
        let mut out = BytesMut::new();
        put(&v1::FromAgent { step: Some(says) }, &mut out);
        stream.write_all(&out).await.unwrap();
        let mut reader = Reader::new(1 << 20, std::time::Duration::from_secs(60));
        let first = soon(reader.next::<v1::FromServer>(&mut stream)).await.unwrap();
        assert!(first.is_some(), "{what}");
    }
    assert_eq!(running.log_size().await, before, "and nothing of it is on record");
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn what_is_open_to_machines_without_a_certificate_asks_for_another_proof() {
    let declared = include_str!("../../../api/proto/countersign/v1/node.proto");
    let calls = declared.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
    let calls: Vec<_> = calls.map(|call| call.split('(').next().unwrap()).collect();
    assert_eq!(calls, OPEN, "a new call has to be refused to strangers, or its proof tried here");
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let mut nobody = stranger(&realm, &running).await;
    let refused = attest(&mut nobody, "", &key).await.unwrap_err();
    assert_eq!(code(&refused), Code::UnknownToken);
    let (say, said) = mpsc::channel(1);
    let hello = v1::attest_x509_request::Step::Hello(v1::AttestX509Hello::default());
    say.send(v1::AttestX509Request { step: Some(hello) }).await.unwrap();
    let refused = match nobody.node.attest_x509(ReceiverStream::new(said)).await {
        Ok(answers) => soon(answers.into_inner().message()).await.unwrap_err(),
        Err(refused) => refused,
    };
    assert_eq!(code(&refused), Code::Forbidden);
    let refused = renew(&mut nobody, Claim { key: &key, ..Claim::honest(&agent) }).await;
    assert_eq!(code(&refused.unwrap_err()), Code::BadPossession);
    running.stop().await;
}

/// A trust domain without a port.
pub(super) struct Elsewhere {
    pub(super) steps: Steps,
    domain: String,
    now: Timestamp,
    ground: Ground,
    kek: Kek,
}

impl Elsewhere {
    pub(super) async fn begin(domain: &str, now: Timestamp) -> Self {
        let store = Arc::new(MemoryStore::new(Arc::new(SeededEntropy::new(8))));
        Self::begin_on(domain, store, Arc::new(SimClock::new(now))).await
    }

    pub(super) async fn begin_on(
        domain: &str,
        store: Arc<dyn Store>,
        clock: Arc<SimClock>,
    ) -> Self {
        let (now, entropy) = (clock.now(), Arc::new(SeededEntropy::new(7)) as Arc<dyn Entropy>);
        let name = "elsewhere".to_owned();
        let ground = Ground { name, store, clock, entropy: Arc::clone(&entropy), steady: None };
        let (kek, key) = (Kek::draw(&*entropy).unwrap(), || PrivateKey::generate(KeyKind::P256));
        let name = domain.parse().unwrap();
        begin(&ground, &kek, name, &key().unwrap(), &key().unwrap()).await.unwrap();
        let steps = Steps::start(ground.clone(), &kek).await.unwrap();
        let web = json!({
            "apiVersion": "countersign.dev/v1alpha1", "kind": "Workload", "metadata": { "name": "web" },
            "spec": { "selectors": ["launch:web"], "lifetime": "15m" },
        });
        steps.apply(&[web]).await.unwrap();
        steps.advance().await.unwrap();
        Self { steps, domain: domain.to_owned(), now, ground, kek }
    }

    /// Another server on the same store.
    pub(super) async fn another(&self) -> Steps {
        let ground = Ground { name: "another".to_owned(), ..self.ground.clone() };
        Steps::start(ground, &self.kek).await.unwrap()
    }

    pub(super) async fn joined(&self) -> (v1::AttestResponse, PrivateKey) {
        let key = PrivateKey::generate(KeyKind::P256).unwrap();
        let token = self.steps.create_token(Lifetime::from_secs(600).unwrap(), Vec::new()).await;
        let request = v1::AttestRequest {
            evidence: Some(v1::attest_request::Evidence::JoinToken(token.unwrap())),
            csr: make_csr(&key).unwrap().into(),
            ..Default::default()
        };
        (self.steps.attest(request).await.unwrap(), key)
    }

    fn bundle(&self, joined: &v1::AttestResponse) -> Bundle {
        Bundle::parse_json(self.domain.parse().unwrap(), &joined.bundle).unwrap()
    }

    /// What those see who trust that domain.
    fn seen(&self, joined: &v1::AttestResponse, chain: &[Bytes]) -> Verified {
        let bundles = Bundles::new(vec![self.bundle(joined)]).unwrap();
        let chain: Vec<&[u8]> = chain.iter().map(AsRef::as_ref).collect();
        verify(&chain, &bundles, Role::Client, self.now).unwrap()
    }
}

#[tokio::test]
async fn each_call_looks_for_itself_who_asks() {
    let now = Timestamp::from_secs(1_795_262_400);
    let (ours, theirs) =
        (Elsewhere::begin(DOMAIN, now).await, Elsewhere::begin("other.example", now).await);
    let (joined, _) = ours.joined().await;
    let agent = ours.seen(&joined, &joined.chain);
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let request = v1::SignRequest { items: vec![item("web", &key)], ..Default::default() };
    let signed = ours.steps.sign(&joined.chain, request).await.unwrap();
    let Some(v1::sign_result::Outcome::Issued(web)) = signed.results[0].outcome.clone() else {
        panic!("{signed:?}")
    };
    let web = ours.seen(&joined, &web.chain);
    let (foreign, _) = theirs.joined().await;
    let foreign = theirs.seen(&foreign, &foreign.chain);
    let callers = [
        ("nobody", None, Code::Unauthenticated),
        ("a workload", Some(web), Code::Forbidden),
        ("another domain's agent", Some(foreign), Code::Forbidden),
    ];
    for (who, shown, code) in callers {
        for call in every_call() {
            let what = format!("{call:?} of {who}");
            let (service, peer) = ours.steps.service(shown.clone());
            let refused = soon(service.answer(&peer, call)).await.err();
            assert_eq!(refused.map(|refused| refused.code), Some(code), "{what}");
        }
        let (service, peer) = ours.steps.service(shown.clone());
        let refused = soon(service.sync(Arc::new(peer), v1::SyncHello::default())).await.err();
        assert_eq!(refused.map(|refused| refused.code), Some(code), "a stream of {who}");
    }
    let (service, peer) = ours.steps.service(Some(agent));
    let report = Asked::Report(v1::ReportRequest::default());
    assert!(soon(service.answer(&peer, report)).await.is_ok(), "an agent is heard");
}
