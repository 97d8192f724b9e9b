//! A trust domain that lost something: backups, a new incarnation, and what agents hand back.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use countersign_api::admin::{Reissue, RevocationsResponse, RevokeRequest, Target};
use countersign_api::v1;
use countersign_identity::{Clock as _, Code, Reason, Revision, SKEW_ALLOWED, SystemEntropy};
use countersign_pki::{KeyKind, PrivateKey};
use countersign_store::{SqliteStore, Store as _, verify_everything};

use super::sign::{item, sign};
use super::sync::{open, open_with};
use super::{Agent, Client, DOMAIN, Realm, Running, code, workload};
use crate::backup::{BackupConfig, RestoreConfig, RestoreReport, backup_at, restore_at};
use crate::config::{Config, StartError, StoreAt};

fn key() -> PrivateKey {
    PrivateKey::generate(KeyKind::P256).unwrap()
}

async fn revoke(running: &Running, target: Target, reason: Reason) {
    let (targets, reissue) = (vec![target], Reissue::ByReason);
    let request = RevokeRequest { targets, reason, issued_before: None, reissue, dry_run: false };
    running.admin.revoke(&request).await.unwrap();
}

async fn hand_back(
    client: &mut Client,
    records: Vec<v1::SignedRecord>,
) -> Result<u64, tonic::Status> {
    let answer = client.node.hand_back(v1::HandBackRequest { records }).await?;
    Ok(answer.into_inner().taken)
}

impl Realm {
    fn place(&self, name: &str) -> PathBuf {
        self.data().with_file_name(name)
    }

    async fn save(&self) -> PathBuf {
        let file = self.place("backup");
        let config = BackupConfig {
            data: self.data(),
            store: StoreAt::Directory,
            kek: None,
            file: file.clone(),
            unlock: None,
        };
        let report = backup_at(&config, self.clock.now(), &mut |_, _| {}).await.unwrap();
        assert!(0 < report.log_size);
        file
    }

    fn restoring(&self, name: &str) -> RestoreConfig {
        RestoreConfig {
            file: self.place("backup"),
            data: self.place(name),
            store: StoreAt::Directory,
            kek: self.data().join("kek"),
            hold_off: Duration::from_secs(60),
            journal: None,
            unlock: None,
        }
    }

    async fn restore(&self, config: &RestoreConfig) -> Result<RestoreReport, StartError> {
        restore_at(config, self.clock.now(), &mut |_, _| {}).await
    }

    async fn serve_at(&self, name: &str) -> Running {
        let data = self.place(name);
        let fresh = Config::new(data, ([127, 0, 0, 1], 0).into());
        self.start(Config { drain: Duration::from_secs(2), ..fresh }).await.unwrap()
    }
}

