//! Moving a trust domain's state from one backend to another, row by row, and checking that all of it came.

mod servers;
mod sums;
mod tiles;
#[cfg(test)]
pub(crate) mod whole;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use countersign_identity::Entropy;

pub(crate) use self::servers::Present;
pub use self::servers::{PRESENCE, PRESENCE_TTL};
pub(crate) use self::sums::{Sums, hash_of, push};
pub(crate) use self::tiles::{TILE_HASHES, mend};
use crate::postgres::{self, Password, PostgresStore, PostgresUrl};
use crate::sqlite::{self, SqliteStore};
use crate::{Head, Reached, Result, Snapshot, Store, StoreError, Verification, verify_with};

/// Where a state is, or is to be.
#[derive(Clone, Debug)]
pub enum Place {
    /// In a data directory.
    Directory(PathBuf),
    /// In a database.
    Database(PostgresUrl, Password),
}

/// What was copied, and found to be the same at both places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Each table and its rows.
    pub tables: Vec<(&'static str, u64)>,
    /// What both places were found to hold.
    pub verification: Verification,
}

/// A table as every backend has it; the first columns are its key.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) keys: usize,
    pub(crate) columns: &'static [(&'static str, Type)],
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Number,
    Text,
    Bytes,
}

/// What a column of one row holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cell {
    Null,
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// One row, in the order of its table's columns.
pub(crate) type Line = Vec<Cell>;

/// How many rows are read and written at once: a page of the largest values stays in bounds.
pub(crate) const LINES_MAX: usize = 200;

use Type::{Bytes, Number, Text};

/// Every table but the head row, which goes last, and the version of the schema, which the new place has by itself. Leases and
/// reports are of the servers at the old place, and are not copied: at the new one nobody has a duty or says anything yet.
pub(crate) const TABLES: &[Table] = &[
    Table {
        name: "records",
        keys: 2,
        columns: &[("kind", Text), ("name", Text), ("value", Bytes)],
    },
    Table { name: "commits", keys: 1, columns: &[("number", Number)] },
    Table {
        name: "changes",
        keys: 2,
        columns: &[
            ("number", Number),
            ("position", Number),
            ("kind", Text),
            ("name", Text),
            ("value", Bytes),
        ],
    },
    Table {
        name: "log",
        keys: 1,
        columns: &[
            ("log_index", Number),
            ("leaf", Bytes),
            ("hash", Bytes),
            ("details", Bytes),
            ("salt", Bytes),
        ],
    },
    Table {
        name: "past_log",
        keys: 2,
        columns: &[
            ("incarnation", Number),
            ("log_index", Number),
            ("leaf", Bytes),
            ("hash", Bytes),
            ("details", Bytes),
            ("salt", Bytes),
        ],
    },
    Table {
        name: "checkpoints",
        keys: 2,
        columns: &[("incarnation", Number), ("size", Number), ("note", Text)],
    },
    Table {
        name: "tile_hashes",
        keys: 3,
        columns: &[
            ("incarnation", Number),
            ("level", Number),
            ("position", Number),
            ("hash", Bytes),
        ],
    },
    Table {
        name: "issued",
        keys: 1,
        columns: &[
            ("serial", Bytes),
            ("tbs", Bytes),
            ("spiffe_id", Text),
            ("key_id", Bytes),
            ("issuer", Bytes),
            ("node", Bytes),
            ("not_before", Number),
            ("not_after", Number),
            ("incarnation", Number),
            ("number", Number),
            ("log_index", Number),
        ],
    },
    Table { name: "secrets", keys: 1, columns: &[("name", Text), ("sealed", Bytes)] },
    Table {
        name: "tokens",
        keys: 1,
        columns: &[("hash", Bytes), ("expires", Number), ("labels", Text), ("spent", Number)],
    },
    Table {
        name: "nodes",
        keys: 1,
        columns: &[
            ("id", Bytes),
            ("spiffe_id", Text),
            ("key_spki", Bytes),
            ("generation", Number),
            ("labels", Text),
            ("host", Text),
            ("attested_at", Number),
            ("seen_at", Number),
            ("attested_by", Text),
        ],
    },
    Table { name: "revoked_keys", keys: 1, columns: &[("key_id", Bytes), ("since", Number)] },
    Table {
        name: "points",
        keys: 3,
        columns: &[("node", Bytes), ("spiffe_id", Text), ("name", Text), ("registered_at", Number)],
    },
    Table {
        name: "flows",
        keys: 1,
        columns: &[
            ("flow", Bytes),
            ("first_seen", Number),
            ("last_seen", Number),
            ("seen", Number),
        ],
    },
    Table { name: "papers", keys: 1, columns: &[("name", Bytes), ("value", Bytes)] },
    Table {
        name: "tallies",
        keys: 3,
        columns: &[
            ("kind", Number),
            ("began", Number),
            ("what", Bytes),
            ("first_seen", Number),
            ("last_seen", Number),
            ("seen", Number),
            ("micros", Number),
            ("sample", Bytes),
        ],
    },
];

