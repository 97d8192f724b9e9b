//! A store that was restored: which backup is taken, who comes back, and what is counted meanwhile.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::time::Duration;

use countersign_api::v1;
use countersign_identity::{Clock as _, Code, SKEW_ALLOWED, SimClock, SystemEntropy};
use countersign_pki::PrivateKey;

use super::incarnation::key;
use super::sign::{item, sign};
use super::sync::open;
use super::{Agent, Realm, code, workload};
use crate::backup::{BackupConfig, RestoreConfig, backup_at};
use crate::config::{StartError, StoreAt};

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

/// The first server's start is behind the rules of the journal in the log, however many those are.
#[tokio::test]
async fn hold_off_begins_with_the_first_server_also_behind_a_thousand_rules_of_a_journal() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    realm.save().await;
    running.stop().await;
    let folder = realm.place("journal");
    realm.write_journal(&folder, "gone", 1100).await;
    let config = RestoreConfig { journal: Some(folder), ..realm.restoring("e") };
    assert_eq!(realm.restore(&config).await.unwrap().from_journal, 1100);
    realm.clock.advance(Duration::from_secs(120));
    for later in [0, 50] {
        realm.clock.advance(Duration::from_secs(later));
        let running = realm.serve_at("e").await;
        let now = realm.clock.now();
        let incarnation = running.admin.status().await.unwrap().incarnation.unwrap();
        let until = now + Duration::from_secs(60 - later);
        assert_eq!(incarnation.held_until, Some(until), "started {later} s later");
        running.stop().await;
    }
}

/// By a clock that is behind, the hold-off would be over when the clock is set right.
#[tokio::test]
async fn a_restored_state_is_not_served_first_by_a_clock_that_is_behind() {
    let mut realm = Realm::begin().await;
    let running = realm.serve().await;
    realm.save().await;
    running.stop().await;
    realm.restore(&realm.restoring("e")).await.unwrap();
    let right = realm.clock.now();
    let config = crate::config::Config { data: realm.place("e"), ..realm.config() };
    realm.clock = std::sync::Arc::new(SimClock::new(right - Duration::from_secs(600)));
    let refused = realm.start(config).await.err().unwrap();
    assert_eq!(refused.code(), Code::NotReady, "{refused}");
    assert!(refused.to_string().contains("the hold-off of a restored state"), "{refused}");
    realm.clock = std::sync::Arc::new(SimClock::new(right));
    let running = realm.serve_at("e").await;
    assert!(running.admin.status().await.unwrap().incarnation.unwrap().held_until.is_some());
    running.stop().await;
}

#[tokio::test]
async fn what_lies_where_a_restore_builds_is_left_as_it_is() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    realm.save().await;
    running.stop().await;
    let config = realm.restoring("e");
    let foreign = realm.place("e.restoring");
    for name in ["mine", "domain.json"] {
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join(name), "mine").unwrap();
        let refused = realm.restore(&config).await.unwrap_err();
        assert!(refused.to_string().contains("e.restoring` is in the way"), "{refused}");
        assert_eq!(refused.code(), Code::AlreadyExists);
        assert_eq!(std::fs::read_to_string(foreign.join(name)).unwrap(), "mine");
        assert!(!config.data.exists());
        std::fs::remove_dir_all(&foreign).unwrap();
    }
    // Nor is anything put where others could change it.
    for mode in [0o777, 0o710, 0o701] {
        std::fs::create_dir(&foreign).unwrap();
        std::fs::set_permissions(&foreign, Permissions::from_mode(mode)).unwrap();
        let refused = realm.restore(&config).await.unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists, "{mode:o}");
        assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 0);
        std::fs::remove_dir(&foreign).unwrap();
    }
    realm.restore(&config).await.unwrap();
}

#[tokio::test]
async fn what_a_killed_restore_has_left_is_cleared_and_what_another_makes_is_not() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    realm.save().await;
    running.stop().await;
    let config = realm.restoring("e");
    let (left, mark) = (realm.place("e.restoring"), realm.place("e.restoring/restoring"));
    let private = || DirBuilder::new().mode(0o700).create(&left).unwrap();
    let leave = |text: &str| {
        private();
        std::fs::create_dir(left.join("state")).unwrap();
        std::fs::write(left.join("state/state.db"), "half of it").unwrap();
        std::fs::write(left.join("state.db"), "half of it").unwrap();
        std::fs::write(left.join("kek"), "a copy").unwrap();
        std::fs::write(&mark, text).unwrap();
    };
    // The mark is the first that is made, and may be cut off itself.
    for text in ["", "countersign restore makes"] {
        leave(text);
        realm.restore(&config).await.unwrap();
        assert!(!left.exists());
        assert!(!config.data.join("restoring").exists() && !config.data.join("state").exists());
        std::fs::remove_dir_all(&config.data).unwrap();
    }
    private();
    realm.restore(&config).await.unwrap();
    std::fs::remove_dir_all(&config.data).unwrap();

    // Whoever holds the lock makes it at this moment.
    leave("countersign restore");
    let makes = std::fs::File::open(&mark).unwrap();
    makes.lock().unwrap();
    let refused = realm.restore(&config).await.unwrap_err();
    assert!(matches!(refused, StartError::RestoreRuns { .. }), "{refused}");
    assert_eq!(std::fs::read_to_string(left.join("state.db")).unwrap(), "half of it");
    drop(makes);
    // A whole one may have been used, and who else has such a file is not known.
    let foreign = async || {
        let refused = realm.restore(&config).await.unwrap_err();
        assert!(matches!(refused, StartError::RestoringExists { .. }), "{refused}");
        assert_eq!(std::fs::read_to_string(left.join("state.db")).unwrap(), "half of it");
    };
    std::fs::remove_dir_all(left.join("state")).unwrap();
    std::fs::write(left.join("domain.json"), "{}").unwrap();
    foreign().await;
    std::fs::remove_file(left.join("domain.json")).unwrap();
    std::fs::write(&mark, "a letter").unwrap();
    foreign().await;
    assert!(!config.data.exists());
}

#[tokio::test]
async fn a_backup_that_was_cut_off_is_in_nobodys_way_and_one_that_runs_is() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let (file, part) = (realm.place("backup"), realm.place("backup.part"));
    let config = BackupConfig {
        data: realm.data(),
        store: StoreAt::Directory,
        kek: None,
        file: file.clone(),
        unlock: None,
    };
    let save = async || backup_at(&config, realm.clock.now(), &mut |_, _| {}).await;
    for left in ["", "CSB", "CSBACKUP and half of it"] {
        std::fs::write(&part, left).unwrap();
        save().await.unwrap();
        assert!(!part.exists());
        std::fs::remove_file(&file).unwrap();
    }
    // Of another backup that runs, and of somebody else's file, nothing is taken.
    std::fs::write(&part, "CSBACKUP and half of it").unwrap();
    let writes = std::fs::File::open(&part).unwrap();
    writes.lock().unwrap();
    let refused = save().await.unwrap_err();
    assert!(matches!(refused, StartError::BackupRuns { .. }), "{refused}");
    drop(writes);
    std::fs::write(&part, "a letter").unwrap();
    let refused = save().await.unwrap_err();
    assert!(matches!(refused, StartError::BackupExists { .. }), "{refused}");
    assert_eq!(std::fs::read_to_string(&part).unwrap(), "a letter");
    running.stop().await;
}
