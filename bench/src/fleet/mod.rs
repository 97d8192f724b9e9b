//! A fleet of simulated agents on one real server: real TLS, real streams, real durable state, over loopback.

mod agent;
mod change;
mod figures;
pub(crate) mod limits;
mod live;
pub(crate) mod node;
mod rotate;
pub(crate) mod server;
pub(crate) mod wire;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use countersign_api::admin::{AdminClient, ApplyRequest, CreateTokenRequest};
use countersign_identity::{KeyId, SystemClock};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use agent::{Agent, Seen};
use node::{Home, Node};

pub(crate) use figures::{NAMES, Options, run};

const DOMAIN: &str = "fleet.example";
/// The label of all nodes, so that one change concerns all of them.
const LABEL: &str = "fleet";
/// Joins and handshakes under way at once: the server lets in 128 strangers from one address.
const AT_ONCE: usize = 48;
/// How long a fleet may take to stand.
const STANDING_TIMEOUT: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(250);

/// Where a fleet lives, however its server was started.
#[derive(Clone)]
struct Place {
    admin: AdminClient,
    address: std::net::SocketAddr,
    trust: KeyId,
    domain: String,
    /// How many sorts of nodes there are, each with a label of its own, and so a slice of its own.
    sorts: usize,
}

/// Agents whose streams stand.
struct Fleet {
    place: Place,
    nodes: Vec<Arc<Node>>,
    workloads: Arc<[(String, String)]>,
    seen: Arc<Seen>,
    agents: JoinSet<()>,
    stop: CancellationToken,
}

impl Place {
    /// Declares this many workloads, on every node of the fleet.
    async fn declare(&self, workloads: usize) -> Result<Arc<[(String, String)]>> {
        let names: Vec<_> = (0..workloads).map(|number| format!("w{number}")).collect();
        self.apply(names.iter().map(|name| workload(name, "1h")).collect()).await?;
        let with_id = |name: String| {
            let id = format!("spiffe://{}/{name}", self.domain);
            (name, id)
        };
        Ok(names.into_iter().map(with_id).collect())
    }

    async fn apply(&self, resources: Vec<Value>) -> Result<u64> {
        let request = ApplyRequest { resources, base: None, prune: false, dry_run: false };
        Ok(self.admin.apply(&request).await?.revision.number)
    }

    fn home(&self) -> Result<Home> {
        let clock = Arc::new(SystemClock::new());
        Ok(Home { address: self.address, pin: self.trust, domain: self.domain.parse()?, clock })
    }

    async fn join(self, home: Home, number: usize) -> Result<Arc<Node>> {
        let labels = vec![LABEL.parse()?, sort(number % self.sorts).parse()?];
        let request = CreateTokenRequest { ttl: "10m".parse()?, labels };
        let token = self.admin.create_token(&request).await?.token;
        Ok(Arc::new(Node::join(home, u32::try_from(number)?, token).await?))
    }
}

/// The label of the nodes of one sort.
fn sort(number: usize) -> String {
    format!("{LABEL}-{number}")
}

fn workload(name: &str, lifetime: &str) -> Value {
    json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "Workload", "metadata": { "name": name },
        "spec": { "selectors": [format!("launch:{name}")], "lifetime": lifetime, "nodes": [LABEL] },
    })
}

impl Fleet {
    /// Joins the nodes; none has a stream yet.
    async fn join(place: Place, count: usize, workloads: usize) -> Result<Self> {
        let declared = place.declare(workloads).await?;
        let home = place.home()?;
        let begin = Instant::now();
        let mut nodes = Vec::with_capacity(count);
        let mut joining = JoinSet::new();
        for number in 0..count {
            if AT_ONCE <= joining.len() {
                nodes.push(joined(&mut joining).await?);
            }
            joining.spawn(place.clone().join(home.clone(), number));
            progress("joined", number, count, begin);
        }
        while !joining.is_empty() {
            nodes.push(joined(&mut joining).await?);
        }
        Ok(Self {
            place,
            nodes,
            workloads: declared,
            seen: Arc::default(),
            agents: JoinSet::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Lets every node hold an SVID for each workload.
    async fn sign(&self) -> Result<()> {
        let names: Arc<[String]> = self.workloads.iter().map(|(name, _)| name.clone()).collect();
        let mut signing = JoinSet::new();
        for node in &self.nodes {
            if AT_ONCE <= signing.len() {
                signing.join_next().await.context("one is under way")???;
            }
            let (node, names) = (Arc::clone(node), Arc::clone(&names));
            signing.spawn(async move { node.sign(&names).await.map(drop) });
        }
        while let Some(signed) = signing.join_next().await {
            signed??;
        }
        Ok(())
    }

    /// Opens every stream, and waits until every enforcement point has acknowledged.
    async fn attend(&mut self) -> Result<()> {
        let begin = Instant::now();
        let count = self.nodes.len();
        for (number, node) in self.nodes.iter().enumerate() {
            let agent = Agent {
                node: Arc::clone(node),
                seen: Arc::clone(&self.seen),
                workloads: Arc::clone(&self.workloads),
                #[expect(clippy::cast_precision_loss, reason = "some thousands")]
                turn: number as f64 / count as f64,
            };
            self.agents.spawn(agent.run(self.stop.clone()));
            progress("streams opened", number, count, begin);
            // So fast as the server shakes hands, and no faster.
            if number % AT_ONCE == AT_ONCE - 1 {
                self.standing(number + 1 - AT_ONCE).await?;
            }
        }
        self.standing(count).await?;
        self.converged().await
    }

    /// Waits until so many agents have been told something.
    async fn standing(&self, count: usize) -> Result<()> {
        let begin = Instant::now();
        while self.seen.opened.load(Ordering::Relaxed) < count as u64 {
            ensure!(
                begin.elapsed() < STANDING_TIMEOUT,
                "the streams do not open: {}",
                self.seen.trouble().unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    fn points(&self) -> u64 {
        (self.nodes.len() * self.workloads.len()) as u64
    }

    /// Waits until all points enforce the newest revision.
    async fn converged(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let now = self.place.admin.convergence(None, Duration::ZERO).await?;
            if now.is_converged() && self.points() <= now.live {
                return Ok(());
            }
            if STANDING_TIMEOUT < begin.elapsed() {
                bail!(
                    "{} of {} points enforce after {:?}",
                    now.enforcing,
                    now.live,
                    begin.elapsed()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Fails when a stream was lost on the way, which would spoil what was measured.
    fn whole(&self) -> Result<()> {
        let lost = self.seen.lost.load(Ordering::Relaxed);
        let why = || self.seen.trouble().unwrap_or_default();
        ensure!(lost == 0, "{lost} streams were lost meanwhile: {}", why());
        Ok(())
    }

    async fn end(mut self) {
        self.stop.cancel();
        while self.agents.join_next().await.is_some() {}
    }
}

async fn joined(joining: &mut JoinSet<Result<Arc<Node>>>) -> Result<Arc<Node>> {
    joining.join_next().await.context("one is under way")??
}

/// Says now and then how far it is.
fn progress(what: &str, number: usize, count: usize, begin: Instant) {
    if number % 1000 == 999 {
        eprintln!("  {} of {count} {what}, {:.0} s", number + 1, begin.elapsed().as_secs_f64());
    }
}
