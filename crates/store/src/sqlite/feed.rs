//! The feed and the snapshot, each as one transaction reads it.

use countersign_identity::Revision;
use rusqlite::Connection;

use super::rows;
use super::tables::{Open, all, one};
use crate::bounds::FEED_CHANGES_MAX;
use crate::{Change, Commit, Feed, PAGE_MAX, Record, Result, Snapshot, sql};

/// The commits after a revision, inside one read transaction.
pub(super) fn feed(connection: &Connection, after: Revision, limit: usize) -> Result<Feed> {
    let head = Open(connection).head()?;
    let first = one(connection, sql::FIRST_COMMIT, [], |row| rows::number(row, 0))?;
    if !head.feeds(after, first) {
        return Ok(Feed::SnapshotNeeded);
    }
    let limit = u64::try_from(limit.min(PAGE_MAX)).unwrap_or(u64::MAX);
    let last = head.revision.number.min(after.number + limit);
    let most = rows::signed(FEED_CHANGES_MAX as u64 - 1)?;
    let bounds = (rows::signed(after.number)?, rows::signed(last)?, most);
    let full = one(connection, sql::CHANGES_END, bounds, |row| rows::number(row, 0))?;
    let last = full.unwrap_or(last);
    // Numbers have no gaps, so a commit without changes is one whose number has no rows.
    let commit = |number| Commit { revision: Revision { number, ..after }, changes: Vec::new() };
    let mut commits: Vec<Commit> = (after.number + 1..=last).map(commit).collect();
    let bounds = (rows::signed(after.number)?, rows::signed(last)?);
    let changes = all(connection, sql::CHANGES, bounds, |row| {
        let parts = (rows::parsed(row, 1)?, rows::column(row, 2)?, rows::column(row, 3)?);
        Ok((rows::number(row, 0)?, change(parts)))
    })?;
    for (number, change) in changes {
        let place = usize::try_from(number - after.number - 1).unwrap_or(usize::MAX);
        let commit = commits.get_mut(place).ok_or_else(|| rows::broken("a change out of order"))?;
        commit.changes.push(change);
    }
    Ok(Feed::Changes(commits))
}

/// All records, inside one read transaction.
pub(super) fn snapshot(connection: &Connection) -> Result<Snapshot> {
    let revision = Open(connection).head()?.revision;
    let records = all(connection, sql::RECORDS, [], |row| {
        let (kind, name) = (rows::parsed(row, 0)?, rows::column(row, 1)?);
        Ok(Record { kind, name, value: rows::column(row, 2)? })
    })?;
    Ok(Snapshot { revision, records })
}

fn change((kind, name, value): (crate::Kind, String, Option<Vec<u8>>)) -> Change {
    match value {
        Some(value) => Change::Put(Record { kind, name, value }),
        None => Change::Remove { kind, name },
    }
}
