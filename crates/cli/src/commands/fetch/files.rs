//! A set of files that is replaced as one: a reader, and a crash, find all old ones or all new ones.
//!
//! The files lie in a folder of their own; `..data` leads to it, and each name leads through `..data`. Switching
//! that one link switches all of them, so key and certificate always belong together. What lies under the names
//! otherwise, such as the files of another tool, is made a set of that kind first.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use countersign_identity::Code;
use tempfile::TempDir;

use crate::exit::Failure;

/// The link that is switched.
const DATA: &str = "..data";
/// How the folders behind it begin.
const BEGIN: &str = "..svid-";
/// How links begin that are not in their place yet.
const BEGIN_LINK: &str = "..link-";
/// How long somebody else may take who writes into the same folder.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked at whether they are done.
const OTHERS_LOOK: Duration = Duration::from_millis(20);

/// Name, contents and mode of each file of a set.
type Files<'a> = [(&'a str, &'a [u8], u32)];

/// Writes the set.
///
/// # Errors
/// When the folder cannot be written; what was there before is still whole then, and nothing of the new set is left.
pub(super) fn write(folder: &Path, files: &Files<'_>) -> Result<(), Failure> {
    write_in_steps(folder, files, &mut || Ok(()))
}

/// As [`write`], and calls `step` whenever something can be seen to have changed. When that fails, nothing more is done.
fn write_in_steps(
    folder: &Path,
    files: &Files<'_>,
    step: &mut dyn FnMut() -> io::Result<()>,
) -> Result<(), Failure> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
    made.map_err(|error| failure(folder, &error))?;
    let alone = alone_in(folder)?;
    let names = || files.iter().map(|(name, _, _)| *name);
    names().chain([DATA]).try_for_each(|name| replaceable(&folder.join(name)))?;
    let set = begin(folder).map_err(|error| failure(folder, &error))?;
    for (name, bytes, mode) in files {
        let path = set.path().join(name);
        create(&path, bytes, *mode).map_err(|error| failure(&path, &error))?;
    }
    complete(set.path()).map_err(|error| failure(set.path(), &error))?;
    adopt(folder, &names().collect::<Vec<_>>(), step)?;
    let data = folder.join(DATA);
    switch(folder, set.path()).map_err(|error| failure(&data, &error))?;
    let set = set.keep();
    let synced = step().and_then(|()| File::open(folder)?.sync_all());
    synced.map_err(|error| failure(folder, &error))?;
    // Where nobody can be kept out, it may be that somebody writes a set at this very moment.
    if alone.is_some() {
        forget_all_but(folder, &set);
    }
    Ok(())
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    let why = crate::manifest::plain(error);
    Failure::not_understood(format!("`{}` cannot be written: {why}", path.display()))
}

/// Keeps others out who write into the same folder, until it is dropped. None where the file system has no locks.
fn alone_in(folder: &Path) -> Result<Option<File>, Failure> {
    let file = File::open(folder).map_err(|error| failure(folder, &error))?;
    let end = Instant::now() + OTHERS_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if Instant::now() < end => {
                std::thread::sleep(OTHERS_LOOK);
            }
            Err(TryLockError::WouldBlock) => {
                let secs = OTHERS_TIMEOUT.as_secs();
                let why = format!(
                    "another process has been writing into `{}` for {secs} s: try again once it has ended",
                    folder.display()
                );
                return Err(Failure::new(Code::AlreadyExists, why));
            }
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
}

/// Sees to it that a link can take the place of what has this name, before anything is changed.
fn replaceable(path: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() || found.is_symlink() => Ok(()),
        Ok(found) => {
            let what = if found.is_dir() { "a folder" } else { "no file" };
            Err(Failure::not_understood(format!(
                "`{}` is {what}, and is not replaced: move it away, or choose another folder with `--write`",
                path.display()
            )))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failure(path, &error)),
    }
}

/// A folder for a set. The name is free, and only this user can write there until the files are complete.
fn begin(folder: &Path) -> io::Result<TempDir> {
    let private = fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().prefix(BEGIN).permissions(private).tempdir_in(folder)
}

/// Whoever may look into the folder may now look into the set: the key has its own mode.
fn complete(set: &Path) -> io::Result<()> {
    fs::set_permissions(set, fs::Permissions::from_mode(0o755))?;
    File::open(set)?.sync_all()
}

