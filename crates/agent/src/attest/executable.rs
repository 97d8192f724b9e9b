//! The program that a process runs: its path and its digest.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;

use countersign_identity::Sha256;
use rustix::fs::OFlags;

use super::AttestRefused;
use super::proc::ProcEntry;

/// The largest program that is digested.
pub(super) const PROGRAM_BYTES_MAX: u64 = 1 << 30;
/// How many digests are remembered.
const DIGESTS_MAX: usize = 256;

/// Digests of programs, remembered by what changes whenever the bytes do.
#[derive(Debug, Default)]
pub(super) struct Digests(Mutex<HashMap<FileVersion, Sha256>>);

/// A file and its version. A running program cannot be written to, and a change of its times shows here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FileVersion {
    device: u64,
    inode: u64,
    bytes: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

/// What is asked about a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Path,
    PathAndDigest,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// `None` when no path of ours leads to this very file: it was replaced, or lies in another mount namespace, where
    /// a path is whatever the caller mounted there.
    pub(super) path: Option<String>,
    pub(super) digest: Option<Sha256>,
}

impl Digests {
    /// Looks at the program of a process. Path and digest come from one descriptor, so they are of one file.
    pub(super) fn look(
        &self,
        entry: &ProcEntry,
        pid: u32,
        wanted: Wanted,
    ) -> Result<Program, AttestRefused> {
        let unreadable = |why| AttestRefused::Unreadable { pid, what: "the program", why };
        let flags = match wanted {
            // Enough for programs that may be run, but not read.
            Wanted::Path => OFlags::PATH,
            Wanted::PathAndDigest => OFlags::RDONLY,
        };
        let file = entry.program(flags).map_err(unreadable)?;
        let path = path_of(&file).map_err(unreadable)?;
        let digest = match wanted {
            Wanted::Path => None,
            Wanted::PathAndDigest => Some(self.digest(file, pid)?),
        };
        Ok(Program { path, digest })
    }

    fn digest(&self, file: OwnedFd, pid: u32) -> Result<Sha256, AttestRefused> {
        let unreadable = |why| AttestRefused::Unreadable { pid, what: "the program", why };
        let stat = rustix::fs::fstat(&file).map_err(|why| unreadable(why.into()))?;
        let version = FileVersion {
            device: stat.st_dev,
            inode: stat.st_ino,
            bytes: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        };
        if let Some(digest) = self.remembered().get(&version) {
            return Ok(*digest);
        }
        let bytes = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        if PROGRAM_BYTES_MAX < bytes {
            return Err(AttestRefused::LargeProgram { pid, bytes });
        }
        let digest =
            sha256(std::fs::File::from(file).take(PROGRAM_BYTES_MAX)).map_err(unreadable)?;
        let mut digests = self.remembered();
        if DIGESTS_MAX <= digests.len() {
            digests.clear();
        }
        digests.insert(version, digest);
        Ok(digest)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<FileVersion, Sha256>> {
        // A panic cannot leave half an entry, so a poisoned map is as good as any.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The path by which we reach this very file, if there is one.
fn path_of(file: &OwnedFd) -> io::Result<Option<String>> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = std::fs::read_link(link)?;
    let Some(text) = path.to_str().filter(|text| text.starts_with('/')) else {
        return Ok(None);
    };
    let ours = rustix::fs::fstat(file)?;
    match rustix::fs::stat(text) {
        Ok(found) if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino) => {
            Ok(Some(text.to_owned()))
        }
        // Another file, or none, lies there now.
        Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(why) => Err(why.into()),
    }
}

fn sha256(mut from: impl Read) -> io::Result<Sha256> {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            bytes => context.update(&buffer[..bytes]),
        }
    }
    let digest = context.finish();
    let bytes = digest.as_ref().try_into().expect("a SHA-256 digest has 32 bytes");
    Ok(Sha256::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_of_the_running_program_and_remembered() {
        let digests = Digests::default();
        let pid = std::process::id();
        let entry = ProcEntry::open(pid).unwrap();
        let program = digests.look(&entry, pid, Wanted::PathAndDigest).unwrap();
        let path = std::env::current_exe().unwrap();
        assert_eq!(program.path.as_deref(), path.to_str());
        let expected = sha256(std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(program.digest, Some(expected));
        assert_eq!(digests.remembered().len(), 1);
        assert_eq!(digests.look(&entry, pid, Wanted::Path).unwrap().digest, None);
    }
}
