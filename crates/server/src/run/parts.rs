//! The parts of a server that serves: they run until it is stopped, or until one of them breaks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Code, Timestamp};
use countersign_tls::Trust;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::serving::{Serving, trusting};
use super::start::{Start, local};
use super::told::{notify, tell, watchdog};
use super::{Ended, Surroundings};
use crate::admin::{Admin, Mode, serve};
use crate::authority::internal;
use crate::config::{Ready, StartError, StoreAt};
use crate::console::{Console, ConsoleAt, ConsoleDoor, Entrance, Streams};
use crate::control::Control;
use crate::edge::{Edge, NodeRoutes};
use crate::incarnation::{
    Beginning, Beside, Cause, Known, begin, read_rules, remember, settle, take_in_the_rest,
};
use crate::issue::Own;
use crate::log::{Retention, Signer};
use crate::refusal::Refused;
use crate::revoke::{prune, talk};
use crate::state::{Feeder, State, StateFeed};
use crate::storage::Upkeep;
use crate::views::{Keeper, ViewsDoor};
use crate::watch::{About, LogTree, keep_flows, keep_tallies, serve_metrics};

/// How soon what was begun and failed is gone on with.
const AGAIN: Duration = Duration::from_secs(5);

/// All parts, ready to run.
pub(super) struct Parts {
    pub(super) start: Start,
    pub(super) serving: Serving,
    pub(super) feeder: Feeder,
    pub(super) listener: TcpListener,
    pub(super) metrics: Option<TcpListener>,
    pub(super) views: Option<TcpListener>,
    pub(super) console: Option<Browsed>,
    pub(super) due: Timestamp,
}

/// The console, ready to run: a door with a credential of its own, since browsers ask for names that no agent cares about.
pub(super) struct Browsed {
    listener: TcpListener,
    own: Own,
    at: Arc<ConsoleAt>,
}

impl Browsed {
    pub(super) fn new(
        start: &Start,
        serving: &Serving,
        listener: TcpListener,
    ) -> Result<Self, StartError> {
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
    pub(super) async fn run(
        self,
        ready: Option<oneshot::Sender<Ready>>,
        to_say: Ready,
        stop: CancellationToken,
    ) -> Result<Ended, StartError> {
        let Self { start, serving, feeder, listener, metrics, views, console, due } = self;
        let Serving { control, trust, authorities, rotation, walker, own, exporter } = serving;
        let about = About { views: to_say.views, ..start.about(to_say.listen) };
        let drain = start.config.drain;
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
            duties: Arc::clone(&control.duties),
            clock: Arc::clone(&start.around.clock),
            time: Arc::clone(&start.time),
            replica: start.domain.server.to_string(),
        };
        let pulse = Arc::clone(&control.pulse);
        match start.config.store {
            StoreAt::Directory => {
                spawn(&mut parts, upkeep.clone().own_pulse(pulse, after.clone()));
            }
            StoreAt::Postgres { .. } => {
                spawn(&mut parts, upkeep.clone().pulse(pulse, after.clone()));
                spawn(&mut parts, talk(Arc::clone(&control), after.clone()));
            }
        }
        spawn(&mut parts, upkeep.trim(after.clone()));
        spawn(&mut parts, prune(Arc::clone(&control), after.clone()));
        spawn(&mut parts, keep_flows(Arc::clone(&control), after.clone()));
        spawn(&mut parts, keep_tallies(Arc::clone(&control), after.clone()));
        spawn(&mut parts, settle(Arc::clone(&control), after.clone()));
        let beside = Beside {
            data: start.config.data.clone(),
            clock: Arc::clone(&start.around.clock),
            time: Arc::clone(&start.time),
        };
        let (store, lost) = (Arc::clone(&start.store), CancellationToken::new());
        spawn(&mut parts, remember(beside, store, lost.clone(), after.clone()));
        if let Some(key) = &control.log_key {
            let signer = Signer::new(Arc::clone(&control), Arc::clone(key))?;
            spawn(&mut parts, signer.run(after.clone()));
        }
        if let Some(kept) = start.config.details_kept {
            let control = Arc::clone(&control);
            spawn(&mut parts, Retention { control, kept }.run(after.clone()));
        }
        if let (Some(journal), Some(key)) = (&control.journal, &control.log_key) {
            let (journal, key) = (Arc::clone(journal), Arc::clone(key));
            let steady = start.time.certain(&*start.around.clock);
            spawn(&mut parts, journal.run(key, control.feed.clone(), steady, after.clone()));
        }
        let (hold_off, journal) = (start.config.hold_off, start.config.journal.clone());
        let own = (start.domain.server.to_string(), journal);
        spawn(&mut parts, recover(Arc::clone(&control), hold_off, own, after.clone()));
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
    (server, journal): (String, Option<PathBuf>),
    stop: CancellationToken,
) {
    let mut lost = control.lost.subscribe();
    let mut failed = false;
    loop {
        let again = control.clock.about(AGAIN);
        tokio::select! {
            () = stop.cancelled() => return,
            // It may have begun, without all rules of the journal.
            () = control.clock.sleep_until(again), if failed => {
                let Some(key) = &control.log_key else { continue };
                let at = control.desk.time.recorded_moment(&*control.clock);
                let rest = take_in_the_rest(&*control.store, &server, journal.as_deref(), key, at);
                match rest.await {
                    Ok(()) => failed = false,
                    Err(error) => tracing::error!(%error, "the rules of the journal are not taken in"),
                }
                continue;
            }
            changed = lost.changed() => if changed.is_err() { return },
        }
        let Some(reached) = *lost.borrow_and_update() else { continue };
        tracing::error!(%reached, "the store is behind what an agent has seen");
        let (store, now) = (&*control.store, control.clock.now());
        let (cause, seen) = (Cause::Behind, reached.incarnation);
        let reached = Some(reached);
        // What only a journal remembers would be lost with the incarnation.
        let remembered = journal.as_deref().zip(control.log_key.as_ref());
        let remembered =
            remembered.map(|(folder, key)| read_rules(folder, key).map(|(rules, _refused)| rules));
        let rules = match remembered.transpose() {
            Ok(rules) => rules.unwrap_or_default(),
            Err(error) => {
                tracing::error!(%error, "the journal does not read; no new incarnation begins");
                control.lost.send_replace(None);
                continue;
            }
        };
        let known = Known::of(&control.desk.time);
        let (by, steady) = (server.as_str(), control.desk.time.certain(&*control.clock));
        let beginning =
            Beginning { store, cause, now, steady, hold_off, seen, reached, rules, by, known };
        match begin(beginning).await {
            Ok(life) => {
                life.into_iter().for_each(|life| control.desk.time.recorded(life.began));
            }
            Err(refused) => {
                tracing::error!(code = %refused.code, why = %refused.why, "could not begin a new incarnation");
                // The next agent that comes says so again, unless it has begun.
                control.lost.send_replace(None);
                failed = true;
            }
        }
    }
}
