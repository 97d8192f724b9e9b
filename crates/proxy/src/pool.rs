//! Connections to one address: kept, shared, succeeded before they retire, and never used once retired.
//!
//! HTTP/2 connections are shared by all requests, HTTP/1.1 ones are lent to one request at a time. Each has a task
//! that drives it and knows its end; near that, it opens a successor and takes the connection off the shelf.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use countersign_identity::{Code, Timestamp};
use countersign_program::seldom::Seldom;
use countersign_tls::Admitted;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::bounds::{
    CONNECTION_WINDOW, HEAD_BYTES_MAX, HEADER_LIST_BYTES_MAX, IDLE_MAX, MULTIPLEXED_MAX,
    PING_EVERY, PING_TIMEOUT, PROVOKED_RESETS_MAX, READY_TIMEOUT, SEND_BUFFER_MAX, STREAM_WINDOW,
    STREAMS_DIALLED_MAX,
};
use crate::dial::{DialFailure, Dialer, Dialled, Want};
use crate::gather::Gathering;
use crate::lease::{Lease, Line, On, Shared, Slot, State};
use crate::plane::Plane;
use crate::retire::{Retirement, is_fresh, is_succeeded};
use crate::session::Spoken;
use crate::unsent::Unsent;
use crate::way::GivingWay;
use crate::wire::Heard;

/// Under what a connection to a peer was admitted, and when it retires.
type Peer = (Admitted, Retirement);

/// The connections to one address.
pub(crate) struct Pool {
    plane: Arc<Plane>,
    dialer: Dialer,
    idle: Duration,
    shelf: Mutex<Shelf>,
    /// Held while a connection is opened that others may share, so that they wait for it and do not open their own.
    opening: tokio::sync::Mutex<()>,
    last: AtomicU64,
}

#[derive(Default)]
struct Shelf {
    shared: Vec<Arc<Shared>>,
    idle: Vec<Line>,
    /// What the other end spoke last. Nobody waits for a connection that cannot be shared.
    spoken: Option<Spoken>,
    /// How many connections were opened in turn, or could not be, and why the last one could not.
    tries: u64,
    failure: Option<DialFailure>,
    closed: bool,
}

impl Pool {
    pub(crate) fn new(plane: &Arc<Plane>, dialer: Dialer, idle: Duration) -> Arc<Self> {
        Arc::new(Self {
            plane: plane.clone(),
            dialer,
            idle,
            shelf: Mutex::default(),
            opening: tokio::sync::Mutex::new(()),
            last: AtomicU64::new(0),
        })
    }

    pub(crate) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// A connection for one request: one that stands, or a new one.
    pub(crate) async fn lease(self: &Arc<Self>, want: Want) -> Result<Lease, DialFailure> {
        let taken = if want == Want::AnyHttp { self.take_from_shelf() } else { None };
        match taken {
            Some(lease) if lease.is_ready() => Ok(lease),
            // Boxed, since a request seldom needs it, and would otherwise have a place for all of it.
            taken => Box::pin(self.wait_or_open(taken, want)).await,
        }
    }

    async fn wait_or_open(
        self: &Arc<Self>,
        taken: Option<Lease>,
        want: Want,
    ) -> Result<Lease, DialFailure> {
        if want != Want::AnyHttp {
            return self.open_boxed(want).await;
        }
        if let Some(lease) = self.take(taken).await {
            return Ok(lease);
        }
        if self.shelf().spoken == Some(Spoken::Http1) {
            return self.open_boxed(want).await;
        }
        let began = self.shelf().tries;
        let _turn = self.opening.lock().await;
        if let Some(lease) = self.take(None).await {
            return Ok(lease);
        }
        // Whoever waited for a try shares its failure. One after the other, they would wait for ever.
        let shared = {
            let shelf = self.shelf();
            shelf.failure.clone().filter(|_| began != shelf.tries)
        };
        match shared {
            Some(failure) => Err(failure),
            None => self.open_in_turn(want).await,
        }
    }

