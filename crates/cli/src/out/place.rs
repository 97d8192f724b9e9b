//! Where a name leads, and whether what is there was put there by somebody who may.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// As many as the system follows.
const LINKS_MAX: usize = 40;

/// What a name leads to. No part of a path is a link at its end.
#[derive(Debug)]
pub(super) enum Place {
    Nothing(PathBuf),
    There(PathBuf, Box<Metadata>),
    /// One of the names that the system has for what a process has open.
    Descriptor(PathBuf),
}

/// Follows links to where a name leads, past nothing that another may have put there.
pub(super) fn find(named: &Path) -> io::Result<Place> {
    let mut at = named.to_owned();
    for _link in 0..LINKS_MAX {
        if holds_descriptors(folder(&at)) {
            return Ok(Place::Descriptor(at));
        }
        let there = match fs::symlink_metadata(&at) {
            Ok(there) => there,
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Err(_nothing) if at == named => return Ok(Place::Nothing(at)),
            Err(_nothing) => return Err(io::Error::other("it is a link to what is not there")),
        };
        let us = nix::unistd::geteuid().as_raw();
        if !is_trusted(us, &fs::metadata(folder(&at))?, &there) {
            let (shown, uid) = (at.display(), there.uid());
            return Err(io::Error::other(format!(
                "`{shown}` belongs to uid {uid}, in a folder that others write to: remove it, or name a folder of your own"
            )));
        }
        if !there.is_symlink() {
            return Ok(Place::There(at, Box::new(there)));
        }
        at = folder(&at).join(fs::read_link(&at)?);
    }
    Err(io::Error::other("it is a link to too many links"))
}

/// Opens what was found there, if it still is what was found.
pub(super) fn open(at: &Path, found: &Metadata) -> io::Result<File> {
    let file = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(at)?;
    let opened = file.metadata()?;
    if (opened.dev(), opened.ino()) == (found.dev(), found.ino()) {
        return Ok(file);
    }
    Err(io::Error::other("something else is there now: try again"))
}

pub(super) fn folder(at: &Path) -> &Path {
    let folder = at.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or_else(|| Path::new("."))
}

/// The rule that the kernel has for links, files and pipes (`fs.protected_symlinks` and its neighbours), which is off on some
/// machines, does not look at folders without the sticky bit, and says nothing of a file that is replaced.
fn is_trusted(us: u32, folder: &Metadata, there: &Metadata) -> bool {
    let others_write = folder.mode() & 0o022 != 0;
    !others_write || there.uid() == us || there.uid() == folder.uid()
}

fn holds_descriptors(folder: &Path) -> bool {
    let leads = fs::canonicalize(folder);
    leads.is_ok_and(|at| at.starts_with("/proc") && at.file_name() == Some(OsStr::new("fd")))
}
