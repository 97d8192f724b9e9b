//! The proxy as a whole: from its configuration to a drained end.

use std::convert::Infallible;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use countersign::requests::Requests;
use countersign::{
    Announcement, Enforcement, FileOptions, Flows, Point, PointKind, Served, Services, Source,
    Status, Topic, WorkloadApiOptions,
};
use countersign_identity::{Clock, Entropy, SystemClock, SystemEntropy};
use countersign_program::exposition::{self, Format};
use countersign_program::trace::{Service, Tracer};
use countersign_tls::{Room, Standings, Trust};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::alarms::Alarms;
use crate::bounds::{
    COMPLAIN_EVERY, COMPLAIN_FIRST, DRAIN_TIMEOUT, HANDSHAKES, REBIND_EVERY, STANDING,
};
use crate::config::{Config, IdentitySource, Listeners, Ready};
use crate::facts::{Facts, Sink};
use crate::listener::{ListenFault, Listener};
use crate::metrics::Metrics;
use crate::plan::Plan;
use crate::plane::Plane;
use crate::supervise::Supervisor;
use crate::tasks::Tasks;

/// Runs one proxy until `stop`, then drains it. Tells `ready` once it has an identity and everything listens.
///
/// At the end it lets no one in any more, announces on every connection that it closes, and gives requests under
/// way 10 s before it cuts them.
///
/// # Errors
/// When it cannot start: bad files, no agent at its socket, a port that is taken. Once ready, it goes on through
/// whatever happens.
pub async fn run(
    config: Config,
    stop: CancellationToken,
    ready: oneshot::Sender<Ready>,
) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let source = tokio::select! {
        source = open(&config, clock.clone()) => source?,
        () = stop.cancelled() => return Ok(()),
    };
    let ran = with_source(&config, &source, clock, &stop, ready).await;
    source.shutdown().await;
    ran
}

async fn with_source(
    config: &Config,
    source: &Source,
    clock: Arc<dyn Clock>,
    stop: &CancellationToken,
    ready: oneshot::Sender<Ready>,
) -> anyhow::Result<()> {
    tokio::select! {
        identified = source.ready() => identified.context("no identity was given to the proxy")?,
        never = complain(source) => match never {},
        () = stop.cancelled() => return Ok(()),
    }
    prepare(config, source)?;
    let metrics =
        config.metrics.map(Listener::tcp).transpose().context("metrics cannot be served")?;
    let reporter = source.reporter();
    let (flows, answered) = (reporter.flows(), reporter.served());
    let sink: Sink = Arc::new(move |fact| reporter.report(fact));
    let entropy = Arc::new(SystemEntropy);
    let (tracer, exporter) = match &config.tracing {
        Some(tracing) => {
            let service = Service { name: "countersign-proxy", instance: config.name.to_string() };
            let (tracer, exporter) = Tracer::new(tracing, service, clock.clone(), entropy.clone());
            (tracer, Some(exporter))
        }
        None => (Tracer::default(), None),
    };
    let plane = plane((source.trust(), tracer), clock, entropy, (sink, flows, answered));
    let (alarms, over) = (plane.alarms.clone(), CancellationToken::new());
    let waking = tokio::spawn({
        let over = over.clone();
        async move { alarms.run(&over).await }
    });
    let exporting = exporter.map(|exporter| tokio::spawn(exporter.run(over.clone())));
    let serving = stop.child_token();
    let address = metrics.as_ref().and_then(Listener::address);
    if let Some(Listener::Tcp(listener)) = metrics {
        let (exposed, parts) = (plane.clone(), source.parts());
        let page = move || {
            let dropped = exposed.tracer.dropped();
            std::future::ready(exposed.metrics.text(&exposed.trust, &parts, dropped))
        };
        let serve = exposition::serve(listener, Format::OpenMetrics, page, serving.clone());
        plane.tasks.start(serve);
    }
    let mut supervisor = Supervisor::new(&plane);
    let served = supervise(config, source, &plane, (&mut supervisor, address), stop, ready).await;
    notify(&[sd_notify::NotifyState::Stopping]);
    serving.cancel();
    let cut = supervisor.drain(DRAIN_TIMEOUT).await;
    if 0 < cut {
        tracing::warn!(cut, "what was still under way was cut");
    }
    over.cancel();
    waking.await.context("the task that keeps time has failed")?;
    if let Some(exporting) = exporting {
        exporting.await.context("the task that sends spans has failed")?;
    }
    served
}

