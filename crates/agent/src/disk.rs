//! What the agent keeps on its disk: the node's key and SVID, and the last snapshot. Workloads' keys never.
//!
//! ```text
//! node-GENERATION.key   the registered key, PKCS#8 DER, 0600; one of the next generation is a successor on its way
//! node.json             the node's id, the generation in force, its SVID and the bundle
//! snapshot.json         the last records, with their revision
//! revocations.json      the revocations in force, also those that no server speaks of any more, and their signatures
//! lock                  held while an agent runs
//! ```
//!
//! Every file is written beside its place, synced, and renamed, and the directory synced after: a crash leaves the old
//! or the new, never a part. A key is durable before the server hears of it, so no crash can lose a registered key.

mod fault;
mod node;
mod records;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

pub use self::fault::DiskFault;
pub(crate) use self::node::Node;

/// The agent's data directory, held by this process alone.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    lock: File,
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Closing alone would leave it to a child that another thread starts right now, until that child's `exec`.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "the data directory may stay locked for a moment");
        }
    }
}

const FORMAT: u32 = 1;
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Read before the rest of a file, so that a newer format is told by its number.
#[derive(serde::Deserialize)]
struct Format {
    format: u32,
}

impl Disk {
    /// Opens the directory, makes it when it is missing, and takes its lock.
    ///
    /// # Errors
    /// When another agent runs on it, others can read it, or the system says no.
    pub(crate) fn open(path: &Path) -> Result<Self, DiskFault> {
        let io = |what, why| DiskFault::Io { path: path.to_owned(), what, why };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|why| io("made", why))?;
        let metadata = fs::metadata(path).map_err(|why| io("read", why))?;
        let (ours, owner) = (rustix::process::geteuid().as_raw(), metadata.uid());
        if owner != ours {
            return Err(DiskFault::Foreign { path: path.to_owned(), owner, ours });
        }
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(DiskFault::Open { path: path.to_owned(), mode });
        }
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|why| DiskFault::Io { path: lock_path.clone(), what: "opened", why })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), lock }),
            Err(fs::TryLockError::WouldBlock) => Err(DiskFault::Locked(path.to_owned())),
            Err(fs::TryLockError::Error(why)) => {
                Err(DiskFault::Io { path: lock_path, what: "locked", why })
            }
        }
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, DiskFault> {
        let path = self.path.join(name);
        let mut bytes = Zeroizing::new(Vec::new());
        let read =
            File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
        match read {
            Ok(_bytes) => Ok(Some(bytes)),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(DiskFault::Io { path, what: "read", why }),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DiskFault> {
        let path = self.path.join(name);
        let beside = self.path.join(format!("{name}.new"));
        let replace = || -> io::Result<()> {
            // A leftover of a crash may have another mode; it is removed, not reused.
            match fs::remove_file(&beside) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
                Ok(()) | Err(_) => {}
            }
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.path)?.sync_all()
        };
        replace().map_err(|why| DiskFault::Io { path, what: "written", why })
    }

    fn remove(&self, name: &str) -> Result<(), DiskFault> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(why) => Err(DiskFault::Io { path, what: "removed", why }),
        }
    }
}

fn check_format(path: &Path, text: &[u8]) -> Result<(), DiskFault> {
    match serde_json::from_slice::<Format>(text) {
        Ok(Format { format: FORMAT }) => Ok(()),
        Ok(Format { format }) => Err(DiskFault::Newer { path: path.to_owned(), found: format }),
        Err(why) => Err(DiskFault::Broken { path: path.to_owned(), why: why.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use countersign_identity::Revision;
    use countersign_pki::KeyKind;

    use super::*;
    use crate::core::{Record, Replica};

    fn directory() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap()
    }

    #[test]
    fn a_second_agent_on_one_directory_is_told_so() {
        let directory = directory();
        let path = directory.path().join("agent");
        let first = Disk::open(&path).unwrap();
        let refused = Disk::open(&path).unwrap_err();
        assert!(refused.to_string().starts_with("another agent runs on"), "{refused}");
        drop(first);
        Disk::open(&path).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_read_is_refused() {
        let directory = directory();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let refused = Disk::open(directory.path()).unwrap_err();
        assert!(matches!(refused, DiskFault::Open { mode: 0o755, .. }), "{refused}");
    }

    #[test]
    fn a_successor_survives_until_it_is_registered() {
        let directory = directory();
        let path = directory.path().join("agent");
        let disk = Disk::open(&path).unwrap();
        let first = disk.key_or_new(2, KeyKind::P256).unwrap();
        let again = disk.key_or_new(2, KeyKind::P256).unwrap();
        assert_eq!(first.public().id(), again.public().id(), "the same key is offered again");
        let mode = fs::metadata(path.join("node-2.key")).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert!(disk.key(3).unwrap().is_none());
    }

    #[test]
    fn a_crash_in_the_middle_of_writing_leaves_the_old_file() {
        let directory = directory();
        let disk = Disk::open(&directory.path().join("agent")).unwrap();
        let record = |value: &[u8]| Record::read("Workload", "web", value).unwrap();
        let replica =
            |number, value| Replica::of(Revision { incarnation: 1, number }, [record(value)]);
        disk.keep_snapshot(&replica(1, b"{}")).unwrap();
        // What a crash leaves: the new file is begun and not renamed.
        fs::write(disk.path.join("snapshot.json.new"), b"{\"format\":1,").unwrap();
        fs::set_permissions(disk.path.join("snapshot.json.new"), fs::Permissions::from_mode(0o666))
            .unwrap();
        assert_eq!(disk.snapshot().unwrap().revision().number, 1);
        disk.keep_snapshot(&replica(2, b"{}")).unwrap();
        assert_eq!(disk.snapshot().unwrap().revision().number, 2);
        let mode = fs::metadata(disk.path.join("snapshot.json")).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn a_newer_directory_is_told_by_its_number() {
        let directory = directory();
        let disk = Disk::open(&directory.path().join("agent")).unwrap();
        assert!(disk.node().unwrap().is_none());
        fs::write(disk.path.join("node.json"), br#"{"format":7,"other":1}"#).unwrap();
        let refused = disk.node().unwrap_err();
        assert!(matches!(refused, DiskFault::Newer { found: 7, .. }), "{refused}");
        fs::write(disk.path.join("node.json"), b"\0").unwrap();
        assert!(matches!(disk.node().unwrap_err(), DiskFault::Broken { .. }));
    }
}
