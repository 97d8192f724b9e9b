//! Nodes that prove themselves by a certificate of their operator's own authorities.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use countersign_api::admin::Target;
use countersign_api::attestation::machine_statement;
use countersign_api::v1;
use countersign_api::v1::attest_x509_request::Step as Asked;
use countersign_api::v1::attest_x509_response::Step as Told;
use countersign_identity::{
    Attested, Clock as _, Code, Lifetime, NodeEvidence, NodeTag, Reason, Revision, Serial,
    SystemEntropy,
};
use countersign_pki::{
    AuthorityDraft, Certificate, Chain, Draft, Issuer, KeyKind, PrivateKey, Profile, ProvenKey,
    Provenance, Receipt, Reserved, Reviewed, SoftwareSigner, make_csr,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Client, Realm, Running, code, soon, stranger};
use crate::attest::NodeAuthorities;
use crate::digest::sha256;

/// An operator's own authority for machines.
struct Authority {
    root: Certificate,
    signer: SoftwareSigner,
}

struct Machine {
    chain: Chain,
    key: PrivateKey,
}

async fn signed(reviewed: Reviewed, signer: &SoftwareSigner) -> Certificate {
    let receipt = Receipt::assertion(reviewed.summary().tbs, 0);
    reviewed.sign(receipt, signer).await.unwrap()
}

impl Authority {
    async fn new(realm: &Realm) -> Self {
        let now = realm.clock.now();
        let signer = SoftwareSigner::from(PrivateKey::generate(KeyKind::P256).unwrap());
        let serial = Serial::draw(now, &SystemEntropy).unwrap();
        let year = Lifetime::from_secs(365 * 86_400).unwrap();
        let domain = "machines.example".parse().unwrap();
        let key = countersign_pki::Signer::public(&signer).clone();
        let draft = AuthorityDraft::root(domain, key, serial, now, year);
        let root = signed(draft.review().unwrap(), &signer).await;
        Self { root, signer }
    }

    async fn machine(&self, realm: &Realm, kind: KeyKind) -> Machine {
        let now = realm.clock.now();
        let key = PrivateKey::generate(kind).unwrap();
        let lifetime = Lifetime::from_secs(3600).unwrap();
        let draft = Draft {
            id: "spiffe://machines.example/host".parse().unwrap(),
            key: ProvenKey::of(&key),
            serial: Serial::draw(now, &SystemEntropy).unwrap(),
            issued: now,
            lifetime,
            dns_names: Vec::new(),
            provenance: Provenance {
                revision: Revision { incarnation: 1, number: 1 },
                node: NodeTag::from_bytes([0; 8]),
                attested: Attested::default(),
            },
            reserved: Reserved::Refuse,
        };
        let domain = "machines.example".parse().unwrap();
        let profile = Profile { domain, lifetime_max: lifetime, pointers: None };
        let issuer = Issuer::from_certificate(self.root.clone()).unwrap();
        let leaf = signed(draft.review(&profile, &issuer).unwrap(), &self.signer).await;
        Machine { chain: Chain::from_certificates(vec![leaf]).unwrap(), key }
    }
}

/// What a machine claims, all of it chosen freely.
struct Claim<'a> {
    chain: Vec<Bytes>,
    key: &'a PrivateKey,
    node_key: &'a PrivateKey,
    nonce: Option<[u8; 32]>,
    exporter: Option<[u8; 32]>,
    /// Shown in place of the request that was signed.
    other_csr: Option<Vec<u8>>,
}

impl<'a> Claim<'a> {
    fn honest(machine: &'a Machine, node_key: &'a PrivateKey) -> Self {
        let chain = machine.chain.ders().into_iter().map(Bytes::copy_from_slice).collect();
        let (nonce, exporter, other_csr) = (None, None, None);
        Self { chain, key: &machine.key, node_key, nonce, exporter, other_csr }
    }
}

async fn attest(client: &mut Client, claim: Claim<'_>) -> Result<v1::AttestResponse, Status> {
    let request = |step| v1::AttestX509Request { step: Some(step) };
    let (say, said) = mpsc::channel(2);
    say.send(request(Asked::Hello(v1::AttestX509Hello::default()))).await.unwrap();
    let mut answers = client.node.attest_x509(ReceiverStream::new(said)).await?.into_inner();
    let Some(Told::Nonce(nonce)) = answers.message().await?.unwrap().step else {
        panic!("no nonce")
    };
    let nonce = claim.nonce.unwrap_or_else(|| nonce.as_ref().try_into().unwrap());
    let exporter = claim.exporter.unwrap_or(client.exporter);
    let csr = make_csr(claim.node_key).unwrap();
    let shown = sha256(claim.chain.first().map_or(&[], |leaf| leaf));
    let statement = machine_statement(&nonce, &exporter, shown, sha256(&csr));
    let proof = v1::AttestX509Proof {
        chain: claim.chain,
        signature: claim.key.sign(&statement).unwrap().into(),
        csr: claim.other_csr.unwrap_or(csr).into(),
        host: "rack-7".to_owned(),
    };
    say.send(request(Asked::Proof(proof))).await.unwrap();
    match answers.message().await?.unwrap().step {
        Some(Told::Attested(attested)) => Ok(attested),
        Some(Told::Nonce(_)) | None => panic!("no certificate"),
    }
}

