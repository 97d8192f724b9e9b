//! Rows of PostgreSQL as they are, for copying.

use std::path::PathBuf;
use std::sync::Arc;

use countersign_identity::Entropy;
use tokio::sync::Notify;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::rows::{broken, column, head, signed};
use super::schema::UNDEFINED_TABLE;
use super::session::{Fault, Session, Target, command};
use super::{Password, PostgresStore, PostgresUrl, Reached, hosts};
use crate::copy::{Cell, Line, PRESENCE, Present, Table, Type};
use crate::{Head, Result, StoreError, sql};

/// A copy takes its time, and nobody waits for it.
const READING: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
    SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";
const WRITING: &str = "BEGIN; SET LOCAL statement_timeout = 0; \
    SET LOCAL idle_in_transaction_session_timeout = 0";

/// A database that is read, as it was at one moment.
pub(crate) struct Reading(Session);

/// A database of which it is asked again and again who works on it: each time as it is then.
pub(crate) struct Presence {
    session: Session,
    place: PathBuf,
}

/// A database that is filled in one transaction, which ends with the connection when it is not finished.
pub(crate) struct Writing(Session);

type Value = Box<dyn ToSql + Sync + Send>;

fn value(cell: &Cell) -> Value {
    match cell {
        Cell::Null => Box::new(None::<i64>),
        Cell::Number(number) => Box::new(*number),
        Cell::Text(text) => Box::new(text.clone()),
        Cell::Bytes(bytes) => Box::new(bytes.clone()),
    }
}

fn cell(row: &Row, place: usize, kind: Type) -> Result<Cell> {
    Ok(match kind {
        Type::Number => column::<Option<i64>>(row, place)?.map_or(Cell::Null, Cell::Number),
        Type::Text => column::<Option<String>>(row, place)?.map_or(Cell::Null, Cell::Text),
        Type::Bytes => column::<Option<Vec<u8>>>(row, place)?.map_or(Cell::Null, Cell::Bytes),
    })
}

async fn page(session: &Session, table: &Table, after: Option<&[Cell]>) -> Result<Vec<Line>> {
    let keys: Vec<Value> = after.unwrap_or_default().iter().map(value).collect();
    let rows = session.rows_of(&table.page(after.is_some()), &keys).await;
    let line = |row: &Row| {
        let kinds = table.columns.iter().enumerate();
        kinds.map(|(place, (_, kind))| cell(row, place, *kind)).collect()
    };
    rows.map_err(Fault::error)?.iter().map(line).collect()
}

/// A connection to a database all of whose schema is known.
async fn whole(target: &Target) -> Result<Session> {
    let session = connect(target).await?;
    let schema = super::schema::migrate(&session, target).await?;
    schema.check_whole(target.known(), &target.place())?;
    Ok(session)
}

async fn connect(target: &Target) -> Result<Session> {
    hosts::connect(target, target.reached.as_ref(), &Arc::new(Notify::new())).await
}

impl Presence {
    /// Opens a database that has a store, of whatever version: it may be that of servers at work, who are not to notice.
    pub(crate) async fn open(url: PostgresUrl, password: Password) -> Result<Self> {
        let target = Target::new(url, password);
        Ok(Self { session: connect(&target).await?, place: target.place() })
    }

    /// Every server's lease, whether it has ended or not.
    pub(crate) async fn all(&self) -> Result<Vec<Present>> {
        let text = "SELECT substr(name, length($1::TEXT) + 1), ends, \
                    (extract(epoch FROM clock_timestamp()) * 1000000)::BIGINT \
                    FROM leases WHERE starts_with(name, $1::TEXT) ORDER BY name";
        let names: [Value; 1] = [Box::new(PRESENCE)];
        let rows = self.session.rows_of(text, &names).await.map_err(|fault| match fault {
            Fault::Refused { code, .. } if code == UNDEFINED_TABLE => {
                StoreError::Missing { path: self.place() }
            }
            other => other.error(),
        })?;
        let present = |row: &Row| {
            let (ends, now) = (column(row, 1)?, column(row, 2)?);
            Ok(Present { server: column(row, 0)?, ends, now })
        };
        rows.iter().map(present).collect()
    }

