//! Why a client has no answer, or which refusal it has.

use std::path::PathBuf;
use std::time::Duration;

use countersign_identity::Code;

use crate::admin::ProblemDetails;

/// Why there is no answer, or it is a refusal.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens there.
    #[error(
        "no server answers at `unix://{path}`: {why}; is it running? `--data DIR`, `--admin unix:///…` or `COUNTERSIGN_ADMIN` say where it is", path = .path.display(), why = plain(.source)
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The socket admits root and the owner of the data directory only.
    #[error(
        "this user may not use the admin socket `unix://{path}`: run as its owner or as root", path = .path.display()
    )]
    NotAdmitted {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke, or what came back is not HTTP.
    #[error("the server at `unix://{path}` broke the connection: {source}", path = .path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It took too long.
    #[error("the server at `unix://{path}` did not answer within {} s", .limit.as_secs(), path = .path.display())]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// The answer is not what this version understands.
    #[error(
        "the answer of the server to `{request}` is not understood: {why}; are both of one version?"
    )]
    NotUnderstood {
        /// What was asked.
        request: String,
        /// What is wrong.
        why: String,
    },
    /// The server says no.
    #[error("{}", .0.detail)]
    Refused(Box<ProblemDetails>),
}

impl AdminError {
    /// The code.
    pub fn code(&self) -> Code {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } => Code::Unavailable,
            Self::NotAdmitted { .. } => Code::Forbidden,
            Self::TimedOut { .. } => Code::TimedOut,
            Self::NotUnderstood { .. } => Code::Internal,
            Self::Refused(problem) => problem.code,
        }
    }
}

/// What the system said, without its number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut characters = text.chars();
    characters
        .next()
        .map_or(String::new(), |first| first.to_lowercase().chain(characters).collect())
}
