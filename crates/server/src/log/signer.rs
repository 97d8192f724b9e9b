//! Signs the log: one server, by its duty, at least every second while there are events.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_audit::{Checkpoint, Edge, Note, NoteKey, Origin};
use countersign_identity::{Code, Failed, Incarnation, Sha256, Timestamp};
use countersign_store::{Batch, CheckpointRow, Duty, Op, PAGE_MAX};
use tokio_util::sync::CancellationToken;

use super::reader::LogReader;
use crate::authority::internal;
use crate::control::Control;
use crate::incarnation::LogKey;
use crate::refusal::Refused;

/// How often it is looked for events that are not signed yet.
const PAUSE: Duration = Duration::from_millis(500);
/// The duty of one server to sign.
const DUTY: Duty = Duty { name: "log/sign", ttl: Duration::from_secs(10) };
/// How many leaves are signed for at once; a log that was never signed is caught up with in such steps.
const LEAVES_MAX: usize = 16 * PAGE_MAX;

/// Whether the log is being signed, and how far it is.
#[derive(Debug, Default)]
pub(crate) struct Signing(Mutex<Found>);

#[derive(Debug, Default)]
struct Found {
    trouble: Option<String>,
    progress: Progress,
}

/// How far the log is signed, and whether the store could be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Events in the log.
    pub(crate) events: u64,
    /// Events in the newest checkpoint.
    pub(crate) signed: u64,
    /// When it was last signed, or found to be signed to its end.
    pub(crate) at: Option<Timestamp>,
    /// When the store last answered.
    pub(crate) read: Option<Timestamp>,
    /// When it last did not, and why.
    pub(crate) unread: Option<Failed>,
}

impl Signing {
    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, trouble: Option<String>) {
        let mut found = self.found();
        if let Some(why) = trouble.as_ref().filter(|why| found.trouble.as_ref() != Some(*why)) {
            tracing::error!(why, "the audit log is not signed");
        }
        found.trouble = trouble;
    }

    fn see(&self, see: impl FnOnce(&mut Progress)) {
        see(&mut self.found().progress);
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> Progress {
        self.found().progress.clone()
    }

    /// What an operator should know.
    pub(crate) fn warning(&self) -> Option<String> {
        let found = self.found();
        found.trouble.as_ref().map(|why| format!("the audit log is not signed: {why}"))
    }
}

/// Signs what has been appended.
pub(crate) struct Signer {
    control: Arc<Control>,
    log_key: Arc<LogKey>,
    key: NoteKey,
    signed: Option<Signed>,
    /// The newest note that was read, and the checkpoint that its signature was found to vouch for: while nothing happens,
    /// it is the same at every look.
    opened: Option<(Note, Checkpoint)>,
}

/// The tree as far as this server has signed it.
#[derive(Clone)]
struct Signed {
    incarnation: Incarnation,
    edge: Edge,
    root: Sha256,
}

impl Signer {
    /// With the trust domain's log key.
    ///
    /// # Errors
    /// When the key cannot sign notes.
    pub(crate) fn new(control: Arc<Control>, log_key: Arc<LogKey>) -> Result<Self, Refused> {
        let key = log_key.note_key(&control.feed.current().domain().trust_domain)?;
        Ok(Self { control, log_key, key, signed: None, opened: None })
    }

