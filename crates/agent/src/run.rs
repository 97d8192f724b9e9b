//! The agent's life, from configuration to shutdown.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use countersign_identity::{
    Backoff, BackoffPolicy, Clock, Entropy, Fault, SystemClock, SystemEntropy,
};
use countersign_program::exposition;
use countersign_program::trace::{Exporter, Service, Tracer, Tracing};
use countersign_tls::{Slice, Trust};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::attest::{Attestor, Desk, LinuxAttestor};
use crate::config::{Config, Ready, StartRefused};
use crate::core::{Knowledge, Settings, State};
use crate::disk::{Disk, Node};
use crate::driver::{Driver, Surroundings};
use crate::enforcement::{EnforcementService, Points};
use crate::envoy::EnvoyAuthorization;
use crate::launcher::{Launches, receive};
use crate::metrics::Exposition;
use crate::places::{KnownUsers, PLACES, Places, TurnedAway};
use crate::reception::{Counter, Reception};
use crate::renewal::{self, Admission};
use crate::reports::{Facts, Reports};
use crate::server_link::{Evidence, ServerLink, TlsLink};
use crate::socket::Socket;
use crate::status::StatusService;
use crate::view::View;
use crate::workload_api::WorkloadApi;

/// What an agent stands on, real or simulated.
pub struct Ground {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Arc<dyn Entropy>,
    /// The way to servers.
    pub link: Arc<dyn ServerLink>,
    /// Who callers are; absent: what the kernel says.
    pub attestor: Option<Arc<dyn Attestor>>,
}

/// The most SVIDs that one request asks for.
const SIGN_BATCH_MAX: usize = 256;
/// A first attestation is tried again within this while no server can be reached.
const JOIN_RETRY: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(200), longest: Duration::from_secs(5) };
/// How long open streams may take to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait for first SVIDs before saying that the agent is ready.
const FIRST_SVIDS_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs an agent on the machine's own clock, network and kernel, until stopped.
///
/// # Errors
/// [`StartRefused`] (as the error's root) when it cannot start; other errors when a part of it breaks.
pub async fn run(
    config: Config,
    stop: CancellationToken,
    ready: oneshot::Sender<Ready>,
) -> anyhow::Result<()> {
    keep_memory_private();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let trust = Trust::new(Arc::clone(&clock), Slice::nothing());
    let link = Arc::new(TlsLink::new(Arc::clone(&clock), Arc::clone(&trust)));
    let ground = Ground { clock, entropy: Arc::new(SystemEntropy), link, attestor: None };
    let sweeping = tokio::spawn(trust.run(stop.clone()));
    let result = run_on(ground, config, stop.clone(), ready).await;
    stop.cancel();
    sweeping.await?;
    result
}