/// Says again and again what the proxy lacks while it waits, so that whoever started it need not guess. Never ends.
async fn complain(source: &Source) -> Infallible {
    let mut pause = COMPLAIN_FIRST;
    loop {
        tokio::time::sleep(pause).await;
        pause = COMPLAIN_EVERY;
        let Status { identity, link, enforcement, troubles, .. } = source.status();
        let (lacking, otherwise) = match identity {
            None => (Topic::Identity, format!("no identity is given; the Workload API is {link}")),
            Some(_) => (Topic::Slice, format!("who may connect is not known: {enforcement}")),
        };
        let why = troubles.get(&lacking).cloned().unwrap_or(otherwise);
        tracing::warn!(%why, "the proxy waits, and opens no door");
    }
}

/// What must hold before listeners can follow the agent.
fn prepare(config: &Config, source: &Source) -> anyhow::Result<()> {
    let Listeners::FromAgent { run_dir } = &config.listeners else { return Ok(()) };
    match source.status().enforcement {
        Enforcement::Local => anyhow::bail!(
            "listeners from the agent need policies from the agent: name the listeners in the command, or leave the policies to the agent"
        ),
        Enforcement::NotOffered => anyhow::bail!(
            "the agent tells nothing of services: name the listeners in the command, as `--inbound` and `--outbound`"
        ),
        Enforcement::Waiting | Enforcement::Subscribed | Enforcement::Lost { .. } => {}
    }
    let mut folder = std::fs::DirBuilder::new();
    folder.recursive(true).mode(0o700);
    folder
        .create(run_dir)
        .with_context(|| format!("cannot make the directory `{}`", run_dir.display()))?;
    check_folder(run_dir)
}

/// Programs are found by their sockets' names in this folder: whoever may put one there is handed what peers send.
fn check_folder(folder: &Path) -> anyhow::Result<()> {
    let shown = folder.display();
    let found = std::fs::metadata(folder).with_context(|| format!("cannot look at `{shown}`"))?;
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    anyhow::ensure!(
        owner == 0 || owner == nix::unistd::geteuid().as_raw(),
        "the folder `{shown}` belongs to uid {owner}, who could put another program's socket there: name one with `--run-dir` that belongs to root or to the user that the proxy runs as"
    );
    anyhow::ensure!(
        mode & 0o002 == 0,
        "the folder `{shown}` (mode {mode:o}) can be written by everybody, who could put another program's socket there: name one with `--run-dir` that others cannot write"
    );
    Ok(())
}

/// Assembles what all parts share.
pub(crate) fn plane(
    (trust, tracer): (Arc<Trust>, Tracer),
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    (sink, flows, answered): (Sink, Flows, Served),
) -> Arc<Plane> {
    let metrics = Metrics::telling(answered);
    let requests = Requests::new(Arc::clone(&trust), flows);
    Arc::new(Plane {
        trust,
        alarms: Alarms::new(clock.clone()),
        standings: Standings::new(STANDING, clock.now()),
        under_way: Room::new(HANDSHAKES),
        clock,
        entropy,
        tasks: Tasks::default(),
        facts: Facts::new(sink, metrics.clone()),
        requests,
        metrics,
        tracer,
    })
}

async fn open(config: &Config, clock: Arc<dyn Clock>) -> anyhow::Result<Source> {
    let source = match &config.identity {
        IdentitySource::WorkloadApi { endpoint, choice } => {
            let mut options = WorkloadApiOptions::at(endpoint.clone());
            options.choice = choice.clone();
            options.authorization = config.authorization.clone();
            options.point = Point { name: config.name.clone(), kind: PointKind::Proxy };
            options.clock = clock;
            Source::from_workload_api(options).await
        }
        IdentitySource::Files { chain, key, bundle, trust_domain, federated } => {
            let mut options = FileOptions::at(chain.clone(), key.clone(), bundle.clone());
            options.trust_domain = trust_domain.clone();
            options.federated = federated.clone();
            options.authorization = config.authorization.clone();
            options.clock = clock;
            Source::from_files(options).await
        }
    };
    source.context("the proxy has no identity")
}