#[tokio::test]
async fn what_was_revoked_after_the_backup_is_taken_back_from_agents_before_anything_is_issued() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), workload("orders", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let gone = Agent::join(&realm, &running, &[]).await;
    realm.save().await;
    let mut client = agent.client(&realm, &running).await;
    let mut stream = open(&mut client, None).await.unwrap();
    stream.snapshot().await;
    let lost = sign(&mut client, vec![item("web", &key())]).await.remove(0).unwrap();
    let orders = "spiffe://shop.example/orders".parse().unwrap();
    revoke(&running, Target::Identity(orders), Reason::ProcessCompromise).await;
    stream.changes().await;
    revoke(&running, Target::Node(gone.node), Reason::NodeCompromise).await;
    stream.changes().await;
    let before = running.admin.status().await.unwrap();
    let kinds = |kind: &str| stream.signed.iter().filter(|record| record.kind == kind).count();
    assert!(2 <= kinds("Revocation") && kinds("Suspension") == 2, "{:?}", stream.signed);
    running.stop().await;

    let report = realm.restore(&realm.restoring("e")).await.unwrap();
    assert_eq!(report.trust_domain.as_str(), DOMAIN);
    assert!(before.revision < report.revision, "{report:?}");
    let running = realm.serve_at("e").await;
    let status = running.admin.status().await.unwrap();
    let incarnation = status.incarnation.unwrap();
    assert_eq!(incarnation.held_until, Some(report.hold_until));
    assert_eq!((incarnation.log_before.size, incarnation.log_before.root), report.log);
    assert!(status.warnings.iter().any(|warning| warning.contains("resume-issuing")));
    // Who enforces what is not there nobody can say, wherever points are.
    let asked = running.admin.convergence(Some(before.revision), Duration::ZERO).await;
    assert_eq!(asked.unwrap_err().code(), Code::NotConverged);
    running.admin.convergence(Some(report.revision), Duration::ZERO).await.unwrap();
    // The agent comes with the certificate that it has, and is told everything.
    let mut client = agent.client(&realm, &running).await;
    let mut again = open(&mut client, stream_revision(&before.revision)).await.unwrap();
    assert_eq!(
        Revision::from(again.snapshot().await.revision.unwrap()).incarnation,
        report.revision.incarnation
    );
    let refused = client
        .node
        .sign(v1::SignRequest { items: vec![item("web", &key())], ..v1::SignRequest::default() })
        .await
        .unwrap_err();
    assert_eq!(code(&refused), Code::NotReady);
    let taken = hand_back(&mut client, stream.signed.clone()).await.unwrap();
    assert!(4 <= taken, "{taken}");
    assert_eq!(hand_back(&mut client, stream.signed.clone()).await.unwrap(), 0, "it knows them");
    let RevocationsResponse { rules, suspensions, .. } = running.admin.revocations().await.unwrap();
    assert!(
        rules
            .iter()
            .any(|rule| rule.target.to_string().starts_with("spiffe://shop.example/orders"))
    );
    assert_eq!(suspensions.len(), 2, "{suspensions:?}");
    // Issued anew after the hold-off, and what was taken back holds.
    realm.clock.advance(Duration::from_secs(61));
    let issued = sign(&mut client, vec![item("web", &key()), item("orders", &key())]).await;
    let web = agent.verify(&realm, &issued[0].as_ref().unwrap().chain);
    assert_eq!(web.provenance().unwrap().revision.incarnation, report.revision.incarnation);
    assert_eq!(issued[1], Err(Code::Suspended));
    // One lifetime later what is of the earlier incarnation is covered, and nothing else.
    realm.clock.advance(Duration::from_secs(62 * 60));
    let covered = async {
        loop {
            let rules = running.admin.revocations().await.unwrap().rules;
            if let Some(rule) =
                rules.into_iter().find(|rule| rule.target.to_string().starts_with("everything"))
            {
                return rule;
            }
            tokio::task::yield_now().await;
        }
    };
    let rule = super::soon(covered).await;
    let countersign_identity::Revoked::Earlier { before: cut_off, .. } = &rule.target else {
        panic!("{rule:?}")
    };
    let of_lost = agent.verify_at(&lost.chain).provenance().unwrap().revision;
    assert!(of_lost < *cut_off && *cut_off < web.provenance().unwrap().revision);
    running.stop().await;
    let store = SqliteStore::open(&realm.place("e"), std::sync::Arc::new(SystemEntropy)).unwrap();
    verify_everything(&store).await.unwrap();
    assert_eq!(store.past_incarnation(0).await.unwrap(), Some(1));
}

fn stream_revision(revision: &Revision) -> Option<Revision> {
    Some(*revision)
}

impl Agent {
    fn verify_at(&self, chain: &[Bytes]) -> countersign_pki::Certificate {
        assert!(!chain.is_empty() && !self.chain.is_empty());
        countersign_pki::Certificate::parse(&chain[0]).unwrap()
    }
}

