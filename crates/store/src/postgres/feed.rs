//! The feed and the snapshot, each as one transaction reads it.

use countersign_identity::Revision;
use tokio_postgres::Row;

use super::readers::Unread;
use super::seen::Tip;
use super::session::{Session, command};
use super::{rows, text};
use crate::bounds::FEED_CHANGES_MAX;
use crate::{Change, Commit, Feed, PAGE_MAX, Record, Snapshot, sql};

/// The commits after a revision, inside one read transaction of two round trips.
pub(super) async fn feed(
    session: &Session,
    after: Revision,
    limit: usize,
) -> std::result::Result<(Tip, Feed), Unread> {
    let limit = u64::try_from(limit.min(PAGE_MAX)).unwrap_or(u64::MAX);
    // A revision that does not fit was never reached.
    let number = i64::try_from(after.number).unwrap_or(i64::MAX);
    let most = number.saturating_add_unsigned(limit);
    let full = rows::signed(FEED_CHANGES_MAX as u64 - 1)?;
    let commands = [
        command!(text::TIP),
        command!(sql::FIRST_COMMIT),
        command!(sql::CHANGES_END, number, most, full),
    ];
    let answers = session.together(Some(READ_ONLY), &commands, None).await?;
    let row = |answer: usize| answers.get(answer).and_then(|rows: &Vec<Row>| rows.first());
    let tip = rows::tip(row(0).ok_or_else(|| rows::broken("there is no head row"))?)?;
    let head = tip.head;
    let first = row(1).map(|row| rows::number(row, 0)).transpose()?;
    if !head.feeds(after, first) {
        session.run("COMMIT").await?;
        return Ok((tip, Feed::SnapshotNeeded));
    }
    let last = head.revision.number.min(after.number + limit);
    let last = row(2).map(|row| rows::number(row, 0)).transpose()?.unwrap_or(last);
    // Numbers have no gaps, so a commit without changes is one whose number has no rows.
    let commit = |number| Commit { revision: Revision { number, ..after }, changes: Vec::new() };
    let mut commits: Vec<Commit> = (after.number + 1..=last).map(commit).collect();
    let commands = [command!(sql::CHANGES, number, rows::signed(last)?)];
    for row in session.together(None, &commands, Some("COMMIT")).await?.iter().flatten() {
        let parts = (rows::parsed(row, 1)?, rows::column(row, 2)?, rows::column(row, 3)?);
        let place = usize::try_from(rows::number(row, 0)? - after.number - 1);
        let commit = commits.get_mut(place.unwrap_or(usize::MAX));
        commit.ok_or_else(|| rows::broken("a change out of order"))?.changes.push(change(parts));
    }
    Ok((tip, Feed::Changes(commits)))
}

pub(super) async fn snapshot(session: &Session) -> std::result::Result<(Tip, Snapshot), Unread> {
    let commands = [command!(text::TIP), command!(sql::RECORDS)];
    let answers = session.together(Some(READ_ONLY), &commands, Some("COMMIT")).await?;
    let row = answers.first().and_then(|rows| rows.first());
    let tip = rows::tip(row.ok_or_else(|| rows::broken("there is no head row"))?)?;
    let mut records = Vec::new();
    for row in answers.get(1).into_iter().flatten() {
        let (kind, name) = (rows::parsed(row, 0)?, rows::column(row, 1)?);
        records.push(Record { kind, name, value: rows::column(row, 2)? });
    }
    // A database sorts by its own language.
    records.sort_by(|one, next| (one.kind, &one.name).cmp(&(next.kind, &next.name)));
    Ok((tip, Snapshot { revision: tip.head.revision, records }))
}

/// All statements of one read see the same state, whatever the database's usual isolation is.
pub(super) const READ_ONLY: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

fn change((kind, name, value): (crate::Kind, String, Option<Vec<u8>>)) -> Change {
    match value {
        Some(value) => Change::Put(Record { kind, name, value }),
        None => Change::Remove { kind, name },
    }
}
