//! An agent at work, and its callers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_agent::attest::{Attestor, Peer, Pinning, SimulatedAttestor, SimulatedProcess};
use countersign_agent::{Config, Ground, Ready, run_on};
use countersign_api::v1;
use countersign_identity::{Clock, KeyId, SeededEntropy, SimClock, Timestamp};
use spiffe::WorkloadApiClient;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::server::Server;

/// Longer than anything in a test takes, in real time: who waits for it in vain fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// After so many turns in which nothing came true, real time passes as well: simulated time does not run away from threads and
/// disks that are slow.
const TURNS_AT_ONCE: usize = 50;

pub(crate) struct World {
    pub(crate) clock: Arc<SimClock>,
    pub(crate) server: Server,
    pub(crate) folder: tempfile::TempDir,
    /// Everybody who connects is this process, unless the agent asks the kernel.
    pub(crate) process: SimulatedProcess,
    pub(crate) kernel: bool,
    /// Who connects, where it is neither of these.
    pub(crate) others: Option<Arc<dyn Attestor>>,
}

pub(crate) struct Agent {
    pub(crate) socket: PathBuf,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
    pub(crate) ready: Option<Ready>,
}

pub(crate) fn selectors(texts: &[&str]) -> Vec<countersign_identity::Selector> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

impl World {
    /// A server with a workload `web` for launched processes, and a caller that is one.
    pub(crate) async fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let clock =
            Arc::new(SimClock::new(Timestamp::from_secs(now.as_secs().try_into().unwrap())));
        let server = Server::new(Arc::clone(&clock)).await;
        server.put_workload("web", &["launch:web"], "");
        let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap();
        let peer = Peer { pid: std::process::id(), uid: 1000, gid: 1000 };
        let process = SimulatedProcess::new(peer, selectors(&["launch:web", "unix:uid:1000"]));
        Self { clock, server, folder, process, kernel: false, others: None }
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            data: self.folder.path().join("data"),
            servers: vec!["server:8443".to_owned()],
            trust_domain: None,
            join: Some("token".parse().unwrap()),
            machine: None,
            trust: Some(KeyId::from_bytes([0; 32])),
            socket: self.folder.path().join("run/s"),
            launcher: None,
            metrics: None,
            tracing: None,
            pinning: Pinning::Auto,
        }
    }

    pub(crate) fn ground(&self) -> Ground {
        let attestor: Arc<dyn Attestor> = match &self.others {
            Some(others) => Arc::clone(others),
            None => Arc::new(SimulatedAttestor::new(self.process.clone())),
        };
        Ground {
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            entropy: Arc::new(SeededEntropy::new(3)),
            link: Arc::new(self.server.clone()),
            attestor: if self.kernel { None } else { Some(attestor) },
        }
    }

    pub(crate) async fn agent(&self) -> Agent {
        self.agent_with(self.config()).await
    }

    pub(crate) async fn agent_with(&self, config: Config) -> Agent {
        let mut starting = self.begin(config);
        let ready = starting.told.await.expect("the agent gets ready");
        starting.agent.ready = Some(ready);
        starting.agent
    }

    /// Starts an agent without waiting until it is ready.
    pub(crate) fn begin(&self, config: Config) -> Starting {
        let socket = config.socket.clone();
        let stop = CancellationToken::new();
        let (tell, ready) = oneshot::channel();
        let running = tokio::spawn(run_on(self.ground(), config, stop.clone(), tell));
        Starting { agent: Agent { socket, stop, running, ready: None }, told: ready }
    }

    /// Lets everything run until the condition holds, which lets simulated time pass itself if it has to.
    pub(crate) async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let (mut turns, end) = (0, Instant::now() + PATIENCE);
        while !holds() {
            assert!(Instant::now() < end, "it never came true: {what}");
            self.settle().await;
            turns += 1;
            if TURNS_AT_ONCE < turns {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// Lets everything run that can run without time passing.
    pub(crate) async fn settle(&self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        // Blocking threads (attestation, files) are out of the runtime's sight.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
    }

    /// Lets time pass second by second, so that everybody who wakes in between does what it wakes for.
    pub(crate) async fn pass(&self, span: Duration) {
        let step = Duration::from_millis(500);
        let mut passed = Duration::ZERO;
        while passed < span {
            self.clock.advance(step);
            passed += step;
            self.settle().await;
        }
    }
}

pub(crate) struct Starting {
    agent: Agent,
    told: oneshot::Receiver<Ready>,
}

impl Starting {
    /// Its end, when it does not start.
    pub(crate) async fn refused(self) -> anyhow::Error {
        self.agent.running.await.unwrap().unwrap_err()
    }

    /// Ends it, ready or not.
    pub(crate) async fn stop(self) {
        self.agent.stop.cancel();
        // What it says of that is another's matter.
        let _ended = self.agent.running.await.unwrap();
    }
}

impl Agent {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// An independent client of the Workload API.
    pub(crate) async fn client(&self) -> WorkloadApiClient {
        WorkloadApiClient::connect_to(self.endpoint()).await.unwrap()
    }

    /// A plain gRPC channel.
    pub(crate) async fn channel(&self) -> Channel {
        let socket = self.socket.clone();
        let connector = tower::service_fn(move |_uri: tonic::transport::Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        });
        Endpoint::from_static("http://[::]:0").connect_with_connector(connector).await.unwrap()
    }
}

/// Waits until an acknowledgement fulfils the condition, for a minute of real time at most.
pub(crate) async fn acknowledged(
    mut acks: watch::Receiver<v1::SyncAck>,
    holds: impl FnMut(&v1::SyncAck) -> bool,
) -> v1::SyncAck {
    let acknowledged = tokio::time::timeout(PATIENCE, acks.wait_for(holds)).await;
    acknowledged.expect("nothing of the kind is acknowledged").unwrap().clone()
}