    /// Looks again and again until stopped, and once more then. What fails is told and tried again.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut stopped = false;
        loop {
            let looked = self.look().await;
            let (signing, now) = (&self.control.signing, self.control.clock.now());
            match &looked {
                // Away for a moment; others tell of that.
                Err(refused) if refused.code == Code::Unavailable => {
                    let failed = Failed { at: now, why: refused.why.as_str().into() };
                    signing.see(|progress| progress.unread = Some(failed));
                }
                Ok(_) | Err(_) => signing.see(|progress| progress.read = Some(now)),
            }
            match looked {
                Ok(true) => continue,
                Ok(false) => signing.note(None),
                Err(refused) if refused.code == Code::Unavailable => {}
                Err(refused) => signing.note(Some(refused.why)),
            }
            if stopped {
                return;
            }
            tokio::select! {
                () = stop.cancelled() => stopped = true,
                () = tokio::time::sleep(self.control.clock.beat(PAUSE)) => {}
            }
        }
    }

    /// Signs all that there is, if it is this server's turn.
    ///
    /// # Errors
    /// When the store does not answer, or what was signed before is not so any more.
    pub(crate) async fn catch_up(&mut self) -> Result<(), Refused> {
        while self.look().await? {}
        Ok(())
    }

    /// Signs once, if there is something to sign and it is this server's turn; says whether there is more.
    async fn look(&mut self) -> Result<bool, Refused> {
        let control = Arc::clone(&self.control);
        let (log, head) = LogReader::of(&*control.store, None).await?;
        let last = log.newest().await?.map(|(_, note)| self.open(note)).transpose()?;
        let ours = self.signed.as_ref().filter(|signed| signed.incarnation == log.incarnation());
        if let (Some(ours), Some(last)) = (ours, &last)
            && last.size == ours.edge.size()
            && last.root != ours.root
        {
            return Err(went_another_way(last.size));
        }
        let signed = last.as_ref().map_or(0, |last| last.size);
        let signed = ours.map_or(signed, |ours| ours.edge.size().max(signed));
        if head.log_size < signed {
            let leaves = head.log_size;
            let why = format!("it has {leaves} events, and {signed} of them were signed before");
            return Err(Refused::new(Code::Internal, why));
        }
        let now = control.clock.now();
        control.signing.see(|progress| {
            (progress.events, progress.signed) = (head.log_size, signed);
            if head.log_size == signed {
                progress.at = Some(now);
            }
        });
        if head.log_size == signed || !control.duties.is_ours(DUTY, now).await? {
            return Ok(false);
        }
        let from = match (self.signed.take(), last) {
            (Some(ours), _)
                if ours.incarnation == log.incarnation() && ours.edge.size() == signed =>
            {
                ours.edge
            }
            (_, Some(last)) => resume(log, &last).await?,
            (_, None) => Edge::default(),
        };
        let to = head.log_size.min(from.size() + LEAVES_MAX as u64);
        self.sign(log, from, to).await?;
        Ok(to < head.log_size)
    }

    /// The checkpoint of a note that the log's own key has signed.
    fn open(&mut self, note: Note) -> Result<Checkpoint, Refused> {
        if let Some((known, checkpoint)) = &self.opened
            && *known == note
        {
            return Ok(checkpoint.clone());
        }
        let opened = Checkpoint::open(note.to_string().as_bytes(), std::slice::from_ref(&self.key));
        let why = |bad| format!("what was signed last was changed: {bad}");
        let (checkpoint, _) = opened.map_err(|bad| Refused::new(Code::Internal, why(bad)))?;
        self.opened = Some((note, checkpoint.clone()));
        Ok(checkpoint)
    }

    /// Goes on from what was signed to this size, and signs that.
    async fn sign(&mut self, log: LogReader<'_>, from: Edge, to: u64) -> Result<(), Refused> {
        let store = &*self.control.store;
        let incarnation = log.incarnation();
        let count = usize::try_from(to - from.size()).map_err(internal)?;
        let leaves = store.leaf_hashes(from.size(), count).await?;
        // Another incarnation may have begun since its head was read; then these are not its leaves.
        if leaves.len() != count || store.head().await?.revision.incarnation != incarnation {
            return Err(Refused::new(Code::Unavailable, "the log moved while it was read"));
        }
        let (mut edge, mut hashes) = (from, Vec::new());
        for leaf in leaves {
            edge.push(leaf, |tile| hashes.push(tile));
        }
        let root = edge.root();
        let origin = Origin::of(&self.key, incarnation);
        let note = Checkpoint { origin, size: to, root }.note();
        let signature = self.log_key.sign_note(note.text())?;
        let note = note.with_signature(&self.key, &signature).to_string();
        let row = CheckpointRow { incarnation, size: to, note };
        let mut ops = vec![Op::PutCheckpoint(row)];
        if !hashes.is_empty() {
            ops.push(Op::PutTileHashes { incarnation, hashes });
        }
        let written = store.commit(Batch { ops, ..Batch::default() }).await.map_err(Refused::from);
        self.control.watch.wrote(written.as_ref().err().map(|refused| refused.code));
        written?;
        self.signed = Some(Signed { incarnation, edge, root });
        let now = self.control.clock.now();
        self.control.signing.see(|progress| (progress.signed, progress.at) = (to, Some(now)));
        Ok(())
    }
}

/// The tree that was signed last, from what is stored of it. What is signed next grows out of it, or nothing is.
async fn resume(log: LogReader<'_>, last: &Checkpoint) -> Result<Edge, Refused> {
    let tiles = log.tiles(Edge::tiles(last.size)).await;
    let edge = match tiles {
        Ok(tiles) => Edge::resume(last.size, &tiles),
        Err(refused) if refused.code == Code::NotFound => None,
        Err(refused) => return Err(refused),
    };
    let same = edge.filter(|edge| edge.root() == last.root);
    same.ok_or_else(|| went_another_way(last.size))
}

fn went_another_way(size: u64) -> Refused {
    let why = format!(
        "its first {size} events are not those that were signed; `countersign log verify` says which"
    );
    Refused::new(Code::Internal, why)
}
