//! A connection to a receiver.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::to::Destination;

/// How long it may take to be connected.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// In the clear, or not.
pub(super) type Wire = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Connects, and over TLS knows the receiver by then.
pub(super) async fn connect(to: &Destination) -> io::Result<Wire> {
    let connecting = async {
        let tcp = TcpStream::connect(to.at.authority()).await?;
        tcp.set_nodelay(true)?;
        match &to.tls {
            None => Ok(Wire::Left(tcp)),
            Some((config, name)) => {
                let connector = TlsConnector::from(std::sync::Arc::clone(config));
                let tls = connector.connect(name.clone(), tcp).await.map_err(refused)?;
                Ok(Wire::Right(Box::new(tls)))
            }
        }
    };
    let late = |_late| Err(io::ErrorKind::TimedOut.into());
    tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(late)
}

/// What to look at when it is the receiver's certificate that is not accepted.
fn refused(error: io::Error) -> io::Error {
    let of_tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(why)) = of_tls else { return error };
    io::Error::other(format!(
        "the receiver's certificate is not accepted ({why}): `--ca` names the authority that signed it, which is never the \
         certificate itself, and the certificate names the host of `--to`"
    ))
}
