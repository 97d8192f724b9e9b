//! What only a journal remembers, when the store lost it.

use countersign_api::admin::Target;
use countersign_api::v1;
use countersign_identity::{Code, Reason};

use super::incarnation::revoke;
use super::sync::{open, open_with};
use super::{Agent, Realm, code, workload};
use crate::backup::RestoreConfig;
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
