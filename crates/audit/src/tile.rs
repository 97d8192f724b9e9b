//! The tree in tiles (C2SP tlog-tiles v1): hashes of 256 subtrees at a time, from which any proof is made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use countersign_identity::Sha256;

use crate::checkpoint::decimal;
use crate::tree::root_of_peaks;
use crate::{Tree, root_of};

/// How many hashes a full tile has.
pub const TILE_WIDTH: u64 = 256;
/// A tile spans so many levels of the tree.
const TILE_HEIGHT: u32 = 8;
/// A tree of 2^64 leaves has no tile above this level.
const LEVEL_MAX: u8 = 7;

/// A run of hashes of one level: of leaves at level 0, of full tiles of the level below at any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tile {
    /// How far above the leaves.
    pub level: u8,
    /// Which of its level.
    pub index: u64,
    /// How many hashes it has: 256, or fewer at the right edge of a tree.
    pub width: u16, // INVARIANT: 1 to 256
}

/// A path that names no tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the path of a tile: expected `LEVEL/INDEX` or `LEVEL/INDEX.p/WIDTH`")]
pub struct BadTile;

impl Tile {
    /// The tile that a tree of this size has at this place; `None` when it has none.
    pub fn at(level: u8, index: u64, size: u64) -> Option<Self> {
        let hashes = size.checked_shr(u32::from(level) * TILE_HEIGHT)?;
        let width = hashes.checked_sub(index.checked_mul(TILE_WIDTH)?)?.min(TILE_WIDTH);
        Some(Self { level, index, width: u16::try_from(width).ok().filter(|width| 0 < *width)? })
    }

    /// The place of its first hash within its level.
    pub const fn first(&self) -> u64 {
        self.index * TILE_WIDTH
    }
}

/// The number in groups of three digits, all but the last with an `x` before them.
fn write_index(f: &mut fmt::Formatter<'_>, index: u64) -> fmt::Result {
    if 1000 <= index {
        write_groups(f, index / 1000)?;
    }
    write!(f, "{:03}", index % 1000)
}

fn write_groups(f: &mut fmt::Formatter<'_>, index: u64) -> fmt::Result {
    if 1000 <= index {
        write_groups(f, index / 1000)?;
    }
    write!(f, "x{:03}/", index % 1000)
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.level)?;
        write_index(f, self.index)?;
        if u64::from(self.width) < TILE_WIDTH {
            write!(f, ".p/{}", self.width)?;
        }
        Ok(())
    }
}

impl FromStr for Tile {
    type Err = BadTile;

    /// The path after `tile/`, in its only form.
    fn from_str(path: &str) -> Result<Self, BadTile> {
        let (level, rest) = path.split_once('/').ok_or(BadTile)?;
        let level = decimal(level).and_then(|level| u8::try_from(level).ok()).ok_or(BadTile)?;
        let (groups, width) = match rest.split_once(".p/") {
            Some((groups, width)) => (groups, decimal(width).ok_or(BadTile)?),
            None => (rest, TILE_WIDTH),
        };
        let mut index = 0_u64;
        for group in groups.split('/') {
            let digits = group.strip_prefix('x').unwrap_or(group);
            let number: u64 = digits.parse().map_err(|_bad| BadTile)?;
            let next = index.checked_mul(1000).and_then(|index| index.checked_add(number));
            index = next.ok_or(BadTile)?;
        }
        let width = u16::try_from(width).map_err(|_bad| BadTile)?;
        let tile = Self { level, index, width };
        let fits = (1..=256).contains(&width) && index <= u64::MAX >> TILE_HEIGHT;
        if level <= LEVEL_MAX && fits && tile.to_string() == path {
            return Ok(tile);
        }
        Err(BadTile)
    }
}

/// A subtree with 2^`height` leaves, the one with this number among those of its height.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subtree {
    height: u32,
    number: u64,
}

/// The full subtrees of which a run of leaves consists, the largest first. The run begins where RFC 6962 may split.
fn subtrees(run: Range<u64>) -> Vec<Subtree> {
    let mut found = Vec::new();
    let mut at = run.start;
    while at < run.end {
        let height = at.trailing_zeros().min((run.end - at).ilog2());
        found.push(Subtree { height, number: at >> height });
        at += 1 << height;
    }
    found
}

impl Subtree {
    /// Where its hash is in a tree of `size` leaves, or the hashes of which it is made: a tile, and those in it.
    fn place(self, size: u64) -> Option<(Tile, Range<usize>)> {
        let level = u8::try_from(self.height / TILE_HEIGHT).ok()?;
        let inside = self.height % TILE_HEIGHT;
        let first = self.number << inside;
        let tile = Tile::at(level, first / TILE_WIDTH, size)?;
        let from = usize::try_from(first % TILE_WIDTH).ok()?;
        let to = from + (1 << inside);
        (to <= usize::from(tile.width)).then_some((tile, from..to))
    }
}

/// Which hashes of a tree prove something; made before any of them is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    runs: Vec<Range<u64>>,
    size: u64,
}

/// The largest power of two below `size`, which is at least 2.
fn split(size: u64) -> u64 {
    1 << (u64::BITS - 1 - (size - 1).leading_zeros())
}