    /// Opens a connection while others wait for it.
    async fn open_in_turn(self: &Arc<Self>, want: Want) -> Result<Lease, DialFailure> {
        let opened = self.open_boxed(want).await;
        let mut shelf = self.shelf();
        shelf.tries += 1;
        shelf.failure = opened.as_ref().err().cloned();
        drop(shelf);
        opened
    }

    /// Whether the address can be connected to. What was opened is kept for the next request.
    pub(crate) async fn probe(self: &Arc<Self>) -> Result<(), DialFailure> {
        let _turn = self.opening.lock().await;
        self.open_in_turn(Want::AnyHttp).await.map(Lease::give_back)
    }

    /// Closes what was not used for a while.
    pub(crate) fn sweep(&self, now: Timestamp) {
        let fresh = |state: &State| is_fresh(state.used(), now, self.idle);
        let mut shelf = self.shelf();
        shelf.idle.retain(|line| !line.sender.is_closed() && fresh(&line.state));
        shelf.shared.retain(|shared| {
            let quiet = shared.streams.load(Ordering::Acquire) == 0 && !fresh(&shared.state);
            !shared.sender.is_closed() && !quiet
        });
    }

    /// Keeps nothing from now on. Requests under way end as they would.
    pub(crate) fn close(&self) {
        let mut shelf = self.shelf();
        shelf.closed = true;
        shelf.idle.clear();
        shelf.shared.clear();
    }

    /// The one that was taken, or another.
    async fn take(self: &Arc<Self>, mut taken: Option<Lease>) -> Option<Lease> {
        loop {
            let mut lease = match taken.take() {
                Some(taken) => taken,
                None => self.take_from_shelf()?,
            };
            match &mut lease.on {
                On::Stream(_) => return Some(lease),
                On::Line(line) if line.sender.is_ready() => return Some(lease),
                // Given back a moment ago, and its task has not run since.
                On::Line(line) => {
                    match tokio::time::timeout(READY_TIMEOUT, line.sender.ready()).await {
                        Ok(Ok(())) => return Some(lease),
                        Ok(Err(_closed)) => {}
                        Err(_elapsed) => {}
                    }
                }
            }
        }
    }

    fn take_from_shelf(self: &Arc<Self>) -> Option<Lease> {
        let now = self.plane.clock.now();
        let mut shelf = self.shelf();
        // The very moment that a peer is revoked, nothing goes to it any more: its connection's task may not know yet.
        shelf.shared.retain(|shared| !shared.sender.is_closed() && shared.state.takes_more());
        let least = shelf
            .shared
            .iter()
            .min_by_key(|shared| shared.streams.load(Ordering::Acquire))
            .cloned();
        if let Some(shared) = least {
            let full = STREAMS_DIALLED_MAX <= shared.streams.load(Ordering::Acquire);
            if !full || MULTIPLEXED_MAX <= shelf.shared.len() {
                return Some(self.stream(shared, true));
            }
            return None;
        }
        while let Some(line) = shelf.idle.pop() {
            let fresh = is_fresh(line.state.used(), now, self.idle);
            if fresh && !line.sender.is_closed() && line.state.takes_more() {
                line.state.touch(now);
                return Some(Lease {
                    on: On::Line(line),
                    pool: Arc::downgrade(self),
                    reused: true,
                });
            }
        }
        None
    }

    fn stream(self: &Arc<Self>, shared: Arc<Shared>, reused: bool) -> Lease {
        shared.streams.fetch_add(1, Ordering::AcqRel);
        shared.state.touch(self.plane.clock.now());
        Lease { on: On::Stream(Slot(shared)), pool: Arc::downgrade(self), reused }
    }

