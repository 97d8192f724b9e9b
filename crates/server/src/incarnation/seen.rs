//! What this server has seen of its store, kept beside it: by this a store is noticed that lost its tail.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Clock, Revision, Sha256};
use countersign_store::{Head, Primary, Reached, Store, StoreError};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::config::StartError;
use crate::directory::write_whole;
use crate::watch::{Ends, KeptTime, Notes, TimeGuard};

/// How often it is written down when it moved.
const PAUSE: Duration = Duration::from_secs(1);
const FORMAT: u64 = 1;

/// The highest state that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Seen {
    format: u64,
    pub(crate) revision: Revision,
    pub(crate) log_size: u64,
    /// The log's last leaf. Leaves are salted, so a log that went another way has another one at its place.
    leaf: Option<Sha256>,
    /// The server of a database that was used last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    primary: Option<LastPrimary>,
}

/// A primary of PostgreSQL: of which family, and which of its timelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LastPrimary {
    system: i64,
    timeline: u32,
}

/// How a store stands to what was seen of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It goes on from there, or nothing was seen yet.
    Same,
    /// It lost something.
    Behind(Seen),
}

fn path(data: &Path) -> PathBuf {
    data.join("seen.json")
}

impl Seen {
    /// What an earlier life of this server wrote down. What cannot be read counts as nothing: agents may know more.
    pub(crate) fn read(data: &Path) -> Option<Self> {
        let text = std::fs::read(path(data)).ok()?;
        let seen: Self = serde_json::from_slice(&text).ok()?;
        (seen.format == FORMAT).then_some(seen)
    }

    /// The same for the store, which tells by it an old primary that is back.
    pub(crate) fn reached(data: &Path) -> Option<Reached> {
        let Self { revision, log_size, leaf, primary, .. } = Self::read(data)?;
        let primary = primary.map(|LastPrimary { system, timeline }| Primary { system, timeline });
        let leaf = log_size.checked_sub(1).zip(leaf);
        Some(Reached { revision, log_size, leaf, primary })
    }

    /// The store as it is now; `before` again, where it has not moved since.
    ///
    /// # Errors
    /// When it does not answer.
    async fn look(store: &dyn Store, before: Option<&Self>) -> Result<Self, StoreError> {
        let Head { revision, log_size, .. } = store.head().await?;
        let primary = LastPrimary::of(store);
        let now = (revision, log_size, primary);
        let same = |before: &&Self| (before.revision, before.log_size, before.primary) == now;
        if let Some(before) = before.filter(same) {
            return Ok(before.clone());
        }
        let last = log_size.checked_sub(1);
        let leaf = match last {
            Some(last) => store.leaf_hashes(last, 1).await?.first().copied(),
            None => None,
        };
        Ok(Self { format: FORMAT, revision, log_size, leaf, primary })
    }

    /// Writes down what a database is like before it is worked on, so that it is known from then on which primary was used.
    ///
    /// # Errors
    /// When it does not answer, or the system refuses.
    pub(crate) async fn begin(store: &dyn Store, data: &Path) -> Result<(), StartError> {
        if store.primary().is_none() {
            return Ok(());
        }
        Self::look(store, None).await?.write(data)
    }

    /// Writes it down.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn write(&self, data: &Path) -> Result<(), StartError> {
        let text = serde_json::to_vec(self).expect("texts and numbers always have a JSON form");
        write_whole(&path(data), &text)
    }

    /// Goes on only with a state of these data that has lost nothing of what was seen of it.
    ///
    /// # Errors
    /// [`StartError::Behind`], or when the state does not answer.
    pub(crate) async fn check(store: &dyn Store, data: &Path) -> Result<(), StartError> {
        let Some(seen) = Self::read(data) else { return Ok(()) };
        let Found::Behind(seen) = seen.compare(store).await? else { return Ok(()) };
        Err(seen.missed(&store.head().await?, data))
    }

    /// The same of a state of which no more is known than its head.
    ///
    /// # Errors
    /// [`StartError::Behind`].
    pub(crate) fn check_head(self, head: &Head, data: &Path) -> Result<(), StartError> {
        if self.is_ahead(head) { Err(self.missed(head, data)) } else { Ok(()) }
    }

    fn missed(self, head: &Head, data: &Path) -> StartError {
        StartError::Behind {
            path: data.to_owned(),
            found: head.revision,
            entries: head.log_size,
            seen: self.revision,
            leaves: self.log_size,
        }
    }

    fn is_ahead(&self, head: &Head) -> bool {
        let same = self.revision.incarnation == head.revision.incarnation;
        head.revision < self.revision || (same && head.log_size < self.log_size)
    }

    /// Compares a store with what was seen of it.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn compare(self, store: &dyn Store) -> Result<Found, StoreError> {
        let head = store.head().await?;
        if self.revision.incarnation < head.revision.incarnation {
            return Ok(Found::Same);
        }
        if self.is_ahead(&head) {
            return Ok(Found::Behind(self));
        }
        // It may have gone on without the tail.
        let Some(last) = self.log_size.checked_sub(1) else { return Ok(Found::Same) };
        let leaf = store.leaf_hashes(last, 1).await?.first().copied();
        Ok(if leaf == self.leaf { Found::Same } else { Found::Behind(self) })
    }
}

