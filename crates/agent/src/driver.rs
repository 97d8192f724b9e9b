//! The task that owns the machine's state, the keys and the session, and does what the machine says.

mod credentials;
mod records;
mod session;

use std::collections::BTreeMap;
use std::sync::Arc;

use countersign_identity::{Clock, Code, Entropy, Incarnation, Name, Revision, Revocations};
use countersign_pki::Bundle;
use countersign_program::trace::Tracer;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::records::{Remembering, keep};
use self::session::OpenSession;
use crate::core::{Action, Event, State, SyncMessage};
use crate::disk::{Disk, DiskFault, Node};
use crate::keepsakes::Keepsakes;
use crate::lists::RevocationLists;
use crate::renewal::{KeyMaker, Signed};
use crate::reports::Reports;
use crate::server_link::{LinkFault, ServerLink, Session};
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

const HAPPENED_MAX: usize = 64;

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
}
