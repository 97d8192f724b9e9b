//! The logs: their leaves, their order, and what was signed of them.

use std::collections::BTreeMap;

use countersign_audit::{
    BadCheckpoint, Checkpoint, Edge, Entry, EventKind, Note, TileHash, body, leaf_hash,
};
use countersign_identity::{Incarnation, Revision, Sha256};

use super::broken;
use crate::{CheckpointRow, Head, PAGE_MAX, Result, Store, StoredEvent};

/// A log, of this incarnation or of one that is over.
#[derive(Clone, Copy)]
pub(super) enum Log<'a> {
    Present(&'a Head),
    Past(Incarnation),
}

impl Log<'_> {
    pub(super) async fn page(
        self,
        store: &dyn Store,
        from: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvent>> {
        match self {
            Self::Present(_) => store.events(from, limit).await,
            Self::Past(incarnation) => store.past_events(incarnation, from, limit).await,
        }
    }

    fn incarnation(self) -> Incarnation {
        self.latest().incarnation
    }

    /// The latest revision that its leaves may be of.
    fn latest(self) -> Revision {
        match self {
            Self::Present(head) => head.revision,
            Self::Past(incarnation) => Revision { incarnation, number: u64::MAX },
        }
    }
}

pub(super) async fn check_log(store: &dyn Store, log: Log<'_>) -> Result<Edge> {
    let signed = Signed::read(store, log.incarnation()).await?;
    let mut tree = Edge::default();
    let mut latest = Revision { number: 0, ..log.latest() };
    let end = if let Log::Present(head) = log { Some(head.log_size) } else { None };
    signed.check(&tree)?;
    while end.is_none_or(|end| tree.size() < end) {
        let page = log.page(store, tree.size(), PAGE_MAX).await?;
        match (page.is_empty(), end) {
            (false, _) => {}
            (true, None) => break,
            (true, Some(size)) => {
                let leaves = tree.size();
                return Err(broken(format!(
                    "the log ends at {leaves}, the head row counts {size}"
                )));
            }
        }
        let mut full = Vec::new();
        for event in page.iter().take_while(|event| end.is_none_or(|end| event.index < end)) {
            latest = check_event(event, tree.size(), latest, log.latest())?;
            tree.push(event.hash, |hash| full.push(hash));
            signed.check(&tree)?;
        }
        check_tiles(store, &signed, &full).await?;
    }
    signed.check_end(store, log, tree.size()).await?;
    Ok(tree)
}

/// What was signed of a log: the root at each size.
struct Signed {
    of: Incarnation,
    roots: BTreeMap<u64, Sha256>,
}

impl Signed {
    async fn read(store: &dyn Store, of: Incarnation) -> Result<Self> {
        let mut roots = BTreeMap::new();
        // Those before the last full tile are dropped, so one page holds them all.
        for CheckpointRow { size, note, .. } in store.checkpoints(of, PAGE_MAX).await? {
            let checkpoint = Note::parse(note.as_bytes())
                .map_err(BadCheckpoint::from)
                .and_then(|note| Checkpoint::of(&note))
                .map_err(|bad| broken(format!("the checkpoint of size {size}: {bad}")))?;
            if (checkpoint.origin.incarnation, checkpoint.size) != (of, size) {
                return Err(broken(format!("the checkpoint of size {size} is of another")));
            }
            roots.insert(size, checkpoint.root);
        }
        Ok(Self { of, roots })
    }

    /// How large the log was when it was last signed.
    fn size(&self) -> u64 {
        self.roots.last_key_value().map_or(0, |(size, _)| *size)
    }

    fn check(&self, tree: &Edge) -> Result<()> {
        let size = tree.size();
        if self.roots.get(&size).is_none_or(|root| *root == tree.root()) {
            return Ok(());
        }
        Err(broken(format!("the first {size} leaves are not those that were signed")))
    }

