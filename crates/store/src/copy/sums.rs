//! What all rows of a place come to, so that two places can be compared before one of them is used.

use countersign_audit::{Tree, leaf_hash};
use countersign_identity::Sha256;

use super::{Cell, Line, Pages, TABLES, Table, lines};
use crate::{Result, StoreError};

/// The rows of a table: how many, and all of their values, whatever order they are read in. Two databases may sort texts
/// in different ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) rows: u64,
    digest: [u8; 32],
}

/// Every table, and the root of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) tables: Vec<(&'static str, Sum)>,
    pub(crate) root: Sha256,
}

impl Sum {
    fn add(&mut self, page: &[Line]) {
        self.rows += page.len() as u64;
        for line in page {
            let mut bytes = Vec::new();
            line.iter().for_each(|cell| cell.encode(&mut bytes));
            // No two rows of a table are equal, so none takes another away.
            let digest = leaf_hash(&bytes);
            self.digest.iter_mut().zip(digest.as_bytes()).for_each(|(sum, byte)| *sum ^= byte);
        }
    }
}

impl Sums {
    /// Reads every row, and hands it on.
    pub(crate) async fn of(
        from: &impl Pages,
        mut each: impl AsyncFnMut(&Table, &[Line]) -> Result<()>,
    ) -> Result<Self> {
        let (mut tables, mut tree) = (Vec::new(), Tree::new());
        for table in TABLES {
            let mut sum = Sum::default();
            let add = async |page: &[Line]| {
                sum.add(page);
                if table.name == "log" {
                    push(&mut tree, page)?;
                }
                each(table, page).await
            };
            lines(from, table, add).await?;
            tables.push((table.name, sum));
        }
        Ok(Self { tables, root: tree.root() })
    }

    /// How many rows each table has.
    pub(crate) fn rows(&self) -> Vec<(&'static str, u64)> {
        self.tables.iter().map(|(name, sum)| (*name, sum.rows)).collect()
    }

    /// Goes on only when a new place holds what was put into it.
    ///
    /// # Errors
    /// `Broken` says where it does not.
    pub(crate) fn check_same(&self, given: &Self) -> Result<()> {
        let differs = |what| Err(StoreError::Broken { what });
        for ((name, new), (_, old)) in self.tables.iter().zip(&given.tables) {
            if new.rows != old.rows {
                let (new, old) = (new.rows, old.rows);
                return differs(format!(
                    "the copy is not the same: `{name}` has {new} rows, expected {old}"
                ));
            }
            if new != old {
                return differs(format!("the copy is not the same: `{name}` has other values"));
            }
        }
        if self.root != given.root {
            return differs(format!(
                "the copy is not the same: the log's root is {}, expected {}",
                self.root, given.root
            ));
        }
        Ok(())
    }
}

/// Adds the leaves of a page to the log's tree.
pub(crate) fn push(tree: &mut Tree, page: &[Line]) -> Result<()> {
    for line in page {
        tree.push(hash_of(line.get(2))?);
    }
    Ok(())
}

/// The hash of a leaf, by its cell.
pub(crate) fn hash_of(cell: Option<&Cell>) -> Result<Sha256> {
    let bytes = if let Some(Cell::Bytes(bytes)) = cell { bytes.as_slice() } else { &[] };
    let hash = bytes
        .try_into()
        .map_err(|_| StoreError::Broken { what: "a leaf of the log has no hash".to_owned() })?;
    Ok(Sha256::from_bytes(hash))
}
