//! Every row of a store as its database tells of it: by what the schema has, and not by what any code of ours knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use rusqlite::types::ValueRef;

use crate::server::Cluster;

/// The servers' own at one place, and how far a database's schema is.
const APART: [&str; 4] = ["leases", "reports", "schema", "countersign_schema"];
/// Counts the transactions of PostgreSQL only.
const WRITES: (&str, &str) = ("head", "writes");

/// A row: the value of each column by its name, in a form that is the same of every database.
type Row = BTreeMap<String, String>;

/// All of them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) tables: BTreeMap<String, BTreeSet<Row>>,
    /// Which columns may be empty.
    nullable: BTreeSet<(String, String)>,
}

/// A column as the catalogue has it.
struct Column {
    table: String,
    name: String,
    nullable: bool,
}

impl Rows {
    /// Those of a data directory.
    pub(crate) fn of_directory(folder: &Path) -> Self {
        let connection = rusqlite::Connection::open(folder.join("state.db")).unwrap();
        let all = "SELECT t.name, c.name, c.\"notnull\" = 0 AND c.pk = 0 FROM sqlite_schema AS t \
                   JOIN pragma_table_info(t.name) AS c WHERE t.type = 'table'";
        let mut statement = connection.prepare(all).unwrap();
        let columns = statement.query_map([], |row| {
            Ok(Column { table: row.get(0)?, name: row.get(1)?, nullable: row.get(2)? })
        });
        let columns = columns.unwrap().map(Result::unwrap).collect();
        Self::read(columns, |table, names| {
            let text = format!("SELECT {} FROM {table}", names.join(", "));
            let mut statement = connection.prepare(&text).unwrap();
            let rows = statement.query_map([], |row| {
                let cells = (0..names.len()).map(|place| row.get_ref(place).map(cell));
                cells.collect::<Result<Vec<String>, _>>()
            });
            rows.unwrap().map(Result::unwrap).collect()
        })
    }

    /// Those of a database.
    pub(crate) fn of_database(cluster: &Cluster, database: &str) -> Self {
        let all = "SELECT c.relname, a.attname, NOT a.attnotnull, a.atttypid::REGTYPE \
                   FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid \
                   WHERE c.relkind = 'r' AND c.relnamespace = 'public'::REGNAMESPACE \
                   AND 0 < a.attnum AND NOT a.attisdropped";
        let (mut columns, mut kinds) = (Vec::new(), BTreeMap::new());
        for line in cluster.sql(database, all).lines() {
            let [table, name, nullable, kind] = line.split('|').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let (table, name) = (table.to_owned(), name.to_owned());
            kinds.insert((table.clone(), name.clone()), kind.to_owned());
            columns.push(Column { table, name, nullable: nullable == "t" });
        }
        Self::read(columns, |table, names| {
            let shown =
                names.iter().map(|name| match kinds[&(table.to_owned(), name.clone())].as_str() {
                    "bigint" => format!("COALESCE({name}::TEXT, 'null')"),
                    "text" => format!(
                        "COALESCE('t' || encode(convert_to({name}, 'UTF8'), 'hex'), 'null')"
                    ),
                    "bytea" => format!("COALESCE('x' || encode({name}, 'hex'), 'null')"),
                    other => panic!("`{other}` is a new type"),
                });
            let shown = shown.collect::<Vec<_>>().join(", ");
            let told = cluster.sql(database, &format!("SELECT {shown} FROM {table}"));
            let cells = |line: &str| line.split('|').map(str::to_owned).collect();
            told.lines().map(cells).collect()
        })
    }

    fn read(columns: Vec<Column>, rows: impl Fn(&str, &[String]) -> Vec<Vec<String>>) -> Self {
        let (mut names, mut nullable) = (BTreeMap::<String, Vec<String>>::new(), BTreeSet::new());
        for Column { table, name, nullable: may_be_empty } in columns {
            if APART.contains(&table.as_str()) || (table.as_str(), name.as_str()) == WRITES {
                continue;
            }
            if may_be_empty {
                nullable.insert((table.clone(), name.clone()));
            }
            names.entry(table).or_default().push(name);
        }
        let row = |names: &[String], cells: Vec<String>| names.iter().cloned().zip(cells).collect();
        let tables = names.into_iter().map(|(table, names)| {
            let found = rows(&table, &names).into_iter().map(|cells| row(&names, cells)).collect();
            (table, found)
        });
        Self { tables: tables.collect(), nullable }
    }

    /// Checks that each table has rows, and each column that may be empty is so in one row and not in another: otherwise
    /// it says nothing that two places have the same.
    #[track_caller]
    pub(crate) fn have_everything(&self) {
        for (table, rows) in &self.tables {
            assert!(!rows.is_empty(), "there is nothing in `{table}`: put something into it");
        }
        for (table, column) in &self.nullable {
            let empty = self.tables[table].iter().filter(|row| row[column] == "null").count();
            let rows = self.tables[table].len();
            assert!(0 < empty, "`{column}` of `{table}` is never empty");
            assert!(empty < rows, "`{column}` of `{table}` is always empty");
        }
    }

    /// Checks that there is nothing but a head row of a state in which nothing has happened.
    #[track_caller]
    pub(crate) fn have_nothing(&self) {
        let filled: Vec<_> = self.tables.iter().filter(|(_, rows)| !rows.is_empty()).collect();
        let [(table, rows)] = filled[..] else { panic!("{filled:?}") };
        let head = rows.first().unwrap();
        assert_eq!((table.as_str(), rows.len()), ("head", 1));
        assert_eq!((head["number"].as_str(), head["log_size"].as_str()), ("0", "0"));
    }
}

fn cell(value: ValueRef<'_>) -> String {
    let hex = |kind: char, bytes: &[u8]| {
        let mut text = kind.to_string();
        bytes.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        text
    };
    match value {
        ValueRef::Null => "null".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Text(bytes) => hex('t', bytes),
        ValueRef::Blob(bytes) => hex('x', bytes),
        ValueRef::Real(number) => panic!("{number}"),
    }
}