struct World {
    realm: Realm,
    authority: Authority,
    file: PathBuf,
}

impl World {
    async fn begin() -> Self {
        let realm = Realm::begin().await;
        let authority = Authority::new(&realm).await;
        let file = realm.data().with_extension("pem");
        std::fs::write(&file, authority.root.to_pem()).unwrap();
        Self { realm, authority, file }
    }

    async fn serve(&self) -> Running {
        let labels = vec!["edge".parse().unwrap()];
        let node_authorities = Some(NodeAuthorities { file: self.file.clone(), labels });
        let metrics = Some("127.0.0.1:0".parse().unwrap());
        let config = crate::Config { node_authorities, metrics, ..self.realm.config() };
        self.realm.start(config).await.unwrap()
    }

    async fn machine(&self) -> Machine {
        self.authority.machine(&self.realm, KeyKind::P256).await
    }

    async fn attest(
        &self,
        running: &Running,
        claim: Claim<'_>,
    ) -> Result<v1::AttestResponse, Code> {
        let mut client = stranger(&self.realm, running).await;
        attest(&mut client, claim).await.map_err(|status| code(&status))
    }
}

fn key() -> PrivateKey {
    PrivateKey::generate(KeyKind::P256).unwrap()
}

#[tokio::test]
async fn machine_of_a_trusted_authority_becomes_one_node_and_no_second_one() {
    let world = World::begin().await;
    let running = world.serve().await;
    for kind in KeyKind::ALL {
        let machine = world.authority.machine(&world.realm, kind).await;
        let first = key();
        let joined = world.attest(&running, Claim::honest(&machine, &first)).await.unwrap();
        let node = countersign_api::wire::node_id(&joined.node_id).unwrap();
        let leaf = Certificate::parse(&joined.chain[0]).unwrap();
        assert_eq!(leaf.key_id(), first.public().id());
        assert_eq!(
            leaf.spiffe_id().unwrap().as_str(),
            format!("spiffe://shop.example/countersign/agent/{node}")
        );
        // Whoever shows the same certificate with another key of its own is nobody new.
        let second = world.attest(&running, Claim::honest(&machine, &key())).await;
        assert_eq!(second.unwrap_err(), Code::AlreadyExists, "{kind}");
        // The machine itself, whose answer was lost, gets it again.
        let again = world.attest(&running, Claim::honest(&machine, &first)).await.unwrap();
        assert_eq!((again.node_id, again.generation), (joined.node_id, 1));
        // Once an operator has removed the node, it may come back under a new key.
        running.admin.remove_node(node).await.unwrap();
        let back = world.attest(&running, Claim::honest(&machine, &key())).await;
        assert_eq!(back.unwrap().node_id.as_ref(), node.as_bytes());
    }
    let nodes = running.admin.nodes(None).await.unwrap().nodes;
    assert_eq!(nodes.len(), KeyKind::ALL.len());
    assert!(nodes.iter().all(|node| node.labels == ["edge".parse().unwrap()]), "{nodes:?}");
    let by_certificate = |by: Option<NodeEvidence>| by == Some(NodeEvidence::X509);
    assert!(nodes.iter().all(|node| by_certificate(node.attested_by)), "{nodes:?}");
    let nodes = running.admin.status().await.unwrap().nodes;
    assert!(nodes.iter().all(|node| by_certificate(node.attested_by)), "{nodes:?}");
    running.stop().await;
    world.realm.verify_everything().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_shown_by_twenty_callers_at_once_makes_one_node() {
    let world = World::begin().await;
    let running = world.serve().await;
    let machine = std::sync::Arc::new(world.machine().await);
    let mut callers = JoinSet::new();
    for _ in 0..20 {
        let mut client = stranger(&world.realm, &running).await;
        let machine = std::sync::Arc::clone(&machine);
        callers.spawn(async move { attest(&mut client, Claim::honest(&machine, &key())).await });
    }
    let outcomes = soon(callers.join_all()).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for refused in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert_eq!(code(refused), Code::AlreadyExists, "{refused:?}");
    }
    running.stop().await;
    // Root, issuer, server, and one agent: no loser was even recorded.
    assert_eq!(world.realm.verify_everything().await.len(), 4);
}

