//! Machines that come with join tokens while the database fails under them, each token shown by several at both replicas.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use countersign_identity::{Code, NodeId};
use countersign_store::{Batch, NodeRow, Op, PAGE_MAX, PostgresStore, Store};
use tokio::task::JoinSet;

use crate::fixture::{digest, doing, node, noon, token};

/// How long one waits for the database to be back.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many show the same token.
const RIVALS: u64 = 4;

/// Rivals that go from token to token together until they are told to end.
pub(crate) struct Joining {
    ending: Arc<AtomicBool>,
    work: JoinSet<Rival>,
}

/// What became of one.
#[derive(Default)]
struct Rival {
    /// The machines that it was told are in.
    joined: BTreeSet<NodeId>,
    /// How often it was told that the database is away.
    waited: usize,
}

/// The machine that comes with a token in the name of a rival.
fn machine(token: u64, rival: u64) -> NodeRow {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&token.to_be_bytes());
    bytes[8..].copy_from_slice(&rival.to_be_bytes());
    let id = NodeId::from_bytes(bytes);
    let spiffe_id = format!("spiffe://shop.example/countersign/agent/{id}").parse().unwrap();
    NodeRow { id, spiffe_id, key_spki: bytes.repeat(6), ..node(1) }
}

impl Joining {
    pub(crate) fn begin(stores: &[Arc<PostgresStore>]) -> Self {
        let (ending, mut work) = (Arc::<AtomicBool>::default(), JoinSet::new());
        for rival in 0..RIVALS {
            let store = Arc::clone(&stores[usize::try_from(rival).unwrap() % stores.len()]);
            let ending = Arc::clone(&ending);
            work.spawn(async move {
                let mut told = Rival::default();
                for seed in 0.. {
                    if ending.load(Ordering::Relaxed) {
                        break;
                    }
                    // Whoever is first makes it.
                    told.tries(&*store, || doing([Op::CreateToken(token(seed))])).await;
                    let machine = machine(seed, rival);
                    let spend = Op::SpendToken { hash: digest(seed), now: noon() };
                    let join = || doing([spend.clone(), Op::PutNode(machine.clone())]);
                    if told.tries(&*store, join).await {
                        told.joined.insert(machine.id);
                    }
                }
                told
            });
        }
        Self { ending, work }
    }

    /// Ends it: of those who came with one token at most one is in, and exactly one where the token is spent; whoever was told
    /// so is in. Says how often one was told that the database is away.
    pub(crate) async fn verify(self, store: &dyn Store) -> usize {
        self.ending.store(true, Ordering::Relaxed);
        let (mut joined, mut waited) = (BTreeSet::new(), 0);
        for told in self.work.join_all().await {
            joined.extend(told.joined);
            waited += told.waited;
        }
        let (mut nodes, mut after) = (Vec::new(), None);
        loop {
            let page = store.nodes(after, PAGE_MAX).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            nodes.extend(page.iter().map(|row| row.id));
        }
        assert!(!joined.is_empty() && joined.iter().all(|id| nodes.contains(id)), "{joined:?}");
        let of = |id: &NodeId| u64::from_be_bytes(id.as_bytes()[..8].try_into().unwrap());
        let tokens: BTreeSet<u64> = nodes.iter().map(of).collect();
        assert_eq!(tokens.len(), nodes.len(), "a token has let in two");
        for seed in 0..=tokens.last().copied().unwrap_or_default() {
            let row = store.token(digest(seed)).await.unwrap();
            let spent = row.is_some_and(|row| row.spent.is_some());
            assert_eq!(spent, tokens.contains(&seed), "token {seed} is spent on nobody");
        }
        waited
    }
}

impl Rival {
    /// Commits, again and again while the database is away; whether it was told that it is done. What it was not told may
    /// be done all the same, and then it hears that somebody was first.
    async fn tries(&mut self, store: &dyn Store, batch: impl Fn() -> Batch) -> bool {
        let begin = Instant::now();
        loop {
            match store.commit(batch()).await {
                Ok(_committed) => return true,
                Err(error) if error.code() == Code::Unavailable => {
                    assert!(begin.elapsed() < PATIENCE, "{error}");
                    self.waited += 1;
                    tokio::task::yield_now().await;
                }
                Err(_refused) => return false,
            }
        }
    }
}
