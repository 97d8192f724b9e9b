//! SQLite's own DDL, one step a version. A step that was released never changes.

use std::path::Path;

use rusqlite::Connection;

use super::rows::{failed, unsigned};
use crate::Result;
use crate::version::{Older, Schema, Step, Steps, known};

/// Marks the file as ours (`PRAGMA application_id`): "CSGN".
const APPLICATION_ID: i64 = 0x4353_474e;

/// The steps from each version to the next; the first makes version 1 of nothing.
const STEPS: Steps = &[
    Step { ddl: STEP_1, older: Older::GoOn },
    Step { ddl: STEP_2, older: Older::GoOn },
    Step { ddl: STEP_3, older: Older::GoOn },
    Step { ddl: STEP_4, older: Older::GoOn },
    Step { ddl: STEP_5, older: Older::GoOn },
    Step { ddl: STEP_6, older: Older::GoOn },
    Step { ddl: STEP_7, older: Older::GoOn },
    Step { ddl: STEP_8, older: Older::GoOn },
];
/// The version that this program knows.
const KNOWN: u64 = known(STEPS);

const STEP_1: &str = "
CREATE TABLE schema (version BIGINT NOT NULL);
INSERT INTO schema (version) VALUES (0);
-- The only point where writers meet. `needs` is the version that a program has to know.
CREATE TABLE head (
    singleton BIGINT PRIMARY KEY CHECK (singleton = 1),
    incarnation BIGINT NOT NULL, number BIGINT NOT NULL,
    fence BIGINT NOT NULL, log_size BIGINT NOT NULL, needs BIGINT NOT NULL DEFAULT 1);
INSERT INTO head (singleton, incarnation, number, fence, log_size) VALUES (1, 1, 0, 0, 0);
CREATE TABLE records (
    kind TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, name));
CREATE TABLE commits (number INTEGER PRIMARY KEY);
CREATE TABLE changes (
    number BIGINT NOT NULL, position BIGINT NOT NULL,
    kind TEXT NOT NULL, name TEXT NOT NULL, value BLOB, PRIMARY KEY (number, position));
CREATE TABLE log (
    log_index INTEGER PRIMARY KEY, leaf BLOB NOT NULL, hash BLOB NOT NULL,
    details BLOB, salt BLOB);
-- Keyed by time-ordered serials, so that rows are appended; no further index, which would cost more than the row.
CREATE TABLE issued (
    serial BLOB PRIMARY KEY, tbs BLOB NOT NULL, spiffe_id TEXT NOT NULL,
    key_id BLOB NOT NULL, issuer BLOB NOT NULL, node BLOB,
    not_before BIGINT NOT NULL, not_after BIGINT NOT NULL,
    incarnation BIGINT NOT NULL, number BIGINT NOT NULL, log_index BIGINT NOT NULL) WITHOUT ROWID;
CREATE TABLE secrets (name TEXT PRIMARY KEY, sealed BLOB NOT NULL);
CREATE TABLE tokens (
    hash BLOB PRIMARY KEY, expires BIGINT NOT NULL, labels TEXT NOT NULL,
    spent BIGINT) WITHOUT ROWID;
CREATE TABLE nodes (
    id BLOB PRIMARY KEY, spiffe_id TEXT NOT NULL, key_spki BLOB NOT NULL UNIQUE,
    generation BIGINT NOT NULL, labels TEXT NOT NULL, host TEXT NOT NULL,
    attested_at BIGINT NOT NULL, seen_at BIGINT NOT NULL);
CREATE TABLE leases (name TEXT PRIMARY KEY, holder TEXT NOT NULL, ends BIGINT NOT NULL);
";

const STEP_2: &str = "
-- Refused for ever, so never trimmed.
CREATE TABLE revoked_keys (key_id BLOB PRIMARY KEY, since BIGINT NOT NULL) WITHOUT ROWID;
CREATE TABLE points (
    node BLOB NOT NULL, spiffe_id TEXT NOT NULL, name TEXT NOT NULL,
    registered_at BIGINT NOT NULL, PRIMARY KEY (node, spiffe_id, name)) WITHOUT ROWID;
