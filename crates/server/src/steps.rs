//! The server without its edge: each call that it answers as one step, over any store, for simulations.
//!
//! What is decided, recorded, signed and published here is decided, recorded, signed and published by the code that
//! serves; left out are the wires, the tasks and the waiting. Whoever drives it says when the snapshot advances, when a
//! stream is asked for its next message, and what time it is.

mod asked;
mod console;
mod files;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use countersign_api::admin::{Convergence, RevokeRequest, RevokeResponse};
use countersign_api::resource::{self, TrustDomainSpec};
use countersign_api::{v1, wire};
use countersign_audit::{Event, EventKind};
use countersign_identity::{
    Clock, Code, Entropy, KeyId, Lifetime, Name, NodeId, Revision, Timestamp, TrustDomain,
};
use countersign_pki::{ChainMemory, NoVault, PrivateKey, Role, Verified};
use countersign_seal::Kek;
use countersign_store::{Batch, Duties, Op, Store, TokenRow};
use countersign_tls::Source;
use futures_util::FutureExt;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Refused;
use crate::admin::{apply, change};
use crate::attest::renew::{Nonce, issue, prove, renewable};
use crate::attest::{Attempt, JoinToken, caller, join};
use crate::authority::{Ceremony, First, NewRoot, Unsealed, create_first_of, internal, unseal};
use crate::config::{ISSUER_LIFETIME_SECS, ROOT_LIFETIME_SECS};
use crate::control::Control;
use crate::edge::{Conduct, Crowd, Peer};
use crate::incarnation::LogKey;
use crate::issue::{Desk, sign};
use crate::log::{Signer, Signing};
use crate::publish::{
    Leashed, Next, Publication, Roster, Slice, Slices, attend, expired, hear, known,
};
use crate::revoke::{Converging, Inherited, converged, drop_moot, held, revoke};
use crate::run::latest;
use crate::state::{Feeder, State, Trouble};
use crate::watch::{TimeGuard, Watch, accept_clock};

pub use self::asked::token;
pub use self::console::{Answered, Console};
pub use self::files::{JournalLines, read_backup, write_backup};
pub use crate::views::revocation_list;

/// What a server stands on.
#[derive(Clone)]
pub struct Ground {
    /// The server's name, under which it has duties.
    pub name: String,
    /// Where the state is kept.
    pub store: Arc<dyn Store>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Arc<dyn Entropy>,
    /// How far time had come in the server's life before, as it wrote it down beside its store.
    pub steady: Option<Timestamp>,
}

/// One life of a server.
pub struct Steps {
    control: Arc<Control>,
    feeder: Feeder,
    trust: KeyId,
    crowd: Crowd,
}

/// An open stream of one agent.
pub struct Line {
    peer: Peer,
    node: NodeId,
    labels: BTreeSet<Name>,
    expires: Timestamp,
    publication: Publication,
    leashed: Leashed,
    number: u64,
}

/// What a stream does next.
#[derive(Debug)]
pub enum Told {
    /// It says this.
    Message(Box<v1::SyncResponse>),
    /// Nothing until then, unless the state moves.
    Nothing(Timestamp),
}

/// The source of all simulated calls.
const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Who administers in a simulation.
const OPERATOR: &str = "operator:simulated";

/// Begins a trust domain in an empty store, with these keys of its root and its first issuer.
///
/// # Errors
/// When the store refuses.
pub async fn begin(
    ground: &Ground,
    kek: &Kek,
    domain: TrustDomain,
    root: &PrivateKey,
    issuer: &PrivateKey,
) -> Result<(), Refused> {
    let lifetime = |secs| Lifetime::from_secs(secs).map_err(internal);
    let now = ground.clock.now();
    let first = First {
        ceremony: Ceremony { store: &*ground.store, entropy: &*ground.entropy, now },
        kek,
        domain,
        root_lifetime: lifetime(ROOT_LIFETIME_SECS)?,
        issuer_lifetime: lifetime(ISSUER_LIFETIME_SECS)?,
    };
    create_first_of(first, &NewRoot::Here(root), issuer).await.map(|_trust| ())
}

/// Puts this key into a state as its log key. A server of a state without one signs no log and hands out no rules.
///
/// # Errors
/// When the store does not take it.
pub async fn put_log_key(ground: &Ground, kek: &Kek, key: &PrivateKey) -> Result<(), Refused> {
    LogKey::put(&*ground.store, kek, key, &*ground.entropy).await
}