/// Runs an agent on the given ground, until stopped.
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    ground: Ground,
    config: Config,
    stop: CancellationToken,
    ready: oneshot::Sender<Ready>,
) -> anyhow::Result<()> {
    if config.servers.is_empty() {
        return Err(StartRefused::NoServers.into());
    }
    // 1. What others must not share: the directory and the socket.
    let disk = Arc::new(Disk::open(&config.data).map_err(StartRefused::Disk)?);
    let mut socket = Socket::bind(&config.socket).map_err(StartRefused::Socket)?;
    let metrics = match config.metrics {
        Some(address) => Some(
            exposition::listen(address)
                .await
                .map_err(|why| StartRefused::Metrics { address, why })?,
        ),
        None => None,
    };
    let metrics_at = metrics.as_ref().and_then(|listener| listener.local_addr().ok());

    // 2. The parts that answer, from now on: callers wait a moment rather than being turned away.
    let mut tasks = Tasks::new(stop.clone());
    let launches = match config.launcher {
        Some(socket) => {
            let (launches, listening) = receive(socket).map_err(StartRefused::Launcher)?;
            tasks.until_stopped(listening);
            launches
        }
        None => Launches::none(),
    };
    let attestor = ground
        .attestor
        .clone()
        .unwrap_or_else(|| Arc::new(LinuxAttestor::new(config.pinning, launches.clone())));
    let (publish, views) = watch::channel(None);
    let (tracer, exporter) = tracer(&ground, config.tracing.as_ref());
    let parts = Parts::new(&ground, launches, views.clone(), config.servers.clone());
    let health = parts.serve(&mut socket, attestor, &mut tasks).await?;
    if let Some(listener) = metrics {
        tasks.serve_metrics(parts.exposition(tracer.clone()), listener);
    }
    if let Some(exporter) = exporter {
        let stop = tasks.stop.clone();
        tasks.all.spawn(async move {
            exporter.run(stop).await;
            Ok(())
        });
    }

    // 3. Who this node is: from its disk, or by its join token.
    let node = tokio::select! {
        node = join(&ground, &disk, &config.servers, admission(config.join, config.machine, config.trust, config.trust_domain.clone())) => node?,
        () = stop.cancelled() => return tasks.end().await,
    };
    if let Some(told) = config.trust_domain.filter(|told| *told != node.bundle.domain) {
        return Err(StartRefused::OtherDomain { joined: node.bundle.domain, told }.into());
    }

    // 4. The machine and what it remembers; from here on it keeps everything fresh by itself.
    let servers = config.servers.len();
    let settings = Settings { node: node.id, servers, batch_max: SIGN_BATCH_MAX };
    let now = ground.clock.now();
    let remembered = disk.remembered().map_err(StartRefused::Disk)?;
    let keepsakes = disk.keepsakes().map_err(StartRefused::Disk)?;
    let state = State::new(settings, node.credential(), remembered, now);
    let around = Surroundings {
        clock: Arc::clone(&ground.clock),
        entropy: Arc::clone(&ground.entropy),
        link: Arc::clone(&ground.link),
        disk,
        servers: config.servers,
        reports: parts.reports.clone(),
        tracer,
    };
    let driver = Driver::new(around, state, (node, keepsakes), publish);
    let driving = tokio::spawn(driver.run(stop.clone()));

    // 5. Ready once the first SVIDs are there, or it is known that no server can be reached.
    let degraded = tokio::select! {
        degraded = first_answer(views, &*ground.clock) => degraded,
        () = stop.cancelled() => None,
    };
    if !stop.is_cancelled() {
        health.set_serving_all().await;
        let told = Ready { socket: config.socket, metrics: metrics_at, degraded };
        // Whoever started us may not care.
        ready.send(told).ok();
        notify(sd_notify::NotifyState::Ready);
    }
    driving.await.context("the agent's driver broke")?;
    notify(sd_notify::NotifyState::Stopping);
    tasks.end().await
}

/// Other processes of our user could read the keys of all workloads from this one's memory; a core dump would hold them.
fn keep_memory_private() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if let Err(why) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%why, "this process's memory can be read by others of its user");
    }
}

fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(why) = sd_notify::notify(&[state]) {
        tracing::debug!(%why, "systemd was not told");
    }
}

fn admission(
    token: Option<crate::server_link::JoinToken>,
    machine: Option<crate::config::MachineFiles>,
    pin: Option<countersign_identity::KeyId>,
    domain: Option<countersign_identity::TrustDomain>,
) -> Result<Admission, StartRefused> {
    let evidence = match (token, machine) {
        (_, Some(files)) => Evidence::Machine(Arc::new(files.read()?)),
        (Some(token), None) => Evidence::Token(Arc::new(token)),
        (None, None) => return Err(StartRefused::NotJoined),
    };
    let pin = pin.ok_or(StartRefused::NoTrust)?;
    Ok(Admission { evidence, pin, domain, first: false })
}