#[tokio::test]
async fn an_agent_cannot_invent_rules_nor_change_those_that_were_made() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let mut stream = open(&mut client, None).await.unwrap();
    stream.snapshot().await;
    let web = "spiffe://shop.example/web".parse().unwrap();
    revoke(&running, Target::Identity(web), Reason::KeyCompromise).await;
    stream.changes().await;
    let made = stream.signed.remove(0);
    let revision = running.admin.status().await.unwrap().revision;
    let forged = |change: fn(&mut v1::SignedRecord)| {
        let mut record = made.clone();
        change(&mut record);
        record
    };
    let wide = |record: &mut v1::SignedRecord| {
        let text = String::from_utf8(record.value.to_vec()).unwrap();
        record.value = text.replace("shop.example/web", "shop.example/bank").into();
    };
    for record in [
        forged(wide),
        forged(|record| record.name = "9.9.9".to_owned()),
        forged(|record| {
            record.name = "9.9.9".to_owned();
            record.signature = Bytes::from_static(&[0; 64]);
        }),
        forged(|record| record.kind = "Workload".to_owned()),
        forged(|record| record.kind = "Nonsense".to_owned()),
    ] {
        let refused = hand_back(&mut client, vec![made.clone(), record]).await.unwrap_err();
        assert_eq!(code(&refused), Code::Forbidden);
    }
    let many = vec![made.clone(); 1025];
    assert_eq!(code(&hand_back(&mut client, many).await.unwrap_err()), Code::TooLarge);
    assert_eq!(hand_back(&mut client, vec![made; 1024]).await.unwrap(), 0);
    let after = running.admin.status().await.unwrap().revision;
    assert_eq!(after, revision, "nothing was committed");
    // A key of another trust domain vouches for nothing here.
    let other = Realm::begin().await;
    let theirs = other.serve().await;
    theirs.apply(vec![workload("web", &[])]).await;
    let foreign = Agent::join(&other, &theirs, &[]).await;
    let mut their_client = foreign.client(&other, &theirs).await;
    let mut their_stream = open(&mut their_client, None).await.unwrap();
    their_stream.snapshot().await;
    let bank = "spiffe://shop.example/bank".parse().unwrap();
    revoke(&theirs, Target::Identity(bank), Reason::KeyCompromise).await;
    their_stream.changes().await;
    let refused = hand_back(&mut client, their_stream.signed).await.unwrap_err();
    assert_eq!(code(&refused), Code::Forbidden);
    theirs.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_server_whose_store_is_behind_what_an_agent_has_seen_begins_a_new_incarnation() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    realm.save().await;
    running.apply(vec![workload("orders", &[])]).await;
    let mut client = agent.client(&realm, &running).await;
    let snapshot = open(&mut client, None).await.unwrap().snapshot().await;
    let (reached, witness) = (snapshot.revision, snapshot.witness);
    running.stop().await;
    // A copy of yesterday in the place of the store, which nobody told the server of, nor what it had seen.
    let report = realm.restore(&realm.restoring("e")).await.unwrap();
    let old = realm.data().join("state.db");
    std::fs::remove_file(realm.data().join("seen.json")).unwrap();
    realm.put_old_store(&old).await;
    let running = realm.serve().await;
    let status = running.admin.status().await.unwrap();
    assert_eq!((status.revision.incarnation, status.incarnation), (1, None));
    let mut client = agent.client(&realm, &running).await;
    // Somebody's word alone is not enough.
    let hello = |witness: Bytes| v1::SyncHello { reached, witness, ..Default::default() };
    open_with(&mut client, hello(Bytes::new())).await.unwrap().snapshot().await;
    let further = v1::SyncHello {
        reached: Some(v1::Revision { incarnation: 1, number: 1 << 40 }),
        ..hello(witness.clone())
    };
    open_with(&mut client, further).await.unwrap().snapshot().await;
    let refused = match open_with(&mut client, hello(witness)).await {
        Ok(mut stream) => stream.next().await.unwrap_err(),
        Err(refused) => refused,
    };
    assert_eq!(code(&refused), Code::Unavailable);
    let begun = async {
        loop {
            let status = running.admin.status().await.unwrap();
            if let Some(incarnation) = status.incarnation {
                return (status.revision, incarnation);
            }
            tokio::task::yield_now().await;
        }
    };
    let (revision, incarnation) = super::soon(begun).await;
    assert!(1 < revision.incarnation && incarnation.held_until.is_some());
    assert!(report.revision.incarnation <= revision.incarnation);
    running.stop().await;
    realm.verify_everything().await;
}