    /// As [`open`](Self::open). Boxed, since a request seldom needs it, and would otherwise have a place for a whole handshake.
    fn open_boxed(
        self: &Arc<Self>,
        want: Want,
    ) -> Pin<Box<impl Future<Output = Result<Lease, DialFailure>> + Send>> {
        Box::pin(self.open(want))
    }

    /// Dials, and starts the task that drives the connection.
    async fn open(self: &Arc<Self>, want: Want) -> Result<Lease, DialFailure> {
        let dialled = self.dialer.dial(&self.plane, want).await?;
        let now = self.plane.clock.now();
        let state = Arc::new(State {
            id: self.last.fetch_add(1, Ordering::Relaxed),
            retired: AtomicBool::new(false),
            used: AtomicI64::new(now.micros()),
            answered: AtomicBool::new(false),
            heard: dialled.heard.clone(),
            admitted: dialled.admitted.clone(),
        });
        let peer = dialled.admitted.clone().map(|admitted| {
            let ends = admitted.expires().min(admitted.presented_ends());
            (admitted, Retirement::dialled(now, ends, self.plane.jitter()))
        });
        if want == Want::AnyHttp {
            self.shelf().spoken = Some(dialled.spoken);
        }
        match dialled.spoken {
            Spoken::Http2 => self.open_shared(dialled, state, peer).await,
            Spoken::Http1 | Spoken::Either => self.open_line(dialled, state, peer).await,
        }
    }

    async fn open_shared(
        self: &Arc<Self>,
        dialled: Dialled,
        state: Arc<State>,
        peer: Option<Peer>,
    ) -> Result<Lease, DialFailure> {
        let heard = dialled.heard.clone();
        // What it begins with is only gathered here: a socket that breaks now is seen by the first request.
        let io = TokioIo::new(Gathering::new(dialled.wire));
        let handshake = http2_rules(&self.plane).handshake(io).await;
        let (sender, connection) = handshake.map_err(|error| self.unusable(&error, &heard))?;
        let shared = Arc::new(Shared {
            sender,
            unsent: Unsent::default(),
            state: state.clone(),
            streams: AtomicUsize::new(0),
        });
        let lease = self.stream(shared.clone(), false);
        {
            let mut shelf = self.shelf();
            if !shelf.closed {
                shelf.shared.push(shared);
            }
        }
        self.plane.tasks.start(drive(
            Arc::downgrade(self),
            self.plane.clone(),
            connection,
            state,
            peer,
        ));
        Ok(lease)
    }

    async fn open_line(
        self: &Arc<Self>,
        dialled: Dialled,
        state: Arc<State>,
        peer: Option<Peer>,
    ) -> Result<Lease, DialFailure> {
        let heard = dialled.heard.clone();
        let io = TokioIo::new(GivingWay::new(dialled.wire));
        let handshake = http1_rules().handshake(io).await;
        let (mut sender, connection) = handshake.map_err(|error| self.unusable(&error, &heard))?;
        let connection = connection.with_upgrades();
        self.plane.tasks.start(drive(
            Arc::downgrade(self),
            self.plane.clone(),
            connection,
            state.clone(),
            peer,
        ));
        sender.ready().await.map_err(|error| self.unusable(&error, &heard))?;
        Ok(Lease {
            on: On::Line(Line { sender, state }),
            pool: Arc::downgrade(self),
            reused: false,
        })
    }

    fn unusable(&self, error: &hyper::Error, heard: &Heard) -> DialFailure {
        if let Some(alert) = heard.refusal() {
            return DialFailure::refused(&self.dialer, alert);
        }
        let detail = format!("{} closed the connection at once: {error}", self.dialer);
        DialFailure { code: Code::PeerClosed, detail }
    }

