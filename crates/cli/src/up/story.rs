//! The order in which a trust domain comes up, lives and goes down.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use countersign_agent::launcher::Launcher;
use countersign_api::admin::{AdminClient, ApplyRequest, CreateTokenRequest, Status};
use countersign_api::resource::{self, Resource};
use countersign_identity::{Clock, Code, Lifetime, SystemClock, TrustDomain};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Arguments;
use super::layout::{Layout, Whereabouts};
use super::plan::{self, ServicePlan};
use super::ports::Ports;
use super::process::Program;
use super::supervise::{CONFLICT_PATIENCE, Happening, Nursery, Stdin, Tier};
use super::surroundings::Surroundings;
use super::view::View;
use super::{probe, view};
use crate::exit::{Exit, Failure};
use crate::manifest;
use crate::output::Output;

/// Not everything has come up in time.
#[derive(Debug, thiserror::Error)]
#[error("not ready within {} s: see the logs in {}", READY_TIMEOUT.as_secs(), .0.display())]
pub(crate) struct Late(PathBuf);

/// It was told to end before that.
#[derive(Debug, thiserror::Error)]
#[error("ended before everything had come up")]
pub(crate) struct Unready;

/// How long everything may take to come up.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often `up` looks whether what it waits for has come.
const LOOK_EVERY: Duration = Duration::from_millis(15);
/// How long the agent may take to tell the server what it holds.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the live line is drawn anew.
const DRAW_EVERY: Duration = Duration::from_secs(1);
/// A queue of happenings that is full makes processes wait, not `up` grow.
const HAPPENINGS_MAX: usize = 256;
/// How long the agent has to use its join token.
const JOIN_TIMEOUT_SECS: u64 = 300;

/// Brings everything up, waits, and takes it down. Runs on the calling thread, which must be the process's first: the
/// processes that it starts end with it.
///
/// # Errors
/// With what did not come up and why. Everything that was started is stopped again.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(up(arguments, output))
}

