//! One live connection: under what it was let in, what was proven since, and how it ends.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwapOption;
use countersign_identity::{Code, SpiffeId, Timestamp};
use countersign_pki::Verified;
use countersign_policy::Context;
use tokio_util::sync::CancellationToken;

use crate::Direction;
use crate::call::{Calls, LastingCall};
use crate::config::Agreed;
use crate::identity::Own;
use crate::reproof::ProofName;
use crate::rule::{Expired, Rule};
use crate::session::Session;
use crate::shares::Share;

/// Who is at the other end, and on what grounds.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) peer: Verified,
    /// What the handshake showed.
    pub(crate) context: Context,
}

/// One live connection.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(super) number: u64,
    pub(crate) rule: Rule,
    /// On what the two ends have agreed.
    pub(crate) agreed: Agreed,
    /// None for a peer that showed nothing, where that is allowed.
    pub(crate) standing: Option<Standing>,
    /// What we showed: who we were when the connection was made.
    pub(crate) shown: Option<Arc<Own>>,
    pub(crate) opened: Timestamp,
    /// Where the peer is.
    pub(crate) address: Option<SocketAddr>,
    /// Whether it is itself a re-proof, which nothing proves.
    pub(crate) is_proof: bool,
    /// By which a re-proof names it, once somebody has asked.
    pub(super) name: OnceLock<Option<ProofName>>,
    /// What was proven later, in place of what was at the beginning.
    pub(super) later: ArcSwapOption<Later>,
    /// The last moment at which it may be open. Written under the lock of its shard only, and only forward.
    pub(super) expires: AtomicI64,
    pub(super) unprovable: AtomicBool,
    /// Before which it is not proven anew, since the last try gained nothing.
    pub(super) proof_pause: AtomicI64,
    /// The one call that it has become, if it was upgraded.
    pub(crate) lasting: OnceLock<LastingCall>,
    /// Those under way over it, where they are decided on one by one.
    pub(crate) calls: Calls,
    /// What whoever serves it keeps with it.
    pub(crate) kept: OnceLock<Box<dyn Any + Send + Sync>>,
    /// What runs over it, so that cutting and naming need nobody's help. None once the owner gave the connection up.
    pub(super) session: Mutex<Option<Session>>,
    /// Its place among those of its peer, where these are counted, until it is taken out.
    pub(super) share: Mutex<Option<Share<Holder>>>,
    pub(super) cut: OnceLock<Code>,
    pub(super) ended: CancellationToken,
    pub(super) retirement: OnceLock<Retirement>,
    pub(super) retiring: CancellationToken,
}

/// Whose connections are counted together. Those that only prove others anew are counted apart: whoever has as many as it
/// may have can keep them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Holder {
    pub(super) id: SpiffeId,
    pub(super) is_proof: bool,
}

/// Nothing new may begin, and at the deadline what is left is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retirement {
    pub(super) code: Code,
    pub(super) deadline: Timestamp,
}

/// What a re-proof has shown, where it lasts longer than what came before.
#[derive(Clone, Debug)]
pub(super) struct Later {
    pub(super) at: Timestamp,
    pub(super) peer: Option<Verified>,
    pub(super) shown: Option<Arc<Own>>,
}

impl Entry {
    /// The two credentials by which it stands, the peer's and our own, as they were proven last.
    pub(crate) fn credentials<T>(
        &self,
        read: impl FnOnce(Option<&Verified>, Option<&Arc<Own>>) -> T,
    ) -> T {
        let later = self.later.load();
        let proven = later.as_ref();
        let peer = proven.and_then(|later| later.peer.as_ref());
        let shown = proven.and_then(|later| later.shown.as_ref());
        let first = self.standing.as_ref().map(|standing| &standing.peer);
        read(peer.or(first), shown.or(self.shown.as_ref()))
    }

    /// The last moment at which it may be open.
    pub(crate) fn expires(&self) -> Timestamp {
        Timestamp::from_micros(self.expires.load(Ordering::Acquire))
    }