    /// Opens the connection that takes over from `state`, unless one that is younger already stands.
    ///
    /// Boxed, since opening a connection starts the task that calls this.
    fn succeed<'a>(
        self: &'a Arc<Self>,
        state: &'a State,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            let _turn = self.opening.lock().await;
            let younger = |shared: &Arc<Shared>| {
                let stands = !shared.sender.is_closed() && shared.state.takes_more();
                stands && state.id < shared.state.id
            };
            let covered = {
                let shelf = self.shelf();
                shelf.closed || shelf.shared.iter().any(younger)
            };
            if covered {
                return;
            }
            match self.open(Want::AnyHttp).await {
                Ok(lease) => lease.give_back(),
                Err(error) => tracing::warn!(%error, "no successor for a connection that retires"),
            }
        })
    }

    pub(crate) fn forget(&self, id: u64) {
        let mut shelf = self.shelf();
        shelf.shared.retain(|shared| shared.state.id != id);
        shelf.idle.retain(|line| line.state.id != id);
    }

    /// Keeps a connection for the next request, if it may have one.
    pub(crate) fn put_back(&self, line: Line) {
        line.state.touch(self.plane.clock.now());
        let mut shelf = self.shelf();
        // Asked under the lock: the driving task marks first and then forgets, so one of the two sees the other.
        let usable = !shelf.closed && line.state.takes_more() && !line.sender.is_closed();
        if usable && shelf.idle.len() < IDLE_MAX {
            shelf.idle.push(line);
        }
    }

    fn shelf(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drives one connection from its start to its end, and retires it in time.
async fn drive<C>(
    pool: Weak<Pool>,
    plane: Arc<Plane>,
    connection: C,
    state: Arc<State>,
    peer: Option<Peer>,
) where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = std::pin::pin!(connection);
    let ended = match peer {
        Some(peer) => until_cut(&pool, &plane, connection.as_mut(), (&state, peer)).await,
        // What leads to a program of our own side is neither cut nor retired.
        None => connection.await,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection that we opened ended");
    }
    if let Some(pool) = pool.upgrade() {
        pool.forget(state.id);
    }
}

/// Drives a connection to a peer until it ends, or we end it. Retires it in time.
async fn until_cut<C>(
    pool: &Weak<Pool>,
    plane: &Plane,
    mut connection: Pin<&mut C>,
    (state, (admitted, life)): (&State, Peer),
) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
{
    let leave = || {
        state.retired.store(true, Ordering::Release);
        if let Some(pool) = pool.upgrade() {
            pool.forget(state.id);
        }
    };
    let retire = async {
        let last_request = tokio::select! {
            // Revoked, and to be drained: from now on nothing may begin on it, whether the successor comes or not.
            _why = admitted.retires() => {
                leave();
                None
            }
            () = plane.alarms.at(life.successor_due) => Some(life.last_request),
        };
        if is_succeeded(state.used(), plane.clock.now())
            && let Some(pool) = pool.upgrade()
        {
            let no_longer = async {
                match last_request {
                    Some(moment) => plane.alarms.at(moment).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = pool.succeed(state) => {}
                () = no_longer => {}
            }
        }
        leave();
    };
    // Who waits for something else does not read that its socket is shut.
    let mut cut = std::pin::pin!(Seldom::new(Box::pin(admitted.ended())));
    let mut retire = std::pin::pin!(Seldom::new(Box::pin(retire)));
    let mut retired = false;
    loop {
        tokio::select! {
            biased;
            _why = &mut cut => return Ok(()),
            ended = &mut connection => return ended,
            // It goes on until its last response is read; then nobody holds its sender, and it ends.
            () = &mut retire, if !retired => retired = true,
        }
    }
}

fn http1_rules() -> http1::Builder {
    let mut rules = http1::Builder::new();
    rules.max_buf_size(HEAD_BYTES_MAX);
    rules
}

fn http2_rules(plane: &Plane) -> http2::Builder<crate::tasks::Tasks> {
    let mut rules = http2::Builder::new(plane.tasks.clone());
    rules
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_local_error_reset_streams(PROVOKED_RESETS_MAX)
        .max_send_buf_size(SEND_BUFFER_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    rules
}