impl Table {
    /// The columns' names with commas between.
    pub(crate) fn names(&self) -> String {
        self.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    /// The statement for the next page: after this key, or from the beginning.
    pub(crate) fn page(&self, follows: bool) -> String {
        let keys = self.columns[..self.keys].iter().map(|(name, _)| *name).collect::<Vec<_>>();
        let keys = keys.join(", ");
        let mut text = format!("SELECT {} FROM {}", self.names(), self.name);
        if follows {
            let values: Vec<_> = (1..=self.keys).map(|place| format!("${place}")).collect();
            // Writing to a string cannot fail.
            let _ = write!(text, " WHERE ({keys}) > ({})", values.join(", "));
        }
        let _ = write!(text, " ORDER BY {keys} LIMIT {LINES_MAX}");
        text
    }
}

/// Whoever can be asked for pages of rows.
pub(crate) trait Pages {
    /// The next rows of a table in the order of its keys.
    async fn page(&self, table: &Table, after: Option<&[Cell]>) -> Result<Vec<Line>>;
}

/// Where rows are read from. Every page is of one state.
pub(crate) enum Source {
    Directory(sqlite::Reading),
    Database(postgres::Reading),
}

/// Where rows are written to; nothing is there before `finish`, and nothing is left of what is dropped before.
pub(crate) enum Target {
    Directory(sqlite::Writing),
    Database(postgres::Writing),
}

impl Source {
    /// Reads what servers write meanwhile, as it was at one moment.
    pub(crate) async fn observe(place: &Place, reached: Option<Reached>) -> Result<Self> {
        Ok(match place {
            Place::Directory(path) => Self::Directory(sqlite::Reading::observe(path)?),
            Place::Database(_, _) => Self::open(place, reached).await?,
        })
    }

    async fn open(place: &Place, reached: Option<Reached>) -> Result<Self> {
        Ok(match place {
            Place::Directory(path) => Self::Directory(sqlite::Reading::open(path)?),
            Place::Database(url, password) => {
                let (url, password) = (url.clone(), password.clone());
                Self::Database(postgres::Reading::open(url, password, reached).await?)
            }
        })
    }

    pub(crate) async fn head(&self) -> Result<Head> {
        match self {
            Self::Directory(reading) => reading.head(),
            Self::Database(reading) => reading.head().await,
        }
    }
}

impl Pages for Source {
    async fn page(&self, table: &Table, after: Option<&[Cell]>) -> Result<Vec<Line>> {
        match self {
            Self::Directory(reading) => reading.page(table, after),
            Self::Database(reading) => reading.page(table, after).await,
        }
    }
}

impl Target {
    pub(crate) async fn create(place: &Place, entropy: Arc<dyn Entropy>) -> Result<Self> {
        Ok(match place {
            Place::Directory(path) => Self::Directory(sqlite::Writing::create(path)?),
            Place::Database(url, password) => {
                let writing = postgres::Writing::create(url.clone(), password.clone(), entropy);
                Self::Database(writing.await?)
            }
        })
    }

    pub(crate) async fn put(&self, table: &Table, lines: &[Line]) -> Result<()> {
        match self {
            Self::Directory(writing) => writing.put(table, lines),
            Self::Database(writing) => writing.put(table, lines).await,
        }
    }

    /// Takes all rows of a table back.
    pub(crate) async fn clear(&self, table: &Table) -> Result<()> {
        match self {
            Self::Directory(writing) => writing.clear(table),
            Self::Database(writing) => writing.clear(table).await,
        }
    }

    /// What it holds so far, which nobody else sees yet.
    pub(crate) async fn sums(&self) -> Result<Sums> {
        Sums::of(self, async |_table: &Table, _page: &[Line]| Ok(())).await
    }