/// The node as it was registered from this directory, or registered now. While no server can be reached, it is tried again.
async fn join(
    ground: &Ground,
    disk: &Disk,
    servers: &[String],
    admission: Result<Admission, StartRefused>,
) -> Result<Node, StartRefused> {
    if let Some(node) = disk.node()? {
        // An expired certificate is not accepted, and renewed first of all; only the bundle counts then.
        if let Err(fault) = renewal::present(&*ground.link, &node) {
            tracing::info!(why = %fault.why, "the agent's own certificate will be renewed first");
        }
        return Ok(node);
    }
    let first = disk.key(renewal::FIRST_GENERATION)?.is_none();
    let admission = Admission { first, ..admission? };
    let mut backoff = Backoff::new(JOIN_RETRY);
    loop {
        let mut last = None;
        for server in servers {
            match renewal::attest(&*ground.link, disk, server, &admission).await {
                Ok(node) => return Ok(node),
                Err(fault) => match fault.code.fault() {
                    Fault::Outage => {
                        tracing::warn!(server, why = %fault.why, "no server to join yet");
                        last = Some(fault);
                    }
                    Fault::Caller | Fault::Peer | Fault::Us => {
                        return Err(StartRefused::NotAdmitted { server: server.clone(), fault });
                    }
                },
            }
        }
        drop(last);
        let now = ground.clock.now();
        ground.clock.sleep_until(backoff.failed(now, &*ground.entropy)).await;
    }
}

/// Waits until the first SVIDs were answered for, and says why not when no server can be reached.
async fn first_answer(
    mut views: watch::Receiver<Option<Arc<View>>>,
    clock: &dyn Clock,
) -> Option<String> {
    let deadline = clock.now() + FIRST_SVIDS_TIMEOUT;
    loop {
        if let Some(view) = views.borrow_and_update().clone() {
            let answered = |standing: &crate::core::Standing| {
                standing.term.is_some() || standing.trouble.is_some()
            };
            match view.knowledge {
                Knowledge::Synced if view.standings.values().all(answered) => return None,
                Knowledge::Remembered | Knowledge::Nothing if view.link.trouble.is_some() => {
                    return view.link.trouble.clone();
                }
                Knowledge::Synced | Knowledge::Remembered | Knowledge::Nothing => {}
            }
        }
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return None },
            () = clock.sleep_until(deadline) => {
                let trouble = views.borrow().as_ref().and_then(|view| view.link.trouble.clone());
                return trouble.or(Some("the first certificates are not there yet".to_owned()));
            }
        }
    }
}

/// What begins spans, and what sends them, if anybody wants any.
fn tracer(ground: &Ground, tracing: Option<&Tracing>) -> (Tracer, Option<Exporter>) {
    let Some(tracing) = tracing else { return (Tracer::default(), None) };
    let instance = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let service = Service { name: "countersign-agent", instance };
    let (clock, entropy) = (Arc::clone(&ground.clock), Arc::clone(&ground.entropy));
    let (tracer, exporter) = Tracer::new(tracing, service, clock, entropy);
    (tracer, Some(exporter))
}

/// What answers on the socket.
struct Parts {
    reception: Reception,
    reports: Reports,
    servers: Arc<[String]>,
    turned_away: TurnedAway,
}

/// Tells health checks that the agent is ready.
struct Health(tonic_health::server::HealthReporter);

const SERVICES: [&str; 4] =
    ["", "SpiffeWorkloadAPI", "countersign.v1.Enforcement", "countersign.v1.AgentStatus"];

impl Health {
    async fn set_all(&self, status: tonic_health::ServingStatus) {
        for service in SERVICES {
            self.0.set_service_status(service, status).await;
        }
    }

    async fn set_serving_all(&self) {
        self.set_all(tonic_health::ServingStatus::Serving).await;
    }
}

impl Parts {
    fn new(
        ground: &Ground,
        launches: Launches,
        views: watch::Receiver<Option<Arc<View>>>,
        servers: Vec<String>,
    ) -> Self {
        let clock = Arc::clone(&ground.clock);
        let reception = Reception {
            views,
            launches,
            desk: Desk::default(),
            clock: Arc::clone(&clock),
            streams: Counter::default(),
            known: KnownUsers::default(),
        };
        let turned_away = TurnedAway::new(Arc::clone(&clock));
        let points = Points::new(Arc::clone(&clock));
        let reports = Reports { clock, facts: Facts::default(), points };
        Self { reception, reports, servers: servers.into(), turned_away }
    }

