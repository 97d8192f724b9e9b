//! A process's entry in `/proc`, read through one kept descriptor.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// The kept directory `/proc/PID`. It goes on naming the process that had the pid when it was opened: after that
/// process's end every reading fails, also when the pid is used again.
#[derive(Debug)]
pub(super) struct ProcEntry {
    directory: OwnedFd,
}

/// Longest text that is read from `/proc`.
const TEXT_BYTES_MAX: u64 = 64 * 1024;

/// The part of `/proc/PID/stat` that tells one life of a pid from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) ended: bool,
    /// In clock ticks since boot.
    pub(super) start: u64,
}

impl ProcEntry {
    /// Opens the entry of the process that has this pid now.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())?;
        Ok(Self { directory })
    }

    /// A descriptor of the program that the process runs.
    pub(super) fn program(&self, flags: OFlags) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.directory, "exe", flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// The text of one file in the entry.
    pub(super) fn text(&self, name: &str) -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, name, flags, Mode::empty())?;
        let mut bytes = Vec::new();
        std::fs::File::from(file).take(TEXT_BYTES_MAX).read_to_end(&mut bytes)?;
        // A process may give itself any name, so the text need not be UTF-8.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Which namespace of this kind the process lives in. The kernel tells who may trace it, and nobody else.
    pub(super) fn namespace(&self, kind: &str) -> io::Result<u64> {
        let path = format!("ns/{kind}");
        Ok(rustix::fs::statat(&self.directory, path, rustix::fs::AtFlags::empty())?.st_ino)
    }

    /// Effective user and group now: the owner of the directory, whatever the process's dumpable flag is.
    pub(super) fn owner(&self) -> io::Result<(u32, u32)> {
        let stat = rustix::fs::fstat(&self.directory)?;
        Ok((stat.st_uid, stat.st_gid))
    }

    /// Whether it ended, and when it started.
    pub(super) fn life(&self) -> io::Result<Life> {
        life(&self.text("stat")?).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

impl AsFd for ProcEntry {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Reads `/proc/PID/stat`. The name of the program may hold spaces and brackets, so fields count from the last `)`.
fn life(stat: &str) -> Option<Life> {
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_ascii_whitespace();
    let state = fields.next()?;
    // State is field 3, the start time field 22.
    let start = fields.nth(18)?.parse().ok()?;
    Some(Life { ended: matches!(state, "Z" | "X" | "x"), start })
}

/// The pid that a pidfd stands for now; `None` once the process was reaped.
pub(crate) fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    use std::os::fd::AsRawFd;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    // -1: reaped; 0: not in our pid namespace.
    Ok(pid.trim().parse().ok().filter(|pid| *pid != 0))
}

/// Whether the process of a pidfd has ended. It is readable from then on, also before it was reaped.
pub(crate) fn ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(0 < poll(&mut polled, Some(&at_once))?)
}

/// The number that a process's pidfds share with no other process since boot; `None` before Linux 6.9, where all
/// pidfds are one anonymous inode.
pub(crate) fn pidfs_inode(pidfd: BorrowedFd<'_>) -> io::Result<Option<(u64, u64)>> {
    const PID_FS_MAGIC: i128 = 0x5049_4446;
    if i128::from(rustix::fs::fstatfs(pidfd)?.f_type) != PID_FS_MAGIC {
        return Ok(None);
    }
    let stat = rustix::fs::fstat(pidfd)?;
    Ok(Some((stat.st_dev, stat.st_ino)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_program_name_does_not_shift_the_start_time() {
        let rest = "S 1 2 3 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 0";
        assert_eq!(
            life(&format!("42 (a b) R 9 9 9 9) {rest}")),
            Some(Life { ended: false, start: 987_654 })
        );
        assert_eq!(life("42 (x) Z 1"), None);
        assert_eq!(life(""), None);
    }

    #[test]
    fn own_entry_can_be_read() {
        let entry = ProcEntry::open(std::process::id()).unwrap();
        assert!(!entry.life().unwrap().ended);
        assert_eq!(entry.owner().unwrap().0, rustix::process::geteuid().as_raw());
    }
}
