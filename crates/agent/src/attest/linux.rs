//! Attestation by the Linux kernel.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use countersign_identity::{Selector, SelectorKind};
use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::UnixStream;

use super::executable::{Digests, Wanted};
use super::proc::{self, ProcEntry};
use super::{
    AttestRefused, Attestor, Caller, Facts, Household, Peer, PinRefused, cgroup, household,
};
use crate::launcher::{Launched, Launches};

/// How a caller is held on to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinning {
    /// By the pidfd that the kernel gives of the other end (Linux 6.5), else the older way.
    Auto,
    /// The older way always: by `/proc/PID` and the start time. The only way before Linux 6.5.
    ProcDirectory,
}

/// Pins callers with what the running kernel offers.
#[derive(Debug)]
pub struct LinuxAttestor {
    pinning: Pinning,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    launches: Launches,
    digests: Digests,
}

impl LinuxAttestor {
    /// An attestor that knows the processes which the launcher vouched for.
    pub fn new(pinning: Pinning, launches: Launches) -> Self {
        Self { pinning, shared: Arc::new(Shared { launches, digests: Digests::default() }) }
    }
}

impl Attestor for LinuxAttestor {
    fn pin(&self, socket: &UnixStream) -> Result<Arc<dyn Caller>, PinRefused> {
        let peer = peer(socket)?;
        let gone = PinRefused::Gone { pid: peer.pid };
        let pin = match self.pinning {
            Pinning::Auto => match getsockopt(socket, sockopt::PeerPidfd) {
                Ok(pidfd) => Pin::Pidfd(pidfd),
                // The other end was reaped already (Linux 6.5 to 6.15 give no pidfd then).
                Err(
                    nix::errno::Errno::ESRCH
                    | nix::errno::Errno::EINVAL
                    | nix::errno::Errno::ENODATA,
                ) => {
                    return Err(gone);
                }
                Err(nix::errno::Errno::ENOPROTOOPT) => Pin::proc_directory(peer)?,
                Err(why) => return Err(PinRefused::Credentials(why.into())),
            },
            Pinning::ProcDirectory => Pin::proc_directory(peer)?,
        };
        let caller = LinuxCaller { peer, pin, shared: Arc::clone(&self.shared) };
        // A pidfd is also given of a process that has ended.
        caller.alive().map_err(|_ended| gone)?;
        Ok(Arc::new(caller))
    }
}

fn peer(socket: &UnixStream) -> Result<Peer, PinRefused> {
    let credentials = getsockopt(socket, sockopt::PeerCredentials)
        .map_err(|why| PinRefused::Credentials(why.into()))?;
    let pid = u32::try_from(credentials.pid()).unwrap_or(0);
    if pid == 0 {
        return Err(PinRefused::ForeignNamespace);
    }
    Ok(Peer { pid, uid: credentials.uid(), gid: credentials.gid() })
}

struct LinuxCaller {
    peer: Peer,
    pin: Pin,
    shared: Arc<Shared>,
}

enum Pin {
    Pidfd(OwnedFd),
    /// The entry that was opened at once after accepting, and the start time that it had.
    ProcDirectory {
        entry: ProcEntry,
        start: u64,
    },
}

impl Pin {
    fn proc_directory(peer: Peer) -> Result<Self, PinRefused> {
        let pid = peer.pid;
        let refused = |why: io::Error| match why.kind() {
            io::ErrorKind::NotFound => PinRefused::Gone { pid },
            _ => PinRefused::Unreadable { pid, why },
        };
        let entry = ProcEntry::open(pid).map_err(refused)?;
        let start = entry.life().map_err(refused)?.start;
        Ok(Self::ProcDirectory { entry, start })
    }
}

impl Caller for LinuxCaller {
    fn peer(&self) -> Peer {
        self.peer
    }

    fn alive(&self) -> Result<(), AttestRefused> {
        let gone = || AttestRefused::Gone { pid: self.peer.pid };
        match &self.pin {
            Pin::Pidfd(pidfd) => match proc::ended(pidfd.as_fd()) {
                Ok(false) => Ok(()),
                Ok(true) => Err(gone()),
                Err(why) => Err(self.unreadable("the life", why)),
            },
            Pin::ProcDirectory { entry, start } => {
                // A reading through the kept descriptor fails once the process has ended.
                let life = entry.life().map_err(|_ended| gone())?;
                if life.ended || life.start != *start { Err(gone()) } else { Ok(()) }
            }
        }
    }

    fn household(&self) -> Household {
        let find = |entry: &ProcEntry| Ok(household::of(entry));
        self.with_entry("the namespaces", find).unwrap_or(Household::Other(0))
    }