CREATE TABLE reports (
    replica TEXT PRIMARY KEY, version BIGINT NOT NULL, body BLOB NOT NULL);
";

const STEP_3: &str = "
-- The logs of incarnations that are over.
CREATE TABLE past_log (
    incarnation BIGINT NOT NULL, log_index BIGINT NOT NULL, leaf BLOB NOT NULL, hash BLOB NOT NULL,
    details BLOB, salt BLOB, PRIMARY KEY (incarnation, log_index)) WITHOUT ROWID;
";

// What is signed of the logs, and the hashes of full tiles, of which the upper levels of their trees consist.
const STEP_4: &str = "
CREATE TABLE checkpoints (
    incarnation BIGINT NOT NULL, size BIGINT NOT NULL, note TEXT NOT NULL,
    PRIMARY KEY (incarnation, size)) WITHOUT ROWID;
CREATE TABLE tile_hashes (
    incarnation BIGINT NOT NULL, level BIGINT NOT NULL, position BIGINT NOT NULL, hash BLOB NOT NULL,
    PRIMARY KEY (incarnation, level, position)) WITHOUT ROWID;
";

// What was asked for, counted.
const STEP_5: &str = "
-- The text is a key and nothing else, so it is kept as bytes, in whose order pages go.
CREATE TABLE flows (
    flow BLOB PRIMARY KEY, first_seen BIGINT NOT NULL, last_seen BIGINT NOT NULL,
    seen BIGINT NOT NULL) WITHOUT ROWID;
";

// What operators keep beside the state.
const STEP_6: &str = "
CREATE TABLE papers (name BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
";

// What was observed, counted a minute at a time.
const STEP_7: &str = "
CREATE TABLE tallies (
    kind BIGINT NOT NULL, began BIGINT NOT NULL, what BLOB NOT NULL,
    first_seen BIGINT NOT NULL, last_seen BIGINT NOT NULL, seen BIGINT NOT NULL,
    micros BIGINT NOT NULL, sample BLOB NOT NULL,
    PRIMARY KEY (kind, began, what)) WITHOUT ROWID;
";

// By what a machine proved itself, if anybody knows.
const STEP_8: &str = "
ALTER TABLE nodes ADD COLUMN attested_by TEXT;
";

/// Whether the open file is a store of ours, or an SQLite database of somebody else.
pub(super) fn is_ours(connection: &Connection) -> rusqlite::Result<bool> {
    let id: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    Ok(id == APPLICATION_ID)
}

/// Marks a new file as ours.
pub(super) fn mark(connection: &Connection) -> Result<()> {
    connection.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)
}

/// What the store says of its schema; version 0 of one that is empty.
fn found(connection: &Connection) -> Result<Schema> {
    let tables = "SELECT COUNT(*) FROM sqlite_schema WHERE type = 'table' AND name = 'schema'";
    let exists: i64 = connection.query_row(tables, [], |row| row.get(0)).map_err(failed)?;
    if exists == 0 {
        return Ok(Schema { version: 0, needs: 0 });
    }
    let number = |text: &str| {
        let read = connection.query_row(text, [], |row| row.get(0));
        unsigned(read.map_err(failed)?)
    };
    let needs = number("SELECT needs FROM head WHERE singleton = 1")?;
    Ok(Schema { version: number("SELECT version FROM schema")?, needs })
}

/// Brings the schema to the version that this program knows, each step in a transaction of its own. A newer one stays as it
/// is, when this program may work on it.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    migrate_by(STEPS, connection, path)
}

fn migrate_by(steps: Steps, connection: &mut Connection, path: &Path) -> Result<()> {
    loop {
        let step = connection.transaction().map_err(failed)?;
        let schema = found(&step)?;
        let next = usize::try_from(schema.version).ok().and_then(|version| steps.get(version));
        let Some(Step { ddl, older }) = next else { return schema.check(known(steps), path) };
        step.execute_batch(ddl).map_err(failed)?;
        step.execute("UPDATE schema SET version = version + 1", []).map_err(failed)?;
        if *older == Older::Stop {
            let needs = "UPDATE head SET needs = (SELECT version FROM schema)";
            step.execute(needs, []).map_err(failed)?;
        }
        step.commit().map_err(failed)?;
    }
}