/// Makes every name lead through `..data`, without anything else to be seen under any of them meanwhile.
fn adopt(
    folder: &Path,
    names: &[&str],
    step: &mut dyn FnMut() -> io::Result<()>,
) -> Result<(), Failure> {
    let through = |name: &str| Path::new(DATA).join(name);
    let leads = |name: &str| fs::read_link(folder.join(name)).is_ok_and(|to| to == through(name));
    let strays: Vec<&str> = names.iter().copied().filter(|name| !leads(name)).collect();
    let whole = |done: io::Result<()>| done.map_err(|error| failure(folder, &error));
    if strays.iter().any(|name| fs::symlink_metadata(folder.join(name)).is_ok()) {
        let before = begin(folder).map_err(|error| failure(folder, &error))?;
        for name in names {
            let from = if leads(name) { through(name) } else { PathBuf::from(name) };
            let kept = keep(folder, &from, &before.path().join(name));
            kept.map_err(|error| failure(&folder.join(name), &error))?;
        }
        whole(complete(before.path()).and_then(|()| switch(folder, before.path())))?;
        // From here on it is what the names lead to, also if nothing more is done.
        let _before = before.keep();
        whole(step())?;
    }
    for name in &strays {
        let linked = link(folder, name, &through(name)).and_then(|()| step());
        linked.map_err(|error| failure(&folder.join(name), &error))?;
    }
    // What the names lead through is there before it leads to anything new.
    if strays.is_empty() { Ok(()) } else { whole(File::open(folder).and_then(|it| it.sync_all())) }
}

/// Has the same file, or a link to the same place, in a set. Nothing where there is none.
fn keep(folder: &Path, from: &Path, at: &Path) -> io::Result<()> {
    let path = folder.join(from);
    let found = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if found.is_symlink() {
        let to = fs::read_link(&path)?;
        // A set lies one folder deeper; what lies in another set does so already.
        let deeper = to.is_relative() && from.components().count() == 1;
        return symlink(if deeper { Path::new("..").join(to) } else { to }, at);
    }
    // Of a file of another owner there may be no second name; its contents and its mode there are.
    fs::hard_link(&path, at).or_else(|_refused| fs::copy(&path, at).map(drop))
}