    fn facts(&self, kinds: &BTreeSet<SelectorKind>) -> Result<Facts, AttestRefused> {
        let mut facts = Vec::new();
        let asks = |kind| kinds.contains(&kind);
        if asks(SelectorKind::UnixUid) {
            facts.push((SelectorKind::UnixUid, self.peer.uid.to_string()));
        }
        if asks(SelectorKind::UnixGid) {
            facts.push((SelectorKind::UnixGid, self.peer.gid.to_string()));
        }
        if asks(SelectorKind::UnixUser)
            && let Some(name) = self.user()?
        {
            facts.push((SelectorKind::UnixUser, name));
        }
        if asks(SelectorKind::UnixGroup)
            && let Some(name) = self.group()?
        {
            facts.push((SelectorKind::UnixGroup, name));
        }
        if asks(SelectorKind::Launch)
            && let Some(label) = self.label()?
        {
            facts.push((SelectorKind::Launch, label));
        }
        if asks(SelectorKind::UnixPath) || asks(SelectorKind::UnixSha256) {
            self.add_program(asks(SelectorKind::UnixSha256), &mut facts)?;
        }
        if asks(SelectorKind::SystemdUnit) || asks(SelectorKind::ContainerId) {
            self.add_groups(&mut facts)?;
        }
        self.still_the_same()?;
        // A value that no selector could hold, such as a path with a control character, matches none.
        Ok(Facts::assertion(
            facts.iter().filter_map(|(kind, value)| Selector::new(*kind, value).ok()),
        ))
    }
}

impl LinuxCaller {
    fn unreadable(&self, what: &'static str, why: io::Error) -> AttestRefused {
        AttestRefused::Unreadable { pid: self.peer.pid, what, why }
    }

    /// The entry in `/proc`: the kept one, or one opened now, which is the caller's if the pidfd says afterwards that it lives.
    fn with_entry<T>(
        &self,
        what: &'static str,
        read: impl FnOnce(&ProcEntry) -> Result<T, AttestRefused>,
    ) -> Result<T, AttestRefused> {
        match &self.pin {
            Pin::ProcDirectory { entry, .. } => read(entry),
            Pin::Pidfd(_) => {
                let entry =
                    ProcEntry::open(self.peer.pid).map_err(|why| self.unreadable(what, why))?;
                let found = read(&entry)?;
                self.alive()?;
                Ok(found)
            }
        }
    }

    fn user(&self) -> Result<Option<String>, AttestRefused> {
        let user = nix::unistd::User::from_uid(self.peer.uid.into());
        let user = user.map_err(|why| self.unreadable("the user's name", why.into()))?;
        Ok(user.map(|user| user.name))
    }

    fn group(&self) -> Result<Option<String>, AttestRefused> {
        let group = nix::unistd::Group::from_gid(self.peer.gid.into());
        let group = group.map_err(|why| self.unreadable("the group's name", why.into()))?;
        Ok(group.map(|group| group.name))
    }

    fn label(&self) -> Result<Option<String>, AttestRefused> {
        for launched in self.shared.launches.all().iter() {
            let same =
                self.is(launched).map_err(|why| self.unreadable("the launcher's word", why))?;
            if same {
                return Ok(Some(launched.label().to_string()));
            }
        }
        Ok(None)
    }

    /// Whether the caller is the process that the launcher started: by the inode of its pidfd (Linux 6.9), else by its
    /// pid, which no other process can have while the launcher has not reaped the child and the caller lives.
    fn is(&self, launched: &Launched) -> io::Result<bool> {
        if let Pin::Pidfd(pidfd) = &self.pin
            && let Some(ours) = proc::pidfs_inode(pidfd.as_fd())?
            && let Some(theirs) = proc::pidfs_inode(launched.pidfd())?
        {
            return Ok(ours == theirs);
        }
        Ok(proc::pid_of(launched.pidfd())? == Some(self.peer.pid))
    }

    fn add_program(
        &self,
        digest: bool,
        facts: &mut Vec<(SelectorKind, String)>,
    ) -> Result<(), AttestRefused> {
        let wanted = if digest { Wanted::PathAndDigest } else { Wanted::Path };
        let program = self.with_entry("the program", |entry| {
            self.shared.digests.look(entry, self.peer.pid, wanted)
        })?;
        facts.extend(program.path.map(|path| (SelectorKind::UnixPath, path)));
        facts.extend(program.digest.map(|digest| (SelectorKind::UnixSha256, digest.to_string())));
        Ok(())
    }

    fn add_groups(&self, facts: &mut Vec<(SelectorKind, String)>) -> Result<(), AttestRefused> {
        let what = "the control group";
        let text = self.with_entry(what, |entry| {
            entry.text("cgroup").map_err(|why| self.unreadable(what, why))
        })?;
        let membership = cgroup::membership(&text).map_err(|bad| {
            self.unreadable(what, io::Error::new(io::ErrorKind::InvalidData, bad))
        })?;
        facts.extend(membership.unit.map(|unit| (SelectorKind::SystemdUnit, unit)));
        facts.extend(membership.container.map(|id| (SelectorKind::ContainerId, id)));
        Ok(())
    }

    /// After the facts were read: the process lives, and has the user and group with which it connected.
    fn still_the_same(&self) -> Result<(), AttestRefused> {
        if let Pin::ProcDirectory { entry, .. } = &self.pin {
            let owner = entry.owner().map_err(|why| self.unreadable("the owner", why))?;
            if owner != (self.peer.uid, self.peer.gid) {
                return Err(AttestRefused::Gone { pid: self.peer.pid });
            }
        }
        self.alive()
    }
}
