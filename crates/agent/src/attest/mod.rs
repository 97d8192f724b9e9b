//! What the kernel says about the process at the other end of our socket.
//!
//! A caller is *pinned* when its connection is accepted: by a pidfd (SO_PEERPIDFD, Linux 6.5), or on older kernels by
//! the kept descriptor of `/proc/PID` and the start time (the way of SPIRE's peer tracker). Facts are read only when
//! some workload asks for them, and the pin is asked again after each reading, so that what was read belongs to the
//! process that connected. Credentials are the connector's: a descriptor handed on keeps its first owner's identity.
//!
//! "Could not read" is an error, never "absent". `unix:path` and `unix:sha256` say what the process runs *now*; a
//! process can connect, fork, and run another program, so they do not separate processes of one user. `launch:` does.

mod cgroup;
mod desk;
mod executable;
mod household;
mod linux;
mod proc;
mod simulated;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use countersign_identity::{Code, Selector, SelectorKind};
use tokio::net::UnixStream;

pub use cgroup::{BadGroup, Membership, membership};
pub use desk::Desk;
pub use linux::{LinuxAttestor, Pinning};
pub(crate) use proc::{ended, pid_of};
pub use simulated::{SimulatedAttestor, SimulatedProcess};

/// Makes callers of accepted connections. The kernel's word, or a simulation's.
pub trait Attestor: Send + Sync + 'static {
    /// Pins the process that connected, before a byte of it is read.
    ///
    /// # Errors
    /// When the kernel does not name a process of ours, or it is gone already.
    fn pin(&self, socket: &UnixStream) -> Result<Arc<dyn Caller>, PinRefused>;
}

/// One pinned process. It is asked, again and again, what it is now.
pub trait Caller: Send + Sync + 'static {
    /// Who connected, as the kernel wrote it down at that moment.
    fn peer(&self) -> Peer;

    /// Where it lives. What cannot be told is no household of ours. Blocks.
    fn household(&self) -> Household;

    /// Reads facts of these kinds. Blocks; call it through [`Desk`].
    ///
    /// # Errors
    /// When a fact cannot be read, or the process is gone.
    fn facts(&self, kinds: &BTreeSet<SelectorKind>) -> Result<Facts, AttestRefused>;

    /// Whether the process still lives.
    ///
    /// # Errors
    /// When it does not, or that cannot be told.
    fn alive(&self) -> Result<(), AttestRefused>;
}

/// The credentials of a socket's other end at the moment of connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The process.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// In which namespaces of users and processes a process lives: root of a container has the user id of the machine's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Household {
    /// In the agent's own.
    Ours,
    /// In another, which this number tells from others; 0 where the kernel does not say which.
    Other(u64),
}

/// What is true of a process, as far as it was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts(BTreeSet<Selector>);

impl Facts {
    /// Facts that were read from the kernel, or that a simulation claims.
    pub fn assertion(facts: impl IntoIterator<Item = Selector>) -> Self {
        Self(facts.into_iter().collect())
    }

    /// Whether this fact was found.
    pub fn holds(&self, selector: &Selector) -> bool {
        self.0.contains(selector)
    }

    /// All that was found.
    pub fn iter(&self) -> impl Iterator<Item = &Selector> {
        self.0.iter()
    }
}

/// Why a connection has no caller.
#[derive(Debug, thiserror::Error)]
pub enum PinRefused {
    /// The kernel does not tell.
    #[error("the kernel does not say who connected: {0}")]
    Credentials(io::Error),
    /// The process lives in a pid namespace that is none of ours: its pid reads as 0.
    #[error("the caller lives in another pid namespace, where it cannot be told from others")]
    ForeignNamespace,
    /// It is gone.
    #[error("process `{pid}` ended before it was looked at")]
    Gone {
        /// The pid that it had.
        pid: u32,
    },
    /// Its `/proc` entry is closed to us.
    #[error("`/proc/{pid}` could not be read: {why}")]
    Unreadable {
        /// The process.
        pid: u32,
        /// What the kernel said.
        why: io::Error,
    },
}

/// Why facts about a caller are not known. The caller is then told that the agent cannot know, never that it has no identity.
#[derive(Debug, thiserror::Error)]
pub enum AttestRefused {
    /// It is gone.
    #[error("process `{pid}` is gone")]
    Gone {
        /// The pid that it had.
        pid: u32,
    },
    /// A fact that some workload asks for is closed to us.
    #[error("{what} of process `{pid}` could not be read: {why}")]
    Unreadable {
        /// The process.
        pid: u32,
        /// Which fact, in words.
        what: &'static str,
        /// What the kernel said.
        why: io::Error,
    },
    /// Its program is larger than any that is digested.
    #[error("the program of process `{pid}` has {bytes} bytes, over the limit of {max} for `unix:sha256`", max = executable::PROGRAM_BYTES_MAX)]
    LargeProgram {
        /// The process.
        pid: u32,
        /// The program's size.
        bytes: u64,
    },
    /// Too many are asked about at once, or the answer takes too long.
    #[error("reading the facts of process `{pid}` took too long")]
    Slow {
        /// The process.
        pid: u32,
    },
}

impl AttestRefused {
    /// Its stable code.
    pub fn code(&self) -> Code {
        match self {
            Self::Gone { .. }
            | Self::Unreadable { .. }
            | Self::LargeProgram { .. }
            | Self::Slow { .. } => Code::AttestationFailed,
        }
    }
}
