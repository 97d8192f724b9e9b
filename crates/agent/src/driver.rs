//! The task that owns the machine's state, the keys and the session, and does what the machine says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::v1;
use countersign_identity::{
    Clock, Code, Entropy, Incarnation, Name, Revision, Revocations, Timestamp,
};
use countersign_pki::{Bundle, Bundles};
use countersign_program::trace::Tracer;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use crate::core::{Action, Event, Knowledge, Outcome, Replica, State, SyncMessage, Workload};
use crate::disk::{Disk, DiskFault, Node};
use crate::keepsakes::Keepsakes;
use crate::lists::{self, RevocationLists};
use crate::renewal::{self, KeyMaker, Registered, Signed};
use crate::reports::Reports;
use crate::server_link::{Calls, LinkFault, ServerLink, Session};
use crate::trial::Trials;
use crate::view::{NodeView, Svid, View};

/// Everything that the driver needs from outside.
pub(crate) struct Surroundings {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) link: Arc<dyn ServerLink>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) servers: Vec<String>,
    pub(crate) reports: Reports,
    pub(crate) tracer: Tracer,
}

/// Does what the machine says, and tells it what happened.
pub(crate) struct Driver {
    around: Surroundings,
    state: State,
    node: Node,
    svids: BTreeMap<Name, Arc<Svid>>,
    verified_under: Option<Arc<Bundle>>,
    view: watch::Sender<Option<Arc<View>>>,
    session: Option<OpenSession>,
    sessions: u64,
    happened: mpsc::Receiver<Happened>,
    tell: mpsc::Sender<Happened>,
    tasks: JoinSet<()>,
    remembering: Remembering,
    /// The revision that may be acknowledged.
    enforced: Option<Revision>,
    lists: Option<Arc<RevocationLists>>,
    /// Rules with their signatures, to be handed back to a server whose store lost its tail.
    keepsakes: Arc<Keepsakes>,
    /// The session and the incarnation in which they were compared last.
    handed: (u64, Incarnation),
    keys: KeyMaker,
}

/// A session in use. Dropping it ends its tasks and its connection.
struct OpenSession {
    calls: Arc<dyn Calls>,
    /// Nobody waits any more for what was asked on it.
    ended: CancellationToken,
    _end: DropGuard,
    _tasks: [AbortOnDropHandle<()>; 5],
    _pump: AbortOnDropHandle<()>,
}

/// What tasks tell the driver.
enum Happened {
    Opened(u64, Result<Session, LinkFault>),
    Said(u64, Result<SyncMessage, LinkFault>),
    Signed(Vec<Signed>),
    NodeRenewed(Result<Node, LinkFault>),
    Listed(Arc<RevocationLists>),
    /// These revocations are on the disk, with these signatures.
    RulesKept(Arc<Revocations>, Arc<Keepsakes>),
    /// A snapshot with this bundle is on the disk.
    Remembered(Result<Option<Arc<Bundle>>, DiskFault>),
}

/// Whether records are being written, and what is to come next.
struct Remembering {
    busy: bool,
    again: bool,
    /// After a failure.
    retry: Option<Timestamp>,
    /// The revocations that are on the disk.
    rules: Arc<Revocations>,
    /// Their signatures that are there.
    keepsakes: Arc<Keepsakes>,
    /// The trust domain's own bundle that is there.
    bundle: Option<Arc<Bundle>>,
}

const HAPPENED_MAX: usize = 64;
/// Rules that are handed back in one request.
const HAND_BACK_MAX: usize = 256;
/// How long to wait after the disk refused something.
const DISK_RETRY: Duration = Duration::from_secs(2);
/// A stream that says nothing at all for so long after it was opened is of no use.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

impl Driver {
    pub(crate) fn new(
        around: Surroundings,
        state: State,
        (node, keepsakes): (Node, Keepsakes),
        view: watch::Sender<Option<Arc<View>>>,
    ) -> Self {
        let keepsakes = Arc::new(keepsakes);
        let (tell, happened) = mpsc::channel(HAPPENED_MAX);
        // All that the machine begins with came from the disk.
        let rules = Arc::clone(state.replica().rules());
        let remembering = Remembering {
            busy: false,
            again: false,
            retry: None,
            rules,
            keepsakes: Arc::clone(&keepsakes),
            bundle: state.replica().own_bundle().cloned(),
        };
        Self {
            around,
            state,
            node,
            svids: BTreeMap::new(),
            verified_under: None,
            view,
            session: None,
            sessions: 0,
            happened,
            tell,
            tasks: JoinSet::new(),
            remembering,
            enforced: None,
            lists: None,
            keepsakes,
            handed: (0, 0),
            keys: KeyMaker::new(),
        }
    }