    fn exposition(&self, tracer: Tracer) -> Exposition {
        Exposition {
            clock: Arc::clone(&self.reports.clock),
            views: self.reception.views.clone(),
            points: self.reports.points.clone(),
            facts: self.reports.facts.clone(),
            tracer,
            turned_away: self.turned_away.clone(),
        }
    }

    /// Serves the socket, in a task of its own.
    async fn serve(
        &self,
        socket: &mut Socket,
        attestor: Arc<dyn Attestor>,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Health> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let reporter = Health(reporter);
        reporter.set_all(tonic_health::ServingStatus::NotServing).await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(
                    countersign_api::workload::FILE_DESCRIPTOR_SET,
                )
                .register_encoded_file_descriptor_set(countersign_api::v1::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(countersign_api::envoy::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .with_service_name("SpiffeWorkloadAPI")
                .with_service_name("countersign.v1.Enforcement")
                .with_service_name("countersign.v1.AgentStatus")
                .with_service_name("envoy.service.auth.v3.Authorization")
                .with_service_name("grpc.health.v1.Health")
        };
        let reports = &self.reports;
        let enforcement = EnforcementService::server(
            self.reception.clone(),
            reports.points.clone(),
            reports.facts.clone(),
        );
        let envoy = EnvoyAuthorization::server(self.reception.clone(), reports.facts.clone());
        let status = StatusService::server(
            self.reception.clone(),
            reports.clone(),
            Arc::clone(&self.servers),
        );
        let places = Places::new(PLACES, self.reception.known.clone(), self.turned_away.clone());
        let serving = tonic::transport::Server::builder()
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
            .http2_max_pending_accept_reset_streams(Some(RESETS_PENDING_MAX))
            .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .add_service(WorkloadApi::guarded(self.reception.clone(), reports.points.clone()))
            .add_service(enforcement)
            .add_service(status)
            .add_service(envoy)
            .add_service(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .serve_with_incoming_shutdown(
                socket.connections(attestor, places),
                tasks.stop.clone().cancelled_owned(),
            );
        tasks.serve("the socket for workloads", async move {
            serving.await.context("the socket for workloads broke")
        });
        Ok(reporter)
    }
}

const STREAMS_PER_CONNECTION_MAX: u32 = 64;
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
const RESETS_PENDING_MAX: usize = 20;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// The tasks beside the driver, ended with it.
struct Tasks {
    stop: CancellationToken,
    all: JoinSet<anyhow::Result<()>>,
}

impl Tasks {
    fn new(stop: CancellationToken) -> Self {
        Self { stop, all: JoinSet::new() }
    }

    /// A part that ends of itself when stopped. When it ends before, the whole agent is stopped.
    fn serve(
        &mut self,
        what: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let stop = self.stop.clone();
        self.all.spawn(async move {
            let result = task.await;
            if !stop.is_cancelled() {
                tracing::error!(what, "a part of the agent ended");
                stop.cancel();
            }
            result
        });
    }

    fn until_stopped(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.all.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
            Ok(())
        });
    }

    fn serve_metrics(&mut self, exposition: Exposition, listener: tokio::net::TcpListener) {
        let stop = self.stop.clone();
        self.serve("metrics", async move {
            exposition.serve(listener, stop).await;
            Ok(())
        });
    }

    /// Waits for all, and cuts those that take too long.
    async fn end(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        let mut result = Ok(());
        let ending = async {
            while let Some(ended) = self.all.join_next().await {
                if let Ok(Err(why)) = ended {
                    result = Err(why);
                }
            }
        };
        if tokio::time::timeout(DRAIN_TIMEOUT, ending).await.is_err() {
            tracing::info!("some callers were cut off");
            self.all.shutdown().await;
        }
        result
    }
}
