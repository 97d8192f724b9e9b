//! What only a journal remembers, when the store lost it.

use std::sync::Arc;
use std::time::Duration;

use countersign_api::admin::{ResumeRequest, SuspendRequest, Target};
use countersign_api::resource::Kind;
use countersign_api::v1;
use countersign_audit::Tree;
use countersign_identity::{
    Clock as _, Code, Reason, SpiffeId, Suspended, SystemEntropy, Timestamp,
};
use countersign_store::{SqliteStore, Store as _};

use super::revoke::revoke;
use super::sync::{open, open_with};
use super::{Agent, Realm, code, workload};
use crate::backup::{RestoreConfig, restore_at};
use crate::config::Config;

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
    assert!(0 < running.log_size().await);
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
    // Its log is that of the new incarnation, whatever was shown before.
    let shown = running.admin.status().await.unwrap().server.log;
    running.stop().await;
    let store = SqliteStore::open(&realm.data(), Arc::new(SystemEntropy)).unwrap();
    let mut tree = Tree::default();
    let size = usize::try_from(shown.size).unwrap();
    let leaves = store.leaf_hashes(0, size).await.unwrap();
    assert_eq!(leaves.len(), size);
    leaves.into_iter().for_each(|leaf| tree.push(leaf));
    assert_eq!(shown.root, tree.root());
    drop(store);
    realm.verify_everything().await;
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

/// The place of the journal is not mounted, or its parent was named: then all that only it remembers would be lost silently.
#[tokio::test]
async fn a_restore_from_a_folder_without_a_journal_is_refused_and_leaves_nothing() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let file = realm.save().await;
    running.stop().await;
    let folder = realm.place("journal");
    let config = RestoreConfig { journal: Some(folder.clone()), ..realm.restoring("e") };
    let refuse = async |config: &RestoreConfig, why: &str| {
        let refused = realm.restore(config).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotUnderstood, "{refused}");
        for part in [why, "leave `--journal` out"] {
            assert!(refused.to_string().contains(part), "{refused}");
        }
        assert!(!config.data.exists());
        assert!(!realm.place("e.restoring").exists());
    };
    refuse(&config, "is not there").await;
    refuse(&RestoreConfig { journal: Some(file), ..config.clone() }, "is not a folder").await;
    std::fs::create_dir(&folder).unwrap();
    refuse(&config, "holds no journal").await;
    std::fs::write(folder.join("notes"), "rules-one.jsonl").unwrap();
    refuse(&config, "holds no journal").await;
    // One of a server that has made no rule yet.
    std::fs::write(folder.join("rules-one.jsonl"), "").unwrap();
    assert_eq!(realm.restore(&config).await.unwrap().from_journal, 0);
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
    // What a backup of this later life lacks is counted as one of the first life is.
    std::fs::remove_file(realm.place("backup")).unwrap();
    realm.save().await;
    revoke(&running, Target::Identity(id("web")), Reason::KeyCompromise).await;
    running.stop().await;
    realm.verify_everything().await;
    let restoring = RestoreConfig { journal: Some(folder), ..realm.restoring("e") };
    assert_eq!(realm.restore(&restoring).await.unwrap().from_journal, 1);
}