/// Follows the plan until stopped. The first plan must be fulfilled as a whole; of later ones, what cannot be had is
/// tried again.
async fn supervise(
    config: &Config,
    source: &Source,
    plane: &Arc<Plane>,
    (supervisor, metrics): (&mut Supervisor, Option<std::net::SocketAddr>),
    stop: &CancellationToken,
    ready: oneshot::Sender<Ready>,
) -> anyhow::Result<()> {
    let mut services = source.services();
    let Some(mut plan) = first_plan(config, &mut services, stop).await? else { return Ok(()) };
    if let Some(fault) = supervisor.reconcile(&plan).into_iter().next() {
        return Err(fault.into());
    }
    let id = plane
        .trust
        .identity()
        .context("the proxy lost its identity while it started")?
        .id()
        .clone();
    let (inbound, outbound) = supervisor.bound();
    let warnings = plan.warnings();
    warn(&warnings);
    // Whoever started us may have no interest in it.
    let _ =
        ready.send(Ready { point: config.name.clone(), id, inbound, outbound, metrics, warnings });
    notify(&[sd_notify::NotifyState::Ready]);
    let mut retry = false;
    source.doors_open(Ok(()));
    let mut _announced = announce(source, supervisor);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = services.changed() => {
                if changed.is_err() {
                    // The source has ended, and with it the stream of changes; what is held goes on.
                    stop.cancelled().await;
                    return Ok(());
                }
                if let Some(next) = plan_of(config, services.borrow_and_update().as_deref()) {
                    warn(&next.problems);
                    plan = next;
                }
            }
            () = tokio::time::sleep(REBIND_EVERY), if retry => {}
        }
        let faults = supervisor.follow(&plan).await;
        tell(source, &faults);
        _announced = announce(source, supervisor);
        retry = !faults.is_empty();
    }
}

/// Says which listeners are missing: in the log, to whoever started us, and to the agent, whose server shows it.
fn tell(source: &Source, faults: &[ListenFault]) {
    for fault in faults {
        tracing::error!(%fault, "a listener is missing; it is tried again");
    }
    let why = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let status = match faults.len() {
        0 => "all listeners are open".to_owned(),
        _ => format!("not all listeners are open: {why}"),
    };
    notify(&[sd_notify::NotifyState::Status(&status)]);
    source.doors_open(if faults.is_empty() { Ok(()) } else { Err(why) });
}

/// Tells the agent where peers are let in.
fn announce(source: &Source, supervisor: &Supervisor) -> Vec<Announcement> {
    let (inbound, _outbound) = supervisor.bound();
    inbound.iter().map(|door| source.announce(door.listen)).collect()
}

async fn first_plan(
    config: &Config,
    services: &mut watch::Receiver<Option<Arc<Services>>>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Plan>> {
    let plan = loop {
        let seen = services.borrow_and_update().clone();
        if let Some(plan) = plan_of(config, seen.as_deref()) {
            break plan;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            changed = services.changed() => changed.context("the agent told nothing of the proxy's services")?,
        }
    };
    if let (Listeners::Fixed { .. }, Some(problem)) = (&config.listeners, plan.problems.first()) {
        anyhow::bail!("{problem}");
    }
    Ok(Some(plan))
}

fn plan_of(config: &Config, services: Option<&Services>) -> Option<Plan> {
    match &config.listeners {
        Listeners::FromAgent { run_dir } => {
            services.map(|services| Plan::of_services(services, run_dir))
        }
        Listeners::Fixed { inbound, outbound } => Some(Plan::fixed(inbound, outbound)),
    }
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::*;

    #[test]
    fn a_folder_into_which_others_could_put_a_programs_socket_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let with = |mode| {
            std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            check_folder(place.path()).map_err(|error| error.to_string())
        };
        for mode in [0o700, 0o755, 0o770] {
            assert_eq!(with(mode), Ok(()), "{mode:o}");
        }
        for mode in [0o777, 0o1777] {
            let why = with(mode).unwrap_err();
            assert!(why.contains(&format!("(mode {mode:o}) can be written by everybody")), "{why}");
        }
        if nix::unistd::geteuid().is_root() {
            chown(place.path(), Some(65_534), None).unwrap();
            let why = with(0o700).unwrap_err();
            assert!(why.contains("belongs to uid 65534"), "{why}");
        }
    }
}
