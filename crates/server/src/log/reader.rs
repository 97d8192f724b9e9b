//! The tree of a log, read in tiles from what the store keeps.

use countersign_audit::{Bundle, Checkpoint, Note, Plan, Tile, TileHash, Tiles};
use countersign_identity::{Code, Incarnation, Sha256, Timestamp};
use countersign_store::{Head, Store, StoredEvent};

use crate::authority::internal;
use crate::refusal::Refused;

/// Reads the log of one incarnation.
#[derive(Clone, Copy)]
pub(crate) struct LogReader<'a> {
    store: &'a dyn Store,
    incarnation: Incarnation,
    present: bool,
}

/// A proof, and what it is of.
#[derive(Debug)]
pub(crate) struct Proof {
    pub(crate) bundle: Bundle,
    pub(crate) size: u64,
}

impl<'a> LogReader<'a> {
    /// Of the log of this incarnation, or of the present one; together with the head row.
    ///
    /// # Errors
    /// `not-found`, when there was no such incarnation or its log is not kept.
    pub(crate) async fn of(
        store: &'a dyn Store,
        incarnation: Option<Incarnation>,
    ) -> Result<(Self, Head), Refused> {
        let head = store.head().await?;
        let present = head.revision.incarnation;
        let incarnation = incarnation.unwrap_or(present);
        let known = incarnation == present
            || store.past_incarnation(incarnation.saturating_sub(1)).await? == Some(incarnation);
        if known {
            return Ok((Self { store, incarnation, present: incarnation == present }, head));
        }
        let why = format!("no log of an incarnation {incarnation} is kept");
        Err(Refused::new(Code::NotFound, why))
    }

    /// Of which incarnation.
    pub(crate) fn incarnation(self) -> Incarnation {
        self.incarnation
    }

    /// Events from this index on.
    pub(crate) async fn events(self, from: u64, limit: usize) -> Result<Vec<StoredEvent>, Refused> {
        let incarnation = self.incarnation;
        Ok(match self.present {
            true => self.store.events(from, limit).await?,
            false => self.store.past_events(incarnation, from, limit).await?,
        })
    }

    /// The newest signed checkpoint, unless nothing is signed.
    pub(crate) async fn newest(self) -> Result<Option<(Checkpoint, Note)>, Refused> {
        let rows = self.store.checkpoints(self.incarnation, 1).await?;
        let Some(row) = rows.into_iter().next() else { return Ok(None) };
        let note = Note::parse(row.note.as_bytes()).map_err(internal)?;
        Ok(Some((Checkpoint::of(&note).map_err(internal)?, note)))
    }

    /// The hashes of a tile, for any tree that has it.
    ///
    /// # Errors
    /// `not-found`, when the log is too short for it or its hashes are not written down.
    pub(crate) async fn tile(self, tile: Tile) -> Result<Vec<Sha256>, Refused> {
        let (first, width) = (tile.first(), usize::from(tile.width));
        let hashes: Vec<(u64, Sha256)> = match (tile.level, self.present) {
            (0, true) => {
                let hashes = self.store.leaf_hashes(first, width).await?;
                (first..).zip(hashes).collect()
            }
            (0, false) => {
                let events = self.store.past_events(self.incarnation, first, width).await?;
                events.into_iter().map(|event| (event.index, event.hash)).collect()
            }
            (level, _) => {
                let rows = self.store.tile_hashes(self.incarnation, level, first, width).await?;
                rows.into_iter().map(|TileHash { position, hash, .. }| (position, hash)).collect()
            }
        };
        let whole = hashes.len() == width
            && hashes.iter().zip(first..).all(|((position, _), expected)| *position == expected);
        if whole {
            return Ok(hashes.into_iter().map(|(_, hash)| hash).collect());
        }
        Err(Refused::new(Code::NotFound, format!("the log has no tile `{tile}`")))
    }

    /// The tiles that these are.
    pub(crate) async fn tiles(
        self,
        wanted: impl IntoIterator<Item = Tile>,
    ) -> Result<Tiles, Refused> {
        let mut tiles = Tiles::default();
        for tile in wanted {
            tiles.put(tile, self.tile(tile).await?);
        }
        Ok(tiles)
    }

    /// Proof that an event is in what was signed last.
    ///
    /// # Errors
    /// `not-found`, when there is no such event; `not-ready`, when it is not signed yet.
    pub(crate) async fn prove(self, index: u64) -> Result<Proof, Refused> {
        let not_signed = || {
            let why = format!("nothing is signed yet that has event {index} in it");
            Refused::new(Code::NotReady, why)
        };
        let event = self.events(index, 1).await?.into_iter().next();
        let event = event.filter(|event| event.index == index).ok_or_else(|| {
            Refused::new(
                Code::NotFound,
                format!("the log has no event {index}: `countersign log tail` shows the latest"),
            )
        })?;
        let (checkpoint, note) = self.newest().await?.ok_or_else(not_signed)?;
        let size = checkpoint.size;
        let plan = Plan::inclusion(index, size).ok_or_else(not_signed)?;
        let path = plan.prove(&self.tiles(plan.tiles()).await?);
        let path = path.ok_or_else(|| internal("a tile is shorter than its name says"))?;
        Ok(Proof { bundle: Bundle { leaf: event.leaf, index, path, checkpoint: note }, size })
    }

    /// The entries of a bundle of 256, or of the part of it that a tree has: each behind its length in two bytes.
    ///
    /// # Errors
    /// `not-found`, when the log is too short for it.
    pub(crate) async fn entries(self, tile: Tile) -> Result<Vec<u8>, Refused> {
        let (first, width) = (tile.first(), usize::from(tile.width));
        let events = self.events(first, width).await?;
        let mut bytes = Vec::new();
        for (event, expected) in events.iter().zip(first..) {
            let length = u16::try_from(event.leaf.len()).map_err(internal)?;
            if event.index != expected {
                break;
            }
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(&event.leaf);
        }
        if events.len() == width
            && events.last().is_some_and(|event| event.index - first + 1 == width as u64)
        {
            return Ok(bytes);
        }
        Err(Refused::new(Code::NotFound, format!("the log has no entries `{tile}`")))
    }

    /// The first event at this time or later, if the log's times are in order; they are, but for the clocks of servers.
    pub(crate) async fn first_since(self, size: u64, time: Timestamp) -> Result<u64, Refused> {
        let (mut low, mut high) = (0, size);
        while low < high {
            let middle = low + (high - low) / 2;
            let events = self.events(middle, 1).await?;
            let Some(event) = events.first() else { return Ok(low) };
            let entry = countersign_audit::Entry::parse(&event.leaf).map_err(internal)?;
            if entry.at < time { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// How many events there are: what the head row counts, or the last one of a log that is over.
    pub(crate) async fn size(self, head: &Head) -> Result<u64, Refused> {
        if self.present {
            return Ok(head.log_size);
        }
        // A log that is over does not grow: its end is found by halving.
        let (mut low, mut high) = (0, 1_u64 << 40);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.events(middle, 1).await?.is_empty() { high = middle } else { low = middle + 1 }
        }
        Ok(low)
    }
}
