//! Where one machine's trust domain keeps its state, its sockets and its logs.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use countersign_identity::Code;
use countersign_program::system::{plain, replace};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::exit::Failure;

/// The folders of one `up`. Held while it runs: a second one on the same data is refused.
pub(crate) struct Layout {
    /// State that outlives the processes.
    pub data: PathBuf,
    /// Sockets, in a short folder of their own that only this user can enter.
    pub run: PathBuf,
    /// What each process writes to its standard error.
    pub logs: PathBuf,
    /// Whether the last `up` on it was killed before it had cleared up: its processes may just be ending.
    pub left_behind: bool,
    _lock: Flock<File>,
}

/// What other commands read to find this trust domain.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Whereabouts {
    pub data: String,
    pub admin: String,
    pub agent: String,
    pub server: String,
    pub services: std::collections::BTreeMap<String, String>,
}

/// Another `up` has the data directory.
#[derive(Debug, thiserror::Error)]
#[error("another `up` runs on {}: stop it, or choose other state with `--data DIR`", .0.display())]
pub(crate) struct Taken(PathBuf);

/// A Unix socket's path has 107 bytes; the longest name of ours is `SERVICE.UPSTREAM.sock` within a folder `SERVICE`.
const RUN_BYTES_MAX: usize = 48;

impl Layout {
    pub(crate) fn prepare(data: &Path) -> Result<Self> {
        own_folder(data)?;
        let data =
            data.canonicalize().with_context(|| format!("cannot resolve {}", data.display()))?;
        let lock = lock(&data)?;
        let (run, left_behind) = run_folder(&data)?;
        let logs = data.join("logs");
        private_folder(&logs)?;
        Ok(Self { data, run, logs, left_behind, _lock: lock })
    }

    pub(crate) fn server(&self) -> PathBuf {
        self.data.join("server")
    }

    pub(crate) fn agent(&self) -> PathBuf {
        self.data.join("agent")
    }

    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.run.join("admin.sock")
    }

    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    /// Takes away the folder of sockets, once nobody listens in it any more.
    pub(crate) fn clear_sockets(&self) {
        if let Err(error) = fs::remove_dir_all(&self.run) {
            tracing::debug!("{} stays: {error}", self.run.display());
        }
    }

    /// Tells other commands where the trust domain is, in the data directory and as this user's last one.
    pub(crate) fn publish(&self, whereabouts: &Whereabouts) -> Result<()> {
        let text = serde_json::to_vec_pretty(whereabouts)?;
        replace(&self.data.join("up.json"), &text)?;
        // Without a home the other commands need `--data`, which is no reason not to run.
        let Some(last) = last_up() else { return Ok(()) };
        if let Some(folder) = last.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        replace(&last, &text)
    }
}

/// The file that names this user's last `up`.
pub(crate) fn last_up() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    Some(state.join("countersign/last-up.json"))
}

fn lock(data: &Path) -> Result<Flock<File>> {
    let path = data.join("up.lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Taken(data.to_owned()).into()),
        Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// The folder of the sockets of this data directory: always the same, so that a second `up` finds stale ones. And
/// whether it was there before.
fn run_folder(data: &Path) -> Result<(PathBuf, bool)> {
    let uid = nix::unistd::geteuid();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let mine = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid.as_raw())
    };
    let base = match runtime.filter(mine) {
        Some(runtime) if runtime.as_os_str().len() < RUN_BYTES_MAX => runtime.join("countersign"),
        _ => PathBuf::from(format!("/tmp/countersign-{uid}")),
    };
    private_folder(&base)?;
    let run = base.join(short_name(data));
    let before = run.exists();
    private_folder(&run)?;
    Ok((run, before))
}

