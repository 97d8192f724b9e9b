//! Checks the whole store against itself.

use countersign_audit::{Entry, Tree, body, leaf_hash};
use countersign_identity::{Revision, Sha256};

use crate::{Feed, Head, PAGE_MAX, Result, Store, StoreError, StoredEvent};

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
/// against the head row, each issued row against its leaf, and the feed for gaps.
///
/// May run while others write; it checks what was there when it began. It reads in pages, but takes the time that
/// the size of the log takes.
///
/// # Errors
/// [`StoreError::Broken`] names the first thing that does not fit.
pub async fn verify_everything(store: &dyn Store) -> Result<Verification> {
    let head = store.head().await?;
    let root = check_log(store, &head).await?;
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

async fn check_log(store: &dyn Store, head: &Head) -> Result<Sha256> {
    let mut tree = Tree::new();
    let mut latest = Revision { number: 0, ..head.revision };
    while tree.size() < head.log_size {
        let page = store.events(tree.size(), PAGE_MAX).await?;
        if page.is_empty() {
            let (leaves, size) = (tree.size(), head.log_size);
            return Err(broken(format!("the log ends at {leaves}, the head row counts {size}")));
        }
        for event in page.iter().take_while(|event| event.index < head.log_size) {
            latest = check_event(event, tree.size(), latest, head.revision)?;
            tree.push(event.hash);
        }
    }
    Ok(tree.root())
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
        for issued in page.iter().filter(|issued| issued.index < head.log_size) {
            let serial = issued.row.serial;
            let event = store.events(issued.index, 1).await?;
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