    pub(crate) async fn finish(self, head: &Head) -> Result<()> {
        match self {
            Self::Directory(writing) => writing.finish(head),
            Self::Database(writing) => writing.finish(head).await,
        }
    }
}

impl Pages for Target {
    async fn page(&self, table: &Table, after: Option<&[Cell]>) -> Result<Vec<Line>> {
        match self {
            Self::Directory(writing) => writing.page(table, after),
            Self::Database(writing) => writing.page(table, after).await,
        }
    }
}

/// Copies a state to a place that has none: one that is in order, and so that every value of every row is the same there, and
/// the root of the log.
///
/// All of that is known before there is a state at the new place; when it is not so, there is none afterwards either.
/// No server may work on either place, or the old one goes on and one revision has two meanings. Of a database it is
/// watched, for [`PRESENCE_TTL`] at most, whether a server renews its lease there, before anything is done to it: its schema is of
/// its servers' version until it is known that there are none. Blocks its thread where a place is a directory.
///
/// What the values of records say is not known here: `check` is asked of those that are copied.
///
/// # Errors
/// When a server works on one of them, there is a state at the new place, the old one is not in order or was written to
/// meanwhile, the two differ, or as `check` says.
pub async fn copy<E: From<StoreError>>(
    from: &Place,
    to: &Place,
    entropy: Arc<dyn Entropy>,
    check: impl FnOnce(Snapshot) -> std::result::Result<(), E>,
) -> std::result::Result<Copied, E> {
    // 1. What a server goes on with is not copied, and what is not in order is not spread.
    let old_servers = servers::watch(from).await?;
    let old = verify(from, Arc::clone(&entropy), check).await?;
    let source = Source::open(from, None).await?;
    check_unmoved(&old.head, &source).await?;
    // 2. All rows, in one transaction.
    let target = Target::create(to, Arc::clone(&entropy)).await?;
    let new_servers = servers::watch(to).await?;
    let put = async |table: &Table, page: &[Line]| target.put(table, page).await;
    let sums = Sums::of(&source, put).await?;
    // 3. The new place, by what it reads and not by what it was given, while it can still be taken back.
    target.sums().await?.check_same(&sums)?;
    check_unmoved(&old.head, &Source::observe(from, None).await?).await?;
    old_servers.check_still(from).await?;
    new_servers.check_still(to).await?;
    target.finish(&old.head).await?;
    drop(source);
    // 4. As a server will find it.
    let (new, tables) = look(to, entropy).await?;
    if old != new || sums.rows() != tables {
        let what = format!("the copy is not the same: {old:?}, {new:?} {tables:?}");
        return Err(StoreError::Broken { what }.into());
    }
    Ok(Copied { tables, verification: new })
}

async fn check_unmoved(head: &Head, source: &Source) -> Result<()> {
    if source.head().await? == *head {
        return Ok(());
    }
    let why = "the state was written to while it was copied: stop its servers first".to_owned();
    Err(StoreError::Unavailable { why })
}

/// Hands on all rows of a table, page by page; says how many there were.
pub(crate) async fn lines(
    from: &impl Pages,
    table: &Table,
    mut each: impl AsyncFnMut(&[Line]) -> Result<()>,
) -> Result<u64> {
    let mut count = 0;
    let mut after: Option<Line> = None;
    loop {
        let page = from.page(table, after.as_deref()).await?;
        let Some(last) = page.last() else { return Ok(count) };
        after = Some(last[..table.keys].to_vec());
        count += page.len() as u64;
        each(&page).await?;
    }
}

async fn verify<E: From<StoreError>>(
    place: &Place,
    entropy: Arc<dyn Entropy>,
    check: impl FnOnce(Snapshot) -> std::result::Result<(), E>,
) -> std::result::Result<Verification, E> {
    let store: Box<dyn Store> = match place {
        Place::Directory(path) => Box::new(SqliteStore::open(path, entropy)?),
        Place::Database(url, password) => {
            Box::new(PostgresStore::open(url.clone(), password.clone(), entropy).await?)
        }
    };
    verify_with(&*store, check).await
}

/// Checks a place as a whole, and counts its rows.
pub(crate) async fn look(
    place: &Place,
    entropy: Arc<dyn Entropy>,
) -> Result<(Verification, Vec<(&'static str, u64)>)> {
    let verification = verify(place, entropy, |_records| Ok::<_, StoreError>(())).await?;
    let source = Source::open(place, None).await?;
    let mut tables = Vec::new();
    for table in TABLES {
        tables.push((table.name, lines(&source, table, async |_page: &[Line]| Ok(())).await?));
    }
    Ok((verification, tables))
}