/// Of what was issued in the lost span there are no rows: a point may hold something that lives longer than all that is known.
#[tokio::test]
async fn points_of_a_restored_state_are_counted_until_nothing_of_the_lost_span_can_be_valid() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), super::service("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let (client, stream) = super::converge::point_ack(&realm, &running, &agent).await;
    super::converge::convergence_until(&running, None, |now| now.enforcing == 1).await;
    drop((client, stream));
    realm.save().await;
    running.stop().await;
    realm.restore(&realm.restoring("e")).await.unwrap();
    let running = realm.serve_at("e").await;
    let counted = async || {
        let now = running.admin.convergence(None, Duration::ZERO).await.unwrap();
        (now.live, now.missing.len())
    };
    assert_eq!(counted().await, (1, 1));
    // Everything of it that is on record has ended.
    realm.clock.advance(Duration::from_secs(3600) + SKEW_ALLOWED + Duration::from_secs(1));
    assert_eq!(counted().await, (1, 1));
    realm.clock.advance(Duration::from_secs(86_400));
    assert_eq!(counted().await, (0, 0));
    running.stop().await;
}

/// What only the journal remembers is not lost when it is an agent that shows a running server what its store lacks.
#[tokio::test]
async fn a_running_server_that_begins_anew_takes_the_rules_of_its_journal() {
    let realm = Realm::begin().await;
    let folder = realm.place("journal");
    std::fs::create_dir(&folder).unwrap();
    let config = || Config { journal: Some(folder.clone()), ..realm.config() };
    let running = realm.start(config()).await.unwrap();
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    realm.save().await;
    let web = "spiffe://shop.example/web".parse().unwrap();
    revoke(&running, Target::Identity(web), Reason::ProcessCompromise).await;
    let mut client = agent.client(&realm, &running).await;
    let snapshot = open(&mut client, None).await.unwrap().snapshot().await;
    running.stop().await;
    realm.put_old_store(&realm.data().join("state.db")).await;
    std::fs::remove_file(realm.data().join("seen.json")).unwrap();
    let running = realm.start(config()).await.unwrap();
    assert_eq!(running.admin.revocations().await.unwrap().rules.len(), 0);
    // The agent shows how far it has seen, and hands nothing back.
    let mut client = agent.client(&realm, &running).await;
    let (reached, witness) = (snapshot.revision, snapshot.witness);
    let hello = v1::SyncHello { reached, witness, ..Default::default() };
    match open_with(&mut client, hello).await {
        Ok(mut stream) => drop(stream.next().await.unwrap_err()),
        Err(refused) => assert_eq!(code(&refused), Code::Unavailable),
    }
    let begun = async {
        while running.admin.status().await.unwrap().incarnation.is_none() {
            tokio::task::yield_now().await;
        }
    };
    super::soon(begun).await;
    let answer = running.admin.revocations().await.unwrap();
    assert_eq!((answer.rules.len(), answer.suspensions.len()), (1, 1), "{answer:?}");
    running.stop().await;
    realm.verify_everything().await;
}

