//! A server's life: open, unseal, serve, stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use countersign_audit::{Entry, Event, EventKind};
use countersign_identity::{Clock, Code, Entropy, SystemClock, SystemEntropy, Timestamp};
use countersign_pki::ChainMemory;
use countersign_program::trace::{Exporter, Service, Tracer};
use countersign_seal::{Kek, KekFile};
use countersign_store::{Batch, PAGE_MAX, Store};
use countersign_tls::{Limits, Slice, Trust};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Admin, AdminSocket, Mode, Operators, serve};
use crate::attest::Throttle;
use crate::authority::{Authorities, Rotation, Unsealed, internal, unseal};
use crate::config::{Config, ConsoleConfig, Ready, StartError, StoreAt, kek_path};
use crate::console::{Console, ConsoleAt, ConsoleDoor, Entrance, Streams};
use crate::control::Control;
use crate::directory::{self, Domain};
use crate::edge::{Edge, NodeRoutes};
use crate::incarnation::{
    Beginning, Cause, Found, Handed, Journal, LogKey, Seen, begin, first_start, read_journals,
    remember, settle,
};
use crate::issue::{Desk, Own};
use crate::log::{Retention, Signer, Signing};
use crate::publish::{Roster, Slices};
use crate::refusal::Refused;
use crate::revoke::{Converging, Replicas, prune, talk};
use crate::rotate::Walker;
use crate::state::{Feeder, State, StateFeed};
use crate::storage::{self, Upkeep};
use crate::views::{Keeper, Views, ViewsDoor};
use crate::watch::{About, LogTree, TimeGuard, Watch, keep_flows, keep_tallies, serve_metrics};

/// Connections on the agents' port.
const CONNECTIONS_MAX: usize = 32_768;
/// Handshakes under way: more than the edge lets strangers in, so that the edge decides who waits.
const HANDSHAKES_MAX: usize = 2048;
/// How long a server waits between two lives.
const LIFE_PAUSE: Duration = Duration::from_secs(1);

/// Runs a server until it is stopped; tells `ready` once it serves.
///
/// A server that cannot open its keys runs sealed: its admin socket tells so, and nothing else is served.
///
/// # Errors
/// [`StartError`], when it cannot start; any other when a part of it broke while it ran.
pub async fn run(
    config: Config,
    stop: CancellationToken,
    ready: oneshot::Sender<Ready>,
) -> anyhow::Result<()> {
    let around =
        Surroundings { clock: Arc::new(SystemClock::new()), entropy: Arc::new(SystemEntropy) };
    Ok(run_in(config, around, stop, ready).await?)
}

/// Runs a server under this time and chance.
pub(crate) async fn run_in(
    config: Config,
    around: Surroundings,
    stop: CancellationToken,
    ready: oneshot::Sender<Ready>,
) -> Result<(), StartError> {
    let mut ready = Some(ready);
    let Ended::WentBack(mut at) = live(config.clone(), &around, &stop, &mut ready).await? else {
        return Ok(());
    };
    // A later life serves where the first one did, and waits for a store that is away.
    loop {
        let config = Config {
            listen: at.listen.unwrap_or(config.listen),
            metrics: at.metrics.or(config.metrics),
            views: at.views.or(config.views),
            console: config.console.clone().map(|console| ConsoleConfig {
                listen: at.console.unwrap_or(console.listen),
                ..console
            }),
            ..config.clone()
        };
        tracing::warn!("the server begins anew on a store that went back");
        match live(config, &around, &stop, &mut ready).await {
            Ok(Ended::Stopped) => return Ok(()),
            Ok(Ended::WentBack(again)) => at = again,
            Err(error) if !may_pass(error.code()) => return Err(error),
            Err(error) => tracing::warn!(%error, "the server cannot begin anew yet"),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = around.clock.sleep_until(around.clock.now() + LIFE_PAUSE) => {}
        }
    }
}