    /// Runs until stopped.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        self.around.link.revoke(self.state.replica().rules());
        // What was acknowledged in an earlier life counts from the first connection on.
        if self
            .state
            .replica()
            .own_bundle()
            .is_some_and(|kept| self.node.bundle.sequence < kept.sequence)
        {
            self.check_bundle();
        }
        self.publish();
        self.step(Event::Woke);
        loop {
            let wake = self.state.next_wake(self.around.clock.now());
            let wake = self.remembering.retry.map_or(wake, |retry| retry.min(wake));
            let clock = Arc::clone(&self.around.clock);
            tokio::select! {
                () = stop.cancelled() => break,
                Some(happened) = self.happened.recv() => self.handle(happened),
                () = clock.sleep_until(wake) => self.woke(),
                Some(_done) = self.tasks.join_next() => {}
            }
        }
        // A snapshot that is being written is finished: it must not be torn from under the writer.
        drop(self.session.take());
        drop(self.happened);
        while self.tasks.join_next().await.is_some() {}
        // What waited behind it is written now: an orderly end takes no rule away, acknowledged or not.
        if self.remembering.again || self.remembering.retry.is_some() {
            let (replica, disk) = (Arc::clone(self.state.replica()), self.around.disk);
            let rules = Some((Arc::clone(replica.rules()), Arc::clone(&self.keepsakes)));
            if let Err(why) = keep(disk, rules, replica, self.state.seen(), &self.tell).await {
                tracing::error!(%why, "the records were not written down");
            }
        }
    }

    fn handle(&mut self, happened: Happened) {
        match happened {
            Happened::Opened(number, _) | Happened::Said(number, _) if number != self.sessions => {}
            Happened::Opened(_, Ok(session)) => {
                self.take(session);
                self.step(Event::Opened);
            }
            Happened::Opened(_, Err(fault)) | Happened::Said(_, Err(fault)) => {
                let server = self.server(self.state.link().server);
                let refused = self.state.link().refused;
                if fault.code == Code::StaleGeneration {
                    tracing::debug!(server, "the stream ends for the renewed certificate's");
                } else {
                    tracing::warn!(server, code = %fault.code, why = %fault.why, "no server");
                }
                self.session = None;
                if fault.code == Code::StaleGeneration {
                    self.step(Event::KeySucceeded);
                }
                self.step(Event::Closed { code: fault.code, why: fault.why });
                self.tell_if_shut_out(refused);
                self.publish();
            }
            Happened::Said(_, Ok(SyncMessage::Signed(signed))) => {
                // The message that holds these rules is the next one; they are written down with it.
                let incarnation = self.state.replica().revision().incarnation;
                Arc::make_mut(&mut self.keepsakes).learn(signed, incarnation);
            }
            Happened::Said(_, Ok(message)) => self.said(message),
            Happened::Signed(signed) => self.signed(signed),
            Happened::NodeRenewed(Ok(node)) => {
                let credential = node.credential();
                let expires = credential.term.expires;
                tracing::info!(%expires, "the agent's own certificate was renewed");
                self.node = node;
                self.step(Event::NodeRenewed(credential));
                self.publish();
            }
            Happened::NodeRenewed(Err(fault)) => {
                tracing::warn!(code = %fault.code, why = %fault.why, "the agent's own certificate was not renewed");
                let refused = self.state.link().refused;
                self.step(Event::NodeRenewalFailed { code: fault.code, why: fault.why });
                self.tell_if_shut_out(refused);
                self.publish();
            }
            Happened::RulesKept(rules, keepsakes) => {
                self.remembering.rules = rules;
                self.remembering.keepsakes = keepsakes;
                self.publish();
            }
            Happened::Listed(lists) => {
                self.lists = Some(lists);
                self.publish();
            }
            Happened::Remembered(kept) => self.remembered(kept),
        }
    }

    fn said(&mut self, message: SyncMessage) {
        let is_mark = matches!(message, SyncMessage::Mark { .. });
        self.step(Event::Said(message));
        if self.session.is_none() {
            return;
        }
        let replica = Arc::clone(self.state.replica());
        if !is_mark {
            let settled = self.keepsakes.settled(&replica, self.state.seen());
            if settled != *self.keepsakes {
                self.keepsakes = Arc::new(settled);
                self.remember();
            }
        }
        // Once for a session and an incarnation: what is missing later was withdrawn by the server's own word. A stream may
        // outlive the beginning of an incarnation, whose state lacks what the store has lost.
        let now = (self.sessions, replica.revision().incarnation);
        if std::mem::replace(&mut self.handed, now) != now {
            self.hand_back(self.keepsakes.missing(&replica));
        }
    }

    /// Hands rules back that the server's state lacks. What fails is handed back on the next session.
    fn hand_back(&mut self, missing: Vec<v1::SignedRecord>) {
        let Some(session) = self.session.as_ref().filter(|_| !missing.is_empty()) else { return };
        let calls = Arc::clone(&session.calls);
        self.tasks.spawn(async move {
            for some in missing.chunks(HAND_BACK_MAX) {
                match calls.hand_back(some.to_vec()).await {
                    Ok(0) => {}
                    Ok(taken) => tracing::warn!(taken, "the server took back rules that it had lost"),
                    Err(fault) => {
                        tracing::warn!(code = %fault.code, why = %fault.why, "rules that the server lacks could not be handed back");
                        return;
                    }
                }
            }
        });
    }

    fn woke(&mut self) {
        self.step(Event::Woke);
        let now = self.around.clock.now();
        if self.remembering.retry.is_some_and(|retry| retry <= now) {
            self.remembering.retry = None;
            self.remember();
        }
    }

    /// Says it once, and not at each try.
    fn tell_if_shut_out(&self, before: Option<Code>) {
        if let Some(code) = self.state.link().refused.filter(|code| before != Some(*code)) {
            tracing::error!(
                node = %self.node.id, %code,
                "the servers refuse this node: what is held is served until it ends, and nothing new comes"
            );
        }
    }

    fn step(&mut self, event: Event) {
        let now = self.around.clock.now();
        let actions = self.state.step(event, now, &*self.around.entropy);
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Open { server, have } => self.open(server, have),
            Action::Close => {
                self.session = None;
                self.sessions += 1;
            }
            Action::RenewNode { server } => self.renew_node(server),
            Action::Sign(workloads) => self.sign(workloads),
            Action::Publish => {
                self.around.link.revoke(self.state.replica().rules());
                self.check_bundle();
                self.publish();
            }
            Action::Remember => self.remember(),
        }
    }

    fn server(&self, index: usize) -> String {
        self.around.servers.get(index).cloned().unwrap_or_default()
    }

    fn open(&mut self, server: usize, have: Option<Revision>) {
        // The number tells this session's messages from those of the ones before.
        self.sessions += 1;
        let number = self.sessions;
        let (link, server) = (Arc::clone(&self.around.link), self.server(server));
        let tell = self.tell.clone();
        self.tasks.spawn(async move {
            let opened = link.open(&server, have).await;
            // Nobody hears it when the agent stops meanwhile.
            tell.send(Happened::Opened(number, opened)).await.ok();
        });
    }

    /// Puts a session to use: its messages come to this task, acknowledgements and reports go out.
    fn take(&mut self, session: Session) {
        let Session { messages, acks, calls, quiet, pump } = session;
        let number = self.sessions;
        let forward = forward(number, messages, self.tell.clone(), Arc::clone(&self.around.clock));
        let reports = &self.around.reports;
        let acknowledge = reports.clone().acknowledge(acks, self.view.subscribe());
        let report = reports.clone().report(Arc::clone(&calls), self.view.subscribe(), quiet);
        let (clock, tell) = (Arc::clone(&self.around.clock), self.tell.clone());
        let views = self.view.subscribe();
        let lists = lists::follow(Arc::clone(&calls), views, clock, tell, Happened::Listed);
        let (clock, points) = (Arc::clone(&self.around.clock), reports.points.clone());
        let trials = Trials { clock, points }.run(Arc::clone(&calls), self.view.subscribe());
        let tasks = [
            AbortOnDropHandle::new(tokio::spawn(forward)),
            AbortOnDropHandle::new(tokio::spawn(acknowledge)),
            AbortOnDropHandle::new(tokio::spawn(report)),
            AbortOnDropHandle::new(tokio::spawn(lists)),
            AbortOnDropHandle::new(tokio::spawn(trials)),
        ];
        let ended = CancellationToken::new();
        let _end = ended.clone().drop_guard();
        self.session = Some(OpenSession { calls, ended, _end, _tasks: tasks, _pump: pump });
    }

    fn renew_node(&mut self, server: usize) {
        let (link, disk) = (Arc::clone(&self.around.link), Arc::clone(&self.around.disk));
        let (server, tell) = (self.server(server), self.tell.clone());
        let registered = Registered::of(&self.node);
        self.tasks.spawn(async move {
            let renewed = renewal::renew_node(&*link, &disk, &server, registered).await;
            tell.send(Happened::NodeRenewed(renewed)).await.ok();
        });
    }

    fn sign(&mut self, workloads: Vec<Arc<Workload>>) {
        let Some(session) = &self.session else { return };
        let (calls, tell) = (Arc::clone(&session.calls), self.tell.clone());
        let (ended, keys) = (session.ended.clone(), self.keys.clone());
        let (clock, tracer) = (Arc::clone(&self.around.clock), self.around.tracer.clone());
        let bundle = self.state.replica().own_bundle().cloned();
        self.tasks.spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                signed = renewal::sign(&*calls, &keys, workloads, bundle, (&*clock, &tracer)) => {
                    tell.send(Happened::Signed(signed)).await.ok();
                }
            }
        });
    }

    fn signed(&mut self, signed: Vec<Signed>) {
        let mut fresh = Vec::new();
        let mut outcomes = Vec::new();
        for Signed { name, outcome, svid } in signed {
            match &outcome {
                Outcome::Issued(credential) => {
                    let (id, expires) = (&credential.shown.id, credential.term.expires);
                    tracing::info!(%id, %expires, "an SVID was issued");
                }
                Outcome::Refused(Code::UnknownWorkload, why) => {
                    tracing::debug!(workload = %name, %why, "a workload of other nodes");
                }
                Outcome::Refused(code, why) => {
                    tracing::warn!(workload = %name, %code, %why, "the server refuses an SVID");
                }
                Outcome::Failed(why) => tracing::warn!(workload = %name, %why, "no SVID"),
            }
            fresh.extend(svid.map(|svid| (name.clone(), Arc::new(svid))));
            outcomes.push((name, outcome));
        }
        // Held only if the machine takes them: the workload may be gone or somebody else by now.
        let now = self.around.clock.now();
        let actions = self.state.step(Event::Signed(outcomes), now, &*self.around.entropy);
        for (name, svid) in fresh {
            if self.state.holds(&name, &svid.term.digest) {
                self.svids.insert(name, svid);
            }
        }
        for action in actions {
            self.act(action);
        }
    }

    /// After a change of our own bundle: what does not verify under it any more is not served any more.
    fn check_bundle(&mut self) {
        let bundle = self.state.replica().own_bundle().cloned();
        if bundle == self.verified_under {
            return;
        }
        self.verified_under.clone_from(&bundle);
        let Some(bundle) = bundle else { return };
        let bundles = Bundles::of(Bundle::clone(&bundle));
        self.node.bundle = Bundle::clone(&bundle);
        if let Err(fault) = renewal::present(&*self.around.link, &self.node) {
            tracing::warn!(why = %fault.why, "the agent's own certificate is not accepted under the new bundle");
        }
        let clock = &*self.around.clock;
        let bad = |(_, svid): &(&Name, &Arc<Svid>)| !renewal::still_good(svid, &bundles, clock);
        let bad: Vec<Name> = self.svids.iter().filter(bad).map(|(name, _)| name.clone()).collect();
        if !bad.is_empty() {
            self.step(Event::Unusable(bad));
        }
    }

    fn publish(&mut self) {
        let state = &self.state;
        self.svids.retain(|name, svid| state.holds(name, &svid.term.digest));
        let refusals = state.replica().workloads().keys();
        let refusals = refusals
            .filter_map(|name| Some((name.clone(), state.refusal(name)?.clone())))
            .collect();
        let spiffe_id = self.node.leaf().spiffe_id();
        if self.is_enforced() {
            self.enforced = Some(state.replica().revision());
        }
        let view = View {
            knowledge: state.knowledge(),
            replica: Arc::clone(state.replica()),
            enforced: self.enforced,
            svids: self.svids.clone(),
            refusals,
            standings: state.standings().map(|(name, one)| (name.clone(), one)).collect(),
            ours: state
                .replica()
                .workloads()
                .keys()
                .filter(|name| state.is_ours(name))
                .cloned()
                .collect(),
            reissued: state.reissued(),
            node: NodeView {
                id: self.node.id,
                spiffe_id: spiffe_id.unwrap_or_else(|_bad| self.node.bundle.domain.id()),
                standing: state.node(),
            },
            link: state.link(),
            budget_ends: state.first_expiry(),
            lists: self.lists.clone(),
        };
        self.view.send_replace(Some(Arc::new(view)));
    }

    /// Whether this agent may say that it enforces its revision: a server has said it in this life, all of it was understood,
    /// and no crash can take a revocation of it away, nor a root that others may count on it to trust.
    fn is_enforced(&self) -> bool {
        let replica = self.state.replica();
        self.state.knowledge() == Knowledge::Synced
            && replica.is_understood()
            && Arc::ptr_eq(replica.rules(), &self.remembering.rules)
            && Arc::ptr_eq(&self.keepsakes, &self.remembering.keepsakes)
            && replica.own_bundle() == self.remembering.bundle.as_ref()
    }

    fn remember(&mut self) {
        if self.remembering.busy {
            self.remembering.again = true;
            return;
        }
        self.remembering.busy = true;
        let (replica, seen) = (Arc::clone(self.state.replica()), self.state.seen());
        let rules = (Arc::clone(replica.rules()), Arc::clone(&self.keepsakes));
        let on_disk = Arc::ptr_eq(&rules.0, &self.remembering.rules)
            && Arc::ptr_eq(&rules.1, &self.remembering.keepsakes);
        let rules = (!on_disk).then_some(rules);
        let (disk, tell) = (Arc::clone(&self.around.disk), self.tell.clone());
        self.tasks.spawn(async move {
            let kept = keep(disk, rules, replica, seen, &tell).await;
            tell.send(Happened::Remembered(kept)).await.ok();
        });
    }

    fn remembered(&mut self, kept: Result<Option<Arc<Bundle>>, DiskFault>) {
        self.remembering.busy = false;
        match kept {
            Ok(bundle) => {
                let news = bundle != self.remembering.bundle;
                self.remembering.bundle = bundle;
                if news {
                    self.publish();
                }
            }
            Err(why) => {
                tracing::error!(%why, "the records were not written down");
                self.remembering.again = false;
                self.remembering.retry = Some(self.around.clock.now() + DISK_RETRY);
            }
        }
        if std::mem::take(&mut self.remembering.again) {
            self.remember();
        }
    }
}

