//! That a copy forgets no table and no column: what is copied is what the schema has.

use std::collections::{BTreeMap, BTreeSet};

use super::{TABLES, Type};

/// What is not copied, and why nothing is lost by that.
const LEFT_OUT: &[(&str, &str)] = &[
    ("head", "the one row goes last, when all others are there"),
    ("leases", "at the new place nobody has a duty yet"),
    ("reports", "each server replaces its own every moment"),
    ("schema", "SQLite's version of the schema, which the new place has"),
    ("countersign_schema", "PostgreSQL's"),
];

/// A column as a database tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) table: String,
    pub(crate) name: String,
    /// The type's word, in either database.
    pub(crate) kind: String,
    /// Its place in the table's key, from 1 on; 0 when it is no part of that.
    pub(crate) key: u32,
}

/// Checks that all of these are copied, or left out for a reason.
#[track_caller]
pub(crate) fn is_copied(schema: &[Column]) {
    let mut tables: BTreeMap<&str, Vec<&Column>> = BTreeMap::new();
    for column in schema {
        tables.entry(&column.table).or_default().push(column);
    }
    tables.retain(|table, _| !LEFT_OUT.iter().any(|(left, _why)| left == table));
    let copied: BTreeSet<&str> = TABLES.iter().map(|table| table.name).collect();
    assert_eq!(tables.keys().copied().collect::<BTreeSet<_>>(), copied);
    assert_eq!(copied.len(), TABLES.len(), "each once");
    for table in TABLES {
        let columns = &tables[table.name];
        let found: BTreeMap<&str, Type> =
            columns.iter().map(|column| (column.name.as_str(), kind(&column.kind))).collect();
        assert_eq!(found, table.columns.iter().copied().collect(), "{}", table.name);
        let mut keys: Vec<_> = columns.iter().filter(|column| 0 < column.key).collect();
        keys.sort_by_key(|column| column.key);
        let keys: Vec<&str> = keys.iter().map(|column| column.name.as_str()).collect();
        let expected = table.columns[..table.keys].iter().map(|(name, _)| *name);
        assert_eq!(keys, expected.collect::<Vec<_>>(), "{}", table.name);
    }
}

fn kind(word: &str) -> Type {
    match word {
        "BIGINT" | "INTEGER" | "bigint" => Type::Number,
        "TEXT" | "text" => Type::Text,
        "BLOB" | "bytea" => Type::Bytes,
        other => panic!("`{other}` is a type that no copy knows"),
    }
}

#[test]
fn every_table_and_column_of_sqlite_is_copied_or_left_out_for_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let new = crate::sqlite::Writing::create(folder.path()).unwrap();
    new.finish(&crate::Head::of(1)).unwrap();
    let connection = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    let all = "SELECT t.name, c.name, c.type, c.pk FROM sqlite_schema AS t \
               JOIN pragma_table_info(t.name) AS c WHERE t.type = 'table'";
    let mut statement = connection.prepare(all).unwrap();
    let column = |row: &rusqlite::Row<'_>| {
        let (table, name, kind) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(Column { table, name, kind, key: row.get(3)? })
    };
    let schema: Result<Vec<_>, _> = statement.query_map([], column).unwrap().collect();
    is_copied(&schema.unwrap());
}
