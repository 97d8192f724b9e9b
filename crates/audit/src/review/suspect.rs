//! A run of leaves that does not give what it should, and which two of them have changed places.

use countersign_identity::Sha256;

use super::Finding;
use crate::Tree;
use crate::tile::TileHash;

/// In how long a run it is tried out which two leaves have changed places.
const SWAP_RUN_MAX: usize = 256;

/// A run of leaves that does not give the hash that it should.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) from: u64,
    pub(super) to: u64,
    /// The hashes of the run; nothing when it is too long to look into.
    pub(super) hashes: Vec<Sha256>,
    pub(super) target: Target,
    pub(super) against: String,
}

impl Suspect {
    pub(super) fn finding(self) -> Finding {
        if let Some((one, other)) = self.swapped() {
            return Finding::Swapped { one, other };
        }
        Finding::Rewritten { from: self.from, to: self.to, against: self.against }
    }

    /// The two leaves that, put back, give what was signed.
    fn swapped(&self) -> Option<(u64, u64)> {
        let mut hashes = self.hashes.clone();
        if SWAP_RUN_MAX < hashes.len() {
            return None;
        }
        // Neighbours first: they are what is moved most often.
        for apart in 1..hashes.len() {
            for one in 0..hashes.len() - apart {
                hashes.swap(one, one + apart);
                if self.target.is_met(&hashes) {
                    let one = self.from + one as u64;
                    return Some((one, one + apart as u64));
                }
                hashes.swap(one, one + apart);
            }
        }
        None
    }
}

/// What a run of leaves is to give.
#[derive(Debug)]
pub(super) enum Target {
    /// This root, appended to that tree.
    Root(Tree, Sha256),
    /// The hash of a full tile, where the leaves give another.
    Tile(TileHash, Sha256),
}

impl Target {
    fn is_met(&self, hashes: &[Sha256]) -> bool {
        match self {
            Self::Tile(_, hash) => crate::root_of(hashes) == *hash,
            Self::Root(before, root) => {
                let mut tree = before.clone();
                hashes.iter().for_each(|hash| tree.push(*hash));
                tree.root() == *root
            }
        }
    }
}