/// Writes records down, the revocations first, and gives the bundle that is there then: the revision is acknowledged only
/// when both are.
async fn keep(
    disk: Arc<Disk>,
    rules: Option<(Arc<Revocations>, Arc<Keepsakes>)>,
    replica: Arc<Replica>,
    seen: Timestamp,
    tell: &mpsc::Sender<Happened>,
) -> Result<Option<Arc<Bundle>>, DiskFault> {
    if let Some((rules, keepsakes)) = rules {
        let (disk, written, signed) =
            (Arc::clone(&disk), Arc::clone(&rules), Arc::clone(&keepsakes));
        on_disk(move || disk.keep_rules(&written, &signed, seen)).await?;
        // Nobody hears it when the agent stops meanwhile.
        tell.send(Happened::RulesKept(rules, keepsakes)).await.ok();
    }
    let bundle = replica.own_bundle().cloned();
    on_disk(move || disk.keep_snapshot(&replica)).await?;
    Ok(bundle)
}

async fn on_disk(
    write: impl FnOnce() -> Result<(), DiskFault> + Send + 'static,
) -> Result<(), DiskFault> {
    // A write that panicked is a defect, and the runtime's end cancels none that has begun.
    tokio::task::spawn_blocking(write)
        .await
        .unwrap_or_else(|broken| Err(DiskFault::Unfinished(broken.to_string())))
}

/// Brings a session's messages to the driver, until it ends.
async fn forward(
    number: u64,
    mut messages: tokio_stream::wrappers::ReceiverStream<Result<SyncMessage, LinkFault>>,
    tell: mpsc::Sender<Happened>,
    clock: Arc<dyn Clock>,
) {
    let silent = || LinkFault::new(Code::TimedOut, "the server said nothing on its stream");
    let ended = || LinkFault::new(Code::Unavailable, "the server ended the stream");
    let deadline = clock.now() + FIRST_MESSAGE_TIMEOUT;
    let mut next = tokio::select! {
        biased;
        first = messages.next() => first.unwrap_or_else(|| Err(ended())),
        () = clock.sleep_until(deadline) => Err(silent()),
    };
    loop {
        let ends = next.is_err();
        if tell.send(Happened::Said(number, next)).await.is_err() || ends {
            return;
        }
        next = messages.next().await.unwrap_or_else(|| Err(ended()));
    }
}
