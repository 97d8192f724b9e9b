//! Whatever is done to them, every backend and memory answer the same.

use std::sync::Arc;

use countersign_audit::{Entry, Event, EventKind};
use countersign_identity::{KeyId, Revision};
use countersign_store::{Batch, Change, Lease, Op, Store, StoredEvent, verify_everything};
use proptest::prelude::*;

use crate::fixture::{
    self, Fixture, ISOLATIONS, after, at, digest, issuing, node, node_id, noon, put, remove, row,
    token,
};

fn change() -> impl Strategy<Value = Change> {
    let name = "[ab]{1}";
    prop_oneof![
        3 => (name, "[01]{0,2}").prop_map(|(name, value)| put(&name, &value)),
        1 => name.prop_map(|name| remove(&name)),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let id = 0..3_u8;
    prop_oneof![
        (0..3_u64).prop_map(|seed| Op::CreateToken(token(seed))),
        (0..3_u64, 0..1000_i64)
            .prop_map(|(seed, secs)| Op::SpendToken { hash: digest(seed), now: after(secs) }),
        (id.clone(), id.clone()).prop_map(|(id, key)| {
            let mut node = node(id);
            node.key_spki = vec![key; 91];
            Op::PutNode(node)
        }),
        (id.clone(), 1..3_u64, id.clone(), -5..5_i64).prop_map(|(id, generation, key, secs)| {
            let (expect_generation, key_spki) = (generation, vec![key; 91]);
            Op::UpdateNode {
                id: node_id(id),
                expect_generation,
                proven: KeyId::from_bytes([key; 32]),
                generation: expect_generation + 1,
                key_spki,
                at: after(secs),
            }
        }),
        (id.clone(), 1..3_u64)
            .prop_map(|(id, generation)| Op::ExpectNode { id: node_id(id), generation }),
        id.clone().prop_map(|id| Op::RemoveNode { id: node_id(id) }),
        (id, -5..5_i64).prop_map(|(id, secs)| Op::TouchNode { id: node_id(id), at: after(secs) }),
        "[ab]".prop_map(|name| Op::PutSecret { sealed: name.clone().into_bytes(), name }),
    ]
}

fn revision() -> impl Strategy<Value = Revision> {
    prop_oneof![8 => (0..12_u64).prop_map(at), 1 => Just(Revision { incarnation: 2, number: 1 })]
}

prop_compose! {
    fn batch()(
        expected in proptest::option::weighted(0.1, revision()),
        authorised_at in proptest::option::weighted(0.2, revision()),
        narrows in proptest::bool::weighted(0.15),
        changes in prop_oneof![Just(vec![]), proptest::collection::vec(change(), 0..4)],
        ops in prop_oneof![Just(vec![]), proptest::collection::vec(op(), 0..3)],
        rows in proptest::collection::vec((0..40_u64, 0..5_i64, 0..6_u64), 0..2),
        summary: bool,
    ) -> Batch {
        let rows: Vec<_> =
            rows.into_iter().map(|(seed, hour, number)| row(seed, hour * 3600, at(number))).collect();
        let mut events = issuing(rows.clone()).events;
        if summary {
            events.push(Event::new(EventKind::Summary, noon(), "server", "facts"));
        }
        Batch { expected, authorised_at, narrows, changes, events, issued: rows, ops, begins: None }
    }
}

/// One thing that somebody does to a store.
#[derive(Clone, Debug)]
enum Step {
    Commit(Batch),
    Lease(String, Lease, Option<Lease>),
    Trim(i64),
    Changes(Revision, usize),
}

fn lease() -> impl Strategy<Value = Lease> {
    ("[ab]", 0..3_i64).prop_map(|(holder, secs)| fixture::lease(&holder, after(secs)))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => batch().prop_map(Step::Commit),
        2 => ("[xy]", lease(), proptest::option::of(lease()))
            .prop_map(|(name, lease, over)| Step::Lease(name, lease, over)),
        1 => (0..6 * 3600_i64).prop_map(Step::Trim),
        2 => (revision(), 0..5_usize).prop_map(|(after, limit)| Step::Changes(after, limit)),
    ]
}

/// Does it, and puts the answer into words.
async fn apply(store: &dyn Store, step: Step) -> String {
    match step {
        Step::Commit(batch) => {
            let hint = store.hint();
            let answer = store.commit(batch).await.map(|committed| {
                (committed.revision, committed.first_index, committed.receipts.len())
            });
            format!("{answer:?} {}", *hint.borrow())
        }
        Step::Lease(name, lease, over) => {
            let taken = store.lease(&name, lease, over).await;
            format!("{taken:?} {:?}", store.lease_of(&name).await)
        }
        Step::Trim(secs) => format!("{:?}", store.trim(after(secs)).await),
        Step::Changes(after, limit) => format!("{:?}", store.changes(after, limit).await),
    }
}

/// Whether two stores that were given the same chance draw the same salts. One that runs a batch again draws again.
#[derive(Clone, Copy)]
enum Salts {
    Same,
    Others,
}

/// Everything that can be read, in words.
async fn contents(store: &dyn Store, salts: Salts) -> String {
    let verified = verify_everything(store).await.unwrap();
    let snapshot = store.snapshot().await.unwrap();
    let mut nodes = Vec::new();
    for row in store.nodes(None, 100).await.unwrap() {
        nodes.push((row.key_spki.clone(), row.seen_at, row));
    }
    let mut tokens = Vec::new();
    for seed in 0..3 {
        tokens.push(store.token(digest(seed)).await.unwrap());
    }
    let issued = store.issued_after(None, 1000).await.unwrap();
    let secrets = (store.secret("a").await.unwrap(), store.secret("b").await.unwrap());
    let events = store.events(0, 1000).await.unwrap();
    let log = match salts {
        Salts::Same => format!("{verified:?}\n{events:?}"),
        Salts::Others => {
            let event = |event: StoredEvent| {
                let Entry { subject, serial, tbs, revision, .. } =
                    Entry::parse(&event.leaf).unwrap();
                (event.index, event.details.unwrap().json, subject, serial, tbs, revision)
            };
            let events: Vec<_> = events.into_iter().map(event).collect();
            format!("{:?} {} {}\n{events:?}", verified.head, verified.records, verified.issued)
        }
    };
    format!("{snapshot:?}\n{nodes:?}\n{tokens:?}\n{issued:?}\n{secrets:?}\n{log}")
}

async fn same(other: Fixture, salts: Salts, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let memory = Fixture::memory();
    let (memory, other): (Arc<dyn Store>, Arc<dyn Store>) =
        (Arc::clone(&memory.store), Arc::clone(&other.store));
    for step in steps {
        let expected = apply(&*memory, step.clone()).await;
        prop_assert_eq!(apply(&*other, step.clone()).await, expected, "{:?}", step);
    }
    prop_assert_eq!(contents(&*other, salts).await, contents(&*memory, salts).await);
    Ok(())
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn sqlite_and_memory_answer_the_same(steps in proptest::collection::vec(step(), 0..40)) {
        block_on(same(Fixture::sqlite(), Salts::Same, steps))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn postgres_and_memory_answer_the_same(steps in proptest::collection::vec(step(), 0..40)) {
        for isolation in ISOLATIONS {
            let steps = steps.clone();
            block_on(async {
                same(Fixture::postgres(isolation).await, Salts::Others, steps).await
            })?;
        }
    }
}
