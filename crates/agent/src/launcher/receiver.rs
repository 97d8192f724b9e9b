//! The agent's side of the launcher's socket.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use countersign_identity::Name;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};
use tokio::net::UnixDatagram;
use tokio::sync::watch;

use super::{LAUNCHED_MAX, MESSAGE_BYTES_MAX, Message};
use crate::attest::ended;

/// A process that the launcher started.
#[derive(Debug)]
pub struct Launched {
    pidfd: OwnedFd,
    label: Name,
}

impl Launched {
    /// The process.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Under which label it was started.
    pub fn label(&self) -> &Name {
        &self.label
    }
}

/// The processes that the launcher has vouched for, and which may still live.
#[derive(Clone, Debug)]
pub struct Launches(watch::Receiver<Arc<Vec<Arc<Launched>>>>);

impl Launches {
    /// Nobody vouches for anything.
    pub fn none() -> Self {
        Self(watch::channel(Arc::default()).1)
    }

    /// All of them now.
    pub fn all(&self) -> Arc<Vec<Arc<Launched>>> {
        Arc::clone(&self.0.borrow())
    }

    /// Whether a launcher may still tell of more.
    pub fn goes_on(&self) -> bool {
        self.0.has_changed().is_ok()
    }

    /// Waits until the launcher told of another process; for ever when there is none.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Takes what there is as seen, so that `changed` waits for more.
    pub fn seen(&mut self) {
        self.0.mark_unchanged();
    }
}

/// Takes the launcher's word from its socket: what is known, and the task that keeps it so until `stop`.
///
/// # Errors
/// When the socket cannot be waited on.
pub fn receive(
    socket: OwnedFd,
) -> io::Result<(Launches, impl Future<Output = ()> + Send + 'static)> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    // The runtime only waits on it; which kind of message socket it is makes no difference to that.
    let socket = UnixDatagram::from_std(std::os::unix::net::UnixDatagram::from(socket))?;
    let (publish, launches) = watch::channel(Arc::default());
    Ok((Launches(launches), listen(socket, publish)))
}

async fn listen(socket: UnixDatagram, publish: watch::Sender<Arc<Vec<Arc<Launched>>>>) {
    loop {
        let launched = socket.async_io(tokio::io::Interest::READABLE, || take(&socket)).await;
        match launched {
            Ok(Some(launched)) => add(&publish, launched),
            // The launcher is gone; what it vouched for while it lived stays true.
            Ok(None) => return publish.closed().await,
            Err(why) if why.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%why, "a message of the launcher was ignored");
            }
            Err(why) => {
                tracing::error!(%why, "the launcher's socket is broken");
                return publish.closed().await;
            }
        }
    }
}

fn add(publish: &watch::Sender<Arc<Vec<Arc<Launched>>>>, launched: Launched) {
    publish.send_modify(|all| {
        // A dead process calls nobody; whether it was reaped makes no difference.
        let mut live: Vec<Arc<Launched>> =
            all.iter().filter(|one| !ended(one.pidfd()).unwrap_or(true)).cloned().collect();
        if LAUNCHED_MAX <= live.len() {
            tracing::warn!(label = %launched.label, "too many launched processes; one was ignored");
        } else {
            live.push(Arc::new(launched));
        }
        *all = Arc::new(live);
    });
}

/// Takes one message; `None` at the end.
fn take(socket: &UnixDatagram) -> io::Result<Option<Launched>> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut text = [0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, flags)?;
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(bad("it is too long"));
    }
    let message: Message = serde_json::from_slice(&text[..received.bytes])?;
    let pidfd = descriptors.pop().ok_or_else(|| bad("it carries no process"))?;
    if !descriptors.is_empty() || crate::attest::pid_of(pidfd.as_fd()).is_err() {
        return Err(bad("it does not carry one process"));
    }
    Ok(Some(Launched { pidfd, label: message.label }))
}