impl Realm {
    /// The state of the backup under its old incarnation, as a copy of the file would be.
    async fn put_old_store(&self, at: &std::path::Path) {
        let kek = countersign_seal::KekFile::open(&self.data().join("kek")).unwrap();
        let folder = at.parent().unwrap();
        for ending in ["", "-wal", "-shm"] {
            let mut path = at.as_os_str().to_owned();
            path.push(ending);
            let _absent = std::fs::remove_file(path);
        }
        crate::backup::put_old(&self.place("backup"), &kek, folder).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_remembers_more_than_its_store_begins_a_new_incarnation_by_itself() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    realm.save().await;
    running.apply(vec![workload("orders", &[])]).await;
    running.stop().await;
    let old = realm.data().join("state.db");
    realm.put_old_store(&old).await;
    let running = realm.serve().await;
    let status = running.admin.status().await.unwrap();
    assert!(1 < status.revision.incarnation);
    assert!(status.incarnation.unwrap().cause.contains("behind"));
    running.admin.resume_issuing().await.unwrap();
    let status = running.admin.status().await.unwrap();
    assert_eq!(status.incarnation.unwrap().held_until, None);
    assert_eq!(running.admin.resume_issuing().await.unwrap_err().code(), Code::NotFound);
    let first = status.revision.incarnation;
    running.stop().await;
    // Once is enough.
    let running = realm.serve().await;
    assert_eq!(running.admin.status().await.unwrap().revision.incarnation, first);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn a_backup_that_is_cut_off_changed_or_sealed_under_another_key_leaves_nothing_behind() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let file = realm.save().await;
    running.stop().await;
    let good = std::fs::read(&file).unwrap();
    let config = realm.restoring("e");
    let refuse = async |bytes: &[u8], why: &str| {
        std::fs::write(&file, bytes).unwrap();
        let error = realm.restore(&config).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(error.code(), Code::NotUnderstood);
        assert!(!config.data.exists(), "{error}");
    };
    for end in [0, 8, 20, 30, 200, good.len() - 1] {
        refuse(&good[..end], "cut off").await;
    }
    let changed = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    refuse(&changed(3), "not a backup").await;
    refuse(&changed(8), "use a newer one").await;
    refuse(&changed(12), "changed").await;
    refuse(&changed(good.len() / 2), "changed").await;
    refuse(&changed(good.len() - 1), "changed").await;
    refuse(&[&good[..], &[0]].concat(), "more after its end").await;
    std::fs::write(&file, &good).unwrap();
    let other = realm.place("other-kek");
    countersign_seal::KekFile::create(&other, &SystemEntropy).unwrap();
    let foreign = RestoreConfig { kek: other, ..config.clone() };
    let error = realm.restore(&foreign).await.unwrap_err();
    assert!(error.to_string().contains("is sealed under key"), "{error}");
    let living = RestoreConfig { data: realm.data(), ..config.clone() };
    assert!(matches!(realm.restore(&living).await.unwrap_err(), StartError::DataExists { .. }));
    realm.restore(&config).await.unwrap();
    let again = BackupConfig {
        data: realm.data(),
        store: StoreAt::Directory,
        kek: None,
        file,
        unlock: None,
    };
    let error = backup_at(&again, realm.clock.now(), &mut |_, _| {}).await.unwrap_err();
    assert!(matches!(error, StartError::BackupExists { .. }), "{error}");
}

#[tokio::test]
async fn a_node_whose_key_was_succeeded_after_the_backup_is_let_in_and_renews() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let mut agent = Agent::join(&realm, &running, &[]).await;
    let early = (agent.chain.clone(), agent.key.pkcs8().to_vec());
    realm.save().await;
    let successor = key();
    let renewed = super::renew::succeed(&realm, &running, &agent, &successor).await;
    (agent.chain, agent.key, agent.generation) = (renewed.chain, successor, renewed.generation);
    running.stop().await;
    realm.restore(&realm.restoring("e")).await.unwrap();
    let running = realm.serve_at("e").await;
    let mut client = agent.client(&realm, &running).await;
    open(&mut client, None).await.unwrap().snapshot().await;
    realm.clock.advance(Duration::from_secs(61));
    assert!(sign(&mut client, vec![item("web", &key())]).await.remove(0).is_ok());
    let next = key();
    let renewed = super::renew::succeed(&realm, &running, &agent, &next).await;
    assert_eq!(renewed.generation, agent.generation + 1);
    // Nor is that of the lost span, whatever generation it claims: the node has come back under another.
    let refused = match open(&mut agent.client(&realm, &running).await, None).await {
        Ok(mut stream) => stream.next().await.unwrap_err(),
        Err(refused) => refused,
    };
    assert_eq!(code(&refused), Code::StaleGeneration);
    for generation in [agent.generation, renewed.generation + 1, u64::MAX] {
        let again =
            super::renew::try_to_succeed(&realm, &running, &agent, generation, &key()).await;
        assert!(again.is_err(), "generation {generation}: {again:?}");
    }
    // The key of before the backup, which the store still knew, is no more.
    let old = Agent {
        node: agent.node,
        key: PrivateKey::from_pkcs8(&early.1).unwrap(),
        generation: 1,
        chain: early.0,
        bundle: agent.bundle.clone(),
    };
    let mut old_client = old.client(&realm, &running).await;
    let refused = match open(&mut old_client, None).await {
        Ok(mut stream) => stream.next().await.unwrap_err(),
        Err(refused) => refused,
    };
    assert_eq!(code(&refused), Code::StaleGeneration);
    running.stop().await;
}