impl LastPrimary {
    fn of(store: &dyn Store) -> Option<Self> {
        store.primary().map(|Primary { system, timeline }| Self { system, timeline })
    }
}

/// What is kept beside the store, and by which time.
pub(crate) struct Beside {
    pub(crate) data: PathBuf,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) time: Arc<TimeGuard>,
}

/// Writes down what is seen, and how far time has come, now and then, until stopped, and once more then.
///
/// When the store has lost its tail under this server, that is written down, so that the server's next life begins a new
/// incarnation, and `lost` tells that this life is over.
pub(crate) async fn remember(
    Beside { data, clock, time }: Beside,
    store: Arc<dyn Store>,
    lost: CancellationToken,
    stop: CancellationToken,
) {
    // It may not answer from the start on: what was written down before it was worked on is there all the same.
    let mut written = Seen::read(&data);
    let mut kept = KeptTime::new(data.clone());
    let mut notes = Notes::of("what was seen");
    loop {
        let stopped = tokio::select! {
            () = stop.cancelled() => true,
            () = tokio::time::sleep(clock.beat(PAUSE)) => false,
        };
        let looked = Seen::look(&*store, written.as_ref()).await;
        if let Ok(seen) = &looked {
            let ends = if stopped { Ends::Now } else { Ends::Later };
            kept.keep(&time, &*clock, seen.log_size, ends).await;
        }
        match looked {
            Ok(seen) if written.as_ref() != Some(&seen) => {
                written = write_down(&mut notes, &data, &seen).await.then_some(seen);
            }
            Ok(_) => {}
            Err(error @ StoreError::WentBack { seen: Head { revision, log_size, .. }, .. }) => {
                tracing::error!(%error, "the store went back under this server");
                let primary = LastPrimary::of(&*store);
                let seen = Seen { format: FORMAT, revision, log_size, leaf: None, primary };
                if write_down(&mut notes, &data, &seen).await {
                    lost.cancel();
                    stop.cancelled().await;
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the store does not say how far it is");
                // Which primary is used is known all the same.
                let primary = LastPrimary::of(&*store);
                let moved = |before: &Seen| before.primary != primary;
                if let Some(before) = written.clone().filter(moved) {
                    let seen = Seen { primary, ..before };
                    written = write_down(&mut notes, &data, &seen).await.then_some(seen);
                }
            }
        }
        if stopped {
            return;
        }
    }
}

async fn write_down(notes: &mut Notes, data: &Path, seen: &Seen) -> bool {
    let (data, seen) = (data.to_owned(), seen.clone());
    notes.write(move || seen.write(&data)).await
}

#[cfg(test)]
mod tests {
    use countersign_audit::{Event, EventKind};
    use countersign_identity::{SystemEntropy, Timestamp};
    use countersign_store::{Batch, MemoryStore};

    use super::*;

    async fn grown(leaves: usize) -> MemoryStore {
        let store = MemoryStore::new(Arc::new(SystemEntropy));
        for _ in 0..leaves {
            let event = Event::new(EventKind::Summary, Timestamp::EPOCH, "server", "facts");
            store.commit(Batch { events: vec![event], ..Batch::default() }).await.unwrap();
        }
        store
    }

    #[tokio::test]
    async fn a_store_that_lost_its_tail_is_noticed_also_when_it_has_grown_since() {
        let store = grown(3).await;
        let seen = Seen::look(&store, None).await.unwrap();
        assert_eq!(seen.clone().compare(&store).await.unwrap(), Found::Same);
        for other in [grown(2).await, grown(3).await, grown(9).await] {
            assert_eq!(seen.clone().compare(&other).await.unwrap(), Found::Behind(seen.clone()));
        }
        let more = Batch { narrows: true, ..Batch::default() };
        store.commit(more).await.unwrap();
        assert_eq!(seen.compare(&store).await.unwrap(), Found::Same);
    }

    #[test]
    fn what_was_written_is_read_and_nonsense_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let revision = Revision { incarnation: 2, number: 5 };
        let first = Seen { format: FORMAT, revision, log_size: 9, leaf: None, primary: None };
        assert_eq!(Seen::read(folder.path()), None);
        let primary = Some(LastPrimary { system: -7, timeline: 3 });
        for seen in [first.clone(), Seen { primary, ..first }] {
            seen.write(folder.path()).unwrap();
            assert_eq!(Seen::read(folder.path()), Some(seen));
        }
        assert_eq!(
            Seen::reached(folder.path()).unwrap().primary,
            Some(Primary { system: -7, timeline: 3 })
        );
        std::fs::write(path(folder.path()), "{").unwrap();
        assert_eq!(Seen::read(folder.path()), None);
    }
}
