//! What started a process, and vouches for it.
//!
//! [`Launcher`] is the sender's side, used by `countersign up`: it keeps a pidfd of each process that it started, and
//! hands (pidfd, label) to the agent over a socket pair whose other end the agent inherited as its standard input.
//! [`receive`] is the agent's side; [`Launches`] is what it has heard. No process can ask for a label: the agent
//! compares the caller's pidfd with those that came over this socket, which nobody else holds.
//!
//! A child that a launched process starts is another process: it does not carry the label. The label is not bound to a
//! program either: a launched process that runs another program in its place keeps it.

mod receiver;
mod sender;

use countersign_identity::Name;

pub use receiver::{Launched, Launches, receive};
pub use sender::{LaunchError, Launcher, from_stdin};

/// One message on the launcher's socket; the process's pidfd comes beside it.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    label: Name,
}

/// A label has at most 63 bytes.
const MESSAGE_BYTES_MAX: usize = 256;
/// How many live processes one launcher vouches for.
const LAUNCHED_MAX: usize = 1024;
