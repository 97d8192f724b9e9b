//! One TLS connection to a server, as a gRPC channel.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::Code;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint};

use super::LinkFault;

pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A name with more addresses than this is tried at the first ones only.
const ADDRESSES_MAX: usize = 8;

/// The addresses of `host:port`, in the resolver's order.
pub(super) async fn resolve(server: &str) -> Result<Vec<SocketAddr>, LinkFault> {
    let unreachable =
        |why: String| LinkFault::new(Code::PeerUnreachable, format!("server `{server}`: {why}"));
    let looking = tokio::time::timeout(DIAL_TIMEOUT, tokio::net::lookup_host(server));
    let found = looking
        .await
        .map_err(|_elapsed| unreachable("its name was not resolved in time".to_owned()))?
        .map_err(|why| unreachable(why.to_string()))?;
    let addresses: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
    if addresses.is_empty() {
        return Err(unreachable("its name has no address".to_owned()));
    }
    Ok(addresses)
}

/// Speaks gRPC over one connection that is there already. When it is lost, the channel is: who is at the other end
/// was verified for this connection only. A peer that vanished is noticed by the system's probes, and one that hangs by the
/// stream's silence: pings would cost a server of ten thousand agents a fifth of a core.
pub(super) async fn over<S>(stream: S) -> Result<Channel, LinkFault>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let once = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_uri: tonic::transport::Uri| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(
            stream
                .map(TokioIo::new)
                .ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted)),
        )
    });
    Endpoint::from_static("http://server.countersign.invalid")
        .connect_with_connector(connector)
        .await
        .map_err(|why| LinkFault::new(Code::Unavailable, chain_of(&why)))
}

/// An error with its causes, which tonic keeps apart.
pub(super) fn chain_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