#[tokio::test]
async fn stream_of_the_restored_key_ends_when_the_one_comes_back_that_had_succeeded_it() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let mut agent = Agent::join(&realm, &running, &[]).await;
    let (chain, key_of_before) = (agent.chain.clone(), agent.key.pkcs8().to_vec());
    realm.save().await;
    let successor = key();
    let renewed = super::renew::succeed(&realm, &running, &agent, &successor).await;
    let early = Agent {
        node: agent.node,
        key: PrivateKey::from_pkcs8(&key_of_before).unwrap(),
        generation: agent.generation,
        chain,
        bundle: agent.bundle.clone(),
    };
    (agent.chain, agent.key, agent.generation) = (renewed.chain, successor, renewed.generation);
    running.stop().await;
    realm.restore(&realm.restoring("e")).await.unwrap();
    let running = realm.serve_at("e").await;
    let mut client = early.client(&realm, &running).await;
    let mut stream = open(&mut client, None).await.unwrap();
    stream.snapshot().await;
    realm.clock.advance(Duration::from_secs(61));
    assert_eq!(
        super::renew::come_back(&realm, &running, &agent).await.generation,
        agent.generation
    );
    let refused = loop {
        if let Err(refused) = stream.next().await {
            break refused;
        }
    };
    assert_eq!(code(&refused), Code::StaleGeneration);
    running.stop().await;
}

#[tokio::test]
async fn hold_off_of_a_restored_store_begins_with_its_first_server_and_not_anew_with_each() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    realm.save().await;
    running.stop().await;
    realm.restore(&realm.restoring("e")).await.unwrap();
    // Looked at for ten minutes before it is started.
    realm.clock.advance(Duration::from_secs(600));
    let running = realm.serve_at("e").await;
    let mut client = agent.client(&realm, &running).await;
    let refused = client
        .node
        .sign(v1::SignRequest { items: vec![item("web", &key())], ..v1::SignRequest::default() })
        .await;
    assert_eq!(code(&refused.unwrap_err()), Code::NotReady);
    realm.clock.advance(Duration::from_secs(61));
    assert!(sign(&mut client, vec![item("web", &key())]).await.remove(0).is_ok());
    running.stop().await;
    let running = realm.serve_at("e").await;
    let mut client = agent.client(&realm, &running).await;
    assert!(sign(&mut client, vec![item("web", &key())]).await.remove(0).is_ok());
    running.stop().await;
}