/// One life of a server: from the opening of its store until it is stopped, or until the store lost its tail. Then nothing
/// that it holds in memory may be believed any more, so everything is opened and read again.
async fn live(
    config: Config,
    around: &Surroundings,
    stop: &CancellationToken,
    ready: &mut Option<oneshot::Sender<Ready>>,
) -> Result<Ended, StartError> {
    if let Some(authorities) = &config.node_authorities {
        authorities.read().map_err(StartError::NodeAuthorities)?;
    }
    let start = Start::open(config, around.clone()).await?;
    let stop = stop.child_token();
    match start.unseal().await? {
        Opened::Sealed(why) => start.run_sealed(&why, stop, ready.take()).await,
        Opened::Open(kek, authorities) => start.run_open(kek, authorities, stop, ready).await,
    }
}

/// Whether a start that was refused for this may go well a moment later: the database is away, or another server begins the
/// incarnation at the same time.
fn may_pass(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Fenced | Code::StaleBase | Code::NotReady)
}

/// Why a life of a server ended.
enum Ended {
    Stopped,
    /// The store lost its tail; here it was served.
    WentBack(Ready),
}

/// Time and chance, passed in.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
}

/// A server whose data directory is open.
struct Start {
    config: Config,
    domain: Domain,
    store: Arc<dyn Store>,
    socket: AdminSocket,
    operators: Operators,
    time: Arc<TimeGuard>,
    started: Timestamp,
    around: Surroundings,
}

enum Opened {
    Sealed(String),
    Open(Kek, Authorities),
}

impl Start {
    async fn open(config: Config, around: Surroundings) -> Result<Self, StartError> {
        // 1. Whose directory is it?
        let domain = Domain::read(&config.data)?;
        directory::check_private(&config.data)?;
        // 2. The store, which tells of another server on the same directory.
        let store = storage::open(&config.store, &config.data, Arc::clone(&around.entropy)).await?;
        // 3. The operators' socket, so that they can ask from here on.
        let socket = AdminSocket::bind(&config.admin_path())?;
        let operators = Operators::of(&config.data).map_err(|source| StartError::File {
            action: "look at",
            path: config.data.clone(),
            source,
        })?;
        // 4. What time the log says it was last.
        let time = Arc::new(TimeGuard::new(latest(&*store).await?));
        let started = around.clock.now();
        Ok(Self { config, domain, store, socket, operators, time, started, around })
    }

    async fn unseal(&self) -> Result<Opened, StartError> {
        // A passphrase takes its time, and its memory.
        let (path, unlock) = (kek_path(&self.config.data), self.config.unlock.clone());
        let opened =
            tokio::task::spawn_blocking(move || KekFile::open_by(&path, unlock.as_deref()));
        let kek = match opened.await.map_err(internal)? {
            Ok(kek) => kek,
            Err(refused) => return Ok(Opened::Sealed(refused.to_string())),
        };
        Ok(match unseal(&*self.store, &kek, &*self.config.vault).await? {
            Unsealed::Open(authorities) => Opened::Open(kek, authorities),
            Unsealed::Sealed(why) => Opened::Sealed(why),
        })
    }

    fn about(&self, listen: Option<SocketAddr>) -> About {
        let address = self.config.advertise.clone();
        let address = address.or_else(|| listen.map(|listen| listen.to_string()));
        About {
            domain: self.domain.trust_domain.clone(),
            address: address.unwrap_or_default(),
            started: self.started,
            views: None,
        }
    }

    async fn run_sealed(
        self,
        why: &str,
        stop: CancellationToken,
        ready: Option<oneshot::Sender<Ready>>,
    ) -> Result<Ended, StartError> {
        tracing::error!(why, "the server is sealed: it serves its status and nothing else");
        let admin = Arc::new(Admin {
            about: self.about(None),
            store: Arc::clone(&self.store),
            log: LogTree::default(),
            operators: self.operators,
            mode: Mode::Sealed { why: why.to_owned() },
            console: None,
        });
        let ready_to_say = Ready {
            listen: None,
            admin: self.config.admin_path(),
            metrics: None,
            views: None,
            console: None,
        };
        tell(ready, ready_to_say, "sealed");
        serve(self.socket, admin, self.config.drain, stop).await;
        notify(&[sd_notify::NotifyState::Stopping]);
        Ok(Ended::Stopped)
    }

