//! Re-proof: how a connection that cannot be drained outlives the certificates by which it was made.
//!
//! Whoever dialled makes another mutual handshake with the same peer, by which both show what they have now, and names
//! the connections that it holds open, each by a secret that only its two ends know (RFC 8446, 7.5). Each end then
//! counts the ends of the certificates that it has just seen. The handshake is admitted like any other: policy and
//! revocations are asked. It is for the same identity and the same purpose, and never shortens what there was.
//!
//! Who was told that nothing was gained asks again after an eighth of what is left, and so some forty times at most until the end,
//! where the other end is late to renew.
//!
//! On the connection: a count (two bytes), as many names (32 bytes each), and as many answers (one byte each, 1 for
//! proven).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Code, SpiffeId, Timestamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admission;
use crate::register::{Entry, Proved, Standing};
use crate::session::{EXPORTED_BYTES, Session};
use crate::{
    Direction, Established, Expected, HandshakeFact, HandshakeFailure, Outbound, Purpose, Stream,
    Trust, dial,
};

/// The application protocol that asks for a re-proof. A door that takes part offers it.
pub const REPROOF_ALPN: &[u8] = b"countersign-reproof";
/// How many connections one re-proof names at most.
pub const REPROOF_NAMES_MAX: usize = 512;
/// How long naming and answering may take, after the handshake.
pub const REPROOF_TIMEOUT: Duration = Duration::from_secs(5);

/// How often whoever dials looks for connections that need it.
const EVERY: Duration = Duration::from_millis(500);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// How many connections may be named, some microseconds each, before others have their turn.
const NAMED_AT_ONCE: usize = 64;
const LABEL: &str = "EXPORTER-countersign-reproof";

/// By which the two ends of a connection, and nobody else, know it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ProofName([u8; EXPORTED_BYTES]);

impl ProofName {
    /// None for what is broken already.
    pub(crate) fn of(session: &Session) -> Option<Self> {
        session.export(LABEL).ok().map(Self)
    }
}

impl fmt::Debug for ProofName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProofName")
    }
}

/// Why a re-proof came to nothing. What was open goes on until its own end.
#[derive(Debug, thiserror::Error)]
pub enum ReproofFault {
    /// More than the bound.
    #[error("{count} connections are named, over the limit of {REPROOF_NAMES_MAX}")]
    Many {
        /// How many.
        count: usize,
    },
    /// Slow.
    #[error("it was not done within {REPROOF_TIMEOUT:?}")]
    Late,
    /// Broken off.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// An older version, or something else altogether.
    #[error("the peer does not know of re-proof")]
    NotSpoken,
    /// No handshake.
    #[error(transparent)]
    Handshake(#[from] HandshakeFailure),
}

/// Answers a peer that asks for a re-proof over this connection, and tells how many connections may go on for longer by it.
///
/// # Errors
/// When the peer names too many, breaks off, or takes too long.
pub async fn answer_reproof(trust: &Trust, mut stream: Stream) -> Result<usize, ReproofFault> {
    let exchange = async {
        let count = usize::from(stream.read_u16().await?);
        if REPROOF_NAMES_MAX < count {
            return Err(ReproofFault::Many { count });
        }
        let mut names = vec![[0; EXPORTED_BYTES]; count];
        for name in &mut names {
            stream.read_exact(name).await?;
        }
        let proof = Arc::clone(stream.admitted().entry());
        let held = trust.named(&proof, names.iter().copied().map(ProofName).collect()).await;
        let proved = names.into_iter().map(|name| {
            held.get(&ProofName(name)).map_or(Proved::Nothing, |held| trust.prove(held, &proof))
        });
        let proved: Vec<Proved> = proved.collect();
        let answers: Vec<u8> = proved.iter().map(|it| u8::from(*it != Proved::Nothing)).collect();
        stream.write_all(&answers).await?;
        stream.shutdown().await?;
        Ok(more(&proved))
    };
    within(trust, exchange).await
}

/// Connections to one peer that one handshake may prove.
#[derive(Debug)]
pub struct Reproof {
    address: SocketAddr,
    outbound: Outbound,
    entries: Vec<Arc<Entry>>,
}

impl Reproof {
    /// Where the peer is.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it is for.
    pub fn count(&self) -> usize {
        self.entries.len()
    }
}

impl Trust {
    /// Proves anew, in time, what we dialled and what is still open near its end, until told to stop. Each handshake is
    /// reported. Runs beside what dials, where connections are to outlive certificates.
    pub async fn keep_proven(
        self: Arc<Self>,
        report: impl Fn(HandshakeFact) + Clone + Send + Sync + 'static,
        stop: CancellationToken,
    ) {
        loop {
            let next = self.clock().now() + EVERY;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.clock().sleep_until(next) => {}
            }
            let mut rounds = JoinSet::new();
            for due in self.reproofs_due() {
                let (trust, report) = (Arc::clone(&self), report.clone());
                rounds.spawn(async move {
                    let count = due.count();
                    match trust.reprove(due, report).await {
                        Ok(0) => tracing::debug!(count, "a re-proof showed nothing newer"),
                        Ok(proven) => tracing::debug!(count, proven, "connections were re-proven"),
                        Err(fault) => {
                            tracing::info!(count, %fault, "connections were not re-proven");
                        }
                    }
                });
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _all = async { while rounds.join_next().await.is_some() {} } => {}
            }
        }
    }

