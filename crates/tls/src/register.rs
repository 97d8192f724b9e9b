//! The live connections, and under what each of them was let in.

use std::collections::{BTreeSet, HashMap};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use countersign_identity::{Code, SpiffeId, Timestamp};
use countersign_pki::Verified;
use countersign_policy::Context;
use socket2::Socket;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::rule::Rule;

/// Who is at the other end, and on what grounds.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) rule: Rule,
    pub(crate) peer: Verified,
    /// Who we were when the connection was made.
    pub(crate) local: Option<SpiffeId>,
    /// What the handshake showed.
    pub(crate) context: Context,
}

/// One live connection.
#[derive(Debug)]
pub(crate) struct Entry {
    number: u64,
    /// None for a peer that showed nothing, where that is allowed.
    pub(crate) standing: Option<Standing>,
    pub(crate) opened: Timestamp,
    /// The last moment at which it may be open.
    pub(crate) expires: Timestamp,
    /// The last moment at which the peer may let it be open: the end of what we showed.
    pub(crate) shown_until: Timestamp,
    /// A second descriptor of the connection's socket, so that cutting needs nobody's help, whoever holds the first.
    /// None once the owner gave the connection up.
    socket: Mutex<Option<Socket>>,
    cut: OnceLock<Code>,
    ended: CancellationToken,
}

impl Entry {
    /// Why it was ended, if it was.
    pub(crate) fn ended(&self) -> Option<Code> {
        self.cut.get().copied()
    }

    /// Resolves when the connection is ended by us.
    pub(crate) async fn until_ended(&self) -> Code {
        self.ended.cancelled().await;
        self.ended().expect("the reason is set before the token is cancelled")
    }

    /// Ends it, both ways and at once. True the first time.
    pub(crate) fn end(&self, code: Code) -> bool {
        if self.cut.set(code).is_err() {
            return false;
        }
        self.ended.cancel();
        if let Some(socket) = &*self.socket()
            && let Err(error) = socket.shutdown(Shutdown::Both)
        {
            // The peer was faster; closed is what was wanted.
            tracing::trace!(%error, "a connection to be ended was gone");
        }
        true
    }

    fn socket(&self) -> MutexGuard<'_, Option<Socket>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything that is known of a connection when it asks to be entered.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) standing: Option<Standing>,
    pub(crate) opened: Timestamp,
    pub(crate) expires: Timestamp,
    pub(crate) shown_until: Timestamp,
    pub(crate) socket: Socket,
}

/// The live connections of a process.
#[derive(Debug)]
pub(crate) struct Register {
    connections_max: usize,
    live: Mutex<Live>,
    sooner: Notify,
}

#[derive(Debug, Default)]
struct Live {
    next: u64,
    entries: HashMap<u64, Arc<Entry>>,
    by_end: BTreeSet<(Timestamp, u64)>, // INVARIANT: only numbers that `entries` holds
}

impl Register {
    pub(crate) fn new(connections_max: usize) -> Self {
        Self { connections_max, live: Mutex::default(), sooner: Notify::new() }
    }

    /// Enters a connection; none when there are too many already.
    pub(crate) fn enter(&self, arrival: Arrival) -> Option<Arc<Entry>> {
        let mut live = self.live();
        if self.connections_max <= live.entries.len() {
            return None;
        }
        let number = live.next;
        live.next += 1;
        let entry = Arc::new(Entry {
            number,
            standing: arrival.standing,
            opened: arrival.opened,
            expires: arrival.expires,
            shown_until: arrival.shown_until,
            socket: Mutex::new(Some(arrival.socket)),
            cut: OnceLock::new(),
            ended: CancellationToken::new(),
        });
        live.entries.insert(number, Arc::clone(&entry));
        live.by_end.insert((entry.expires, number));
        let first = live.by_end.first() == Some(&(entry.expires, number));
        drop(live);
        if first {
            self.sooner.notify_one();
        }
        Some(entry)
    }

    /// Takes a connection out whose owner has closed its socket, which closes it for good.
    pub(crate) fn evict(&self, entry: &Entry) {
        entry.socket().take();
        let mut live = self.live();
        live.entries.remove(&entry.number);
        live.by_end.remove(&(entry.expires, entry.number));
    }

    /// All that are live.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.live().entries.values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.live().entries.len()
    }

    /// Ends those whose last moment has passed, and tells the last moment of the next.
    pub(crate) fn sweep(&self, now: Timestamp) -> Option<Timestamp> {
        let mut over = Vec::new();
        let next = {
            let mut live = self.live();
            loop {
                let Some(&(expires, number)) = live.by_end.first() else { break None };
                if now <= expires {
                    break Some(expires);
                }
                live.by_end.pop_first();
                over.extend(live.entries.get(&number).cloned());
            }
        };
        for entry in over {
            let code = if entry.standing.is_some() { Code::Expired } else { Code::Unauthenticated };
            entry.end(code);
        }
        next
    }

    /// Resolves when a connection was entered that ends before all others.
    pub(crate) async fn sooner(&self) {
        self.sooner.notified().await;
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        // Each critical section leaves the maps whole, so a panic elsewhere does not spoil them.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
