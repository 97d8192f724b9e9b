//! A trust domain's state as bytes, page by page: what a backup holds, the same whichever backend it comes from.
//!
//! A page is the name of its table, the number of its rows, and the cells of each row in the order of the columns. Who
//! seals the pages and where they lie is not known here.

use std::sync::Arc;

use countersign_audit::Tree;
use countersign_identity::{Entropy, Sha256};

use crate::copy::{
    Cell, Line, Source, TABLES, TILE_HASHES, Table, Target, Type, lines, look, mend, push,
};
use crate::{Head, Place, Reached, Result, StoreError, Verification};

/// A state that is being read, as it was at one moment, also while servers write.
pub struct Dumping {
    source: Source,
    head: Head,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dumped {
    /// Each table and its rows.
    pub tables: Vec<(&'static str, u64)>,
    /// The root of the log.
    pub root: Sha256,
}

/// What a place was filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filled {
    /// What it was found to hold.
    pub verification: Verification,
    /// Whether hashes of the logs' full tiles were not what the leaves come to, and are so now.
    pub tiles_mended: bool,
}

/// Some rows of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Of which.
    pub table: &'static str,
    /// How many.
    pub rows: u64,
    /// All of it, the name of the table included.
    pub bytes: Vec<u8>,
}

/// A place that is being filled; nothing is there before it is finished.
pub struct Filling {
    target: Target,
    place: Place,
    entropy: Arc<dyn Entropy>,
}

const NULL: u8 = 0;
const NUMBER: u8 = 1;
const TEXT: u8 = 2;
const BYTES: u8 = 3;

impl Dumping {
    /// Opens a state that is there. Blocks its thread where the place is a directory.
    ///
    /// # Errors
    /// When there is none, or it does not answer.
    pub async fn open(place: &Place) -> Result<Self> {
        Self::open_after(place, None).await
    }

    /// Opens a state of which so much was seen: of a database, no host that is known to be an old primary.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_after(place: &Place, reached: Option<Reached>) -> Result<Self> {
        let source = Source::observe(place, reached).await?;
        let head = source.head().await?;
        Ok(Self { source, head })
    }

    /// The head row of the moment.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Hands on every row of the moment.
    ///
    /// # Errors
    /// When the store stops answering, or `each` fails.
    pub async fn pages<E: From<StoreError>>(
        &self,
        mut each: impl FnMut(Page) -> std::result::Result<(), E>,
    ) -> std::result::Result<Dumped, E> {
        let mut tree = Tree::new();
        let mut tables = Vec::new();
        for table in TABLES {
            let mut failed = None;
            let put = async |page: &[Line]| {
                if table.name == "log" {
                    push(&mut tree, page)?;
                }
                let written = each(encode(table, page));
                written.map_err(|why| {
                    failed = Some(why);
                    StoreError::Unavailable { why: String::new() }
                })
            };
            let read = lines(&self.source, table, put).await;
            if let Some(why) = failed {
                return Err(why);
            }
            tables.push((table.name, read?));
        }
        Ok(Dumped { tables, root: tree.root() })
    }
}

impl Page {
    /// Reads what a page says of itself, and all of its rows.
    ///
    /// # Errors
    /// When it is not a page of this version.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let (table, rows) = decode(bytes)?;
        Ok(Self { table: table.name, rows: rows.len() as u64, bytes: bytes.to_vec() })
    }

    /// Writes the rows that were read anew: for fuzzing.
    ///
    /// # Errors
    /// When it is not a page of this version.
    #[doc(hidden)]
    pub fn rewritten(&self) -> Result<Self> {
        let (table, rows) = decode(&self.bytes)?;
        Ok(encode(table, &rows))
    }
}

impl Filling {
    /// Begins a new state at a place that has none.
    ///
    /// # Errors
    /// When there is one, or the place cannot be written.
    pub async fn create(place: Place, entropy: Arc<dyn Entropy>) -> Result<Self> {
        let target = Target::create(&place, Arc::clone(&entropy)).await?;
        Ok(Self { target, place, entropy })
    }

    /// Takes the rows of a page.
    ///
    /// # Errors
    /// When it is none, or the place cannot be written.
    pub async fn put(&self, page: &[u8]) -> Result<()> {
        let (table, rows) = decode(page)?;
        self.target.put(table, &rows).await
    }

    /// Makes all of it durable, once it was checked against what the backup says of itself; where it differs, nothing is at
    /// the place afterwards. The hashes of the logs' full tiles are reckoned anew where they are not what the leaves come to: nothing
    /// is known by them that is not known by those, which are checked against what was signed.
    ///
    /// # Errors
    /// When the place cannot be written, holds something else than was dumped, or that is not in order.
    pub async fn finish(
        self,
        head: &Head,
        dumped: &[(String, u64)],
        root: Sha256,
    ) -> Result<Filled> {
        let sums = self.target.sums().await?;
        if sums.root != root || !are_same(&sums.rows(), dumped) {
            return Err(other_than_dumped());
        }
        let tiles_mended = mend(&self.target, head).await?;
        self.target.finish(head).await?;
        let (verification, mut tables) = look(&self.place, self.entropy).await?;
        if tiles_mended {
            // There may be more of them, or fewer.
            tables.iter_mut().filter(|(name, _)| *name == TILE_HASHES).for_each(|(name, rows)| {
                *rows = count_of(dumped, name).unwrap_or(*rows);
            });
        }
        let same = verification.root == root && verification.head == *head;
        if !same || !are_same(&tables, dumped) {
            return Err(other_than_dumped());
        }
        Ok(Filled { verification, tiles_mended })
    }
}