/// Goes on only when this program may read it as it is.
pub(super) fn check_to_read(connection: &Connection, path: &Path) -> Result<()> {
    found(connection)?.check_to_read(KNOWN, path)
}

/// Goes on only when this program knows all of it.
pub(super) fn check_whole(connection: &Connection, path: &Path) -> Result<()> {
    found(connection)?.check_whole(KNOWN, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StoreError, sql};

    /// Otherwise SQLite would bind them in another order than PostgreSQL.
    #[test]
    fn parameters_appear_in_the_order_of_their_numbers() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, Path::new("memory")).unwrap();
        for text in sql::ALL {
            let statement = connection.prepare(text).unwrap();
            for number in 1..=statement.parameter_count() {
                let name = statement.parameter_name(number);
                assert_eq!(name, Some(format!("${number}").as_str()), "{text}");
            }
        }
    }

    /// The next two versions: the first adds, the second changes what was there.
    const NEXT: Step = Step {
        ddl: "ALTER TABLE nodes ADD COLUMN note TEXT; CREATE TABLE extra (id BIGINT PRIMARY KEY)",
        older: Older::GoOn,
    };
    const AFTER: Step =
        Step { ddl: "ALTER TABLE records RENAME COLUMN value TO body", older: Older::Stop };
    const LATER: Steps =
        &[STEPS[0], STEPS[1], STEPS[2], STEPS[3], STEPS[4], STEPS[5], STEPS[6], STEPS[7], NEXT];
    const LAST: Steps = &[
        STEPS[0], STEPS[1], STEPS[2], STEPS[3], STEPS[4], STEPS[5], STEPS[6], STEPS[7], NEXT, AFTER,
    ];

    #[test]
    fn an_older_program_goes_on_after_what_was_added_and_stops_at_what_was_changed() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = Path::new("memory");
        migrate_by(LATER, &mut connection, path).unwrap();
        migrate(&mut connection, path).unwrap();
        check_to_read(&connection, path).unwrap();
        assert!(matches!(check_whole(&connection, path), Err(StoreError::NewerSchema { .. })));
        for text in sql::ALL {
            connection.prepare(text).unwrap();
        }
        migrate_by(LAST, &mut connection, path).unwrap();
        let refused = migrate(&mut connection, path).unwrap_err();
        let expected =
            StoreError::NewerSchema { path: path.into(), found: 10, needs: 10, known: 8 };
        assert_eq!(refused, expected);
        assert_eq!(check_to_read(&connection, path), Err(expected));
    }

    #[test]
    fn every_earlier_version_is_brought_to_this_one_and_keeps_its_rows() {
        let path = Path::new("memory");
        for version in 0..=STEPS.len() {
            let mut connection = Connection::open_in_memory().unwrap();
            migrate_by(&STEPS[..version], &mut connection, path).unwrap();
            if 0 < version {
                let kept =
                    "INSERT INTO records (kind, name, value) VALUES ('service', 'web', x'01')";
                connection.execute(kept, []).unwrap();
            }
            let whole = check_whole(&connection, path);
            assert_eq!(whole.is_ok(), version == STEPS.len(), "{version}: {whole:?}");
            migrate(&mut connection, path).unwrap();
            check_whole(&connection, path).unwrap();
            let count: i64 =
                connection.query_row("SELECT COUNT(*) FROM records", [], |row| row.get(0)).unwrap();
            assert_eq!(count, i64::from(0 < version), "{version}");
            for text in sql::ALL {
                connection.prepare(text).unwrap();
            }
        }
    }

    #[test]
    fn migrating_twice_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = Path::new("memory");
        migrate(&mut connection, path).unwrap();
        connection.execute("UPDATE head SET number = 7", []).unwrap();
        migrate(&mut connection, path).unwrap();
        let read = connection.query_row("SELECT number FROM head", [], |row| row.get(0));
        assert_eq!(read, Ok(7));
    }
}