    async fn run_open(
        self,
        kek: Kek,
        authorities: Authorities,
        stop: CancellationToken,
        ready: &mut Option<oneshot::Sender<Ready>>,
    ) -> Result<Ended, StartError> {
        // 1. Whether the store is behind what was seen of it; then the snapshot, and whether it is this directory's.
        let log_key = LogKey::open_or_make(&*self.store, &kek, &*self.around.entropy).await?;
        self.go_on(&log_key).await?;
        first_start(&*self.store, self.around.clock.now()).await?;
        let (feeder, feed) =
            Feeder::start(Arc::clone(&self.store), Arc::clone(&self.around.clock)).await?;
        self.check(&feed.current())?;
        // 2. Every address, before anything begins that would have to be ended again.
        let listener = listen(self.config.listen).await?;
        let (metrics, metrics_at) = maybe_listen(self.config.metrics).await?;
        let (views, views_at) = maybe_listen(self.config.views).await?;
        let console = self.config.console.as_ref().map(|console| console.listen);
        let (console, console_at) = maybe_listen(console).await?;
        let ready_to_say = Ready {
            listen: Some(local(&listener, self.config.listen)?),
            admin: self.config.admin_path(),
            metrics: metrics_at,
            views: views_at,
            console: console_at,
        };
        // 3. The parts, the issuer fresh before the first certificate of our own.
        let keys = Keys { kek, authorities, log_key: Arc::new(log_key) };
        let serving = Serving::new(&self, keys, feed, &stop);
        recall(&serving.control).await?;
        let due = serving.prepare(&self).await?;
        let console =
            console.map(|listener| Browsed::new(&self, &serving, listener)).transpose()?;
        // 4. Everything runs until stopped, or until one of the parts breaks.
        let parts = Parts { start: self, serving, feeder, listener, metrics, views, console, due };
        parts.run(ready.take(), ready_to_say, stop).await
    }

    /// Begins a new incarnation when the store lost something that this server has seen.
    async fn go_on(&self, log_key: &LogKey) -> Result<(), StartError> {
        let Some(seen) = Seen::read(&self.config.data) else { return Ok(()) };
        let Found::Behind(seen) = seen.compare(&*self.store).await? else { return Ok(()) };
        tracing::error!(seen = %seen.revision, leaves = seen.log_size, "the store is behind what was seen of it");
        let rules = match &self.config.journal {
            Some(folder) => read_journals(folder, log_key)?.0,
            None => Vec::new(),
        };
        let rules: Result<Vec<Handed>, Refused> = rules.iter().map(Handed::read).collect();
        let beginning = Beginning {
            store: &*self.store,
            cause: Cause::Behind,
            now: self.around.clock.now(),
            hold_off: self.config.hold_off,
            seen: seen.revision.incarnation,
            // It may be behind by being another one.
            reached: None,
            rules: rules?,
        };
        begin(beginning).await?;
        Ok(())
    }

    fn check(&self, state: &State) -> Result<(), StartError> {
        let found = &state.domain().trust_domain;
        if *found == self.domain.trust_domain {
            return Ok(());
        }
        Err(StartError::WrongDomain {
            path: self.config.data.clone(),
            found: found.to_string(),
            expected: self.domain.trust_domain.to_string(),
        })
    }
}

/// What was opened by the key-encryption key.
struct Keys {
    kek: Kek,
    authorities: Authorities,
    log_key: Arc<LogKey>,
}

/// What an unsealed server works with.
struct Serving {
    control: Arc<Control>,
    trust: Arc<Trust>,
    authorities: Arc<ArcSwap<Authorities>>,
    rotation: Arc<Rotation>,
    walker: Arc<Walker>,
    own: Own,
    /// What sends spans, if anybody wants any.
    exporter: Option<Exporter>,
}

