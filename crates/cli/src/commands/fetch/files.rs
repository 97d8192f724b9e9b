//! A set of files that is replaced as one: a reader, and a crash, find all old ones or all new ones.
//!
//! The files lie in a folder of their own; `..data` leads to it, and each name leads through `..data`. Switching
//! that one link switches all of them, so key and certificate always belong together.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::exit::Failure;

/// The link that is switched.
const DATA: &str = "..data";
/// How the folders behind it begin.
const BEGIN: &str = "..svid-";

/// Writes the set: for each file its name, contents and mode.
///
/// # Errors
/// When the folder cannot be written; what was there before is still whole then.
pub(super) fn write(folder: &Path, files: &[(&str, &[u8], u32)]) -> Result<(), Failure> {
    let failure = |path: &Path, error: &io::Error| {
        let why = crate::manifest::plain(error);
        Failure::not_understood(format!("`{}` cannot be written: {why}", path.display()))
    };
    let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
    made.map_err(|error| failure(folder, &error))?;
    let before = fs::read_link(folder.join(DATA)).ok();
    // The name is free, and only this user can write there until the files are complete.
    let set = tempfile::Builder::new()
        .prefix(BEGIN)
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(folder)
        .map_err(|error| failure(folder, &error))?;
    for (name, bytes, mode) in files {
        let path = set.path().join(name);
        create(&path, bytes, *mode).map_err(|error| failure(&path, &error))?;
    }
    let set = set.keep();
    let switched = publish(folder, &set, files);
    switched.map_err(|error| failure(folder, &error))?;
    forget(folder, before);
    Ok(())
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    // Set by hand, because the umask takes part in what `open` makes.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

fn publish(folder: &Path, set: &Path, files: &[(&str, &[u8], u32)]) -> io::Result<()> {
    // Whoever may look into the folder may now look into the set: the key has its own mode.
    fs::set_permissions(set, fs::Permissions::from_mode(0o755))?;
    File::open(set)?.sync_all()?;
    let name = set.file_name().map(PathBuf::from).unwrap_or_default();
    link(folder, DATA, &name)?;
    for (file, _, _) in files {
        let target = Path::new(DATA).join(file);
        if fs::read_link(folder.join(file)).ok().as_deref() != Some(&target) {
            link(folder, file, &target)?;
        }
    }
    File::open(folder)?.sync_all()
}

/// Puts a link in the place of whatever has the name.
fn link(folder: &Path, name: &str, target: &Path) -> io::Result<()> {
    let beside =
        tempfile::Builder::new().prefix("..link-").make_in(folder, |path| symlink(target, path))?;
    let path = beside.into_temp_path();
    fs::rename(&path, folder.join(name))?;
    // It has moved; there is nothing to remove any more.
    path.keep().map(drop).map_err(|kept| kept.error)
}

/// Removes the set that was there before. That it cannot be removed is no reason to fail.
fn forget(folder: &Path, before: Option<PathBuf>) {
    let Some(before) = before else { return };
    let ours = before.components().count() == 1 && before.to_string_lossy().starts_with(BEGIN);
    if ours {
        let _left_behind = fs::remove_dir_all(folder.join(before));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(folder: &Path, name: &str) -> (String, u32) {
        let path = folder.join(name);
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        (fs::read_to_string(path).unwrap(), mode)
    }

    #[test]
    fn the_set_is_switched_as_one_and_the_old_one_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path().join("a/b");
        for round in ["one", "two", "three"] {
            write(&into, &[("chain", round.as_bytes(), 0o644), ("key", round.as_bytes(), 0o600)])
                .unwrap();
            assert_eq!(read(&into, "chain"), (round.to_owned(), 0o644));
            assert_eq!(read(&into, "key"), (round.to_owned(), 0o600));
        }
        let mut names: Vec<_> = fs::read_dir(&into)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 4, "two names, `..data` and one set: {names:?}");
    }

    #[test]
    fn files_and_links_that_were_there_are_replaced_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, "precious").unwrap();
        let into = folder.path().join("into");
        fs::create_dir(&into).unwrap();
        symlink(&elsewhere, into.join("key")).unwrap();
        fs::write(into.join("chain"), "old").unwrap();
        write(&into, &[("chain", b"new", 0o644), ("key", b"new", 0o600)]).unwrap();
        assert_eq!(read(&into, "chain").0, "new");
        assert_eq!(read(&into, "key"), ("new".to_owned(), 0o600));
        assert_eq!(fs::read_to_string(elsewhere).unwrap(), "precious");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told() {
        let failure = write(Path::new("/proc/no/such"), &[]).unwrap_err();
        assert!(failure.message.contains("/proc/no/such"), "{}", failure.message);
    }
}
