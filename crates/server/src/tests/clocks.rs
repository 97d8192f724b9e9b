//! A server whose clock jumps far ahead: what it may not drop, end or believe all the same.

use std::sync::Arc;
use std::time::Duration;

use countersign_api::admin::{RootState, Step, StepRequest, Target};
use countersign_api::v1;
use countersign_identity::{
    Clock as _, Code, Entropy, Lifetime, Reason, SKEW_ALLOWED, SeededEntropy, SimClock, SpiffeId,
    Timestamp,
};
use countersign_pki::{KeyKind, PrivateKey, make_csr};
use countersign_seal::Kek;
use countersign_store::MemoryStore;

use super::converge::{convergence_until, point_ack};
use super::revoke::{key, revoke};
use super::rotate::{authorities, in_state, step, until_ended};
use super::sign::{item, sign};
use super::{Agent, DOMAIN, Realm, Running, service, soon, workload};
use crate::backup::RestoreConfig;
use crate::config::Config;
use crate::refusal::Refused;
use crate::steps::{Ground, Steps, begin};

const DAYS: Duration = Duration::from_secs(5 * 86_400);
const MINUTE: Duration = Duration::from_secs(60);

async fn rules(running: &Running) -> usize {
    running.admin.revocations().await.unwrap().rules.len()
}

async fn told_to_be_ahead(running: &Running) -> bool {
    let warnings = running.admin.status().await.unwrap().warnings;
    warnings.iter().any(|warning| warning.contains("by what had passed it should be"))
}

