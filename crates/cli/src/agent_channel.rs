//! A gRPC channel to an agent's socket.

use std::path::Path;

use anyhow::Result;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use crate::exit::Failure;

/// Connects to the agent whose socket this is; `hint` says how its place is given.
///
/// # Errors
/// When nobody answers there.
pub(crate) async fn open(socket: &Path, hint: &str) -> Result<Channel> {
    // Asked first by hand, because the channel's own error does not say why.
    tokio::net::UnixStream::connect(socket).await.map_err(|error| {
        let why = crate::manifest::plain(&error);
        let socket = socket.display();
        Failure::unreachable(match error.kind() {
            std::io::ErrorKind::PermissionDenied => format!(
                "this user may not reach the agent's socket `unix://{socket}`: the folders that it lies in let others through with `chmod o+x`; {hint}"
            ),
            _ => format!("no agent answers at `unix://{socket}`: {why}; is it running? {hint}"),
        })
    })?;
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    Ok(endpoint.connect_with_connector(connector).await.map_err(|_closed| cut(socket))?)
}

/// Whether an answer is none of the agent's, but the end of its connection.
pub(crate) fn was_cut(status: &tonic::Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// What to say when the agent closed the connection without an answer.
pub(crate) fn cut(socket: &Path) -> Failure {
    let socket = socket.display();
    Failure::unreachable(format!(
        "what listens at `unix://{socket}` ended the connection without an answer: an agent does that when this process, its user or all \
         together have too many, and tells of it in its log and in `countersign_agent_connections_turned_away_total`; try again, \
         and look for who holds them with `ss -xp`"
    ))
}
