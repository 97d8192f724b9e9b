//! What `--out FILE` names: a file that is replaced as a whole, or something else that is written to as it is.

mod place;

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Seek as _, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use countersign_identity::Code;
use tempfile::NamedTempFile;

use self::place::Place;
use crate::exit::Failure;
use crate::manifest::plain;

/// Where something is written that a command was told to put somewhere.
///
/// A regular file is replaced: whoever reads it meanwhile finds the old or the new, and it keeps its mode, and its owner where the
/// system lets it. Where its folder lets nobody replace it, it is written over. A link stays, and leads to what is new. A device, a
/// pipe, what is open already (`/dev/fd/3`) or this very standard output is written to. What somebody else may have put into a folder
/// that others write to is refused: it would give him what is written, or write over what he chose.
#[derive(Debug)]
pub(crate) struct Out {
    named: PathBuf,
    to: To,
}

#[derive(Debug)]
enum To {
    /// A file beside `at`, which takes its place when it is whole.
    Replacing {
        file: NamedTempFile,
        at: PathBuf,
        before: Option<Box<Metadata>>,
        new: New,
    },
    Through(File),
    Stdout,
}

/// Who may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum New {
    /// Everybody, unless there was a file before whose mode says less.
    Public,
    /// Its owner, and its group where there was a file before that was for the group. It may hold what programs are told in their environment, or what a log knows of people.
    Private,
}

/// Writes all of something to what was named.
pub(crate) fn write(named: &Path, new: New, bytes: &[u8]) -> Result<(), Failure> {
    let mut out = Out::open(named, new)?;
    out.write_all(bytes).map_err(|error| failed(named, &error))?;
    out.finish()
}

impl Out {
    pub(crate) fn open(named: &Path, new: New) -> Result<Self, Failure> {
        let to = To::open(named, new).map_err(|error| failed(named, &error))?;
        Ok(Self { named: named.to_owned(), to })
    }

    /// Puts it in place. Without this, what was there before is still there.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        let named = std::mem::take(&mut self.named);
        self.to.finish().map_err(|error| failed(&named, &error))
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.to {
            To::Replacing { file, .. } => file.write(bytes),
            To::Through(file) => file.write(bytes),
            To::Stdout => io::stdout().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.to {
            To::Replacing { file, .. } => file.flush(),
            To::Through(file) => file.flush(),
            To::Stdout => io::stdout().flush(),
        }
    }
}

impl To {
    fn open(named: &Path, new: New) -> io::Result<Self> {
        if let Ok(there) = fs::metadata(named) {
            if is(&there, io::stdout().as_fd()) {
                return Ok(Self::Stdout);
            }
            if is(&there, io::stderr().as_fd()) {
                return Ok(Self::Through(io::stderr().as_fd().try_clone_to_owned()?.into()));
            }
        }
        let (at, before) = match place::find(named)? {
            // Whoever opened it writes to it as well.
            Place::Descriptor(at) => {
                return OpenOptions::new().append(true).open(at).map(Self::Through);
            }
            Place::There(at, there) if there.is_file() => (at, Some(there)),
            // Opening says why a folder or a socket cannot be written to.
            Place::There(at, there) => return place::open(&at, &there).map(Self::Through),
            Place::Nothing(at) => (at, None),
        };
        let mode = match (&before, new) {
            (None, New::Public) => 0o644,
            // What replaces a file is not for everybody before it is whole.
            (None, New::Private) | (Some(_), _) => 0o600,
        };
        let mut beside = tempfile::Builder::new();
        beside.permissions(Permissions::from_mode(mode));
        let file = match beside.tempfile_in(place::folder(&at)) {
            // Written elsewhere first, so that what was there stays until the new is whole.
            Err(error) if before.is_some() && is_not_replaced(&error) => {
                beside.tempfile().map_err(|_elsewhere| error)?
            }
            made => made?,
        };
        Ok(Self::Replacing { file, at, before, new })
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Replacing { file, at, before, new } => {
                if let Some(before) = &before {
                    let (owner, group) = (Some(before.uid()), Some(before.gid()));
                    // Who is not root gives nothing away, and keeps the group at most, of those that are his own.
                    let kept = fchown(file.as_file(), owner, group)
                        .or_else(|_not_given| fchown(file.as_file(), None, group));
                    let mode = mode_after(before.mode(), kept.is_ok(), new);
                    file.as_file().set_permissions(Permissions::from_mode(mode))?;
                }
                file.as_file().sync_all()?;
                match (file.persist(&at), before) {
                    (Err(failed), Some(before)) if is_not_replaced(&failed.error) => {
                        write_over(&at, &before, new, failed.file)
                    }
                    (persisted, _) => persisted.map(drop).map_err(|failed| failed.error),
                }
            }
            Self::Through(mut file) => file.flush(),
            Self::Stdout => io::stdout().flush(),
        }
    }
}

/// The mode of what replaces a file of that mode.
fn mode_after(before: u32, group_is_kept: bool, new: New) -> u32 {
    // The group that could read it is not the one that the new file has.
    let group = if group_is_kept { 0o777 } else { 0o707 };
    let others = match new {
        New::Public => 0o777,
        New::Private => 0o770,
    };
    before & group & others
}

/// Whether a file cannot be replaced for its folder's sake, such as one that root made for a service, or that is a mount of its own.
fn is_not_replaced(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied
            | ErrorKind::ResourceBusy
            | ErrorKind::CrossesDevices
            | ErrorKind::ReadOnlyFilesystem
    )
}

/// Puts what was written elsewhere into the file that is there.
fn write_over(at: &Path, before: &Metadata, new: New, mut from: NamedTempFile) -> io::Result<()> {
    let mut over = place::open(at, before)?;
    let mode = mode_after(before.mode(), true, new);
    if mode != before.mode() & 0o777 {
        over.set_permissions(Permissions::from_mode(mode))?;
    }
    over.set_len(0)?;
    from.as_file_mut().rewind()?;
    io::copy(from.as_file_mut(), &mut over)?;
    over.sync_all()
}

/// Whether it is what this program has open there. A second way in would begin at its start, and write over what is said.
fn is(there: &Metadata, open: BorrowedFd<'_>) -> bool {
    let mine = open.try_clone_to_owned().map(File::from).and_then(|mine| mine.metadata());
    mine.is_ok_and(|mine| (mine.dev(), mine.ino()) == (there.dev(), there.ino()))
}

fn failed(named: &Path, error: &io::Error) -> Failure {
    let code = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Code::Internal,
        _ => Code::NotUnderstood,
    };
    Failure::new(code, format!("`{}` cannot be written: {}", named.display(), plain(error)))
}

#[cfg(test)]
mod tests;