/// Taking rights away never waits, and what an operator is told is so.
#[tokio::test]
async fn a_rule_that_the_journal_does_not_take_is_in_force_and_said_to_be_missing_until_it_is_there()
 {
    let realm = Realm::begin().await;
    let (folder, aside) = (realm.place("journal"), realm.place("aside"));
    std::fs::create_dir(&folder).unwrap();
    let config = Config { journal: Some(folder.clone()), ..realm.config() };
    let running = realm.start(config).await.unwrap();
    running.apply(vec![workload("web", &[]), workload("orders", &[])]).await;
    realm.save().await;
    let id = |name: &str| format!("spiffe://shop.example/{name}").parse::<SpiffeId>().unwrap();
    let suspended = |name: &str| Suspended::Identity(id(name));
    let suspend = |name: &str| {
        let (target, reason) = (suspended(name), Reason::ProcessCompromise);
        SuspendRequest { target, reason }
    };
    let suspended_web = running.admin.suspend(&suspend("web")).await.unwrap();
    assert_eq!(suspended_web.not_in_journal, None);
    std::fs::rename(&folder, &aside).unwrap();
    // The folder is away: each is told, in force, and told again by whoever asks.
    let why = |why: Option<String>| {
        let why = why.expect("the journal does not have it");
        assert!(why.contains("journal"), "{why}");
    };
    let answer = revoke(&running, Target::Identity(id("orders")), Reason::KeyCompromise).await;
    why(answer.not_in_journal);
    why(running.admin.suspend(&suspend("orders")).await.unwrap().not_in_journal);
    let resume = ResumeRequest { target: suspended("web") };
    why(running.admin.resume(&resume).await.unwrap().not_in_journal);
    let applied = running.apply(vec![workload("more", &[])]).await;
    assert_eq!(applied.not_in_journal, None, "it makes no rule");
    let removed = running.admin.remove_resource(Kind::Workload, &"more".parse().unwrap()).await;
    why(removed.unwrap().not_in_journal);
    let force = running.admin.revocations().await.unwrap();
    let found: Vec<_> = force.suspensions.iter().map(|one| one.target.clone()).collect();
    assert_eq!((force.rules.len(), found), (2, vec![suspended("orders")]));
    let warns = async || {
        let warnings = running.admin.status().await.unwrap().warnings;
        warnings.iter().any(|warning| warning.contains("the journal does not hold every rule"))
    };
    assert!(warns().await);
    running.admin.ready().await.unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    // It is written by itself, without another rule.
    let whole = async {
        while warns().await {
            tokio::task::yield_now().await;
        }
    };
    super::soon(whole).await;
    let answer = revoke(&running, Target::Identity(id("web")), Reason::KeyCompromise).await;
    assert_eq!(answer.not_in_journal, None);
    running.stop().await;
    let config = RestoreConfig { journal: Some(folder), ..realm.restoring("e") };
    let report = realm.restore(&config).await.unwrap();
    assert_eq!((report.from_journal, report.refused_lines), (4, 0), "what was lifted is gone");
}

/// By a clock that is behind, a suspension of the lost span counts as one that was made since and lifted.
#[tokio::test]
async fn by_a_clock_that_is_behind_the_backup_or_the_journal_nothing_is_restored() {
    let realm = Realm::begin().await;
    let folder = realm.place("journal");
    std::fs::create_dir(&folder).unwrap();
    let config = Config { journal: Some(folder.clone()), ..realm.config() };
    let running = realm.start(config).await.unwrap();
    running.apply(vec![workload("web", &[])]).await;
    realm.clock.advance(Duration::from_secs(1));
    realm.save().await;
    let saved = realm.clock.now();
    realm.clock.advance(Duration::from_secs(300));
    let web = "spiffe://shop.example/web".parse().unwrap();
    revoke(&running, Target::Identity(web), Reason::ProcessCompromise).await;
    let revoked = realm.clock.now();
    running.stop().await;
    let restore = async |config: &RestoreConfig, now: Timestamp| {
        restore_at(config, now, &mut |_, _| {}).await
    };
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let alone = realm.restoring("e");
    let with_journal = RestoreConfig { journal: Some(folder), ..alone.clone() };
    for (config, now, by, at) in [
        (&alone, saved - minutes(10), "the backup", saved),
        (&alone, saved - minutes(365 * 24 * 60), "the backup", saved),
        (&with_journal, revoked - minutes(2), "the journal's newest rule", revoked),
    ] {
        let refused = restore(config, now).await.unwrap_err();
        let text = refused.to_string();
        assert_eq!(refused.code(), Code::NotReady, "{text}");
        for part in
            [&format!("the clock says {now}"), &format!("{by} says {at}"), "--clock-is-right"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!config.data.exists());
    }
    // Within the allowed skew the log does not forget the later time, nor is anything of the journal left out.
    let report = restore(&with_journal, revoked - minutes(1)).await.unwrap();
    assert_eq!((report.from_journal, report.lost_until), (2, revoked));
    assert_eq!(report.hold_until, revoked + minutes(1));
    std::fs::remove_dir_all(&with_journal.data).unwrap();
    // An operator may vouch for the clock.
    let vouched = RestoreConfig { clock_is_right: true, ..with_journal };
    let now = saved - minutes(10);
    let report = restore(&vouched, now).await.unwrap();
    assert_eq!((report.from_journal, report.lost_until), (2, revoked));
    assert_eq!(report.hold_until, now + minutes(1));
}
