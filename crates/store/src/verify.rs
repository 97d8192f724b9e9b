//! Checks the whole store against itself.

use std::collections::BTreeMap;

use countersign_audit::{Entry, EventKind, Tree, body, leaf_hash};
use countersign_identity::{Incarnation, Revision, Sha256};

use crate::{Feed, Head, Issued, PAGE_MAX, Result, Store, StoreError, StoredEvent};

/// What was found to be in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verification {
    /// The state that was checked.
    pub head: Head,
    /// The root of the log's tree.
    pub root: Sha256,
    /// How many records there are.
    pub records: usize,
    /// How many issued rows are kept.
    pub issued: usize,
}

/// Reads everything and checks it: each leaf against its hash, its details and the order of revisions, the log
/// against the head row, each issued row against its leaf, the feed for gaps, and the logs of past incarnations, of which
/// each names the one before.
///
/// May run while others write; it checks what was there when it began. It reads in pages, but takes the time that
/// the size of the log takes.
///
/// # Errors
/// [`StoreError::Broken`] names the first thing that does not fit.
pub async fn verify_everything(store: &dyn Store) -> Result<Verification> {
    let head = store.head().await?;
    let past = check_past(store, &head).await?;
    let root = check_log(store, Log::Present(&head)).await?.root();
    check_beginning(store, Log::Present(&head), &past).await?;
    let issued = check_issued(store, &head).await?;
    let snapshot = store.snapshot().await?;
    if snapshot.revision < head.revision {
        return Err(broken("the snapshot is older than the head".to_owned()));
    }
    let keys = snapshot.records.iter().map(|record| (record.kind, &record.name));
    if !keys.is_sorted_by(|one, next| one < next) {
        return Err(broken("the records are out of order".to_owned()));
    }
    check_feed(store, &head).await?;
    Ok(Verification { head, root, records: snapshot.records.len(), issued })
}

fn broken(what: String) -> StoreError {
    StoreError::Broken { what }
}

/// A log, of this incarnation or of one that is over.
#[derive(Clone, Copy)]
enum Log<'a> {
    Present(&'a Head),
    Past(Incarnation),
}

impl Log<'_> {
    async fn page(self, store: &dyn Store, from: u64, limit: usize) -> Result<Vec<StoredEvent>> {
        match self {
            Self::Present(_) => store.events(from, limit).await,
            Self::Past(incarnation) => store.past_events(incarnation, from, limit).await,
        }
    }

    /// The latest revision that its leaves may be of.
    fn latest(self) -> Revision {
        match self {
            Self::Present(head) => head.revision,
            Self::Past(incarnation) => Revision { incarnation, number: u64::MAX },
        }
    }
}

async fn check_log(store: &dyn Store, log: Log<'_>) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut latest = Revision { number: 0, ..log.latest() };
    let end = if let Log::Present(head) = log { Some(head.log_size) } else { None };
    while end.is_none_or(|end| tree.size() < end) {
        let page = log.page(store, tree.size(), PAGE_MAX).await?;
        match (page.is_empty(), end) {
            (false, _) => {}
            (true, None) => break,
            (true, Some(size)) => {
                let leaves = tree.size();
                return Err(broken(format!(
                    "the log ends at {leaves}, the head row counts {size}"
                )));
            }
        }
        for event in page.iter().take_while(|event| end.is_none_or(|end| event.index < end)) {
            latest = check_event(event, tree.size(), latest, log.latest())?;
            tree.push(event.hash);
        }
    }
    Ok(tree)
}

/// The logs of incarnations that are over, each with its size and root.
type Past = BTreeMap<Incarnation, (u64, Sha256)>;

async fn check_past(store: &dyn Store, head: &Head) -> Result<Past> {
    let mut past = Past::new();
    let mut after = 0;
    while let Some(incarnation) = store.past_incarnation(after).await? {
        if head.revision.incarnation <= incarnation {
            return Err(broken(format!("the log of incarnation {incarnation} is not over")));
        }
        let tree = check_log(store, Log::Past(incarnation)).await?;
        check_beginning(store, Log::Past(incarnation), &past).await?;
        past.insert(incarnation, (tree.size(), tree.root()));
        after = incarnation;
    }
    Ok(past)
}