fn are_same(tables: &[(&str, u64)], dumped: &[(String, u64)]) -> bool {
    let is_counted = |(name, rows): &(&str, u64)| count_of(dumped, name) == Some(*rows);
    tables.len() == dumped.len() && tables.iter().all(is_counted)
}

fn count_of(dumped: &[(String, u64)], name: &str) -> Option<u64> {
    dumped.iter().find(|(other, _)| other == name).map(|(_, count)| *count)
}

fn other_than_dumped() -> StoreError {
    let what = "what was restored is not what the backup says of itself".to_owned();
    StoreError::Broken { what }
}

fn broken(what: &str) -> StoreError {
    StoreError::Broken { what: format!("a page of a backup is not understood: {what}") }
}

impl Cell {
    /// Appends it, so that it can be read again and is like no other.
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Null => bytes.push(NULL),
            Self::Number(number) => {
                bytes.push(NUMBER);
                bytes.extend_from_slice(&number.to_be_bytes());
            }
            Self::Text(text) => {
                bytes.push(TEXT);
                long(bytes, text.as_bytes());
            }
            Self::Bytes(some) => {
                bytes.push(BYTES);
                long(bytes, some);
            }
        }
    }
}

fn encode(table: &Table, lines: &[Line]) -> Page {
    let mut bytes = Vec::new();
    long(&mut bytes, table.name.as_bytes());
    bytes.extend_from_slice(&length(lines.len()));
    for cell in lines.iter().flatten() {
        cell.encode(&mut bytes);
    }
    Page { table: table.name, rows: lines.len() as u64, bytes }
}

fn length(count: usize) -> [u8; 4] {
    u32::try_from(count).expect("a page is shorter than 4 GiB").to_be_bytes()
}

fn long(bytes: &mut Vec<u8>, some: &[u8]) {
    bytes.extend_from_slice(&length(some.len()));
    bytes.extend_from_slice(some);
}

/// What is left of a page that is read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk().ok_or_else(|| broken("it is cut off"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn length(&mut self) -> Result<usize> {
        let length = u32::from_be_bytes(self.array()?);
        usize::try_from(length).map_err(|_| broken("it is too long"))
    }

    fn some(&mut self) -> Result<&'a [u8]> {
        let length = self.length()?;
        let (some, rest) =
            self.0.split_at_checked(length).ok_or_else(|| broken("it is cut off"))?;
        self.0 = rest;
        Ok(some)
    }

    fn text(&mut self) -> Result<&'a str> {
        std::str::from_utf8(self.some()?).map_err(|_| broken("a text is not UTF-8"))
    }

    fn cell(&mut self, kind: Type) -> Result<Cell> {
        let [tag] = self.array()?;
        match (tag, kind) {
            (NULL, _) => Ok(Cell::Null),
            (NUMBER, Type::Number) => Ok(Cell::Number(i64::from_be_bytes(self.array()?))),
            (TEXT, Type::Text) => Ok(Cell::Text(self.text()?.to_owned())),
            (BYTES, Type::Bytes) => Ok(Cell::Bytes(self.some()?.to_vec())),
            _ => Err(broken("a cell is not of its column's type")),
        }
    }
}

fn decode(bytes: &[u8]) -> Result<(&'static Table, Vec<Line>)> {
    let mut rest = Rest(bytes);
    let name = rest.text()?;
    let table = TABLES.iter().find(|table| table.name == name);
    let table = table.ok_or_else(|| broken("it is of a table that this version does not know"))?;
    let count = rest.length()?;
    let mut lines = Vec::new();
    for _ in 0..count {
        let cells = table.columns.iter().map(|(_, kind)| rest.cell(*kind));
        lines.push(cells.collect::<Result<Line>>()?);
    }
    if !rest.0.is_empty() {
        return Err(broken("there is more than its rows"));
    }
    Ok((table, lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_as_it_was_written_and_no_part_of_it_alone() {
        let table = TABLES.iter().find(|table| table.name == "tokens").unwrap();
        let line = vec![
            Cell::Bytes(vec![0, 255]),
            Cell::Number(-7),
            Cell::Text("[\"a\"]".to_owned()),
            Cell::Null,
        ];
        let page = encode(table, &[line.clone(), line.clone()]);
        let (read, lines) = decode(&page.bytes).unwrap();
        assert_eq!((read.name, lines), ("tokens", vec![line.clone(), line]));
        for end in 0..page.bytes.len() {
            assert!(decode(&page.bytes[..end]).is_err(), "cut at {end}");
        }
        let more = [&page.bytes[..], &[0]].concat();
        assert!(decode(&more).is_err());
    }
}