fn switch(folder: &Path, set: &Path) -> io::Result<()> {
    link(folder, DATA, set.file_name().map(Path::new).unwrap_or(set))
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    // Set by hand, because the umask takes part in what `open` makes.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Puts a link in the place of whatever has the name.
fn link(folder: &Path, name: &str, target: &Path) -> io::Result<()> {
    let beside = tempfile::Builder::new()
        .prefix(BEGIN_LINK)
        .make_in(folder, |path| symlink(target, path))?;
    let path = beside.into_temp_path();
    fs::rename(&path, folder.join(name))?;
    // It has moved; there is nothing to remove any more.
    path.keep().map(drop).map_err(|kept| kept.error)
}

/// Removes all sets but the present one, and links that never came into their place: what was there before, and what was left by
/// runs that were killed. That something cannot be removed is no reason to fail.
fn forget_all_but(folder: &Path, present: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries
        .flatten()
        .filter(|entry| entry.file_name() != present.file_name().unwrap_or_default())
    {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let _left_behind = if name.starts_with(BEGIN) {
            fs::remove_dir_all(entry.path())
        } else if name.starts_with(BEGIN_LINK) {
            fs::remove_file(entry.path())
        } else {
            Ok(())
        };
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

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn pair(of: &str) -> [(&str, &[u8], u32); 2] {
        [("chain", of.as_bytes(), 0o644), ("key", of.as_bytes(), 0o600)]
    }

    /// What a reader finds now; nothing where there is nothing.
    fn seen(folder: &Path) -> [Option<String>; 2] {
        ["chain", "key"].map(|name| fs::read_to_string(folder.join(name)).ok())
    }

    /// Writes the set and does not get beyond so many steps. Says whether it got to the end; both files belong together after each.
    #[track_caller]
    fn written_until(folder: &Path, of: &str, last: usize) -> bool {
        let before = seen(folder);
        let after = [Some(of.to_owned()), Some(of.to_owned())];
        let mut steps = 0;
        let written = write_in_steps(folder, &pair(of), &mut || {
            let now = seen(folder);
            assert!(now == before || now == after, "{now:?} after step {steps}, {before:?} before");
            steps += 1;
            if steps == last { Err(io::Error::other("stopped")) } else { Ok(()) }
        });
        let now = seen(folder);
        assert!(now == before || now == after, "{now:?} at the end, {before:?} before");
        written.is_ok()
    }

    #[test]
    fn key_and_chain_belong_together_wherever_it_is_stopped_and_whatever_was_there() {
        let elsewhere = tempfile::tempdir().unwrap();
        let other = elsewhere.path().join("other");
        fs::write(&other, "old").unwrap();
        let begun = |how: &str, into: &Path| match how {
            "files" => {
                fs::write(into.join("chain"), "old").unwrap();
                fs::write(into.join("key"), "old").unwrap();
            }
            "a link beside a file" => {
                fs::write(into.join("at"), "old").unwrap();
                symlink("at", into.join("chain")).unwrap();
                fs::write(into.join("key"), "old").unwrap();
            }
            "a set, and a link in place of a name" => {
                write(into, &pair("old")).unwrap();
                fs::remove_file(into.join("key")).unwrap();
                symlink(&other, into.join("key")).unwrap();
            }
            "a set" => write(into, &pair("old")).unwrap(),
            _nothing => {}
        };
        for how in [
            "nothing",
            "files",
            "a link beside a file",
            "a set, and a link in place of a name",
            "a set",
        ] {
            let mut last = 1;
            loop {
                let folder = tempfile::tempdir().unwrap();
                begun(how, folder.path());
                let whole = written_until(folder.path(), "new", last);
                // Whatever it was stopped at, the next one succeeds, and leaves nothing behind.
                assert!(written_until(folder.path(), "newer", usize::MAX), "{how}, {last}");
                assert_eq!(
                    seen(folder.path()),
                    [Some("newer".to_owned()), Some("newer".to_owned())]
                );
                let left = names(folder.path()).into_iter().filter(|name| name != "at").count();
                assert_eq!(left, 4, "{how}, {last}: {:?}", names(folder.path()));
                if whole {
                    break;
                }
                last += 1;
            }
            let steps = if how == "a set" { 1 } else { 2 };
            assert!(steps < last, "{how}: {last}");
        }
        assert_eq!(fs::read_to_string(other).unwrap(), "old");
    }

    #[test]
    fn nothing_of_a_set_is_left_that_could_not_be_put_in_place_and_nothing_is_switched() {
        for blocked in ["key", DATA] {
            let folder = tempfile::tempdir().unwrap();
            if blocked == "key" {
                write(folder.path(), &[("chain", b"old", 0o644)]).unwrap();
            }
            fs::create_dir(folder.path().join(blocked)).unwrap();
            let before = names(folder.path());
            for _ in 0..3 {
                let failure = write(folder.path(), &pair("new")).unwrap_err();
                let path = folder.path().join(blocked).display().to_string();
                assert!(failure.message.contains(&path), "{}", failure.message);
                assert!(failure.message.contains("is a folder"), "{}", failure.message);
                assert!(failure.message.contains("move it away"), "{}", failure.message);
            }
            assert_eq!(names(folder.path()), before);
            let chain = (blocked == "key").then(|| "old".to_owned());
            assert_eq!(seen(folder.path())[0], chain);
        }
    }

    #[test]
    fn keys_that_were_left_behind_by_runs_that_were_killed_are_removed_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path();
        write(into, &pair("old")).unwrap();
        for number in 0..3 {
            let left = into.join(format!("{BEGIN}left{number}"));
            fs::create_dir(&left).unwrap();
            fs::write(left.join("key"), "secret").unwrap();
            symlink("..svid-left0", into.join(format!("{BEGIN_LINK}left{number}"))).unwrap();
        }
        fs::write(into.join("notes"), "mine").unwrap();
        write(into, &pair("new")).unwrap();
        let left = names(into);
        assert_eq!(left.len(), 5, "the pair, `..data`, one set and what is not ours: {left:?}");
        assert_eq!(read(into, "notes").0, "mine");
    }

    #[test]
    fn those_who_write_into_one_folder_at_once_do_so_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let into = folder.path();
                scope.spawn(move || {
                    for round in 0..10 {
                        write(into, &pair(&format!("{number}-{round}"))).unwrap();
                    }
                });
            }
        });
        let [chain, key] = seen(folder.path());
        assert!(chain.is_some() && chain == key, "{chain:?} {key:?}");
        assert_eq!(names(folder.path()).len(), 4);
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
        let names = names(&into);
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
