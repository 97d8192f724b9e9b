//! PostgreSQL's own DDL, one step a version. A step that was released never changes.
//!
//! Steps only add, so that a replica of the version before goes on while a newer one starts.

use super::rows::{broken, number};
use super::session::{Fault, Session, command};
use crate::{Result, StoreError};

/// The steps from each version to the next; the first makes version 1 of nothing.
const STEPS: &[&str] = &[STEP_1, STEP_2, STEP_3, STEP_4, STEP_5];

// Times are BIGINT, ids BYTEA: nothing whose order or meaning a database's settings could change.
const STEP_1: &str = "
-- The only point where writers meet. `writes` counts transactions, and guards each against those that came between.
CREATE TABLE head (
    singleton BIGINT PRIMARY KEY CHECK (singleton = 1),
    incarnation BIGINT NOT NULL, number BIGINT NOT NULL,
    fence BIGINT NOT NULL, log_size BIGINT NOT NULL,
    writes BIGINT NOT NULL CHECK (0 <= writes));
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

const MARK: &str = "CREATE TABLE countersign_schema (version BIGINT NOT NULL); \
    INSERT INTO countersign_schema (version) VALUES (0)";
const VERSION: &str = "SELECT version FROM countersign_schema FOR UPDATE";
/// A step may take its time; nothing else is done on this connection.
const BEGIN: &str = "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 30000; \
    SET LOCAL idle_in_transaction_session_timeout = 30000";
/// No such table.
const UNDEFINED_TABLE: &str = "42P01";
/// There is one already; the second when two make it at the same time.
const EXISTS: [&str; 2] = ["42P07", "23505"];

/// Makes the tables in a database that has none of ours.
pub(super) async fn create(session: &Session, place: &str) -> Result<()> {
    let made = session.run(&format!("BEGIN; {MARK}; COMMIT")).await;
    match made {
        Ok(()) => migrate(session, place).await,
        Err(fault) => {
            roll_back(session).await;
            Err(match fault {
                Fault::Refused { code, .. } if EXISTS.contains(&code.as_str()) => {
                    StoreError::AlreadyExists { what: format!("store `{place}`") }
                }
                other => other.error(),
            })
        }
    }
}

/// Brings the schema to the version that this program knows, each step in a transaction of its own. Of two replicas
/// that start at once, the second waits for the first one's step.
pub(super) async fn migrate(session: &Session, place: &str) -> Result<()> {
    loop {
        let more = step(session, place).await;
        if more.is_err() {
            roll_back(session).await;
        }
        if !more? {
            return Ok(());
        }
    }
}

/// Does one step; says whether there may be more.
async fn step(session: &Session, place: &str) -> Result<bool> {
    let version = session.together(Some(BEGIN), &[command!(VERSION)], None).await;
    let rows = version.map_err(|fault| match fault {
        Fault::Refused { code, .. } if code == UNDEFINED_TABLE => {
            StoreError::Missing { path: place.into() }
        }
        other => other.error(),
    })?;
    let row = rows.first().and_then(|rows| rows.first());
    let version = number(row.ok_or_else(|| broken("the schema has no version"))?, 0)?;
    let known = STEPS.len() as u64;
    if known < version {
        return Err(StoreError::NewerSchema { path: place.into(), found: version, known });
    }
    let next = usize::try_from(version).ok().and_then(|version| STEPS.get(version));
    let Some(ddl) = next else {
        session.run("ROLLBACK").await.map_err(Fault::error)?;
        return Ok(false);
    };
    let moved = "UPDATE countersign_schema SET version = version + 1";
    session.run(&format!("{ddl}; {moved}; COMMIT")).await.map_err(Fault::error)?;
    Ok(true)
}

async fn roll_back(session: &Session) {
    if let Err(fault) = session.run("ROLLBACK").await {
        tracing::debug!(?fault, "could not roll back a step of the schema");
    }
}