    /// The last moment at which the peer may let it be open: the end of what we showed.
    pub(crate) fn shown_until(&self) -> Timestamp {
        self.credentials(|_, own| own.map_or(Timestamp::LAST, |own| own.identity.expires()))
    }

    /// When its ends were proven last.
    pub(crate) fn proven_at(&self) -> Timestamp {
        self.later.load().as_ref().map_or(self.opened, |later| later.at)
    }

    /// From when on it is proven anew, if it is: after the moment at which HTTP has gone over to a successor, and not while it
    /// pauses.
    pub(crate) fn proof_due(&self) -> Timestamp {
        let life = self.expires().min(self.shown_until()).since(self.proven_at());
        let pause = Timestamp::from_micros(self.proof_pause.load(Ordering::Relaxed));
        pause.max(self.proven_at() + life / 16 * 13)
    }

    /// Lets it be for an eighth of what it has left: nobody had anything newer to show at `now`.
    pub(crate) fn pause_proof(&self, now: Timestamp) {
        let left = self.expires().min(self.shown_until()).since(now);
        self.proof_pause.store((now + left / 8).micros(), Ordering::Relaxed);
    }

    /// Whether there is any use in trying to prove it anew.
    pub(crate) fn may_be_proven(&self) -> bool {
        let live = self.ended().is_none() && self.retiring().is_none();
        live && !self.unprovable.load(Ordering::Relaxed)
    }

    /// The peer knows of no re-proof.
    pub(crate) fn give_up_proof(&self) {
        self.unprovable.store(true, Ordering::Relaxed);
    }

    /// Whether it may go on when the peer's certificate has expired: the service says so, and the peer cannot prove it
    /// anew. One that did so once can, and has lost the right to show what it showed when it does not any more.
    pub(crate) fn outlives(&self) -> bool {
        let kept = self.standing.is_some() && self.rule.expired == Expired::Keep;
        kept && match self.rule.direction {
            Direction::Inbound => self.later.load().is_none(),
            Direction::Outbound => self.unprovable.load(Ordering::Relaxed),
        }
    }

    /// Why it was ended, if it was.
    pub(crate) fn ended(&self) -> Option<Code> {
        self.cut.get().copied()
    }

    /// Resolves when the connection is ended by us.
    pub(crate) async fn until_ended(&self) -> Code {
        self.ended.cancelled().await;
        self.ended().expect("the reason is set before the token is cancelled")
    }

    /// Why nothing new may begin on it, if it retires.
    pub(crate) fn retiring(&self) -> Option<Code> {
        self.retirement.get().map(|retirement| retirement.code)
    }

    /// Resolves when nothing new may begin on it any more.
    pub(crate) async fn until_retiring(&self) -> Code {
        self.retiring.cancelled().await;
        self.retiring().expect("the reason is set before the token is cancelled")
    }

    /// Ends it, both ways and at once. True the first time.
    pub(super) fn end(&self, code: Code) -> bool {
        if self.cut.set(code).is_err() {
            return false;
        }
        self.ended.cancel();
        if let Some(session) = &*self.session()
            && let Err(error) = session.shut()
        {
            // The peer was faster; closed is what was wanted.
            tracing::trace!(%error, "a connection to be ended was gone");
        }
        // What was read of it before goes no further, and what waits for something else hears of it.
        self.calls.end(code);
        true
    }

    /// By which a re-proof names it. None for what was broken or given up before anybody asked.
    pub(crate) fn name(&self) -> Option<ProofName> {
        // Some microseconds of work, for what few connections need.
        *self.name.get_or_init(|| self.session().as_ref().and_then(ProofName::of))
    }

    /// Gives its place among those of its peer to another.
    pub(super) fn give_up_share(&self) {
        self.share.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub(super) fn session(&self) -> MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything that is known of a connection when it asks to be entered.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) rule: Rule,
    pub(crate) agreed: Agreed,
    pub(crate) standing: Option<Standing>,
    pub(crate) shown: Option<Arc<Own>>,
    pub(crate) opened: Timestamp,
    pub(crate) expires: Timestamp,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) is_proof: bool,
    pub(crate) session: Option<Session>,
}