#[tokio::test]
async fn clock_that_is_ahead_is_not_believed_after_restarts_though_it_wrote_into_the_log() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let web = "spiffe://shop.example/web".parse().unwrap();
    revoke(&running, Target::Identity(web), Reason::KeyCompromise).await;
    running.stop().await;
    realm.clock.set(realm.clock.now() + DAYS);
    for life in 0..3 {
        let running = realm.serve().await;
        running.apply(vec![workload(&format!("ahead{life}"), &[])]).await;
        assert!(told_to_be_ahead(&running).await, "life {life}");
        for _ in 0..10 {
            realm.clock.advance(MINUTE);
            assert_eq!(rules(&running).await, 1, "life {life}");
        }
        running.stop().await;
    }
    // It goes on so for an hour: the server may have been away for as long.
    let running = realm.serve().await;
    let dropped = async {
        while rules(&running).await == 1 {
            realm.clock.advance(MINUTE);
        }
    };
    soon(dropped).await;
    assert!(!told_to_be_ahead(&running).await);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn journal_and_new_incarnation_lose_no_rule_by_a_clock_that_is_ahead() {
    let realm = Realm::begin().await;
    let folder = realm.place("journal");
    std::fs::create_dir(&folder).unwrap();
    let config = || Config { journal: Some(folder.clone()), ..realm.config() };
    let running = realm.start(config()).await.unwrap();
    running.apply(vec![workload("web", &[])]).await;
    realm.save().await;
    let web: SpiffeId = "spiffe://shop.example/web".parse().unwrap();
    revoke(&running, Target::Identity(web), Reason::KeyCompromise).await;
    running.stop().await;
    realm.put_old_store(&realm.data().join("state.db")).await;
    // It goes unnoticed at first, so that only the journal holds the rule, which tidies itself under the clock that is ahead.
    let seen = realm.data().join("seen.json");
    let aside = realm.place("seen.aside");
    std::fs::rename(&seen, &aside).unwrap();
    realm.clock.set(realm.clock.now() + DAYS);
    let running = realm.start(config()).await.unwrap();
    assert_eq!(rules(&running).await, 0);
    running.stop().await;
    std::fs::rename(&aside, &seen).unwrap();
    let running = realm.start(config()).await.unwrap();
    assert!(running.admin.status().await.unwrap().incarnation.is_some());
    assert_eq!(rules(&running).await, 1);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn restored_state_believes_no_clock_that_is_ahead_when_it_starts() {
    let realm = Realm::begin().await;
    let folder = realm.place("journal");
    std::fs::create_dir(&folder).unwrap();
    let config = Config { journal: Some(folder.clone()), ..realm.config() };
    let running = realm.start(config).await.unwrap();
    running.apply(vec![workload("web", &[]), workload("orders", &[])]).await;
    let id = |name: &str| format!("spiffe://shop.example/{name}").parse().unwrap();
    revoke(&running, Target::Identity(id("web")), Reason::KeyCompromise).await;
    realm.save().await;
    revoke(&running, Target::Identity(id("orders")), Reason::KeyCompromise).await;
    running.stop().await;
    realm.clock.set(realm.clock.now() + DAYS);
    let restoring = RestoreConfig { journal: Some(folder), ..realm.restoring("e") };
    let report = realm.restore(&restoring).await.unwrap();
    assert_eq!(report.from_journal, 1);
    let running = realm.serve_at("e").await;
    assert!(told_to_be_ahead(&running).await);
    for _ in 0..10 {
        realm.clock.advance(MINUTE);
        assert_eq!(rules(&running).await, 2);
    }
    running.stop().await;
}

#[tokio::test]
async fn root_does_not_go_by_a_clock_that_is_ahead_while_what_it_vouches_for_lives() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    sign(&mut client, vec![item("web", &key())]).await.remove(0).unwrap();
    for one in [Step::Prepare, Step::Publish, Step::Activate] {
        step(&running, one).await;
    }
    let old = in_state(&authorities(&running).await, RootState::Retiring);
    running.admin.walk(Step::Retire, &StepRequest::default()).await.unwrap();
    realm.clock.set(realm.clock.now() + DAYS);
    for _ in 0..20 {
        realm.clock.advance(Duration::from_secs(1));
        let listed = authorities(&running).await;
        assert_eq!(in_state(&listed, RootState::Retiring), old);
        let root = listed.roots.iter().find(|root| root.key == old).unwrap();
        assert!(2 <= root.credentials, "of the agent and of web: {listed:?}");
        let order = listed.order.unwrap();
        let gate = order.steps.iter().find_map(|step| step.gate.as_ref()).unwrap();
        assert!(gate.why.contains("have no successor yet"), "{}", gate.why);
    }
    // It goes on so for an hour, and nobody has renewed meanwhile.
    realm.clock.advance(60 * MINUTE);
    let listed = until_ended(&realm, &running).await;
    assert_eq!(in_state(&listed, RootState::Retired), old);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn point_that_is_silent_is_counted_although_a_clock_that_is_ahead_ends_all_that_it_could_show()
 {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), service("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let (client, stream) = point_ack(&realm, &running, &agent).await;
    convergence_until(&running, None, |now| now.enforcing == 1).await;
    drop((client, stream));
    let web = "spiffe://shop.example/web".parse().unwrap();
    let revoked = revoke(&running, Target::Identity(web), Reason::KeyCompromise).await;
    let counted = async || {
        let now = running.admin.convergence(Some(revoked.revision), Duration::ZERO).await.unwrap();
        assert_eq!(now.live, now.missing.len() as u64);
        now.live
    };
    realm.clock.set(realm.clock.now() + DAYS);
    assert_eq!(counted().await, 1);
    // What it had of fifteen minutes ends by what passes from then on.
    realm.clock.advance(15 * MINUTE);
    assert_eq!(counted().await, 1);
    realm.clock.advance(SKEW_ALLOWED + MINUTE);
    assert_eq!(counted().await, 0);
    running.stop().await;
    realm.verify_everything().await;
}

/// Servers on one store, each with a clock of its own.
struct Shared {
    store: Arc<MemoryStore>,
    entropy: Arc<dyn Entropy>,
    kek: Kek,
}

impl Shared {
    fn ground(&self, name: &str, clock: &Arc<SimClock>) -> Ground {
        Ground {
            name: name.to_owned(),
            store: Arc::clone(&self.store) as _,
            clock: Arc::clone(clock) as _,
            entropy: Arc::clone(&self.entropy),
            steady: None,
        }
    }

    async fn start(&self, name: &str, clock: &Arc<SimClock>) -> Steps {
        Steps::start(self.ground(name, clock), &self.kek).await.unwrap()
    }
}

/// A machine joins.
async fn join(steps: &Steps) -> Result<v1::AttestResponse, Refused> {
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let token = steps.create_token(Lifetime::from_secs(600).unwrap(), Vec::new()).await.unwrap();
    let evidence = Some(v1::attest_request::Evidence::JoinToken(token));
    let csr = make_csr(&key).unwrap().into();
    steps.attest(v1::AttestRequest { evidence, csr, ..Default::default() }).await
}

#[tokio::test]
async fn time_that_was_accepted_at_one_server_is_gone_by_at_the_next_request_of_another() {
    let noon = Timestamp::from_secs(1_795_262_400);
    let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(7));
    let store = Arc::new(MemoryStore::new(Arc::new(SeededEntropy::new(8))));
    let shared = Shared { store, kek: Kek::draw(&*entropy).unwrap(), entropy };
    let [ahead, right, other] = [DAYS, Duration::ZERO, Duration::from_secs(1)]
        .map(|ahead| Arc::new(SimClock::new(noon + ahead)));
    let (root, issuer) = (key(), key());
    let domain = DOMAIN.parse().unwrap();
    begin(&shared.ground("ahead", &right), &shared.kek, domain, &root, &issuer).await.unwrap();
    let first = shared.start("ahead", &ahead).await;
    first.apply(&[workload("web", &[])]).await.unwrap();
    // Both of these have read what it wrote, and their clocks are right.
    let (one, two) = (shared.start("one", &right).await, shared.start("two", &other).await);
    for server in [&one, &two] {
        assert_eq!(join(server).await.unwrap_err().code, Code::NotReady);
    }
    one.accept_clock().await.unwrap();
    join(&one).await.unwrap();
    join(&two).await.unwrap();
    // What it heard lets its clock jump no further than any other.
    other.set(noon + DAYS);
    assert!(two.steady().unwrap() < noon + MINUTE);
}

