//! Checks a log as it is stored against itself and against what was signed of it, and says what was done to it.

mod finding;
mod suspect;

use std::collections::BTreeMap;

use countersign_identity::{Revision, Sha256};

pub use self::finding::Finding;
use self::suspect::{Suspect, Target};
use crate::tile::{Edge, TILE_WIDTH, TileHash};
use crate::{Checkpoint, Entry, Tree, body, leaf_hash};

/// How many findings are kept. A log that has more is not mended by a longer list.
const FINDINGS_MAX: usize = 64;
/// How many runs of leaves are kept to look closer at.
const SUSPECTS_MAX: usize = 16;

/// How many hashes are kept back of what was not found to be right yet.
const RUN_MAX: usize = 1024;

/// A leaf as it is stored, with what is kept beside it.
#[derive(Clone, Copy, Debug)]
pub struct StoredLeaf<'a> {
    /// Its index.
    pub index: u64,
    /// The bytes.
    pub leaf: &'a [u8],
    /// The hash that is stored with them.
    pub hash: Sha256,
    /// The details and their salt, until they are trimmed.
    pub details: Option<(&'a [u8], &'a [u8; 16])>,
}

/// A size that the log had, with its root there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    size: u64,
    root: Sha256,
    name: String,
}

/// A review under way: it takes the leaves one by one.
#[derive(Debug)]
pub struct Review {
    next: u64,
    latest: Revision,
    reached: Revision,
    marks: Vec<Mark>, // INVARIANT: the smallest last
    hashes: BTreeMap<(u8, u64), Sha256>,
    /// Up to which size the hashes of full tiles are stored.
    stored_to: u64,
    tree: Tree,
    edge: Edge,
    /// The tree with stored hashes of full tiles in place of leaves that do not give them: what was signed later says
    /// which of the two is right.
    mended: Tree,
    /// Both trees where the present tile began.
    tile_start: (Tree, Tree),
    /// The leaves since the last place that was found to be right, and the mended tree there.
    run: Vec<Sha256>,
    right: Tree,
    suspects: Vec<Suspect>,
    /// Those that are found to be wrong.
    named: Vec<Suspect>,
    /// Stored hashes that are not as they should be.
    tiles: Vec<TileHash>,
    /// The largest size whose root the leaves give, and the marks that they do not give.
    met: u64,
    missed: Vec<Mark>,
    /// Whether leaves are missing, so that nothing can be computed over them.
    gap: bool,
    findings: Vec<Finding>,
}

/// What a review came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reviewed {
    /// How many leaves there are.
    pub size: u64,
    /// The root over their hashes.
    pub root: Sha256,
    /// The largest size that was signed, of those that the leaves give.
    pub signed: u64,
    /// What is not as it was; empty when all is in order.
    pub findings: Vec<Finding>,
}

impl Review {
    /// Of the log of an incarnation whose latest revision is this.
    pub fn of(reached: Revision) -> Self {
        Self {
            next: 0,
            latest: Revision { number: 0, ..reached },
            reached,
            marks: Vec::new(),
            hashes: BTreeMap::new(),
            stored_to: 0,
            tree: Tree::new(),
            edge: Edge::default(),
            mended: Tree::new(),
            tile_start: (Tree::new(), Tree::new()),
            run: Vec::new(),
            right: Tree::new(),
            suspects: Vec::new(),
            named: Vec::new(),
            tiles: Vec::new(),
            met: 0,
            missed: Vec::new(),
            gap: false,
            findings: Vec::new(),
        }
    }

    /// Holds the log against a checkpoint whose signature was verified. To be called before any leaf is taken.
    pub fn against(&mut self, checkpoint: &Checkpoint, name: &str) {
        let Checkpoint { size, root, .. } = *checkpoint;
        self.marks.push(Mark { size, root, name: name.to_owned() });
        self.marks.sort_by_key(|mark| std::cmp::Reverse(mark.size));
    }