impl Steps {
    /// Starts a server on what the store holds.
    ///
    /// # Errors
    /// When that does not make a state, or the authorities do not open.
    pub async fn start(ground: Ground, kek: &Kek) -> Result<Self, Refused> {
        let Ground { name, store, clock, entropy, steady } = ground;
        let authorities = match unseal(&*store, kek, &NoVault).await? {
            Unsealed::Open(authorities) => authorities,
            Unsealed::Sealed(why) => return Err(Refused::new(Code::NotReady, why)),
        };
        let highest = latest(&*store).await.map_err(internal)?;
        let (feeder, feed) = Feeder::start(Arc::clone(&store), Arc::clone(&clock)).await?;
        let trust = authorities.trust();
        let crowd = Crowd::new(clock.now());
        let log_key = LogKey::open(&*store, kek).await?;
        let desk = Desk {
            store: Arc::clone(&store),
            authorities: Arc::new(ArcSwap::from_pointee(authorities)),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            time: Arc::new(TimeGuard::new(highest, steady, &*clock)),
            memory: ChainMemory::new(),
        };
        let control = Control {
            duties: Arc::new(Duties::new(Arc::clone(&store), name)),
            store,
            feed,
            desk,
            rotation: None,
            roster: Roster::default(),
            converging: Converging::default(),
            inherited: Inherited::default(),
            replicas: None,
            slices: Slices::default(),
            watch: Arc::new(Watch::new(clock.now())),
            tracer: countersign_program::trace::Tracer::default(),
            pulse: Arc::default(),
            views: crate::views::Views::default(),
            signing: Signing::default(),
            log_key: log_key.map(Arc::new),
            lost: tokio::sync::watch::Sender::new(None),
            returned: crate::attest::Returned::default(),
            journal: None,
            node_authorities: None,
            clock,
            entropy,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        Ok(Self { control: Arc::new(control), feeder, trust, crowd })
    }

    /// The name of the root's key.
    pub fn trust(&self) -> KeyId {
        self.trust
    }

    /// How far time has come, to be written down; nothing while the clock is behind the log.
    pub fn steady(&self) -> Option<Timestamp> {
        self.control.desk.time.steady(&*self.control.clock).ok()
    }

    /// Takes the present time for right, by an operator's word.
    ///
    /// # Errors
    /// When the clock is not behind the log.
    pub async fn accept_clock(&self) -> Result<Revision, Refused> {
        let accepted = accept_clock(Arc::clone(&self.control), OPERATOR.to_owned()).await?;
        Ok(accepted.revision)
    }

    /// The trust domain's lifetimes.
    pub fn domain(&self) -> TrustDomainSpec {
        self.control.feed.current().domain().clone()
    }

    /// The snapshot's revision.
    pub fn revision(&self) -> Revision {
        self.control.feed.current().revision
    }

    /// Lets the snapshot catch up with the store. True when it moved.
    ///
    /// # Errors
    /// When the store holds what this version does not understand.
    pub async fn advance(&self) -> Result<bool, Refused> {
        let mut moved = false;
        while self.feeder.advance().await.map_err(|trouble| match trouble {
            Trouble::Store(refused) | Trouble::State(refused) => refused,
        })? {
            moved = true;
        }
        Ok(moved)
    }

    /// Signs what is in the log by now.
    ///
    /// # Errors
    /// When there is no log key, or the store holds what this version does not understand.
    pub async fn sign_log(&self) -> Result<(), Refused> {
        let key = self.control.log_key.as_ref().ok_or_else(|| internal("there is no log key"))?;
        Signer::new(Arc::clone(&self.control), Arc::clone(key))?.catch_up().await
    }

    /// What a node with these labels is to know, computed anew.
    pub fn slice(&self, labels: &BTreeSet<Name>) -> (Revision, Vec<v1::Record>) {
        let state = self.control.feed.current();
        (state.revision, Slice::cut(&state, labels, None).wire_records())
    }

    /// Puts manifests in force, beside what is there, and tells the new revision. The snapshot follows when it advances.
    ///
    /// # Errors
    /// When they break a rule; the first problem is told.
    pub async fn apply(&self, manifests: &[Value]) -> Result<Revision, Refused> {
        let resources = apply::read(manifests).map_err(invalid)?;
        let state = self.control.feed.current();
        let plan = apply::put(&state, resources, apply::Unnamed::Keep).map_err(invalid)?;
        self.commit(&state, plan).await
    }

    /// Removes one resource.
    ///
    /// # Errors
    /// When there is none, or what is left would break a rule.
    pub async fn remove(&self, kind: resource::Kind, name: &Name) -> Result<Revision, Refused> {
        let state = self.control.feed.current();
        let plan = apply::remove(&state, kind, name).map_err(invalid)?;
        let plan = plan.ok_or_else(|| Refused::new(Code::NotFound, "there is no such resource"))?;
        self.commit(&state, plan).await
    }

    async fn commit(&self, state: &State, plan: apply::Plan) -> Result<Revision, Refused> {
        if plan.changes.is_empty() {
            return Ok(state.revision);
        }
        let now = self.control.clock.now();
        let last_end = held(&*self.control.store, now).await?.last_end();
        let batch = plan.batch(state, OPERATOR, last_end, now);
        let committed = self.control.store.commit(batch).await?;
        self.control.desk.time.recorded(now);
        Ok(committed.revision)
    }

    /// Takes credentials out of service.
    ///
    /// # Errors
    /// As the server refuses it.
    pub async fn revoke(&self, request: RevokeRequest) -> Result<RevokeResponse, Refused> {
        let work = revoke(Arc::clone(&self.control), request, OPERATOR.to_owned());
        self.while_advancing(work).await
    }

    /// Who enforces a revision by now.
    ///
    /// # Errors
    /// As the server refuses it.
    pub async fn converged(&self, revision: Revision) -> Result<Convergence, Refused> {
        converged(&self.control, revision, None, Duration::ZERO).await
    }

    /// Drops the rules that cannot cover anything any more, by this server's clock, and tells their names. None when
    /// that is another's duty.
    ///
    /// # Errors
    /// When that clock is not to be trusted, or the snapshot is behind the store.
    pub async fn prune(&self) -> Result<Vec<String>, Refused> {
        drop_moot(&self.control).await
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn create_token(&self, ttl: Lifetime, labels: Vec<Name>) -> Result<String, Refused> {
        let now = self.control.clock.now();
        let token = JoinToken::draw(&*self.control.entropy).map_err(internal)?;
        let hash = token.digest();
        let event = Event::new(EventKind::TokenCreated, now, OPERATOR, hash.to_string());
        let row = TokenRow { hash, expires: now + ttl.duration(), labels, spent: None };
        let ops = vec![Op::CreateToken(row)];
        self.control.store.commit(Batch { ops, events: vec![event], ..Batch::default() }).await?;
        Ok(token.reveal().to_owned())
    }

    /// Removes a node.
    ///
    /// # Errors
    /// When there is none.
    pub async fn remove_node(&self, id: NodeId) -> Result<(), Refused> {
        let state = self.control.feed.current();
        let now = self.control.clock.now();
        let last_end = held(&*self.control.store, now).await?.last_end();
        let batch = change::removal(&state, id, OPERATOR, last_end, now);
        self.control.store.commit(batch).await?;
        self.control.roster.remove(id);
        Ok(())
    }

    /// Answers `Attest`.
    ///
    /// # Errors
    /// As the server refuses it.
    pub async fn attest(&self, request: v1::AttestRequest) -> Result<v1::AttestResponse, Refused> {
        let peer = Arc::new(self.connection(None, [0; 32]));
        self.while_advancing(join(Arc::clone(&self.control), peer, request)).await
    }

    /// Answers `Renew`: the node says who it is, and signs over the nonce and the connection's secret.
    ///
    /// # Errors
    /// As the server refuses it.
    pub async fn renew(
        &self,
        hello: &v1::RenewHello,
        exporter: &[u8; 32],
        answer: impl FnOnce(&[u8]) -> v1::RenewProof,
    ) -> Result<v1::Renewed, Refused> {
        let control = &*self.control;
        let id = wire::node_id(&hello.node_id).map_err(internal)?;
        let row = control.store.node(id).await?;
        let node = renewable(id, row, hello.generation, control.clock.now())?;
        let mut nonce: Nonce = [0; 32];
        control.entropy.fill(&mut nonce).map_err(internal)?;
        let peer = self.connection(None, *exporter);
        let attempt = Attempt::begin(control, &peer)?;
        let renewed = match prove(&attempt, &node, &nonce, exporter, &answer(&nonce)) {
            Ok(proven) => self.while_advancing(issue(control, node, proven)).await,
            Err(refused) => Err(refused),
        };
        attempt.ended(&renewed);
        renewed
    }

    /// Answers `Sign` on a connection that shows this chain.
    ///
    /// # Errors
    /// As the server refuses it.
    pub async fn sign(
        &self,
        shown: &[Bytes],
        request: v1::SignRequest,
    ) -> Result<v1::SignResponse, Refused> {
        let control = &self.control;
        let peer = self.peer(shown)?;
        let domain = self.domain().trust_domain;
        let caller = caller(&peer, control, &domain, control.clock.now()).await?;
        self.while_advancing(sign(Arc::clone(control), caller, request)).await
    }

    /// Opens a stream on a connection that shows this chain.
    ///
    /// # Errors
    /// As the server refuses it.
    pub async fn open(&self, shown: &[Bytes], hello: &v1::SyncHello) -> Result<Line, Refused> {
        let control = &self.control;
        let peer = self.peer(shown)?;
        let now = control.clock.now();
        let caller = caller(&peer, control, &self.domain().trust_domain, now).await?;
        let (caller, number, leashed) = attend(control, &peer, caller, hello).await?;
        let publication = Publication::new(known(control, &caller, hello), number, now);
        let (node, expires) = (caller.id(), caller.expires);
        Ok(Line { peer, node, labels: caller.labels, expires, publication, leashed, number })
    }

    /// What the stream says now.
    ///
    /// # Errors
    /// When it has ended, and why.
    pub fn next(&self, line: &mut Line) -> Result<Told, Refused> {
        if let Some(ended) = line.leashed.ended().now_or_never() {
            return Err(ended);
        }
        let now = self.control.clock.now();
        if line.expires < now {
            return Err(expired(line.expires));
        }
        let current = self.control.slices.at(&self.control.feed.current(), &line.labels);
        let message =
            |step| Told::Message(Box::new(v1::SyncResponse { step: Some(step), quiet_millis: 0 }));
        Ok(match line.publication.next(&current, now) {
            Next::Say(step) => message(step),
            Next::Change(delta) => message(v1::sync_response::Step::Changes(delta.changes())),
            Next::Wait(until) => {
                Told::Nothing(until.min(line.expires + std::time::Duration::from_micros(1)))
            }
        })
    }

    /// Takes an acknowledgement of the stream.
    ///
    /// # Errors
    /// When the caller is not who it was any more.
    pub async fn acknowledge(&self, line: &Line, ack: v1::SyncAck) -> Result<(), Refused> {
        let control = &self.control;
        let now = control.clock.now();
        caller(&line.peer, control, &self.domain().trust_domain, now).await?;
        hear(control, line.node, ack, line.publication.told(), now).await;
        Ok(())
    }

    /// The stream's connection is gone.
    pub fn leave(&self, line: &Line) {
        self.control.roster.leave(line.node, line.number);
    }

    /// What the node has acknowledged in this life of the server.
    pub fn acknowledged(&self, node: NodeId) -> Option<Revision> {
        self.control.roster.snapshot().get(&node)?.revision
    }

    /// What the TLS handshake would make of a connection.
    fn peer(&self, shown: &[Bytes]) -> Result<Peer, Refused> {
        let state = self.control.feed.current();
        let chain: Vec<&[u8]> = shown.iter().map(AsRef::as_ref).collect();
        let now = self.control.clock.now();
        let verified = countersign_pki::verify(&chain, state.bundles(), Role::Client, now)?;
        Ok(self.connection(Some(verified), [0; 32]))
    }

    /// What answers agents behind the port, and somebody who came in showing this.
    #[cfg(test)]
    pub(crate) fn service(&self, shown: Option<Verified>) -> (crate::edge::NodeService, Peer) {
        let service = crate::edge::NodeService::new(Arc::clone(&self.control));
        (service, self.connection(shown, [0; 32]))
    }

    fn connection(&self, verified: Option<Verified>, exporter: [u8; 32]) -> Peer {
        let conduct = Conduct::new(self.crowd.clone(), Source::of(SOURCE), None);
        Peer { address: SOURCE, verified, exporter, conduct }
    }

    /// Runs something that may wait for the snapshot, which advances whenever it does.
    async fn while_advancing<T>(
        &self,
        work: impl Future<Output = Result<T, Refused>>,
    ) -> Result<T, Refused> {
        let follow = async {
            loop {
                if let Err(refused) = self.advance().await {
                    return refused;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            refused = follow => Err(refused),
        }
    }
}

impl std::fmt::Debug for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Steps at {}", self.revision())
    }
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Line({}, {})", self.node, self.number)
    }
}

fn invalid(invalid: apply::Invalid) -> Refused {
    let first = invalid.problems.into_iter().next();
    let first = first.map(|problem| problem.to_string()).unwrap_or_default();
    Refused::new(invalid.code, first)
}