    /// What needs to be proven anew now, by peer and purpose; of each not more than can be named. What
    /// [`keep_proven`](Self::keep_proven) does twice a second is to [`reprove`](Self::reprove) all of it; a simulation does so itself.
    pub fn reproofs_due(&self) -> Vec<Reproof> {
        let Some(own) = self.valid_own() else { return Vec::new() };
        let now = self.now();
        let mut due: HashMap<(SocketAddr, Purpose, SpiffeId), Reproof> = HashMap::new();
        for entry in self.register.entries() {
            let Some((standing, address)) = wants_proof(&entry, now, own.identity.expires()) else {
                continue;
            };
            let peer = standing.peer.id.clone();
            let outbound = Outbound {
                purpose: entry.rule.purpose.clone(),
                terms: entry.rule.usual,
                alpn: vec![REPROOF_ALPN.to_vec()],
                timeout: HANDSHAKE_TIMEOUT,
                ..Outbound::control(Expected::Id(peer.clone()))
            };
            let key = (address, entry.rule.purpose.clone(), peer);
            let due = due.entry(key).or_insert_with(|| Reproof {
                address,
                outbound,
                entries: Vec::new(),
            });
            if due.entries.len() < REPROOF_NAMES_MAX {
                due.entries.push(Arc::clone(&entry));
            }
        }
        due.into_values().collect()
    }

    /// Proves these anew, as far as the peer can, and says how many may go on for longer by what both ends show now. The others
    /// are not due again for a while.
    ///
    /// # Errors
    /// When nothing was proven. Who does not know of re-proof is not asked again for these.
    pub async fn reprove(
        self: &Arc<Self>,
        due: Reproof,
        report: impl Fn(HandshakeFact),
    ) -> Result<usize, ReproofFault> {
        let proven = self.ask_for_proof(&due, report).await;
        if let Err(ReproofFault::NotSpoken) = proven {
            due.entries.iter().for_each(|entry| entry.give_up_proof());
        }
        proven
    }

    async fn ask_for_proof(
        self: &Arc<Self>,
        due: &Reproof,
        report: impl Fn(HandshakeFact),
    ) -> Result<usize, ReproofFault> {
        let named = with_names(&due.entries).await;
        if named.is_empty() {
            return Ok(0);
        }
        let Established { mut stream, fact } = match dial(self, due.address, &due.outbound).await {
            Ok(established) => established,
            Err(failure) => {
                report(HandshakeFact::clone(&failure.fact));
                let not_spoken = failure.code == Code::NoSharedProtocol;
                return Err(if not_spoken { ReproofFault::NotSpoken } else { failure.into() });
            }
        };
        report(fact);
        // A door of bytes that knows nothing of it would hand the names to the program behind it.
        if stream.alpn() != Some(REPROOF_ALPN) {
            return Err(ReproofFault::NotSpoken);
        }
        let exchange = async {
            let count = u16::try_from(named.len()).unwrap_or(u16::MAX);
            let mut question = count.to_be_bytes().to_vec();
            named.iter().for_each(|(name, _)| question.extend(name.0));
            stream.write_all(&question).await?;
            stream.flush().await?;
            let mut answers = vec![0; named.len()];
            stream.read_exact(&mut answers).await?;
            let proof = stream.admitted().entry();
            let proved: Vec<Proved> = named
                .iter()
                .zip(answers)
                .map(|((_, entry), answer)| match answer {
                    1 => self.prove(entry, proof),
                    _ => Proved::Nothing,
                })
                .collect();
            let without = named.iter().zip(&proved).filter(|(_, proved)| **proved != Proved::More);
            without.for_each(|((_, entry), _)| entry.pause_proof(self.now()));
            Ok(more(&proved))
        };
        within(self, exchange).await
    }