impl Serving {
    fn new(start: &Start, keys: Keys, feed: StateFeed, stop: &CancellationToken) -> Self {
        let Keys { kek, authorities, log_key } = keys;
        let journal = start.config.journal.as_deref();
        let journal = journal.map(|folder| Arc::new(Journal::new(folder, &start.domain.server)));
        let Surroundings { clock, entropy } = start.around.clone();
        let authorities = Arc::new(ArcSwap::from_pointee(authorities));
        let desk = Desk {
            store: Arc::clone(&start.store),
            authorities: Arc::clone(&authorities),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            time: Arc::clone(&start.time),
            memory: ChainMemory::new(),
        };
        let limits = Limits { connections_max: CONNECTIONS_MAX, handshakes_max: HANDSHAKES_MAX };
        let trust = Trust::with_limits(Arc::clone(&clock), trusting(&feed.current()), limits);
        let shared = matches!(start.config.store, StoreAt::Postgres { .. });
        let replicas = shared.then(|| Replicas::new(start.domain.server.to_string()));
        let watch = Arc::new(Watch::new(start.started));
        let (tracer, exporter) = tracer(start);
        let rotation = Arc::new(Rotation {
            store: Arc::clone(&start.store),
            authorities: Arc::clone(&authorities),
            kek,
            vault: Arc::clone(&start.config.vault),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            time: Arc::clone(&start.time),
            holder: start.domain.server.to_string(),
            lifetime: start.config.issuer_lifetime,
            feed: feed.clone(),
            watch: Arc::clone(&watch),
        });
        let control = Arc::new(Control {
            store: Arc::clone(&start.store),
            feed,
            desk,
            rotation: Some(Arc::clone(&rotation)),
            roster: Roster::default(),
            converging: Converging::default(),
            replicas,
            slices: Slices::default(),
            throttle: Mutex::new(Throttle::default()),
            watch,
            tracer,
            pulse: Arc::default(),
            views: Views::default(),
            signing: Signing::default(),
            log_key: Some(log_key),
            lost: watch::Sender::new(None),
            journal,
            node_authorities: start.config.node_authorities.clone(),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            stop: stop.clone(),
            tasks: TaskTracker::new(),
        });
        let walker = Arc::new(Walker::new(Arc::clone(&control), Arc::clone(&rotation)));
        let path = format!("/countersign/server/{}", start.domain.server);
        let id = start.domain.trust_domain.with_path(&path).expect("a name is a path segment");
        let own = Own {
            control: Arc::clone(&control),
            trust: Arc::clone(&trust),
            authorities: Arc::clone(&authorities),
            id,
            dns_names: Vec::new(),
            clock,
            entropy,
        };
        Self { control, trust, authorities, rotation, walker, own, exporter }
    }

    /// Succeeds the issuer if that is due, records the start, and issues the first credential of our own. While
    /// the clock cannot be believed, the server waits with it, and says so.
    async fn prepare(&self, start: &Start) -> Result<Timestamp, StartError> {
        let now = start.around.clock.now();
        if let Err(refused) = start.time.trusted(now) {
            tracing::error!(why = %refused.why, "nothing is issued for now");
            return Ok(now + Duration::from_secs(1));
        }
        self.rotation.look().await?;
        let id = self.own.id.as_str();
        let event = Event::new(EventKind::ServerStarted, now, id, id)
            .with_details(serde_json::json!({ "version": env!("CARGO_PKG_VERSION") }));
        start.store.commit(Batch { events: vec![event], ..Batch::default() }).await?;
        start.time.recorded(now);
        Ok(self.own.renew().await?)
    }
}

/// What begins spans, and what sends them, if anybody wants any.
fn tracer(start: &Start) -> (Tracer, Option<Exporter>) {
    let Some(tracing) = &start.config.tracing else { return (Tracer::default(), None) };
    let instance = start.domain.server.to_string();
    let service = Service { name: "countersign-server", instance };
    let Surroundings { clock, entropy } = start.around.clone();
    let (tracer, exporter) = Tracer::new(tracing, service, clock, entropy);
    (tracer, Some(exporter))
}

/// Remembers the enforcement points on record: none of them is dead because the server was away.
async fn recall(control: &Control) -> Result<(), StartError> {
    let mut after = None;
    loop {
        let page = control.store.points(after.take(), PAGE_MAX).await?;
        let last = page.len() < PAGE_MAX;
        after = page.last().map(|row| row.key.clone());
        control.roster.recall(page);
        if last {
            return Ok(());
        }
    }
}

/// All parts, ready to run.
struct Parts {
    start: Start,
    serving: Serving,
    feeder: Feeder,
    listener: TcpListener,
    metrics: Option<TcpListener>,
    views: Option<TcpListener>,
    console: Option<Browsed>,
    due: Timestamp,
}

/// The console, ready to run: a door with a credential of its own, since browsers ask for names that no agent cares about.
struct Browsed {
    listener: TcpListener,
    own: Own,
    at: Arc<ConsoleAt>,
}