impl Plan {
    /// What proves that leaf `index` is in a tree of `size` leaves; `None` when it is not.
    pub fn inclusion(index: u64, size: u64) -> Option<Self> {
        if size <= index {
            return None;
        }
        let (mut run, mut runs) = (0..size, Vec::new());
        while 1 < run.end - run.start {
            let middle = run.start + split(run.end - run.start);
            if index < middle {
                runs.push(middle..run.end);
                run.end = middle;
            } else {
                runs.push(run.start..middle);
                run.start = middle;
            }
        }
        runs.reverse();
        Some(Self { runs, size })
    }

    /// What proves that a tree of `size` leaves begins with that of `older` leaves; `None` when that is larger.
    pub fn consistency(older: u64, size: u64) -> Option<Self> {
        if size < older {
            return None;
        }
        let (mut run, mut runs) = (0..size, Vec::new());
        if older == 0 {
            return Some(Self { runs, size });
        }
        // While the older tree is a whole left part of this one, its reader knows its hash.
        let mut known = true;
        while older < run.end {
            let middle = run.start + split(run.end - run.start);
            if older <= middle {
                runs.push(middle..run.end);
                run.end = middle;
            } else {
                runs.push(run.start..middle);
                run.start = middle;
                known = false;
            }
        }
        if !known {
            runs.push(run);
        }
        runs.reverse();
        Some(Self { runs, size })
    }

    /// What gives the root of a tree of `size` leaves.
    pub fn root(size: u64) -> Self {
        let whole = 0..size;
        Self { runs: vec![whole], size }
    }

    /// The tiles to read.
    pub fn tiles(&self) -> BTreeSet<Tile> {
        let parts = self.runs.iter().flat_map(|run| subtrees(run.clone()));
        parts.filter_map(|part| Some(part.place(self.size)?.0)).collect()
    }

    /// The hashes, from the tiles that were read; `None` when one is missing or short.
    pub fn prove(&self, tiles: &Tiles) -> Option<Vec<Sha256>> {
        self.runs.iter().map(|run| tiles.hash(run.clone(), self.size)).collect()
    }
}

/// Tiles that were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tiles(BTreeMap<Tile, Vec<Sha256>>);

impl Tiles {
    /// Keeps what was read as this tile.
    pub fn put(&mut self, tile: Tile, hashes: Vec<Sha256>) {
        self.0.insert(tile, hashes);
    }

    fn hash(&self, run: Range<u64>, size: u64) -> Option<Sha256> {
        let part = |part: Subtree| {
            let (tile, hashes) = part.place(size)?;
            Some(root_of(self.0.get(&tile)?.get(hashes)?))
        };
        let parts = subtrees(run).into_iter().map(part).collect::<Option<Vec<_>>>()?;
        Some(root_of_peaks(&parts))
    }
}

/// The hashes of full tiles that come into being as leaves are appended: what the levels above the leaves consist of.
///
/// It holds the hashes of the tiles at the right edge, so its memory is of the order of the logarithm of the size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    size: u64,
    levels: Vec<Vec<Sha256>>, // INVARIANT: each shorter than a tile
}

/// The hash of a full tile, at its place one level above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileHash {
    /// The level in whose tiles it stands: 1 for that of 256 leaves.
    pub level: u8,
    /// Its place within that level.
    pub position: u64,
    /// The hash.
    pub hash: Sha256,
}

impl Edge {
    /// The tiles that are not full in a tree of this size.
    pub fn tiles(size: u64) -> Vec<Tile> {
        let last = |level: u8| {
            let hashes = size.checked_shr(u32::from(level) * TILE_HEIGHT)?;
            let width = u16::try_from(hashes % TILE_WIDTH).ok().filter(|width| 0 < *width)?;
            Some(Tile { level, index: hashes / TILE_WIDTH, width })
        };
        (0..=LEVEL_MAX).filter_map(last).collect()
    }

    /// Goes on from a tree of this size, of which [`Edge::tiles`] were read; `None` when one is missing or short.
    pub fn resume(size: u64, tiles: &Tiles) -> Option<Self> {
        let mut levels = vec![Vec::new(); usize::from(LEVEL_MAX) + 1];
        for tile in Self::tiles(size) {
            let hashes = tiles.0.get(&tile)?;
            levels[usize::from(tile.level)] = hashes.get(..usize::from(tile.width))?.to_vec();
        }
        Some(Self { size, levels })
    }

    /// Appends a leaf's hash; hands on the hashes of the tiles that are full with it.
    pub fn push(&mut self, leaf: Sha256, mut full: impl FnMut(TileHash)) {
        let mut hash = leaf;
        for level in 0..=LEVEL_MAX {
            let at = usize::from(level);
            if self.levels.len() <= at {
                self.levels.push(Vec::new());
            }
            if 0 < level {
                full(TileHash { level, position: self.size >> (8 * level), hash });
            }
            self.levels[at].push(hash);
            if (self.levels[at].len() as u64) < TILE_WIDTH {
                break;
            }
            hash = root_of(&self.levels[at]);
            self.levels[at].clear();
        }
        self.size += 1;
    }

    /// How many leaves the tree has.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The root of the tree.
    pub fn root(&self) -> Sha256 {
        // The subtrees from left to right: those of the highest level first.
        let peaks =
            |level: &Vec<Sha256>| Tree::from_leaf_hashes(level.iter().copied()).into_peaks();
        let peaks: Vec<Sha256> = self.levels.iter().rev().flat_map(peaks).collect();
        root_of_peaks(&peaks)
    }
}
