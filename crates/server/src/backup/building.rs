//! A data directory that is being made beside the place that it is for.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::config::{StartError, StoreAt, domain_path};
use crate::directory;

/// The file that says what such a directory is. Whoever makes it holds its lock for as long as it makes it.
const MARK: &str = "restoring";
/// What is in it.
const MARK_TEXT: &[u8] =
    b"countersign restore makes this directory; one that was cut off is cleared by the next\n";
/// Where the state of a database is made.
const STATE: &str = "state";
/// How often a place is taken that others take or leave at the same time.
const ATTEMPTS_MAX: usize = 8;

/// A data directory that is being made. Of one that is not finished nothing is left, and what one that was killed has left is
/// cleared by the next.
pub(super) struct Building {
    path: PathBuf,
    /// Locked: while this is open, nobody else takes the place.
    _mark: File,
    /// The empty directory of the final name, if it is ours.
    made: Option<PathBuf>,
    finished: bool,
}

impl Building {
    pub(super) fn begin(data: &Path) -> Result<Self, StartError> {
        // Refuses what is in use; an empty directory stays empty until the end.
        let made = (!data.exists()).then(|| data.to_owned());
        directory::make(data)?;
        let mut path = data.as_os_str().to_owned();
        path.push(".restoring");
        let path = PathBuf::from(path);
        match take(&path) {
            Ok(mark) => Ok(Self { path, _mark: mark, made, finished: false }),
            Err(error) => {
                // What lies there is not ours.
                made.iter().for_each(|made| remove_empty(made));
                Err(error)
            }
        }
    }

    /// Where it is made.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the state is made: at its place, or, where that is a database, aside until it is whole.
    pub(super) fn state(&self, store: &StoreAt) -> Result<PathBuf, StartError> {
        match store {
            StoreAt::Directory => Ok(self.path.clone()),
            StoreAt::Postgres { .. } => {
                let aside = self.path.join(STATE);
                directory::make(&aside)?;
                Ok(aside)
            }
        }
    }

    pub(super) fn finish(mut self, data: &Path) -> Result<(), StartError> {
        let failed = |source| StartError::File { action: "make", path: data.into(), source };
        std::fs::remove_file(self.path.join(MARK)).map_err(failed)?;
        std::fs::rename(&self.path, data).map_err(failed)?;
        self.finished = true;
        let folder = data.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new(".")));
        folder.and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // The mark last: a directory without it is nobody's, and stays.
        let mark = self.path.join(MARK);
        let cleared = clear(&self.path).and_then(|()| std::fs::remove_file(mark));
        if let Err(error) = cleared.and_then(|()| std::fs::remove_dir(&self.path)) {
            tracing::warn!(%error, path = %self.path.display(), "what was begun is left");
        }
        self.made.iter().for_each(|made| remove_empty(made));
    }
}

/// Makes the directory ours, with nothing in it but its mark. One that a killed restore has left is told by a mark that
/// nobody has locked; whatever else lies there is not touched.
fn take(path: &Path) -> Result<File, StartError> {
    let failed = |source| StartError::File { action: "make", path: path.into(), source };
    let foreign = || StartError::RestoringExists { path: path.into() };
    let runs = || StartError::RestoreRuns { path: path.into() };
    let mark = path.join(MARK);
    for _attempt in 0..ATTEMPTS_MAX {
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        let Some(found) = look(path, &mark).map_err(failed)? else { continue };
        let file = match found {
            Found::Foreign => return Err(foreign()),
            Found::Empty => OpenOptions::new().write(true).create_new(true).mode(0o600).open(&mark),
            Found::Marked => File::open(&mark),
        };
        let mut file = match file {
            Ok(file) => file,
            // Somebody else was faster, or has just left.
            Err(error)
                if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) =>
            {
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(runs()),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // Before it was locked, another restore may have taken it for one that was left, and have done its work.
        if !is_at(&file, &mark) {
            continue;
        }
        match found {
            Found::Empty => {
                file.write_all(MARK_TEXT).and_then(|()| file.sync_all()).map_err(failed)?;
            }
            // On a whole one a server may have run since.
            Found::Marked if is_whole(path) => return Err(foreign()),
            Found::Marked => {
                tracing::info!(path = %path.display(), "what a restore that was cut off has left is cleared");
                clear(path).map_err(failed)?;
            }
            Found::Foreign => unreachable!("it was not opened"),
        }
        return Ok(file);
    }
    Err(runs())
}

/// What lies at the place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Empty,
    Marked,
    /// Something else, or more.
    Foreign,
}

/// `None` when it changed meanwhile. What others could change is nobody's: an authority's key is about to lie there.
fn look(path: &Path, mark: &Path) -> io::Result<Option<Found>> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() && is_private(&metadata) => {}
        Ok(_) => return Ok(Some(Found::Foreign)),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    match mark.symlink_metadata() {
        Ok(metadata) if !metadata.is_file() || metadata.uid() != own() => {
            return Ok(Some(Found::Foreign));
        }
        Ok(_) => {
            let mut text = Vec::new();
            // One that was cut off at once has written none or half of it.
            File::open(mark)?.take(MARK_TEXT.len() as u64 + 1).read_to_end(&mut text)?;
            let ours = MARK_TEXT.starts_with(&text);
            return Ok(Some(if ours { Found::Marked } else { Found::Foreign }));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let empty = std::fs::read_dir(path)?.next().is_none();
    Ok(Some(if empty { Found::Empty } else { Found::Foreign }))
}

fn own() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Whether it is ours, and for nobody else.
fn is_private(metadata: &std::fs::Metadata) -> bool {
    metadata.uid() == own() && metadata.mode() & 0o077 == 0
}

/// Whether nothing is missing but the name. Beside a state that is for a database, nothing is.
fn is_whole(path: &Path) -> bool {
    domain_path(path).exists() && !path.join(STATE).exists()
}

/// Removes all but the mark.
fn clear(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == MARK {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether an open file is the one of this name.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let id = |of: std::fs::Metadata| (of.dev(), of.ino());
    let (open, named) = (file.metadata().map(id), path.symlink_metadata().map(id));
    open.ok().is_some_and(|open| named.is_ok_and(|named| named == open))
}

fn remove_empty(made: &Path) {
    if let Err(error) = std::fs::remove_dir(made) {
        tracing::warn!(%error, path = %made.display(), "an empty directory is left");
    }
}