impl Browsed {
    fn new(start: &Start, serving: &Serving, listener: TcpListener) -> Result<Self, StartError> {
        let Surroundings { clock, entropy } = start.around.clone();
        let dns_names = start.config.console.as_ref().map(|console| console.names.clone());
        let dns_names = dns_names.unwrap_or_default();
        let names: Vec<String> = dns_names.iter().map(ToString::to_string).collect();
        let listen = start.config.console.as_ref().map_or(start.config.listen, |to| to.listen);
        let port = local(&listener, listen)?.port();
        let path = format!("/countersign/console/{}", start.domain.server);
        let own = Own {
            control: Arc::clone(&serving.control),
            trust: Trust::new(Arc::clone(&clock), trusting(&serving.control.feed.current())),
            authorities: Arc::clone(&serving.authorities),
            id: start.domain.trust_domain.with_path(&path).expect("a name is a path segment"),
            dns_names,
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
        };
        let at = ConsoleAt::new(Entrance::new(clock, entropy), &names, port);
        Ok(Self { listener, own, at: Arc::new(at) })
    }
}

impl Parts {
    async fn run(
        self,
        ready: Option<oneshot::Sender<Ready>>,
        to_say: Ready,
        stop: CancellationToken,
    ) -> Result<Ended, StartError> {
        let Self { start, serving, feeder, listener, metrics, views, console, due } = self;
        let Serving { control, trust, authorities, rotation, walker, own, exporter } = serving;
        let about = About { views: to_say.views, ..start.about(to_say.listen) };
        let drain = start.config.drain;
        let holder = start.domain.server.to_string();
        // What requests in flight still need goes on until they have ended.
        let after = CancellationToken::new();
        let mut parts: JoinSet<Result<(), Refused>> = JoinSet::new();
        parts.spawn(feeder.run(after.clone()));
        parts.spawn(follow(control.feed.clone(), Arc::clone(&trust), after.clone()));
        spawn(&mut parts, Arc::clone(&trust).run(after.clone()));
        spawn(&mut parts, Arc::clone(&rotation).run(after.clone()));
        spawn(&mut parts, Arc::clone(&walker).run(after.clone()));
        let keeper = Keeper {
            control: Arc::clone(&control),
            rotation: Arc::clone(&rotation),
            responders_of: views.as_ref().map(|_listener| own.id.clone()),
        };
        spawn(&mut parts, keeper.run(after.clone()));
        spawn(&mut parts, own.run(due, after.clone()));
        let upkeep = Upkeep {
            store: Arc::clone(&start.store),
            clock: Arc::clone(&start.around.clock),
            replica: start.domain.server.to_string(),
        };
        if let StoreAt::Postgres { .. } = start.config.store {
            spawn(&mut parts, upkeep.clone().pulse(Arc::clone(&control.pulse), after.clone()));
            spawn(&mut parts, talk(Arc::clone(&control), after.clone()));
        }
        spawn(&mut parts, upkeep.trim(after.clone()));
        spawn(&mut parts, prune(Arc::clone(&control), holder.clone(), after.clone()));
        spawn(&mut parts, keep_flows(Arc::clone(&control), after.clone()));
        spawn(&mut parts, keep_tallies(Arc::clone(&control), after.clone()));
        spawn(
            &mut parts,
            settle(Arc::clone(&control), start.domain.server.to_string(), after.clone()),
        );
        let (data, store) = (start.config.data.clone(), Arc::clone(&start.store));
        let clock = Arc::clone(&start.around.clock);
        let lost = CancellationToken::new();
        spawn(&mut parts, remember((data, clock), store, lost.clone(), after.clone()));
        if let Some(key) = &control.log_key {
            let signer = Signer::new(Arc::clone(&control), Arc::clone(key), holder.clone())?;
            spawn(&mut parts, signer.run(after.clone()));
        }
        if let Some(kept) = start.config.details_kept {
            let (control, holder) = (Arc::clone(&control), holder.clone());
            spawn(&mut parts, Retention { control, holder, kept }.run(after.clone()));
        }
        if let (Some(journal), Some(key)) = (&control.journal, &control.log_key) {
            let (journal, key) = (Arc::clone(journal), Arc::clone(key));
            let clock = Arc::clone(&start.around.clock);
            spawn(&mut parts, journal.run(key, control.feed.clone(), clock, after.clone()));
        }
        let (hold_off, journal) = (start.config.hold_off, start.config.journal.clone());
        spawn(&mut parts, recover(Arc::clone(&control), hold_off, journal, after.clone()));
        spawn(&mut parts, watchdog(after.clone()));
        if let Some(exporter) = exporter {
            spawn(&mut parts, exporter.run(after.clone()));
        }
        if let Some(listener) = metrics {
            spawn(&mut parts, serve_metrics(listener, Arc::clone(&control), after.clone()));
        }
        let mut doors: JoinSet<()> = JoinSet::new();
        let edge = Edge {
            listener,
            trust,
            domain: start.domain.trust_domain.clone(),
            clock: Arc::clone(&start.around.clock),
            routes: NodeRoutes::new(Arc::clone(&control)),
            watch: Arc::clone(&control.watch),
            drain,
        };
        doors.spawn(edge.run(stop.clone()));
        if let Some(listener) = views {
            doors.spawn(ViewsDoor { listener, control: Arc::clone(&control) }.run(stop.clone()));
        }
        let admin = Arc::new(Admin {
            about,
            store: start.store,
            log: LogTree::default(),
            operators: start.operators,
            mode: Mode::Serving { control: Arc::clone(&control), authorities, rotation, walker },
            console: console.as_ref().map(|console| Arc::clone(&console.at)),
        });
        if let Some(Browsed { listener, own, at }) = console {
            spawn(&mut parts, Arc::clone(&own.trust).run(after.clone()));
            parts.spawn(follow(control.feed.clone(), Arc::clone(&own.trust), after.clone()));
            let trust = Arc::clone(&own.trust);
            // It has none yet: its first is due at once.
            spawn(&mut parts, own.run(Timestamp::EPOCH, after.clone()));
            let console = Console { admin: Arc::clone(&admin), at, live: Streams::default() };
            let console = Arc::new(console);
            doors.spawn(ConsoleDoor { listener, trust, console }.run(stop.clone()));
        }
        doors.spawn(serve(start.socket, admin, drain, stop.clone()));
        tracing::info!(listen = ?to_say.listen, admin = %to_say.admin.display(), "serving");
        tell(ready, to_say.clone(), "serving");
        // Stopped, or broken.
        let broken = tokio::select! {
            () = stop.cancelled() => Ok(()),
            () = lost.cancelled() => Ok(()),
            Some(ended) = parts.join_next() => ended.map_err(internal).and_then(done_early),
        };
        notify(&[sd_notify::NotifyState::Stopping]);
        stop.cancel();
        while doors.join_next().await.is_some() {}
        control.tasks.close();
        if tokio::time::timeout(drain, control.tasks.wait()).await.is_err() {
            tracing::warn!("cut work that did not end in time");
        }
        after.cancel();
        while let Some(ended) = parts.join_next().await {
            ended.map_err(internal)??;
        }
        broken?;
        Ok(if lost.is_cancelled() { Ended::WentBack(to_say) } else { Ended::Stopped })
    }
}

