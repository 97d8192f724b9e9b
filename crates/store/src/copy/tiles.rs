//! The hashes of full tiles: they follow from the leaves of their logs, so one that is wrong is nobody's word, and is reckoned anew.

use std::collections::{BTreeMap, BTreeSet};

use countersign_audit::{Edge, TileHash};

use super::Cell::{Bytes, Number};
use super::{Cell, LINES_MAX, Line, TABLES, Table, Target, hash_of, lines};
use crate::{Head, Result};

/// The table that is mended.
pub(crate) const TILE_HASHES: &str = "tile_hashes";

/// Has a place that is being filled keep the hashes that its leaves come to, and of those all that were signed for. Tells whether
/// it was given others.
///
/// Whether the leaves are those that were signed is not asked here.
pub(crate) async fn mend(target: &Target, head: &Head) -> Result<bool> {
    let (mut signed, mut kept) = (BTreeMap::new(), BTreeSet::new());
    each(target, "checkpoints", |line| {
        if let [Number(incarnation), Number(size), ..] = line[..] {
            let most = signed.entry(incarnation).or_insert(size);
            *most = size.max(*most);
        }
        Ok(())
    })
    .await?;
    each(target, TILE_HASHES, |line| {
        kept.insert(line.clone());
        Ok(())
    })
    .await?;
    let (mut logs, mut right) = (BTreeMap::<i64, Edge>::new(), BTreeSet::new());
    let mut push = |incarnation: i64, hash: &Cell| {
        logs.entry(incarnation).or_default().push(hash_of(Some(hash))?, |tile| {
            let line = line_of(incarnation, &tile);
            let leaves = i64::try_from((tile.position + 1) << (8 * u32::from(tile.level)));
            let is_signed = signed
                .get(&incarnation)
                .is_some_and(|size| leaves.is_ok_and(|leaves| leaves <= *size));
            if is_signed || kept.contains(&line) {
                right.insert(line);
            }
        });
        Ok(())
    };
    each(target, "past_log", |line| match line[..] {
        [Number(incarnation), _, _, ref hash, ..] => push(incarnation, hash),
        _ => Ok(()),
    })
    .await?;
    let present = i64::try_from(head.revision.incarnation).unwrap_or(i64::MAX);
    each(target, "log", |line| push(present, &line[2])).await?;
    if kept == right {
        return Ok(false);
    }
    let table = table(TILE_HASHES);
    target.clear(table).await?;
    for page in right.into_iter().collect::<Vec<_>>().chunks(LINES_MAX) {
        target.put(table, page).await?;
    }
    Ok(true)
}

fn line_of(incarnation: i64, TileHash { level, position, hash }: &TileHash) -> Line {
    let position = i64::try_from(*position).unwrap_or(i64::MAX);
    let hash = Bytes(hash.as_bytes().to_vec());
    vec![Number(incarnation), Number(i64::from(*level)), Number(position), hash]
}

async fn each(
    target: &Target,
    name: &str,
    mut take: impl FnMut(&Line) -> Result<()>,
) -> Result<()> {
    lines(target, table(name), async |page: &[Line]| page.iter().try_for_each(&mut take)).await?;
    Ok(())
}

fn table(name: &str) -> &'static Table {
    TABLES.iter().find(|table| table.name == name).expect("every backend has it")
}