    /// Those of these names that are between the two ends of the proof. Nobody else's are looked at.
    async fn named(
        &self,
        proof: &Entry,
        names: HashSet<ProofName>,
    ) -> HashMap<ProofName, Arc<Entry>> {
        let mut held = HashMap::new();
        if names.is_empty() {
            return held;
        }
        // Those who ask wait for each other, so that no more than one of them keeps us at it.
        let _one_at_a_time = self.naming.lock().await;
        let entries = self.register.entries_where(|it| !it.is_proof && same_ends(it, proof));
        let with_names = with_names(&entries).await.into_iter();
        held.extend(with_names.filter(|(name, _)| names.contains(name)));
        held
    }

    /// Lets what `proof` showed count for `held`. Count first, decide second, as in admission: a slice that is applied
    /// meanwhile sees the one, or is seen by the other.
    fn prove(&self, held: &Arc<Entry>, proof: &Entry) -> Proved {
        if !same_ends(held, proof) {
            return Proved::Nothing;
        }
        let proved = self.register.prove(held, proof);
        let goes_on = || admission::review_one(&self.register, held, &self.slice(), self.now());
        if proved == Proved::Nothing || !goes_on() { Proved::Nothing } else { proved }
    }
}

/// How many of them may go on for longer.
fn more(proved: &[Proved]) -> usize {
    proved.iter().filter(|it| **it == Proved::More).count()
}

/// Those that have a name, with it.
async fn with_names(entries: &[Arc<Entry>]) -> Vec<(ProofName, Arc<Entry>)> {
    let mut named = Vec::with_capacity(entries.len());
    for some in entries.chunks(NAMED_AT_ONCE) {
        named.extend(some.iter().filter_map(|it| Some((it.name()?, Arc::clone(it)))));
        tokio::task::yield_now().await;
    }
    named
}

/// Whether both are between the same two identities, for the same purpose, and dialled from the same side; and whether the later
/// peer is attested by no less, since what goes on is decided by what the earlier one was attested by.
fn same_ends(held: &Entry, proof: &Entry) -> bool {
    let (Some(held_by), Some(proven_by)) = (&held.standing, &proof.standing) else { return false };
    held_by.peer.id == proven_by.peer.id
        && held.rule.direction == proof.rule.direction
        && held.rule.purpose == proof.rule.purpose
        && held_by.context.attested.is_within(proven_by.context.attested)
        && local(held) == local(proof)
}

/// Who we were when it was made.
fn local(entry: &Entry) -> Option<&SpiffeId> {
    entry.shown.as_ref().map(|own| own.identity.id())
}

/// Whether we dialled it, and it is near an end that a handshake can move: after the moment at which HTTP has gone over
/// to a successor, so that what is left cannot be drained.
fn wants_proof(entry: &Entry, now: Timestamp, own: Timestamp) -> Option<(&Standing, SocketAddr)> {
    let standing = entry.standing.as_ref()?;
    let address = entry.address?;
    let (theirs, ours) = (entry.expires(), entry.shown_until());
    let late = entry.proof_due() <= now;
    // The nearer end is ours, and we have nothing newer: it would be of no use.
    let useless = ours <= theirs && own <= ours;
    let wanted = entry.rule.direction == Direction::Outbound
        && entry.may_be_proven()
        && late
        && !useless
        && !entry.is_proof;
    wanted.then_some((standing, address))
}

async fn within<T>(
    trust: &Trust,
    exchange: impl Future<Output = Result<T, ReproofFault>>,
) -> Result<T, ReproofFault> {
    let clock = trust.clock();
    tokio::select! {
        biased;
        done = exchange => done,
        () = clock.sleep_until(clock.now() + REPROOF_TIMEOUT) => Err(ReproofFault::Late),
    }
}
