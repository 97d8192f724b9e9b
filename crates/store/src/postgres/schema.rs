//! PostgreSQL's own DDL, one step a version. A step that was released never changes.
//!
//! A replica of the version before goes on while a newer one starts, unless a step says otherwise.

use std::time::Duration;

use super::rows::{broken, number, signed};
use super::session::{Fault, Session, Target, command};
use crate::version::{Older, Schema, Step, Steps};
use crate::{Result, StoreError};

/// The steps from each version to the next; the first makes version 1 of nothing.
pub(super) const STEPS: Steps = &[
    Step { ddl: STEP_1, older: Older::GoOn },
    Step { ddl: STEP_2, older: Older::GoOn },
    Step { ddl: STEP_3, older: Older::GoOn },
    Step { ddl: STEP_4, older: Older::GoOn },
    Step { ddl: STEP_5, older: Older::GoOn },
    Step { ddl: STEP_6, older: Older::GoOn },
    Step { ddl: STEP_7, older: Older::GoOn },
    Step { ddl: STEP_8, older: Older::GoOn },
];

// Times are BIGINT, ids BYTEA: nothing whose order or meaning a database's settings could change.
const STEP_1: &str = "
-- The only point where writers meet. `writes` counts transactions, and guards each against those that came between.
CREATE TABLE head (
    singleton BIGINT PRIMARY KEY CHECK (singleton = 1),
    incarnation BIGINT NOT NULL, number BIGINT NOT NULL,
    fence BIGINT NOT NULL, log_size BIGINT NOT NULL,
    writes BIGINT NOT NULL CHECK (0 <= writes),
    -- The version that a program has to know.
    needs BIGINT NOT NULL DEFAULT 1);
INSERT INTO head (singleton, incarnation, number, fence, log_size, writes) VALUES (1, 1, 0, 0, 0, 0);
CREATE TABLE records (
    kind TEXT NOT NULL, name TEXT NOT NULL, value BYTEA NOT NULL, PRIMARY KEY (kind, name));
CREATE TABLE commits (number BIGINT PRIMARY KEY);
CREATE TABLE changes (
    number BIGINT NOT NULL, position BIGINT NOT NULL,
    kind TEXT NOT NULL, name TEXT NOT NULL, value BYTEA, PRIMARY KEY (number, position));
CREATE TABLE log (
    log_index BIGINT PRIMARY KEY, leaf BYTEA NOT NULL, hash BYTEA NOT NULL,
    details BYTEA, salt BYTEA);
-- Keyed by time-ordered serials, so that rows are appended; no further index, which would cost more than the row.
CREATE TABLE issued (
    serial BYTEA PRIMARY KEY, tbs BYTEA NOT NULL, spiffe_id TEXT NOT NULL,
    key_id BYTEA NOT NULL, issuer BYTEA NOT NULL, node BYTEA,
    not_before BIGINT NOT NULL, not_after BIGINT NOT NULL,
    incarnation BIGINT NOT NULL, number BIGINT NOT NULL, log_index BIGINT NOT NULL);
CREATE TABLE secrets (name TEXT PRIMARY KEY, sealed BYTEA NOT NULL);
CREATE TABLE tokens (
    hash BYTEA PRIMARY KEY, expires BIGINT NOT NULL, labels TEXT NOT NULL, spent BIGINT);
CREATE TABLE nodes (
    id BYTEA PRIMARY KEY, spiffe_id TEXT NOT NULL, key_spki BYTEA NOT NULL UNIQUE,
    generation BIGINT NOT NULL, labels TEXT NOT NULL, host TEXT NOT NULL,
    attested_at BIGINT NOT NULL, seen_at BIGINT NOT NULL);
CREATE TABLE leases (name TEXT PRIMARY KEY, holder TEXT NOT NULL, ends BIGINT NOT NULL);
";

