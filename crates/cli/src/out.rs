//! What `--out FILE` names: a file that is replaced as a whole, or something else that is written to as it is.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::exit::Failure;
use crate::manifest::plain;

/// Where something is written that a command was told to put somewhere.
///
/// A regular file is replaced: whoever reads it meanwhile finds the old or the new, and it keeps its mode, and its owner where the
/// system lets it. A link stays, and leads to what is new. A device, a pipe or this very standard output is written to.
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
    },
    Through(File),
    Stdout,
}

/// Who may read a file that was not there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum New {
    Public,
    /// It may hold what programs are told in their environment, or what a log knows of people.
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
        let (at, before) = match fs::metadata(named) {
            Ok(there) if is_stdout(&there) => return Ok(Self::Stdout),
            Ok(there) if there.is_file() => (fs::canonicalize(named)?, Some(Box::new(there))),
            // Opening says why a folder or a socket cannot be written to.
            Ok(_other) => return OpenOptions::new().write(true).open(named).map(Self::Through),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if fs::symlink_metadata(named).is_ok() {
                    return Err(io::Error::other("it is a link to what is not there"));
                }
                (named.to_owned(), None)
            }
            Err(error) => return Err(error),
        };
        let folder = at.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mode = match (&before, new) {
            (None, New::Public) => 0o644,
            // What replaces a file is not for everybody before it is whole.
            (None, New::Private) | (Some(_), _) => 0o600,
        };
        let file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(folder.unwrap_or_else(|| Path::new(".")))?;
        Ok(Self::Replacing { file, at, before })
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Replacing { file, at, before } => {
                if let Some(before) = before {
                    let (owner, group) = (Some(before.uid()), Some(before.gid()));
                    // Who is not root gives nothing away, and keeps the group at most, of those that are his own.
                    if fchown(file.as_file(), owner, group).is_err() {
                        let _of_another = fchown(file.as_file(), None, group);
                    }
                    let mode = Permissions::from_mode(before.mode() & 0o777);
                    file.as_file().set_permissions(mode)?;
                }
                file.as_file().sync_all()?;
                file.persist(&at).map_err(|error| error.error)?;
                Ok(())
            }
            Self::Through(mut file) => file.flush(),
            Self::Stdout => io::stdout().flush(),
        }
    }
}

/// Whether it is what this program's standard output goes to. A second way in would begin at its start, and write over what is said.
fn is_stdout(there: &Metadata) -> bool {
    let mine = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    let mine = mine.and_then(|mine| mine.metadata());
    mine.is_ok_and(|mine| (mine.dev(), mine.ino()) == (there.dev(), there.ino()))
}

fn failed(named: &Path, error: &io::Error) -> Failure {
    Failure::not_understood(format!("`{}` cannot be written: {}", named.display(), plain(error)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn what_is_replaced_keeps_its_mode_and_its_owner_and_what_is_new_has_the_mode_that_it_should() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        write(&at("public"), New::Public, b"a").unwrap();
        write(&at("private"), New::Private, b"a").unwrap();
        assert_eq!(mode(&at("private")), 0o600);
        for kept in [0o640, 0o444, 0o600] {
            fs::set_permissions(at("public"), Permissions::from_mode(kept)).unwrap();
            // As root, who may give it to the group of whoever fetches it.
            let _only_root = std::os::unix::fs::chown(at("public"), Some(65534), Some(65534));
            let before = fs::metadata(at("public")).unwrap();
            write(&at("public"), New::Private, b"new").unwrap();
            let after = fs::metadata(at("public")).unwrap();
            assert_eq!(fs::read(at("public")).unwrap(), b"new");
            let of = |meta: &Metadata| (meta.mode(), meta.uid(), meta.gid());
            assert_eq!(of(&after), of(&before));
            assert_ne!(after.ino(), before.ino(), "it was replaced as a whole");
        }
    }

    #[test]
    fn a_link_stays_and_leads_to_what_is_new() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::create_dir(at("elsewhere")).unwrap();
        fs::write(at("elsewhere/file"), "old").unwrap();
        symlink("elsewhere/file", at("link")).unwrap();
        write(&at("link"), New::Public, b"new").unwrap();
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        assert_eq!(fs::read(at("elsewhere/file")).unwrap(), b"new");
        symlink("nowhere", at("astray")).unwrap();
        let error = write(&at("astray"), New::Public, b"new").unwrap_err();
        assert!(error.message.contains("a link to what is not there"), "{error}");
    }

    #[test]
    fn a_pipe_and_a_device_are_written_to_and_stay() {
        let place = tempfile::tempdir().unwrap();
        let pipe = place.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader = {
            let pipe = pipe.clone();
            std::thread::spawn(move || fs::read(pipe).unwrap())
        };
        write(&pipe, New::Public, b"through").unwrap();
        // Before the reader is waited for: where it was replaced, nothing ever comes through.
        assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
        assert_eq!(reader.join().unwrap(), b"through");
        // Not the machine's own device: this test may run as root.
        let zero = place.path().join("zero");
        let kind = nix::sys::stat::SFlag::S_IFCHR;
        let device = nix::sys::stat::makedev(1, 5);
        if nix::sys::stat::mknod(&zero, kind, nix::sys::stat::Mode::S_IRWXU, device).is_ok()
            && OpenOptions::new().write(true).open(&zero).is_ok()
        {
            write(&zero, New::Public, b"through").unwrap();
            assert!(fs::symlink_metadata(&zero).unwrap().file_type().is_char_device());
        }
    }

    #[test]
    fn a_folder_and_a_place_that_is_not_there_are_told_and_what_is_not_finished_leaves_the_old() {
        let place = tempfile::tempdir().unwrap();
        let error = write(place.path(), New::Public, b"a").unwrap_err();
        assert!(error.message.contains("is a directory"), "{error}");
        write(&place.path().join("no/such"), New::Public, b"a").unwrap_err();
        let file = place.path().join("file");
        fs::write(&file, "old").unwrap();
        let mut out = Out::open(&file, New::Public).unwrap();
        out.write_all(b"half").unwrap();
        drop(out);
        assert_eq!(fs::read(&file).unwrap(), b"old");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
