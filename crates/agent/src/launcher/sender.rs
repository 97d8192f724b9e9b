//! The launcher's own side.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use countersign_identity::Name;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Pid, PidfdFlags};

use super::{LAUNCHED_MAX, Message};

/// Vouches to an agent for the processes that it started.
///
/// Keep the agent's end alive by giving it to the agent ([`Launcher::agent_end`]); an agent that is started again gets
/// a new end, on which all that still live are told once more.
#[derive(Debug, Default)]
pub struct Launcher {
    socket: Option<OwnedFd>,
    started: BTreeMap<u32, Started>,
}

#[derive(Debug)]
struct Started {
    pidfd: OwnedFd,
    label: Name,
}

/// Why a process could not be vouched for.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It is no process of ours any more.
    #[error("process `{pid}` cannot be held on to: {why}")]
    Pidfd {
        /// The process.
        pid: u32,
        /// What the kernel said.
        why: io::Error,
    },
    /// No socket pair can be made.
    #[error("no socket pair for the agent can be made: {0}")]
    Socket(io::Error),
    /// The agent does not take the message.
    #[error("the agent does not take the word for process `{pid}`: {why}")]
    Send {
        /// The process.
        pid: u32,
        /// What the kernel said.
        why: io::Error,
    },
    /// Too many.
    #[error("a launcher vouches for at most {LAUNCHED_MAX} processes")]
    TooMany,
}

impl Launcher {
    /// A launcher that has started nothing, for an agent yet to come.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a new socket pair, tells all live processes on it, and returns the agent's end, to be its standard input.
    ///
    /// # Errors
    /// When the system gives no sockets.
    pub fn agent_end(&mut self) -> Result<OwnedFd, LaunchError> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|why| LaunchError::Socket(why.into()))?;
        for (pid, started) in &self.started {
            send(&ours, *pid, started)?;
        }
        self.socket = Some(ours);
        Ok(theirs)
    }

    /// Vouches that the process of this pid, a child that was not reaped yet, was started under this label.
    ///
    /// # Errors
    /// When the process is gone, or a running agent does not take the message. A missing agent is no error: it is told
    /// when it comes.
    pub fn vouch(&mut self, pid: u32, label: &Name) -> Result<(), LaunchError> {
        if LAUNCHED_MAX <= self.started.len() {
            return Err(LaunchError::TooMany);
        }
        let gone = || io::Error::from(rustix::io::Errno::SRCH);
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| LaunchError::Pidfd { pid, why: gone() })?;
        let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty())
            .map_err(|why| LaunchError::Pidfd { pid, why: why.into() })?;
        let started = Started { pidfd, label: label.clone() };
        let sent = self.socket.as_ref().map_or(Ok(()), |socket| send(socket, pid, &started));
        self.started.insert(pid, started);
        match sent {
            // The agent has ended; the next one is told everything.
            Err(LaunchError::Send { why, .. }) if why.kind() == io::ErrorKind::BrokenPipe => {
                self.socket = None;
                Ok(())
            }
            other => other,
        }
    }

    /// Forgets a process that has ended. Call it before reaping the child, so that its pid is not told of another.
    pub fn forget(&mut self, pid: u32) {
        self.started.remove(&pid);
    }
}

fn send(socket: &OwnedFd, pid: u32, started: &Started) -> Result<(), LaunchError> {
    let text = serde_json::to_vec(&Message { label: started.label.clone() })
        .expect("a label is always JSON");
    let descriptors = [started.pidfd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = control.push(SendAncillaryMessage::ScmRights(&descriptors));
    debug_assert!(fits, "the space is made for one descriptor");
    // Never waits: an agent that does not read is an agent that does not run.
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(&text)], &mut control, flags)
        .map(|_bytes| ())
        .map_err(|why| LaunchError::Send { pid, why: why.into() })
}

/// The launcher's socket that this process inherited as its standard input.
///
/// # Errors
/// When standard input is not such a socket.
pub fn from_stdin() -> io::Result<OwnedFd> {
    let stdin = io::stdin();
    match rustix::net::sockopt::socket_type(&stdin) {
        Ok(SocketType::SEQPACKET) => stdin.as_fd().try_clone_to_owned(),
        Ok(_) | Err(_) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "standard input is not a launcher's socket; leave the launcher away, or start the agent with `countersign up`",
        )),
    }
}