const STEP_2: &str = "
-- Refused for ever, so never trimmed.
CREATE TABLE revoked_keys (key_id BYTEA PRIMARY KEY, since BIGINT NOT NULL);
CREATE TABLE points (
    node BYTEA NOT NULL, spiffe_id TEXT NOT NULL, name TEXT NOT NULL,
    registered_at BIGINT NOT NULL, PRIMARY KEY (node, spiffe_id, name));
CREATE TABLE reports (
    replica TEXT PRIMARY KEY, version BIGINT NOT NULL, body BYTEA NOT NULL);
";

const STEP_3: &str = "
-- The logs of incarnations that are over.
CREATE TABLE past_log (
    incarnation BIGINT NOT NULL, log_index BIGINT NOT NULL, leaf BYTEA NOT NULL, hash BYTEA NOT NULL,
    details BYTEA, salt BYTEA, PRIMARY KEY (incarnation, log_index));
";

// What is signed of the logs, and the hashes of full tiles, of which the upper levels of their trees consist.
const STEP_4: &str = "
CREATE TABLE checkpoints (
    incarnation BIGINT NOT NULL, size BIGINT NOT NULL, note TEXT NOT NULL,
    PRIMARY KEY (incarnation, size));
CREATE TABLE tile_hashes (
    incarnation BIGINT NOT NULL, level BIGINT NOT NULL, position BIGINT NOT NULL, hash BYTEA NOT NULL,
    PRIMARY KEY (incarnation, level, position));
";

// What was asked for, counted.
const STEP_5: &str = "
-- The text is a key and nothing else, so it is kept as bytes, in whose order pages go.
CREATE TABLE flows (
    flow BYTEA PRIMARY KEY, first_seen BIGINT NOT NULL, last_seen BIGINT NOT NULL,
    seen BIGINT NOT NULL);
";

// What operators keep beside the state.
const STEP_6: &str = "
CREATE TABLE papers (name BYTEA PRIMARY KEY, value BYTEA NOT NULL);
";

// What was observed, counted a minute at a time.
const STEP_7: &str = "
CREATE TABLE tallies (
    kind BIGINT NOT NULL, began BIGINT NOT NULL, what BYTEA NOT NULL,
    first_seen BIGINT NOT NULL, last_seen BIGINT NOT NULL, seen BIGINT NOT NULL,
    micros BIGINT NOT NULL, sample BYTEA NOT NULL,
    PRIMARY KEY (kind, began, what));
";

// By what a machine proved itself, if anybody knows.
const STEP_8: &str = "
ALTER TABLE nodes ADD COLUMN attested_by TEXT;
";

const MARK: &str = "CREATE TABLE countersign_schema (version BIGINT NOT NULL); \
    INSERT INTO countersign_schema (version) VALUES (0)";
const VERSION: &str = "SELECT version FROM countersign_schema FOR UPDATE";
/// Whoever is connected says behind its name which version it knows.
const OLDER: &str = "SELECT COUNT(*), COALESCE(MIN(known), 0) FROM ( \
     SELECT CAST(SUBSTRING(application_name FROM '/([0-9]{1,9})$') AS BIGINT) AS known \
     FROM pg_stat_activity WHERE datname = CURRENT_DATABASE()) AS programs WHERE known < $1";
const NEEDS: &str = "SELECT needs FROM head WHERE singleton = 1";
/// A step may take its time; nothing else is done on this connection. It does not wait long for a table that somebody reads,
/// because all others wait behind it.
const BEGIN: &str = "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 500; \
    SET LOCAL idle_in_transaction_session_timeout = 30000";
/// How often a step is tried that others are in the way of, such as a backup that is being made.
const ATTEMPTS_MAX: u32 = 60;
const PAUSE: Duration = Duration::from_millis(500);
/// No such table.
pub(super) const UNDEFINED_TABLE: &str = "42P01";
/// There is one already; the second when two make it at the same time.
const EXISTS: [&str; 2] = ["42P07", "23505"];