/// No part ends before it is told to.
fn done_early(result: Result<(), Refused>) -> Result<(), Refused> {
    result.and_then(|()| Err(internal("a part of the server ended before its time")))
}

fn spawn(
    parts: &mut JoinSet<Result<(), Refused>>,
    part: impl Future<Output = ()> + Send + 'static,
) {
    parts.spawn(async move {
        part.await;
        Ok(())
    });
}

/// What the server enforces on its own port: the bundles and revocations of a state. Who may do what is asked at each call.
fn trusting(state: &State) -> Slice {
    Slice {
        revision: state.revision,
        bundles: Arc::clone(state.bundles()),
        revocations: state.revocations(),
        ..Slice::nothing()
    }
}

/// Enforces each new state's bundles and revocations on the agents' port.
async fn follow(
    feed: StateFeed,
    trust: Arc<Trust>,
    stop: CancellationToken,
) -> Result<(), Refused> {
    let mut states = feed.watch();
    let of = |state: &State| (Arc::clone(state.bundles()), state.revocations());
    let mut enforced = of(&states.borrow_and_update());
    loop {
        tokio::select! {
            // At a stop the feeder goes away, too, which is then no defect.
            biased;
            () = stop.cancelled() => return Ok(()),
            changed = states.changed() => if changed.is_err() {
                return Err(Refused::new(Code::Internal, "the state is not followed any more"));
            },
        }
        let state = Arc::clone(&states.borrow_and_update());
        let now = of(&state);
        if !Arc::ptr_eq(&enforced.0, &now.0) || !Arc::ptr_eq(&enforced.1, &now.1) {
            enforced = now;
            let applied = trust.apply(trusting(&state));
            tracing::info!(revision = %applied.revision, cut = applied.cut, "what is trusted changed");
        }
    }
}