#[tokio::test]
async fn proof_for_another_connection_nonce_request_or_certificate_is_of_no_use() {
    let world = World::begin().await;
    let running = world.serve().await;
    let (machine, other) = (world.machine().await, world.machine().await);
    let node_key = key();
    let before = running.log_size().await;
    let elsewhere = stranger(&world.realm, &running).await.exporter;
    let honest = || Claim::honest(&machine, &node_key);
    let swapped = make_csr(&key()).unwrap();
    for (claim, what) in [
        (Claim { exporter: Some(elsewhere), ..honest() }, "of another connection"),
        (Claim { nonce: Some([0; 32]), ..honest() }, "over another nonce"),
        (Claim { other_csr: Some(swapped), ..honest() }, "for another node's key"),
        (Claim { key: &other.key, ..honest() }, "by another machine's key"),
        (
            Claim { chain: Claim::honest(&other, &node_key).chain, ..honest() },
            "another's certificate",
        ),
    ] {
        let refused = world.attest(&running, claim).await.unwrap_err();
        assert_eq!(refused, Code::BadPossession, "{what}");
    }
    // A second certificate in the bag proves nothing, whichever is first.
    let foreign = Authority::new(&world.realm).await.machine(&world.realm, KeyKind::P256).await;
    let bag = [Claim::honest(&foreign, &node_key).chain, honest().chain].concat();
    let claim = Claim { chain: bag, key: &foreign.key, ..honest() };
    let refused = world.attest(&running, claim).await.unwrap_err();
    assert!(matches!(refused, Code::UnknownIssuer | Code::BadSignature), "{refused}");
    assert_eq!(running.log_size().await, before, "what a stranger causes is not in the log");
    assert_eq!(running.admin.nodes(None).await.unwrap().nodes.len(), 0);
    world.attest(&running, honest()).await.unwrap();
    running.stop().await;
    world.realm.verify_everything().await;
}

#[tokio::test]
async fn authority_foreigner_and_what_has_expired_become_no_nodes() {
    let world = World::begin().await;
    let running = world.serve().await;
    let node_key = key();
    let authority = &world.authority;
    let own = Machine {
        chain: Chain::from_certificates(vec![authority.root.clone()]).unwrap(),
        key: PrivateKey::generate(KeyKind::P256).unwrap(),
    };
    let refused = world.attest(&running, Claim::honest(&own, &node_key)).await;
    assert_eq!(refused.unwrap_err(), Code::LeafIsAuthority);
    let foreign = Authority::new(&world.realm).await.machine(&world.realm, KeyKind::P256).await;
    let refused = world.attest(&running, Claim::honest(&foreign, &node_key)).await;
    assert_eq!(refused.unwrap_err(), Code::BadSignature, "of an authority of the same name");
    let machine = world.machine().await;
    let none = Claim { chain: Vec::new(), ..Claim::honest(&machine, &node_key) };
    assert_eq!(world.attest(&running, none).await.unwrap_err(), Code::NoCertificate);
    let huge =
        Claim { chain: vec![Bytes::from_static(b"0"); 9], ..Claim::honest(&machine, &node_key) };
    let refused = world.attest(&running, huge).await.unwrap_err();
    assert!(matches!(refused, Code::TooManyCertificates | Code::Malformed), "{refused}");
    world.realm.clock.advance(Duration::from_secs(3601));
    let refused = world.attest(&running, Claim::honest(&machine, &node_key)).await;
    assert_eq!(refused.unwrap_err(), Code::Expired);
    running.stop().await;
    world.realm.verify_everything().await;
}

#[tokio::test]
async fn source_that_fails_too_often_is_refused_before_anything_is_verified() {
    let world = World::begin().await;
    let running = world.serve().await;
    let (machine, node_key) = (world.machine().await, key());
    let mut refused = Code::BadPossession;
    let mut verified = Vec::new();
    for _ in 0..24 {
        let claim = Claim { nonce: Some([0; 32]), ..Claim::honest(&machine, &node_key) };
        refused = world.attest(&running, claim).await.unwrap_err();
        verified.push(super::floods::verified(&running).await);
    }
    assert_eq!(refused, Code::RateLimited);
    // Its chain and its statement each time, as long as it may fail.
    let expected: Vec<u64> = (1..=24).map(|tries: u64| 2 * tries.min(20)).collect();
    assert_eq!(verified, expected);
    world.realm.clock.advance(Duration::from_secs(120));
    world.attest(&running, Claim::honest(&machine, &node_key)).await.unwrap();
    running.stop().await;
    world.realm.verify_everything().await;
}