#[tokio::test]
async fn agent_that_is_ahead_of_a_snapshot_but_not_of_the_store_begins_no_incarnation() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.stop().await;
    let store = SqliteStore::open(&realm.data(), std::sync::Arc::new(SystemEntropy)).unwrap();
    let head = store.head().await.unwrap().revision;
    let beginning = |reached| crate::incarnation::Beginning {
        store: &store,
        cause: crate::incarnation::Cause::Behind,
        now: realm.clock.now(),
        hold_off: Duration::from_secs(60),
        seen: head.incarnation,
        reached: Some(reached),
        rules: Vec::new(),
    };
    assert!(crate::incarnation::begin(beginning(head)).await.unwrap().is_none());
    assert_eq!(store.head().await.unwrap().revision, head);
    let ahead = Revision { number: head.number + 1, ..head };
    assert!(crate::incarnation::begin(beginning(ahead)).await.unwrap().is_some());
    assert!(head < store.head().await.unwrap().revision);
}

#[tokio::test]
async fn a_journal_in_a_second_place_brings_back_what_no_agent_remembers() {
    let realm = Realm::begin().await;
    let folder = realm.place("journal");
    std::fs::create_dir(&folder).unwrap();
    let config = Config { journal: Some(folder.clone()), ..realm.config() };
    let running = realm.start(config).await.unwrap();
    running.apply(vec![workload("web", &[])]).await;
    realm.save().await;
    let web = "spiffe://shop.example/web".parse().unwrap();
    revoke(&running, Target::Identity(web), Reason::ProcessCompromise).await;
    running.stop().await;
    let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let mut text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    text.push_str(&text.lines().next().unwrap().replace("shop.example/web", "shop.example/bank"));
    text.push_str("\n{\"kind\":\"Revo");
    std::fs::write(&file, text).unwrap();
    let config = RestoreConfig { journal: Some(folder), ..realm.restoring("e") };
    let report = realm.restore(&config).await.unwrap();
    assert_eq!((report.from_journal, report.refused_lines), (2, 2));
    let running = realm.serve_at("e").await;
    let answer = running.admin.revocations().await.unwrap();
    assert_eq!((answer.rules.len(), answer.suspensions.len()), (1, 1));
    running.stop().await;
}

#[tokio::test]
async fn a_server_with_a_journal_whose_store_went_back_takes_its_rules_from_there() {
    let realm = Realm::begin().await;
    let folder = realm.place("journal");
    std::fs::create_dir(&folder).unwrap();
    let config = || Config { journal: Some(folder.clone()), ..realm.config() };
    let running = realm.start(config()).await.unwrap();
    running.apply(vec![workload("web", &[]), workload("orders", &[])]).await;
    realm.save().await;
    let id = |name: &str| format!("spiffe://shop.example/{name}").parse().unwrap();
    revoke(&running, Target::Identity(id("web")), Reason::ProcessCompromise).await;
    revoke(&running, Target::Identity(id("orders")), Reason::ProcessCompromise).await;
    // What was lifted does not come back.
    let target = countersign_identity::Suspended::Identity(id("web"));
    running.admin.resume(&countersign_api::admin::ResumeRequest { target }).await.unwrap();
    running.stop().await;
    realm.put_old_store(&realm.data().join("state.db")).await;
    // Nor is anything lost when it goes unnoticed at first.
    let seen = realm.data().join("seen.json");
    let aside = realm.place("seen.aside");
    std::fs::rename(&seen, &aside).unwrap();
    let running = realm.start(config()).await.unwrap();
    assert_eq!(running.admin.revocations().await.unwrap().rules.len(), 0);
    running.stop().await;
    std::fs::rename(&aside, &seen).unwrap();
    let running = realm.start(config()).await.unwrap();
    let answer = running.admin.revocations().await.unwrap();
    assert_eq!((answer.rules.len(), answer.suspensions.len()), (2, 1), "{answer:?}");
    running.stop().await;
    realm.verify_everything().await;
}