#[tokio::test]
async fn word_that_time_was_accepted_once_says_nothing_of_a_clock_that_is_ahead_after_it() {
    let noon = Timestamp::from_secs(1_795_262_400);
    let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(7));
    let store = Arc::new(MemoryStore::new(Arc::new(SeededEntropy::new(8))));
    let shared = Shared { store, kek: Kek::draw(&*entropy).unwrap(), entropy };
    let clock = Arc::new(SimClock::new(noon));
    let (root, issuer, domain) = (key(), key(), DOMAIN.parse().unwrap());
    begin(&shared.ground("s", &clock), &shared.kek, domain, &root, &issuer).await.unwrap();
    let mut server = shared.start("s", &clock).await;
    for turn in 0..3 {
        clock.set(noon + DAYS);
        server.apply(&[workload(&format!("ahead{turn}"), &[])]).await.unwrap();
        server.advance().await.unwrap();
        if turn == 2 {
            server = shared.start("s", &clock).await;
        }
        clock.set(noon + MINUTE);
        assert_eq!(join(&server).await.unwrap_err().code, Code::NotReady, "turn {turn}");
        // Nor does what is recorded by the clock that is right.
        server.apply(&[workload(&format!("after{turn}"), &[])]).await.unwrap();
        assert_eq!(join(&server).await.unwrap_err().code, Code::NotReady, "turn {turn}");
        server.accept_clock().await.unwrap();
        join(&server).await.unwrap();
        server.advance().await.unwrap();
    }
}

#[tokio::test]
async fn word_that_another_server_was_given_says_nothing_of_a_clock_that_is_ahead_after_it() {
    let noon = Timestamp::from_secs(1_795_262_400);
    let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(7));
    let store = Arc::new(MemoryStore::new(Arc::new(SeededEntropy::new(8))));
    let shared = Shared { store, kek: Kek::draw(&*entropy).unwrap(), entropy };
    let [ahead, right, other] = [DAYS, Duration::ZERO, Duration::from_secs(1)]
        .map(|ahead| Arc::new(SimClock::new(noon + ahead)));
    let (root, issuer, domain) = (key(), key(), DOMAIN.parse().unwrap());
    begin(&shared.ground("ahead", &right), &shared.kek, domain, &root, &issuer).await.unwrap();
    // It has read nothing of what is written by the clock that is ahead, so it is trusted all along.
    let two = shared.start("two", &other).await;
    let first = shared.start("ahead", &ahead).await;
    first.apply(&[workload("web", &[])]).await.unwrap();
    let one = shared.start("one", &right).await;
    one.accept_clock().await.unwrap();
    two.advance().await.unwrap();
    two.prune().await.unwrap();
    join(&two).await.unwrap();
    other.set(noon + DAYS);
    two.apply(&[workload("later", &[])]).await.unwrap();
    other.set(noon + MINUTE);
    one.advance().await.unwrap();
    one.apply(&[workload("now", &[])]).await.unwrap();
    assert_eq!(join(&two).await.unwrap_err().code, Code::NotReady);
}