#[tokio::test]
async fn server_that_was_told_of_no_authorities_takes_no_certificates_of_machines() {
    let world = World::begin().await;
    let running = world.realm.serve().await;
    let (machine, node_key) = (world.machine().await, key());
    let refused = world.attest(&running, Claim::honest(&machine, &node_key)).await;
    assert_eq!(refused.unwrap_err(), Code::Forbidden);
    running.stop().await;
    // Nor does one start whose file holds no authorities.
    for text in ["", "nonsense", &world.machine().await.chain.pem()] {
        std::fs::write(&world.file, text).unwrap();
        let node_authorities =
            Some(NodeAuthorities { file: world.file.clone(), labels: Vec::new() });
        let config = crate::Config { node_authorities, ..world.realm.config() };
        let refused = world.realm.start(config).await.err().unwrap();
        assert_eq!(refused.code(), Code::NotUnderstood, "{refused}");
    }
}

#[tokio::test]
async fn suspended_machine_does_not_come_back_by_the_certificate_that_it_had() {
    let world = World::begin().await;
    let running = world.serve().await;
    let (machine, node_key) = (world.machine().await, key());
    let joined = world.attest(&running, Claim::honest(&machine, &node_key)).await.unwrap();
    let node = countersign_api::wire::node_id(&joined.node_id).unwrap();
    super::revoke::revoke(&running, Target::Node(node), Reason::NodeCompromise).await;
    for claim_key in [&node_key, &key()] {
        let refused = world.attest(&running, Claim::honest(&machine, claim_key)).await;
        assert_eq!(refused.unwrap_err(), Code::Suspended);
    }
    // Also when its record is gone.
    running.admin.remove_node(node).await.ok();
    let refused = world.attest(&running, Claim::honest(&machine, &key())).await;
    assert_eq!(refused.unwrap_err(), Code::Suspended);
    running.stop().await;
    world.realm.verify_everything().await;
}

#[tokio::test]
async fn authorities_are_those_that_the_file_holds_now() {
    let world = World::begin().await;
    let running = world.serve().await;
    let (machine, next) = (world.machine().await, Authority::new(&world.realm).await);
    let newer = next.machine(&world.realm, KeyKind::Ed25519).await;
    std::fs::write(&world.file, next.root.to_pem()).unwrap();
    let refused = world.attest(&running, Claim::honest(&machine, &key())).await;
    assert_eq!(refused.unwrap_err(), Code::BadSignature);
    world.attest(&running, Claim::honest(&newer, &key())).await.unwrap();
    // A file that is gone lets nobody in, and is told as a fault of ours.
    std::fs::remove_file(&world.file).unwrap();
    let refused = world.attest(&running, Claim::honest(&machine, &key())).await;
    assert_eq!(refused.unwrap_err(), Code::Unavailable);
    running.stop().await;
}

/// How often this process has that pipe open.
fn opened(pipe: &std::path::Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
    open.filter(|open| std::fs::read_link(open.path()).is_ok_and(|to| to == pipe)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorities_are_read_for_four_at_once_and_for_one_of_a_connection() {
    let world = World::begin().await;
    let running = world.serve().await;
    let real = world.file.with_extension("real");
    std::fs::rename(&world.file, &real).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&world.file).status().unwrap();
    assert!(made.success());
    // As long as this end is open, whoever reads the pipe waits.
    let held = std::fs::File::options().read(true).write(true).open(&world.file).unwrap();
    let mut callers = JoinSet::new();
    let call = async |callers: &mut JoinSet<_>| {
        let mut client = stranger(&world.realm, &running).await;
        let (exporter, node) = (client.exporter, client.node.clone());
        let machine = world.machine().await;
        callers.spawn(async move {
            attest(&mut client, Claim::honest(&machine, &key())).await.map_err(|it| code(&it))
        });
        Client { exporter, node }
    };
    let mut first = Vec::new();
    for _ in 0..4 {
        first.push(call(&mut callers).await);
    }
    soon(async {
        while opened(&world.file) < 1 + 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // Another proof of a connection for which it is being read.
    let machine = world.machine().await;
    for client in &mut first {
        let refused = soon(attest(client, Claim::honest(&machine, &key()))).await;
        assert_eq!(code(&refused.unwrap_err()), Code::RateLimited);
    }
    for _ in 0..8 {
        call(&mut callers).await;
    }
    // Time for more reads, if there were no limit.
    tokio::time::sleep(Duration::from_millis(500)).await;
    std::fs::rename(&real, &world.file).unwrap();
    drop(held);
    let mut outcomes = soon(callers.join_all()).await;
    outcomes.retain(Result::is_err);
    assert!(outcomes.iter().all(|it| *it.as_ref().unwrap_err() == Code::Unavailable));
    assert_eq!(outcomes.len(), 4, "those that read the pipe; the others waited");
    running.stop().await;
    world.realm.verify_everything().await;
}
