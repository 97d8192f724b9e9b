//! Where a log is read from: a server, a store without a server, or a file.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::Result;
use countersign_api::admin::{AdminClient, LIST_MAX, LeafView, LogResponse};
use countersign_audit::TileHash;
use countersign_identity::Incarnation;
use countersign_server::OfflineLog;
use serde::{Deserialize, Serialize};

use crate::exit::Failure;

/// A log to read.
pub(super) enum Source {
    Server(AdminClient),
    Store(Box<OfflineLog>),
    File(Exported),
}

/// The first line of an exported log.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Heading {
    /// What was signed of it.
    pub(super) log: LogResponse,
}

/// A log that was exported to a file.
pub(super) struct Exported {
    path: PathBuf,
    lines: Box<dyn BufRead + Send + Sync>,
    log: LogResponse,
    line: usize,
}

/// The longest line of an export: the longest details, with every character escaped.
const LINE_BYTES_MAX: u64 = 256 * 1024;
/// The longest first line: of some hundred checkpoints.
const HEADING_BYTES_MAX: u64 = 16 * 1024 * 1024;

impl Exported {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(|error| cannot(path, &error))?;
        Self::of(Box::new(BufReader::new(file)), path)
    }

    /// Reads what the first of these lines says.
    pub(super) fn of(
        mut lines: Box<dyn BufRead + Send + Sync>,
        path: &Path,
    ) -> Result<Self, Failure> {
        let mut first = String::new();
        lines
            .by_ref()
            .take(HEADING_BYTES_MAX)
            .read_line(&mut first)
            .map_err(|error| cannot(path, &error))?;
        let heading: Heading = serde_json::from_str(&first).map_err(|bad| {
            let path = path.display();
            Failure::not_understood(format!("`{path}` is not an exported log: line 1: {bad}"))
        })?;
        Ok(Self { path: path.to_owned(), lines, log: heading.log, line: 1 })
    }

    fn next(&mut self) -> Result<Option<LeafView>, Failure> {
        let refuse = |line: usize, why: String| {
            let path = self.path.display();
            Failure::not_understood(format!("`{path}` is not understood: line {line}: {why}"))
        };
        self.line += 1;
        let mut line = String::new();
        let read = self.lines.by_ref().take(LINE_BYTES_MAX).read_line(&mut line);
        if read.map_err(|error| refuse(self.line, crate::manifest::plain(&error)))? == 0 {
            return Ok(None);
        }
        let leaf = serde_json::from_str(&line);
        leaf.map(Some).map_err(|bad| refuse(self.line, bad.to_string()))
    }
}

fn cannot(path: &Path, error: &std::io::Error) -> Failure {
    let why = crate::manifest::plain(error);
    Failure::not_understood(format!("`{}` cannot be read: {why}", path.display()))
}

impl Source {
    pub(super) async fn log(&self, incarnation: Option<Incarnation>) -> Result<LogResponse> {
        Ok(match self {
            Self::Server(client) => client.log(incarnation).await?,
            Self::Store(store) => store.log(incarnation).await?,
            Self::File(file) => file.log.clone(),
        })
    }

    /// The next leaves, from this index on; nothing at the end. A file is read once, in its own order.
    pub(super) async fn leaves(
        &mut self,
        incarnation: Incarnation,
        from: u64,
    ) -> Result<Vec<LeafView>> {
        Ok(match self {
            Self::Server(client) => client.leaves(incarnation, from, LIST_MAX).await?.leaves,
            Self::Store(store) => store.leaves(incarnation, from, LIST_MAX).await?.leaves,
            Self::File(file) => {
                let mut leaves = Vec::new();
                while leaves.len() < LIST_MAX
                    && let Some(leaf) = file.next()?
                {
                    leaves.push(leaf);
                }
                leaves
            }
        })
    }

    /// The stored hashes of full tiles; `None` where none are stored.
    pub(super) async fn tile_hashes(&self, of: Incarnation) -> Result<Option<Vec<TileHash>>> {
        let mut hashes = Vec::new();
        for level in 1.. {
            let mut from = 0;
            loop {
                let page = match self {
                    Self::Server(client) => client.tile_hashes(of, level, from).await?,
                    Self::Store(store) => store.tile_hashes(of, level, from).await?,
                    Self::File(_) => return Ok(None),
                };
                let Some(last) = page.hashes.last() else { break };
                from = last.position.saturating_add(1);
                hashes.extend(page.hashes.iter().map(|view| TileHash {
                    level: view.level,
                    position: view.position,
                    hash: view.hash,
                }));
            }
            if from == 0 {
                break;
            }
        }
        Ok(Some(hashes))
    }
}