/// Eight digits that differ between data directories: FNV-1a of the path. Nothing is trusted because of it.
fn short_name(data: &Path) -> String {
    let bytes = data.as_os_str().as_encoded_bytes();
    let hash = bytes
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

/// What may be in a folder in which no `up` has been yet: the place where a disk of its own is mounted, and what a new file system has.
const PREPARED: [&str; 2] = ["server", "lost+found"];

/// Makes the data directory, or makes sure that the one that is there is empty, or an `up`'s and closed to others. Another folder
/// stays as it is: others may work in it.
fn own_folder(path: &Path) -> Result<()> {
    let Some(meta) = make_folder(path)? else { return Ok(()) };
    let shown = path.display();
    let is_of_an_up = ["up.lock", "up.json", "server/domain.json"]
        .iter()
        .any(|name| path.join(name).symlink_metadata().is_ok());
    let entries = fs::read_dir(path).map_err(|error| bad(path, "cannot be read", &error))?;
    let is_prepared = |name: &OsStr| PREPARED.iter().any(|ours| name == *ours);
    let mut is_empty = true;
    for entry in entries {
        let entry = entry.map_err(|error| bad(path, "cannot be read", &error))?;
        is_empty &= is_prepared(&entry.file_name());
    }
    if !is_of_an_up && !is_empty {
        let why = format!(
            "`{shown}` holds something else than the state of an `up`: choose other state with `--data DIR`, missing or empty"
        );
        return Err(Failure::new(Code::AlreadyExists, why).into());
    }
    let mode = meta.mode() & 0o7777;
    // One that was just made for it is open to whoever may look, as the system makes them; who opened it to writers meant others.
    if is_empty && mode & 0o1002 == 0 {
        return private_folder(path);
    }
    if mode & 0o077 != 0 {
        let why = format!(
            "`{shown}` is open to others (mode {mode:o}), expected 0700: run `chmod 700 {shown}` if nobody else is to work in it, or \
             choose other state with `--data DIR`"
        );
        return Err(Failure::not_understood(why).into());
    }
    Ok(())
}

/// Makes a folder within our own that only this user can enter, or makes sure that an existing one is that.
pub(crate) fn private_folder(path: &Path) -> Result<()> {
    let Some(meta) = make_folder(path)? else { return Ok(()) };
    if meta.mode() & 0o077 != 0 {
        let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(path, closed)
            .map_err(|error| bad(path, "cannot be closed to others", &error))?;
    }
    Ok(())
}

/// Makes a folder that only this user can enter. Of one that is there, and this user's, what is known of it.
fn make_folder(path: &Path) -> Result<Option<fs::Metadata>, Failure> {
    match DirBuilder::new().recursive(false).mode(0o700).create(path) {
        Ok(()) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let Some(parent) = parent else { return Err(bad(path, "cannot be made", &error)) };
            fs::create_dir_all(parent).map_err(|error| bad(parent, "cannot be made", &error))?;
            return make_folder(path);
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(bad(path, "cannot be made", &error)),
    }
    // Not followed: in a shared folder such as /tmp, somebody else may have put a link there.
    let meta =
        fs::symlink_metadata(path).map_err(|error| bad(path, "cannot be looked at", &error))?;
    let shown = path.display();
    if !meta.is_dir() {
        let why = format!("`{shown}` is not a folder: remove it, or choose another");
        return Err(Failure::not_understood(why));
    }
    let uid = nix::unistd::geteuid().as_raw();
    if meta.uid() != uid {
        let owner = meta.uid();
        let why =
            format!("`{shown}` belongs to uid {owner}, not to you (uid {uid}): choose another");
        return Err(Failure::not_understood(why));
    }
    Ok(Some(meta))
}

fn bad(path: &Path, what: &str, error: &std::io::Error) -> Failure {
    Failure::not_understood(format!("`{}` {what}: {}", path.display(), plain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_up_on_the_same_data_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = Layout::prepare(folder.path()).unwrap();
        let error = Layout::prepare(folder.path()).err().unwrap();
        assert!(error.downcast_ref::<Taken>().is_some(), "{error:#}");
        drop(first);
        Layout::prepare(folder.path()).unwrap();
    }

    #[test]
    fn a_link_in_place_of_a_private_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(private_folder(&link).unwrap_err().to_string().contains("not a folder"));
    }

    #[test]
    fn a_folder_of_others_is_refused_as_data_and_stays_as_it_is() {
        let place = tempfile::tempdir().unwrap();
        let data = place.path().join("shared");
        fs::create_dir(&data).unwrap();
        let refused = |mode, code, words: &str| {
            let open = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(&data, open).unwrap();
            let error = Layout::prepare(&data).err().unwrap();
            let failure = error.downcast_ref::<Failure>().unwrap();
            assert_eq!(failure.code, code, "{failure}");
            assert!(failure.message.contains(words), "{failure}");
            assert_eq!(fs::metadata(&data).unwrap().mode() & 0o7777, mode);
        };
        refused(0o1777, Code::NotUnderstood, "run `chmod 700 ");
        refused(0o777, Code::NotUnderstood, "run `chmod 700 ");
        fs::write(data.join("theirs"), "").unwrap();
        for mode in [0o1777, 0o755, 0o700] {
            refused(mode, Code::AlreadyExists, "something else than the state of an `up`");
        }
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "nothing was made in it");
    }

    #[test]
    fn an_empty_folder_that_was_made_for_it_is_closed_to_others() {
        let place = tempfile::tempdir().unwrap();
        let data = place.path().join("made");
        DirBuilder::new().mode(0o755).create(&data).unwrap();
        Layout::prepare(&data).unwrap();
        assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn the_state_of_an_up_goes_on_whatever_lies_beside_it_and_only_while_it_is_closed() {
        let place = tempfile::tempdir().unwrap();
        let data = place.path().join("a/data");
        drop(Layout::prepare(&data).unwrap());
        fs::write(data.join("notes"), "").unwrap();
        drop(Layout::prepare(&data).unwrap());
        fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert!(Layout::prepare(&data).err().unwrap().to_string().contains("chmod 700"));
    }

    #[test]
    fn an_existing_folder_is_closed_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().join("open");
        DirBuilder::new().mode(0o755).create(&open).unwrap();
        private_folder(&open).unwrap();
        assert_eq!(fs::metadata(&open).unwrap().mode() & 0o777, 0o700);
    }
}