/// A log that follows another names that one's size and root in its first leaf, as long as its details are kept.
async fn check_beginning(store: &dyn Store, log: Log<'_>, past: &Past) -> Result<()> {
    let Some((before, (size, root))) = past.last_key_value() else { return Ok(()) };
    let first = log.page(store, 0, 1).await?;
    let Some(first) = first.first() else { return Ok(()) };
    let entry = Entry::parse(&first.leaf).map_err(|why| broken(format!("leaf 0: {why}")))?;
    let Some(details) = &first.details else { return Ok(()) };
    let told: serde_json::Value =
        serde_json::from_slice(&details.json).map_err(|why| broken(format!("leaf 0: {why}")))?;
    let names = entry.kind == EventKind::IncarnationBegan
        && told["from"]["incarnation"] == *before
        && told["from"]["logSize"] == *size
        && told["from"]["logRoot"] == root.to_string();
    names.then_some(()).ok_or_else(|| {
        broken(format!(
            "the log of incarnation {} does not begin with the size and root of the one before",
            log.latest().incarnation
        ))
    })
}

/// Checks one event against its place; tells the revision that it is of.
fn check_event(
    event: &StoredEvent,
    index: u64,
    latest: Revision,
    current: Revision,
) -> Result<Revision> {
    if event.index != index {
        return Err(broken(format!("leaf {index} is missing")));
    }
    if leaf_hash(&event.leaf) != event.hash {
        return Err(broken(format!("leaf {index} does not have its hash")));
    }
    let entry = Entry::parse(&event.leaf).map_err(|why| broken(format!("leaf {index}: {why}")))?;
    if let Some(details) = &event.details
        && body(&details.salt, &details.json) != entry.body
    {
        return Err(broken(format!("the details of leaf {index} are not those that it names")));
    }
    if entry.revision < latest || current < entry.revision {
        let revision = entry.revision;
        return Err(broken(format!("leaf {index} of revision {revision} is out of order")));
    }
    Ok(entry.revision)
}

async fn check_issued(store: &dyn Store, head: &Head) -> Result<usize> {
    let mut after = None;
    let mut count = 0;
    loop {
        let page = store.issued_after(after, PAGE_MAX).await?;
        let Some(last) = page.last() else { return Ok(count) };
        after = Some(last.row.serial);
        let incarnation = head.revision.incarnation;
        let known = |issued: &&Issued| {
            issued.row.revision.incarnation != incarnation || issued.index < head.log_size
        };
        for issued in page.iter().filter(known) {
            let serial = issued.row.serial;
            let of = issued.row.revision.incarnation;
            let log = if of == incarnation { Log::Present(head) } else { Log::Past(of) };
            let event = log.page(store, issued.index, 1).await?;
            let entry = event.first().and_then(|event| Entry::parse(&event.leaf).ok());
            let agrees = entry.is_some_and(|entry| {
                entry.serial == Some(serial) && entry.tbs == Some(issued.row.tbs)
            });
            if !agrees {
                return Err(broken(format!("certificate `{serial}` is not what its leaf says")));
            }
            count += 1;
        }
    }
}

/// Reads the feed from its earliest revision and looks for gaps.
async fn check_feed(store: &dyn Store, head: &Head) -> Result<()> {
    let Some(mut at) = earliest(store, head).await? else {
        return Err(broken("the feed does not reach the head".to_owned()));
    };
    while at < head.revision {
        let Feed::Changes(commits) = store.changes(at, PAGE_MAX).await? else {
            // Trimmed by a writer since; what is gone needs no check.
            return Ok(());
        };
        let next = Revision { number: at.number + 1, ..at };
        if commits.first().is_none_or(|commit| commit.revision != next) {
            return Err(broken(format!("revision {next} is missing from the feed")));
        }
        let gap =
            commits.windows(2).find(|pair| pair[0].revision.number + 1 != pair[1].revision.number);
        if let Some([before, _]) = gap {
            return Err(broken(format!("the feed has a gap after {}", before.revision)));
        }
        at = commits.last().map_or(next, |commit| commit.revision);
    }
    Ok(())
}

/// The earliest revision from which the feed goes on, by bisection.
async fn earliest(store: &dyn Store, head: &Head) -> Result<Option<Revision>> {
    let at = |number| Revision { number, ..head.revision };
    let (mut lost, mut kept) = (0, head.revision.number);
    let follows = async |number| -> Result<bool> {
        Ok(matches!(store.changes(at(number), 1).await?, Feed::Changes(_)))
    };
    if !follows(kept).await? {
        return Ok(None);
    }
    if follows(0).await? {
        return Ok(Some(at(0)));
    }
    while lost + 1 < kept {
        let middle = lost + (kept - lost) / 2;
        if follows(middle).await? { kept = middle } else { lost = middle }
    }
    Ok(Some(at(kept)))
}