/// Makes the tables in a database that has none of ours.
pub(super) async fn create(session: &Session, target: &Target) -> Result<()> {
    let made = session.run(&format!("BEGIN; {MARK}; COMMIT")).await;
    match made {
        Ok(()) => migrate(session, target).await.map(drop),
        Err(fault) => {
            roll_back(session).await;
            Err(match fault {
                Fault::Refused { code, .. } if EXISTS.contains(&code.as_str()) => {
                    StoreError::AlreadyExists { what: format!("store `{}`", target.url) }
                }
                other => other.error(),
            })
        }
    }
}

/// Brings the schema to the version that this program knows, each step in a transaction of its own. Of two replicas
/// that start at once, the second waits for the first one's step. A newer one stays as it is, when this program may work on
/// it. Says what the schema is then.
pub(super) async fn migrate(session: &Session, target: &Target) -> Result<Schema> {
    let mut attempt = 0;
    loop {
        match step(session, target).await {
            Ok(Some(schema)) => return Ok(schema),
            Ok(None) => attempt = 0,
            Err(Halt::Fault(fault)) if fault.is_of_a_race() && attempt < ATTEMPTS_MAX => {
                roll_back(session).await;
                attempt += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(halt) => {
                roll_back(session).await;
                return Err(halt.error());
            }
        }
    }
}

/// Why a step was not done.
enum Halt {
    Fault(Fault),
    Store(StoreError),
}

impl Halt {
    fn error(self) -> StoreError {
        match self {
            Self::Fault(fault) => fault.error(),
            Self::Store(error) => error,
        }
    }
}

impl From<Fault> for Halt {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Does one step; says what the schema is when there is none to do.
async fn step(session: &Session, target: &Target) -> std::result::Result<Option<Schema>, Halt> {
    let version = session.together(Some(BEGIN), &[command!(VERSION)], None).await;
    let rows = version.map_err(|fault| match fault {
        Fault::Refused { code, .. } if code == UNDEFINED_TABLE => {
            Halt::Store(StoreError::Missing { path: target.place() })
        }
        other => Halt::Fault(other),
    })?;
    let row = rows.first().and_then(|rows| rows.first());
    let version = number(row.ok_or_else(|| broken("the schema has no version"))?, 0)?;
    let next = usize::try_from(version).ok().and_then(|version| target.steps.get(version));
    let Some(Step { ddl, older }) = next else {
        let rows = session.together(None, &[command!(NEEDS)], Some("ROLLBACK")).await?;
        let row = rows.first().and_then(|rows| rows.first());
        let needs = number(row.ok_or_else(|| broken("there is no head row"))?, 0)?;
        let schema = Schema { version, needs };
        schema.check(target.known(), &target.place())?;
        return Ok(Some(schema));
    };
    let moved = "UPDATE countersign_schema SET version = version + 1";
    let needs = match older {
        Older::GoOn => String::new(),
        Older::Stop => {
            alone(session, target, version + 1).await?;
            // Who comes between has read the head row before this, and writes nothing any more.
            format!("UPDATE head SET needs = {}, writes = writes + 1; ", version + 1)
        }
    };
    session.run(&format!("{ddl}; {moved}; {needs}COMMIT")).await?;
    Ok(None)
}

/// Goes on only when no program is connected that knows less than a version.
async fn alone(session: &Session, target: &Target, version: u64) -> std::result::Result<(), Halt> {
    let rows = session.together(None, &[command!(OLDER, signed(version)?)], None).await?;
    let row = rows.first().and_then(|rows| rows.first());
    let row = row.ok_or_else(|| broken("nothing was counted"))?;
    let (connections, known) = (number(row, 0)?, number(row, 1)?);
    if connections == 0 {
        return Ok(());
    }
    let path = target.place();
    Err(Halt::Store(StoreError::OlderPrograms { path, version, known, connections }))
}

async fn roll_back(session: &Session) {
    if let Err(fault) = session.run("ROLLBACK").await {
        tracing::debug!(?fault, "could not roll back a step of the schema");
    }
}