/// Begins a new incarnation when an agent has shown that the store lost its tail.
async fn recover(
    control: Arc<Control>,
    hold_off: Duration,
    journal: Option<PathBuf>,
    stop: CancellationToken,
) {
    let mut lost = control.lost.subscribe();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = lost.changed() => if changed.is_err() { return },
        }
        let Some(reached) = *lost.borrow_and_update() else { continue };
        tracing::error!(%reached, "the store is behind what an agent has seen");
        let (store, now) = (&*control.store, control.clock.now());
        let (cause, seen) = (Cause::Behind, reached.incarnation);
        let reached = Some(reached);
        // What only a journal remembers would be lost with the incarnation.
        let remembered = journal.as_deref().zip(control.log_key.as_ref()).map(|(folder, key)| {
            let (records, _refused) = read_journals(folder, key).map_err(internal)?;
            records.iter().map(Handed::read).collect::<Result<Vec<_>, Refused>>()
        });
        let rules = match remembered.transpose() {
            Ok(rules) => rules.unwrap_or_default(),
            Err(refused) => {
                tracing::error!(why = %refused.why, "the journal does not read; no new incarnation begins");
                control.lost.send_replace(None);
                continue;
            }
        };
        let beginning = Beginning { store, cause, now, hold_off, seen, reached, rules };
        if let Err(refused) = begin(beginning).await {
            tracing::error!(code = %refused.code, why = %refused.why, "could not begin a new incarnation");
            // The next agent that comes says so again.
            control.lost.send_replace(None);
        }
    }
}

/// Tells systemd that the server lives, as often as it asks for.
async fn watchdog(stop: CancellationToken) {
    let Some(every) = sd_notify::watchdog_enabled() else {
        stop.cancelled().await;
        return;
    };
    loop {
        notify(&[sd_notify::NotifyState::Watchdog]);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every / 3) => {}
        }
    }
}

fn tell(ready: Option<oneshot::Sender<Ready>>, to_say: Ready, status: &str) {
    notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(status)]);
    // Whoever started the server was told already, or may not care to know.
    let _unheard = ready.is_some_and(|ready| ready.send(to_say).is_err());
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "could not notify the service manager");
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

/// An address that may be nowhere, with where it is in the end.
async fn maybe_listen(
    address: Option<SocketAddr>,
) -> Result<(Option<TcpListener>, Option<SocketAddr>), StartError> {
    let Some(address) = address else { return Ok((None, None)) };
    let listener = listen(address).await?;
    let at = local(&listener, address)?;
    Ok((Some(listener), Some(at)))
}

fn local(listener: &TcpListener, address: SocketAddr) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|source| StartError::Listen { address, source })
}

/// The time of the log's last entry.
pub(crate) async fn latest(store: &dyn Store) -> Result<Timestamp, StartError> {
    let mut head = store.head().await?;
    loop {
        let Some(last) = head.log_size.checked_sub(1) else { return Ok(Timestamp::EPOCH) };
        let events = store.events(last, 1).await?;
        match events.first().map(|event| Entry::parse(&event.leaf)) {
            Some(Ok(entry)) => return Ok(entry.at),
            Some(Err(bad)) => return Err(internal(bad).into()),
            None => {}
        }
        // Another server may have begun an incarnation between the two, whose log is shorter.
        let now = store.head().await?;
        if now.revision.incarnation == head.revision.incarnation {
            return Err(internal("the log's last entry is missing").into());
        }
        head = now;
    }
}
