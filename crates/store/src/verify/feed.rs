//! The feed, and the records that it has to come to.

use std::collections::BTreeMap;

use countersign_audit::leaf_hash;
use countersign_identity::{Incarnation, Revision, Sha256};

use super::broken;
use crate::{
    Change, Commit, FEED_COMMITS_MAX, Feed, Kind, Record, Result, Snapshot, Span, Store, StoreError,
};

/// The incarnation that begins with nothing.
const FIRST: Incarnation = 1;
/// How many commits are read at once. Servers read a few; what is read of a database has to come within its time for reading, also
/// where each of them declared much.
const COMMITS_MAX: usize = 100;
/// How often the feed is read anew, should a writer trim it each time.
const READS_MAX: usize = 10;

/// Checks that the feed is kept without gaps, and that the last word that it has of each record is the record as the snapshot
/// has it.
pub(super) async fn check_feed(store: &dyn Store, snapshot: &Snapshot) -> Result<()> {
    let end = snapshot.revision;
    for _ in 0..READS_MAX {
        let span = store.span().await?;
        check_span(span)?;
        // Every commit follows on the one before it, and the first on nothing.
        let number = span.kept.map_or(0, |(first, _last)| first - 1);
        if let Some(told) = Told::read(store, Revision { number, ..end }, end).await? {
            return told.check(snapshot);
        }
        if store.head().await?.revision.incarnation != end.incarnation {
            let why = "another incarnation began meanwhile: check again".to_owned();
            return Err(StoreError::Unavailable { why });
        }
    }
    let why = "the feed was trimmed each time that it was read".to_owned();
    Err(StoreError::Unavailable { why })
}

/// Which commits there must be: the last so many, each of them, and changes of no others.
fn check_span(span: Span) -> Result<()> {
    let Span { head, commits, kept, changed } = span;
    let Some((first, last)) = kept else {
        // Nothing has happened yet in this incarnation.
        return match (head, changed) {
            (0, None) => Ok(()),
            _ => Err(broken("the feed does not reach the head".to_owned())),
        };
    };
    if first == 0 {
        return Err(broken("the feed has a commit 0, and counts from 1".to_owned()));
    }
    if last != head {
        return Err(broken(format!("the feed ends at {last}, the head row counts {head}")));
    }
    let latest = head.saturating_sub(FEED_COMMITS_MAX) + 1;
    if latest < first {
        return Err(broken(format!("the feed begins at {first}, expected {latest} at most")));
    }
    if last - first + 1 != commits {
        return Err(broken(format!("the feed has a gap between {first} and {last}")));
    }
    if let Some((earliest, latest)) = changed
        && (earliest < first || last < latest)
    {
        return Err(broken("the feed has changes of commits that are not kept".to_owned()));
    }
    Ok(())
}

/// The last word of the feed on each record that it speaks of.
struct Told {
    /// The incarnation, if the feed reaches back to its beginning.
    whole: Option<Incarnation>,
    /// The digest of the value; nothing for a record that was removed.
    last: BTreeMap<(Kind, String), Option<Sha256>>,
}

impl Told {
    /// Reads the feed from its earliest revision to this one; nothing when it was trimmed meanwhile.
    async fn read(store: &dyn Store, mut at: Revision, end: Revision) -> Result<Option<Self>> {
        if end < at {
            return Ok(None);
        }
        let whole = (at.number == 0).then_some(end.incarnation);
        let mut told = Self { whole, last: BTreeMap::new() };
        while at < end {
            let Feed::Changes(commits) = store.changes(at, COMMITS_MAX).await? else {
                return Ok(None);
            };
            let next = Revision { number: at.number + 1, ..at };
            if commits.first().is_none_or(|commit| commit.revision != next) {
                return Err(broken(format!("revision {next} is missing from the feed")));
            }
            for Commit { revision, changes } in commits {
                if end < revision {
                    break;
                }
                if revision.number != at.number + 1 {
                    return Err(broken(format!("the feed has a gap after {at}")));
                }
                at = revision;
                changes.into_iter().for_each(|change| told.take(change));
            }
        }
        Ok(Some(told))
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::Put(Record { kind, name, value }) => {
                self.last.insert((kind, name), Some(leaf_hash(&value)));
            }
            Change::Remove { kind, name } => {
                self.last.insert((kind, name), None);
            }
        }
    }

    fn check(mut self, snapshot: &Snapshot) -> Result<()> {
        for Record { kind, name, value } in &snapshot.records {
            let word = self.last.remove(&(*kind, name.clone()));
            let fits = match word {
                Some(word) => word == Some(leaf_hash(value)),
                None => !self.must_tell(*kind),
            };
            if !fits {
                return Err(broken(format!(
                    "record `{kind}/{name}` is not what the feed says of it"
                )));
            }
        }
        let missing = self.last.iter().find(|(_, word)| word.is_some());
        let Some(((kind, name), _)) = missing else { return Ok(()) };
        Err(broken(format!("record `{kind}/{name}` is missing, and the feed does not say why")))
    }

    /// Whether a record of this kind cannot be older than the feed.
    fn must_tell(&self, kind: Kind) -> bool {
        match self.whole {
            Some(FIRST) => true,
            // A later one begins with the records of the one before, and says so in the one record of its own.
            Some(_) => kind == Kind::Incarnation,
            None => false,
        }
    }
}