    /// Holds the log against the stored hashes of the tree, which are all there up to this size. To be called before any
    /// leaf is taken.
    pub fn expect(&mut self, hashes: impl IntoIterator<Item = TileHash>, size: u64) {
        self.hashes.extend(hashes.into_iter().map(|tile| ((tile.level, tile.position), tile.hash)));
        self.stored_to = size;
    }

    /// How many leaves were taken; the index of the next one.
    pub fn next(&self) -> u64 {
        self.next
    }

    fn found(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    /// Takes the next leaf.
    pub fn take(&mut self, stored: &StoredLeaf<'_>) {
        let (index, expected) = (stored.index, self.next);
        if index < expected {
            self.found(Finding::Misplaced { index, expected });
            return;
        }
        if expected < index {
            self.found(Finding::Missing { from: expected, to: index - 1 });
            self.gap = true;
        }
        self.next = index.saturating_add(1);
        if leaf_hash(stored.leaf) != stored.hash {
            self.found(Finding::Changed { index });
        }
        match Entry::parse(stored.leaf) {
            Err(why) => self.found(Finding::Unreadable { index, why: why.to_string() }),
            Ok(entry) => self.look_at(index, &entry, stored),
        }
        if !self.gap {
            self.push(stored.hash);
        }
    }

    fn look_at(&mut self, index: u64, entry: &Entry, stored: &StoredLeaf<'_>) {
        if let Some((details, salt)) = stored.details
            && body(salt, details) != entry.body
        {
            self.found(Finding::DetailsChanged { index });
        }
        let revision = entry.revision;
        if revision < self.latest || self.reached < revision {
            self.found(Finding::OutOfOrder { index, revision });
        }
        self.latest = self.latest.max(revision);
    }

    fn push(&mut self, hash: Sha256) {
        self.tree.push(hash);
        self.mended.push(hash);
        if self.run.len() <= RUN_MAX {
            self.run.push(hash);
        }
        let mut full = Vec::new();
        self.edge.push(hash, |tile| full.push(tile));
        for tile in &full {
            self.compare(*tile);
        }
        if !full.is_empty() {
            self.tile_start = (self.tree.clone(), self.mended.clone());
        }
        self.reach();
    }

    /// Whether a full tile gives the hash that is stored for it.
    fn compare(&mut self, tile: TileHash) {
        let stored = self.hashes.remove(&(tile.level, tile.position));
        match stored {
            Some(stored) if stored == tile.hash => {
                // Above the first level a tile tells nothing that the ones below did not.
                if tile.level == 1 && self.suspects.is_empty() {
                    self.settle();
                }
            }
            Some(stored) if tile.level == 1 => {
                let from = tile.position * TILE_WIDTH;
                let against = "the tile that they were hashed into";
                self.mended = self.tile_start.1.clone();
                self.mended.push_tile(stored);
                self.suspect(from, Target::Tile(tile, stored), against);
            }
            // What is above leaves that were changed cannot be compared.
            Some(_) if !self.suspects.is_empty() => {}
            // One that was changed or dropped, or one that nobody stored yet.
            Some(_) | None => self.tiles.push(tile),
        }
    }

    /// Whether the leaves up to here give the roots that were signed for this size.
    fn reach(&mut self) {
        while let Some(mark) = self.marks.pop_if(|mark| mark.size <= self.next) {
            let root_of =
                |tree: &Tree| if mark.size == 0 { Tree::new().root() } else { tree.root() };
            if root_of(&self.tree) == mark.root {
                self.acquit();
            } else if root_of(&self.mended) == mark.root {
                self.convict();
            } else {
                if self.missed.is_empty() {
                    let target = Target::Root(self.right.clone(), mark.root);
                    self.suspect(self.right.size(), target, &mark.name);
                }
                self.missed.push(mark);
                continue;
            }
            self.met = self.met.max(mark.size);
            self.settle();
        }
    }

    /// The leaves up to here are right, so a tile that says otherwise was changed.
    fn acquit(&mut self) {
        for suspect in std::mem::take(&mut self.suspects) {
            if let Target::Tile(tile, _) = suspect.target {
                self.tiles.push(tile);
            }
        }
        self.mended = self.tree.clone();
        self.tile_start.1 = self.tile_start.0.clone();
    }

    /// The leaves that tiles speak against are wrong, and all others right.
    fn convict(&mut self) {
        for suspect in std::mem::take(&mut self.suspects) {
            self.named.push(suspect);
        }
        self.tree = self.mended.clone();
        self.tile_start.0 = self.tile_start.1.clone();
    }

    /// All up to here is right, or named.
    fn settle(&mut self) {
        self.run.clear();
        self.right = self.mended.clone();
    }

    fn suspect(&mut self, from: u64, target: Target, against: &str) {
        let skipped = usize::try_from(from.saturating_sub(self.right.size())).unwrap_or(usize::MAX);
        let whole = self.right.size() + self.run.len() as u64 == self.next;
        let hashes = if whole { self.run.get(skipped..).unwrap_or_default() } else { &[] };
        if self.suspects.len() + self.named.len() < SUSPECTS_MAX {
            let (hashes, against) = (hashes.to_vec(), against.to_owned());
            self.suspects.push(Suspect { from, to: self.next - 1, hashes, target, against });
        }
        self.settle();
    }

    /// Ends the review. `counted` is how many events the log is said to have, and by what, if anything says so.
    pub fn finish(mut self, counted: Option<(u64, &str)>) -> Reviewed {
        self.reach();
        self.look_for_end(counted);
        if !self.gap {
            self.conclude();
        }
        let Self { next, tree, met, findings, .. } = self;
        Reviewed { size: next, root: tree.root(), signed: met, findings }
    }

    fn look_for_end(&mut self, counted: Option<(u64, &str)>) {
        let leaves = self.next;
        let counted = counted.map(|(size, name)| (size, name.to_owned()));
        let marks = self.marks.iter().map(|mark| (mark.size, mark.name.clone()));
        let tiles = self.hashes.keys().map(|(level, position)| {
            (spanned(*level, *position), "a stored hash of the tree".to_owned())
        });
        let most = counted.into_iter().chain(marks).chain(tiles).max_by_key(|(size, _)| *size);
        if let Some((size, against)) = most.filter(|(size, _)| leaves < *size) {
            self.found(Finding::Truncated { leaves, size, against });
        }
    }

    /// Tells a changed tile from changed leaves, and a fork from both: what was signed at a larger size decides.
    fn conclude(&mut self) {
        for mark in std::mem::take(&mut self.missed) {
            if mark.size < self.met {
                self.found(Finding::Forked { size: mark.size, against: mark.name });
            }
        }
        let mut named = std::mem::take(&mut self.named);
        named.append(&mut self.suspects);
        let mut told: Vec<(u64, u64)> = Vec::new();
        for suspect in named {
            let known = |(from, to): &(u64, u64)| suspect.from <= *from && *to <= suspect.to;
            let inside = |(from, to): &(u64, u64)| *from <= suspect.from && suspect.to <= *to;
            if !told.iter().any(|other| known(other) || inside(other)) {
                told.push((suspect.from, suspect.to));
                self.found(suspect.finding());
            }
        }
        for TileHash { level, position, .. } in std::mem::take(&mut self.tiles) {
            if spanned(level, position) <= self.met.min(self.stored_to) {
                self.found(Finding::TileChanged { level, position });
            }
        }
    }
}

/// How many leaves the tree has at least that has this hash.
fn spanned(level: u8, position: u64) -> u64 {
    let leaves = TILE_WIDTH.checked_pow(u32::from(level)).unwrap_or(u64::MAX);
    leaves.saturating_mul(position.saturating_add(1))
}