    /// Nothing is signed of leaves that are not there. The log may have grown since its size was read, and been signed.
    async fn check_end(&self, store: &dyn Store, log: Log<'_>, leaves: u64) -> Result<()> {
        let grown = match log {
            Log::Present(_) if leaves < self.size() => {
                let head = store.head().await?;
                // That of one which is over meanwhile has all that was signed of it: it moved as a whole.
                head.revision.incarnation != self.of || self.size() <= head.log_size
            }
            Log::Present(_) | Log::Past(_) => false,
        };
        if leaves < self.size() && !grown {
            let size = self.size();
            return Err(broken(format!("the log ends at {leaves}, {size} leaves were signed")));
        }
        Ok(())
    }
}

/// Checks the hashes of tiles that are full with one page of leaves: what is kept of them must be so, and all that were signed for
/// must be kept.
async fn check_tiles(store: &dyn Store, signed: &Signed, full: &[TileHash]) -> Result<()> {
    let mut levels: BTreeMap<u8, Vec<&TileHash>> = BTreeMap::new();
    for tile in full {
        levels.entry(tile.level).or_default().push(tile);
    }
    for (level, tiles) in levels {
        let from = tiles[0].position;
        let kept = store.tile_hashes(signed.of, level, from, tiles.len()).await?;
        for tile in tiles {
            let TileHash { position, hash, .. } = *tile;
            let leaves = (position + 1) << (8 * u32::from(level));
            match kept.iter().find(|kept| kept.position == position) {
                Some(kept) if kept.hash == hash => {}
                None if signed.size() < leaves => {}
                Some(_) | None => {
                    return Err(broken(format!(
                        "the hash of tile {position} of level {level} is not kept as it is"
                    )));
                }
            }
        }
    }
    Ok(())
}

/// The logs of incarnations that are over, each with its size and root.
pub(super) type Past = BTreeMap<Incarnation, (u64, Sha256)>;

pub(super) async fn check_past(store: &dyn Store, head: &Head) -> Result<Past> {
    let mut past = Past::new();
    let mut after = 0;
    while let Some(incarnation) = store.past_incarnation(after).await? {
        if head.revision.incarnation <= incarnation {
            return Err(broken(format!("the log of incarnation {incarnation} is not over")));
        }
        let tree = check_log(store, Log::Past(incarnation)).await?;
        check_beginning(store, Log::Past(incarnation), &past).await?;
        past.insert(incarnation, (tree.size(), tree.root()));
        after = incarnation;
    }
    Ok(past)
}

/// A log that follows another names that one's size and root in its first leaf, as long as its details are kept.
pub(super) async fn check_beginning(store: &dyn Store, log: Log<'_>, past: &Past) -> Result<()> {
    let Some((before, (size, root))) = past.last_key_value() else { return Ok(()) };
    let first = log.page(store, 0, 1).await?;
    let Some(first) = first.first() else { return Ok(()) };
    let entry = Entry::parse(&first.leaf).map_err(|why| broken(format!("leaf 0: {why}")))?;
    let Some(details) = &first.details else { return Ok(()) };
    let told: serde_json::Value =
        serde_json::from_slice(&details.json).map_err(|why| broken(format!("leaf 0: {why}")))?;
    let names = entry.kind == EventKind::IncarnationBegan
        && told["from"]["incarnation"] == *before
        && told["from"]["logSize"] == *size
        && told["from"]["logRoot"] == root.to_string();
    names.then_some(()).ok_or_else(|| {
        broken(format!(
            "the log of incarnation {} does not begin with the size and root of the one before",
            log.incarnation()
        ))
    })
}

/// Checks one event against its place; tells the revision that it is of.
fn check_event(
    event: &StoredEvent,
    index: u64,
    latest: Revision,
    current: Revision,
) -> Result<Revision> {
    if event.index != index {
        return Err(broken(format!("leaf {index} is missing")));
    }
    if leaf_hash(&event.leaf) != event.hash {
        return Err(broken(format!("leaf {index} does not have its hash")));
    }
    let entry = Entry::parse(&event.leaf).map_err(|why| broken(format!("leaf {index}: {why}")))?;
    if let Some(details) = &event.details
        && body(&details.salt, &details.json) != entry.body
    {
        return Err(broken(format!("the details of leaf {index} are not those that it names")));
    }
    if entry.revision < latest || current < entry.revision {
        let revision = entry.revision;
        return Err(broken(format!("leaf {index} of revision {revision} is out of order")));
    }
    Ok(entry.revision)
}