    /// Which database.
    pub(crate) fn place(&self) -> PathBuf {
        self.place.clone()
    }
}

impl Reading {
    /// Opens a database that has a store, of which so much was seen.
    pub(crate) async fn open(
        url: PostgresUrl,
        password: Password,
        reached: Option<Reached>,
    ) -> Result<Self> {
        let session = whole(&Target::new(url, password).after(reached)).await?;
        session.run(READING).await.map_err(Fault::error)?;
        Ok(Self(session))
    }

    pub(crate) async fn head(&self) -> Result<Head> {
        let rows = self.0.rows(&command!(sql::HEAD)).await.map_err(Fault::error)?;
        head(rows.first().ok_or_else(|| broken("there is no head row"))?)
    }

    pub(crate) async fn page(&self, table: &Table, after: Option<&[Cell]>) -> Result<Vec<Line>> {
        page(&self.0, table, after).await
    }
}

impl Writing {
    /// Makes a new store in a database that has none.
    pub(crate) async fn create(
        url: PostgresUrl,
        password: Password,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self> {
        drop(PostgresStore::create(url.clone(), password.clone(), entropy).await?);
        let target = Target::new(url, password);
        let session = connect(&target).await?;
        session.run(WRITING).await.map_err(Fault::error)?;
        Ok(Self(session))
    }

    pub(crate) async fn put(&self, table: &Table, lines: &[Line]) -> Result<()> {
        let kinds = table.columns.iter().enumerate();
        let (mut casts, mut values): (Vec<String>, Vec<Value>) = (Vec::new(), Vec::new());
        for (place, (_, kind)) in kinds {
            let cells = lines.iter().map(|line| &line[place]);
            let (cast, value): (_, Value) = match kind {
                Type::Number => ("BIGINT", Box::new(cells.map(number).collect::<Vec<_>>())),
                Type::Text => ("TEXT", Box::new(cells.map(text).collect::<Vec<_>>())),
                Type::Bytes => ("BYTEA", Box::new(cells.map(bytes).collect::<Vec<_>>())),
            };
            casts.push(format!("${}::{cast}[]", place + 1));
            values.push(value);
        }
        let (name, names, casts) = (table.name, table.names(), casts.join(", "));
        let text = format!("INSERT INTO {name} ({names}) SELECT * FROM UNNEST({casts})");
        self.0.rows_of(&text, &values).await.map(drop).map_err(Fault::error)
    }

    pub(crate) async fn clear(&self, table: &Table) -> Result<()> {
        let text = format!("DELETE FROM {}", table.name);
        self.0.run(&text).await.map_err(Fault::error)
    }

    /// What it holds so far.
    pub(crate) async fn page(&self, table: &Table, after: Option<&[Cell]>) -> Result<Vec<Line>> {
        page(&self.0, table, after).await
    }

    pub(crate) async fn finish(self, head: &Head) -> Result<()> {
        let text = "UPDATE head SET incarnation = $1, number = $2, fence = $3, log_size = $4, \
                    writes = writes + 1";
        let values: [Value; 4] = [
            Box::new(signed(head.revision.incarnation)?),
            Box::new(signed(head.revision.number)?),
            Box::new(signed(head.fence.number)?),
            Box::new(signed(head.log_size)?),
        ];
        self.0.rows_of(text, &values).await.map_err(Fault::error)?;
        self.0.run("COMMIT").await.map_err(Fault::error)
    }
}

fn number(cell: &Cell) -> Option<i64> {
    if let Cell::Number(number) = cell { Some(*number) } else { None }
}

fn text(cell: &Cell) -> Option<String> {
    if let Cell::Text(text) = cell { Some(text.clone()) } else { None }
}

fn bytes(cell: &Cell) -> Option<Vec<u8>> {
    if let Cell::Bytes(bytes) = cell { Some(bytes.clone()) } else { None }
}
