//! Rows of SQLite as they are, for copying and for backups.

use std::path::Path;

use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, params_from_iter};

use super::files::{self, Draft, Lock};
use super::rows::{broken, failed, signed};
use super::schema;
use super::tables::{Open, all};
use crate::copy::{Cell, Line, Table};
use crate::{Head, Result};

/// A directory that is read, with nobody else on it.
pub(crate) struct Reading {
    connection: Connection,
    _lock: Option<Lock>,
}

/// A directory that is filled in one transaction. The database has no name before it is finished.
pub(crate) struct Writing {
    draft: Draft,
    // Last, so that it is released when nothing is left.
    _lock: Lock,
}

fn cell(value: ValueRef<'_>) -> Result<Cell> {
    Ok(match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(number) => Cell::Number(number),
        ValueRef::Text(text) => {
            let text = String::from_utf8(text.to_vec());
            Cell::Text(text.map_err(|bad| broken(bad.to_string()))?)
        }
        ValueRef::Blob(bytes) => Cell::Bytes(bytes.to_vec()),
        ValueRef::Real(number) => return Err(broken(format!("`{number}` is not a whole number"))),
    })
}

fn value(cell: &Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Number(number) => Value::Integer(*number),
        Cell::Text(text) => Value::Text(text.clone()),
        Cell::Bytes(bytes) => Value::Blob(bytes.clone()),
    }
}

fn page(connection: &Connection, table: &Table, after: Option<&[Cell]>) -> Result<Vec<Line>> {
    let keys = params_from_iter(after.unwrap_or_default().iter().map(value));
    all(connection, &table.page(after.is_some()), keys, |row| {
        let place = 0..table.columns.len();
        place.map(|place| cell(row.get_ref(place).map_err(failed)?)).collect()
    })
}

impl Reading {
    /// Opens a directory that has a store.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        files::check_modes(directory)?;
        let lock = Lock::take(directory)?;
        files::check_header(directory, &lock)?;
        let path = files::database(directory);
        let connection = files::open_writer(&path)?;
        schema::check_whole(&connection, &path)?;
        Ok(Self { connection, _lock: Some(lock) })
    }

    /// Opens a directory that has a store, also while a server runs on it, and reads it as it is now to the end.
    pub(crate) fn observe(directory: &Path) -> Result<Self> {
        files::check_modes(directory)?;
        let path = files::database(directory);
        let connection = files::open_reader(&path)?;
        let reading = Self { connection, _lock: None };
        Open(&reading.connection).bracket("BEGIN")?;
        // The first statement chooses the state that all others see.
        reading.head()?;
        schema::check_whole(&reading.connection, &path)?;
        Ok(reading)
    }

    pub(crate) fn head(&self) -> Result<Head> {
        Open(&self.connection).head()
    }

    pub(crate) fn page(&self, table: &Table, after: Option<&[Cell]>) -> Result<Vec<Line>> {
        page(&self.connection, table, after)
    }
}

impl Writing {
    /// Makes a new store in a directory that has none.
    pub(crate) fn create(directory: &Path) -> Result<Self> {
        let lock = Lock::take(directory)?;
        let draft = Draft::begin(directory, &lock)?;
        Open(draft.connection()).bracket("BEGIN IMMEDIATE")?;
        Ok(Self { draft, _lock: lock })
    }

    pub(crate) fn put(&self, table: &Table, lines: &[Line]) -> Result<()> {
        let places: Vec<_> = (1..=table.columns.len()).map(|place| format!("${place}")).collect();
        let (names, places) = (table.names(), places.join(", "));
        let text = format!("INSERT INTO {} ({names}) VALUES ({places})", table.name);
        let mut statement = self.draft.connection().prepare_cached(&text).map_err(failed)?;
        for line in lines {
            statement.execute(params_from_iter(line.iter().map(value))).map_err(failed)?;
        }
        Ok(())
    }

    pub(crate) fn clear(&self, table: &Table) -> Result<()> {
        let text = format!("DELETE FROM {}", table.name);
        self.draft.connection().execute(&text, []).map(drop).map_err(failed)
    }

    /// What it holds so far.
    pub(crate) fn page(&self, table: &Table, after: Option<&[Cell]>) -> Result<Vec<Line>> {
        page(self.draft.connection(), table, after)
    }

    pub(crate) fn finish(self, head: &Head) -> Result<()> {
        let values = (
            signed(head.revision.incarnation)?,
            signed(head.revision.number)?,
            signed(head.fence.number)?,
            signed(head.log_size)?,
        );
        let text = "UPDATE head SET incarnation = $1, number = $2, fence = $3, log_size = $4";
        self.draft.connection().execute(text, values).map_err(failed)?;
        Open(self.draft.connection()).bracket("COMMIT")?;
        self.draft.publish()
    }
}