async fn up(arguments: &Arguments, output: Output) -> Result<Exit> {
    // All that can be wrong with the input is said before anything starts.
    let mut resources = manifest::load(&arguments.manifests)?;
    let layout = Layout::prepare(&arguments.data())?;
    let names = std::env::vars_os().map(|(name, _value)| name);
    let surroundings = Surroundings::of(names, &arguments.pass);
    let mut ports = Ports::open(&layout.data, plan::fixed_ports(&resources));
    plan::fix_ports(&mut resources, &mut ports)?;
    // Fixed for the whole run: agents must find a server that was started again.
    let server = ports.give("server.listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    // And browsers a console whose links were kept.
    let console = ports.give("server.console", SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let declaration = resource::check(&resources, None).map_err(manifest::Problems::from)?;
    let domain = declaration.domain.clone();
    let services = plan::services(&declaration, &layout.run, &program);
    ports.remember()?;

    let (happenings, inbox) = mpsc::channel(HAPPENINGS_MAX);
    let nursery = Nursery {
        launcher: Arc::new(Mutex::new(Launcher::new())),
        clock: Arc::new(SystemClock::new()),
        happenings,
        patience: if layout.left_behind { CONFLICT_PATIENCE } else { Duration::ZERO },
    };
    let folder =
        arguments.manifests.canonicalize().context("cannot resolve the manifests' folder")?;
    let mut stage = Stage {
        view: View::new(output),
        cast: Cast { layout, program, folder, server, console, surroundings },
        ports,
        tiers: [Tier::new(), Tier::new(), Tier::new(), Tier::new()],
        nursery,
        inbox,
    };
    if let Some(warning) = stage.cast.surroundings.warning() {
        stage.view.warn(&warning);
    }
    let lived = stage.live(&domain, resources, &services, arguments.span).await;
    stage.take_down().await;
    lived.map(|()| Exit::Done)
}

/// Where the programs are and what they are given.
struct Cast {
    layout: Layout,
    program: PathBuf,
    folder: PathBuf,
    /// Where the server listens for agents.
    server: SocketAddr,
    /// Where it serves its console.
    console: SocketAddr,
    /// What they do not get of the environment.
    surroundings: Surroundings,
}

/// The tiers in the order in which they are stopped.
enum Part {
    Proxies,
    Services,
    Agent,
    Server,
}

struct Stage {
    view: View,
    cast: Cast,
    /// Held to the end: a process of ours that is started again finds its port free.
    ports: Ports,
    tiers: [Tier; 4],
    nursery: Nursery,
    inbox: mpsc::Receiver<Happening>,
}

impl Stage {
    async fn live(
        &mut self,
        domain: &TrustDomain,
        resources: Vec<Resource>,
        services: &[ServicePlan],
        span: Option<Duration>,
    ) -> Result<()> {
        let mut ended = Box::pin(ended(span, self.nursery.clock.clone())?);
        let whereabouts = tokio::select! {
            () = &mut ended => return Err(Unready.into()),
            up = tokio::time::timeout(READY_TIMEOUT, self.bring_up(domain, resources, services)) => {
                up.map_err(|_late| Late(self.cast.layout.logs.clone()))??
            }
        };
        let status = self.status_with_credentials(services).await;
        self.view.ready(&whereabouts, services, status.as_ref(), self.nursery.clock.now());
        tokio::select! {
            () = ended => Ok(()),
            ended = self.watch(services) => ended,
        }
    }

    async fn bring_up(
        &mut self,
        domain: &TrustDomain,
        resources: Vec<Resource>,
        services: &[ServicePlan],
    ) -> Result<Whereabouts> {
        self.cast.init(domain).await?;
        self.start(Part::Server, self.cast.server(), Stdin::Nothing);
        let listen = text(&self.said_ready("server").await?, "listen")?;

        let admin = AdminClient::new(self.cast.layout.admin_socket());
        let resources = resources.iter().map(Resource::manifest).collect();
        let request = ApplyRequest { resources, base: None, prune: false, dry_run: false };
        admin.apply(&request).await.context("the server refuses the manifests")?;
        let agent = self.cast.agent(domain, &listen, &admin).await?;
        self.start(Part::Agent, agent, Stdin::Launcher);
        self.said_ready("agent").await?;

        let proxies = self.cast.proxies(services);
        let mut awaited: Vec<String> = proxies.iter().map(|proxy| proxy.name.clone()).collect();
        for proxy in proxies {
            self.start(Part::Proxies, proxy, Stdin::Nothing);
        }
        self.ports.leave_to_programs();
        for service in services.iter().filter(|service| !service.command.is_empty()) {
            self.start(Part::Services, self.cast.service(service), Stdin::Nothing);
        }
        while !awaited.is_empty() {
            let (name, event) = self.said().await?;
            if event["event"] == "ready" {
                awaited.retain(|proxy| *proxy != name);
            }
        }
        self.request_goes_through(services).await;

        let whereabouts = self.cast.whereabouts(&listen, services);
        self.cast.layout.publish(&whereabouts)?;
        Ok(whereabouts)
    }

    fn start(&mut self, part: Part, program: Program, stdin: Stdin) {
        self.tiers[part as usize].start(&self.nursery, program, stdin);
    }

    /// The next thing that a process says; an error when one does not come up.
    async fn said(&mut self) -> Result<(String, Value)> {
        loop {
            match self.inbox.recv().await.context("no process is left")? {
                Happening::Said { name, event } => return Ok((name, event)),
                Happening::Lost { name, status, log } => {
                    bail!("{name} does not come up ({status}){}", view::last_words(&log))
                }
                Happening::Started => {}
                Happening::Ended { name, status, wait } => self.view.ended(&name, &status, wait),
            }
        }
    }

    async fn said_ready(&mut self, who: &str) -> Result<Value> {
        loop {
            let (name, event) = self.said().await?;
            if name == who && event["event"] == "ready" {
                return Ok(event);
            }
        }
    }

    async fn request_goes_through(&self, services: &[ServicePlan]) {
        for service in services {
            let Some(listens) = plan::awaited(service) else { continue };
            while !listens.answers().await {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        for front in services.iter().filter_map(|service| service.front) {
            while !probe::goes_through(front).await {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }

    /// What the server knows of everybody, once it has heard of all credentials. For people only: scripts wait for nothing more.
    async fn status_with_credentials(&self, services: &[ServicePlan]) -> Option<Status> {
        if !self.view.is_for_people() {
            return None;
        }
        let admin = AdminClient::new(self.cast.layout.admin_socket());
        let until = self.nursery.clock.now() + REPORT_TIMEOUT;
        loop {
            let status = admin.status().await.ok();
            let held = |status: &Status| {
                let held: usize = status.nodes.iter().map(|node| node.credentials.len()).sum();
                services.len() <= held
            };
            if status.as_ref().is_some_and(held) || until <= self.nursery.clock.now() {
                return status;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Draws the live line and tells what happens, until a process is lost for good.
    async fn watch(&mut self, services: &[ServicePlan]) -> Result<()> {
        let admin = AdminClient::new(self.cast.layout.admin_socket());
        let mut tick = tokio::time::interval(DRAW_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                said = self.said() => {
                    let (name, event) = said?;
                    self.view.said(&name, &event);
                }
                _ = tick.tick(), if self.view.is_live() => {
                    let status = tokio::time::timeout(DRAW_EVERY, admin.status()).await;
                    self.view.draw(status.ok().and_then(Result::ok).as_ref(), services, self.nursery.clock.now());
                }
            }
        }
    }

    /// Proxies first, so that what is under way is finished by services that still run.
    async fn take_down(self) {
        let Self { tiers, mut inbox, mut view, cast, .. } = self;
        view.stopping();
        // Keepers may still want to tell something; nobody needs it, but they must not wait for room.
        let drain = tokio::spawn(async move { while inbox.recv().await.is_some() {} });
        let mut cut = 0;
        for tier in tiers {
            cut += tier.stop().await;
        }
        drain.abort();
        cast.layout.clear_sockets();
        view.stopped(cut);
    }
}

impl Cast {
    /// Makes the trust domain, the first time.
    async fn init(&self, domain: &TrustDomain) -> Result<()> {
        if self.layout.server().exists() {
            return Ok(());
        }
        let mut init = tokio::process::Command::new(&self.program);
        init.arg("init").arg("--data").arg(self.layout.server());
        init.args(["--trust-domain", domain.as_str()]);
        for name in &self.surroundings.parts {
            init.env_remove(name);
        }
        let output = init.output().await.context("cannot start `countersign init`")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.trim().trim_start_matches("countersign: ");
            // Whose fault it is, it has said as well.
            let code = match output.status.code() {
                Some(2) => Code::NotUnderstood,
                Some(3) => Code::Unavailable,
                Some(4) => Code::AlreadyExists,
                _ => Code::Internal,
            };
            let message = format!("cannot make the trust domain: {said}");
            return Err(Failure::new(code, message).into());
        }
        Ok(())
    }

    fn own(&self, name: &str, arguments: Vec<OsString>) -> Program {
        Program {
            name: name.to_owned(),
            label: None,
            path: self.program.clone(),
            arguments,
            environment: Vec::new(),
            withheld: self.surroundings.parts.clone(),
            folder: self.folder.clone(),
            log: self.layout.logs.join(format!("{}.log", name.replace(' ', "-"))),
            speaks: true,
        }
    }

    fn server(&self) -> Program {
        let mut arguments: Vec<OsString> =
            ["server", "--output", "json", "--metrics", "127.0.0.1:0"].map(Into::into).into();
        arguments.extend(["--listen".into(), self.server.to_string().into()]);
        arguments.extend(["--console".into(), self.console.to_string().into()]);
        arguments.extend(["--data".into(), self.layout.server().into_os_string()]);
        arguments.extend(["--admin-socket".into(), self.layout.admin_socket().into_os_string()]);
        self.own("server", arguments)
    }

    async fn agent(
        &self,
        domain: &TrustDomain,
        server: &str,
        admin: &AdminClient,
    ) -> Result<Program> {
        let mut arguments: Vec<OsString> =
            ["agent", "--output", "json", "--launcher-stdin", "--server", server]
                .map(Into::into)
                .into();
        arguments.extend(["--trust-domain".into(), domain.as_str().into()]);
        arguments.extend(["--data".into(), self.layout.agent().into_os_string()]);
        arguments.extend(["--socket".into(), self.layout.agent_socket().into_os_string()]);
        let mut agent = self.own("agent", arguments);
        if !countersign_agent::is_attested(&self.layout.agent()) {
            let ttl = Lifetime::from_secs(JOIN_TIMEOUT_SECS)?;
            let token = admin.create_token(&CreateTokenRequest { ttl, labels: Vec::new() }).await;
            let token = token.context("the server gives no join token")?;
            // In the environment: whoever may list processes can read their arguments.
            agent.environment.push(("COUNTERSIGN_JOIN".to_owned(), token.token.into()));
            agent
                .environment
                .push(("COUNTERSIGN_TRUST".to_owned(), token.trust.to_string().into()));
        }
        Ok(agent)
    }

    /// One proxy for each workload that has services.
    fn proxies(&self, services: &[ServicePlan]) -> Vec<Program> {
        let mut proxies: Vec<Program> = Vec::new();
        for service in services {
            let name = format!("{} proxy", service.workload);
            if proxies.iter().any(|proxy| proxy.name == name) {
                continue;
            }
            let mut arguments: Vec<OsString> = ["proxy", "--output", "json"].map(Into::into).into();
            arguments.extend(["--name".into(), format!("{}-proxy", service.workload).into()]);
            let agent = format!("unix://{}", self.layout.agent_socket().display());
            arguments.extend(["--agent".into(), agent.into()]);
            // Whatever else comes to match its processes, it is what it was started for.
            arguments.extend(["--id".into(), service.spiffe_id.to_string().into()]);
            arguments.extend(["--run-dir".into(), self.layout.run.clone().into_os_string()]);
            let proxy = self.own(&name, arguments);
            proxies.push(Program { label: Some(service.label.to_string()), ..proxy });
        }
        proxies
    }

    fn service(&self, service: &ServicePlan) -> Program {
        let name = service.name.to_string();
        Program {
            log: self.layout.logs.join(format!("{name}.log")),
            name,
            label: Some(service.label.to_string()),
            path: service.command.first().map(PathBuf::from).unwrap_or_default(),
            arguments: service.command.iter().skip(1).cloned().collect(),
            environment: service.environment.clone(),
            withheld: self.surroundings.programs.clone(),
            folder: self.folder.clone(),
            speaks: false,
        }
    }

    fn whereabouts(&self, server: &str, services: &[ServicePlan]) -> Whereabouts {
        let socket = |path: &Path| format!("unix://{}", path.display());
        let url = |service: &ServicePlan| Some((service.name.to_string(), service.url()?));
        Whereabouts {
            data: self.layout.data.display().to_string(),
            admin: socket(&self.layout.admin_socket()),
            agent: socket(&self.layout.agent_socket()),
            server: server.to_owned(),
            services: services.iter().filter_map(url).collect(),
        }
    }
}

/// Comes when somebody asks for the end, or the span is over.
fn ended(span: Option<Duration>, clock: Arc<SystemClock>) -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let end = span.map(|span| clock.now() + span);
    Ok(async move {
        let over = async {
            match end {
                Some(end) => clock.sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            () = over => {}
        }
    })
}

fn text(event: &Value, field: &str) -> Result<String> {
    let text = event[field].as_str().map(str::to_owned);
    text.with_context(|| format!("the event {event} lacks `{field}`"))
}

/// What `ready` says to scripts, in one line.
pub(super) fn ready_line(whereabouts: &Whereabouts) -> Value {
    let mut line = json!({
        "event": "ready",
        "admin": whereabouts.admin,
        "agent": whereabouts.agent,
        "server": whereabouts.server,
        "data": whereabouts.data,
    });
    for (name, url) in &whereabouts.services {
        // A service named like one of the fields above is still found in `up.json`.
        if line.get(name).is_none() {
            line[name] = Value::String(url.clone());
        }
    }
    line
}
