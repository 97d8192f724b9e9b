//! Checks the whole store against itself.

mod feed;
mod log;
mod rows;

use countersign_audit::Entry;
use countersign_identity::Sha256;

use self::feed::check_feed;
use self::log::{Log, check_beginning, check_log, check_past};
use self::rows::check_rows;
use crate::{Head, Issued, PAGE_MAX, Result, Snapshot, Store, StoreError};

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

/// Reads everything and checks it: the storage's own files, where it can look at them; each leaf against its hash, its details
/// and the order of revisions, the log against the head row, what was signed of it and the hashes kept beside it, each issued
/// row against its leaf, and the logs of past incarnations, of which each names the one before; the records against the feed,
/// as far back as that goes, and the feed for gaps; and every row of every other table against its type. Leases are left out:
/// they are of the servers of the moment.
///
/// May run while others write; it checks what was there when it began. It reads in pages, but takes the time that
/// the size of the log takes.
///
/// # Errors
/// [`StoreError::Broken`] names the first thing that does not fit.
pub async fn verify_everything(store: &dyn Store) -> Result<Verification> {
    verify_with(store, |_records| Ok(())).await
}

/// [`verify_everything`], and what the caller knows of the records, whose values are bytes here.
///
/// # Errors
/// As that, or as `check` says.
pub async fn verify_with<E: From<StoreError>>(
    store: &dyn Store,
    check: impl FnOnce(Snapshot) -> std::result::Result<(), E>,
) -> std::result::Result<Verification, E> {
    let damage = store.damage().await?;
    if !damage.is_empty() {
        return Err(broken(damage.join("; ")).into());
    }
    let head = store.head().await?;
    let past = check_past(store, &head).await?;
    let root = check_log(store, Log::Present(&head)).await?.root();
    check_beginning(store, Log::Present(&head), &past).await?;
    let issued = check_issued(store, &head).await?;
    let snapshot = store.snapshot().await?;
    check_records(&snapshot, &head)?;
    check_feed(store, &snapshot).await?;
    check_rows(store).await?;
    let records = snapshot.records.len();
    check(snapshot)?;
    Ok(Verification { head, root, records, issued })
}

fn broken(what: String) -> StoreError {
    StoreError::Broken { what }
}

fn check_records(snapshot: &Snapshot, head: &Head) -> Result<()> {
    if snapshot.revision < head.revision {
        return Err(broken("the snapshot is older than the head".to_owned()));
    }
    let keys = snapshot.records.iter().map(|record| (record.kind, &record.name));
    if !keys.is_sorted_by(|one, next| one < next) {
        return Err(broken("the records are out of order".to_owned()));
    }
    Ok(())
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
