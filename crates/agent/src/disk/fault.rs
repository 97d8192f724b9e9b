//! Why the data directory cannot be used.

use std::io;
use std::path::PathBuf;

use countersign_pki::KeyFault;

use super::FORMAT;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskFault {
    /// Another agent runs on it.
    #[error(
        "another agent runs on `{0}`: stop it, or give this one a directory of its own with `--data`"
    )]
    Locked(PathBuf),
    /// Others could read keys in it.
    #[error("`{path}` is open to others (mode {mode:o}), expected 0700: run `chmod 700 {path}`")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error("`{path}` belongs to uid {owner}, and this agent runs as uid {ours}")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Us.
        ours: u32,
    },
    /// The system says no.
    #[error("`{path}` cannot be {what}: {why}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        why: io::Error,
    },
    /// A file does not hold what we wrote.
    #[error("`{path}` is not understood: {why}")]
    Broken {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A newer agent wrote it.
    #[error(
        "`{path}` has format {found}, and this version reads format {FORMAT}: run the newer agent again, or start with an empty directory and a new join token"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The task that wrote broke.
    #[error("a write was not finished: {0}")]
    Unfinished(String),
    /// A key could not be made.
    #[error("no key can be made: {0}")]
    Key(#[from] KeyFault),
}
