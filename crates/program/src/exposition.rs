//! A page of metrics for scrapers, on an address of its own that serves nothing else.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Scrapers at once.
const CONNECTIONS_MAX: usize = 16;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// How long to wait when the system has no descriptors left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Listens for scrapers.
///
/// # Errors
/// When the address cannot be had.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves the page, as it is at that moment, until stopped: one request a connection, and sixteen connections at once.
pub async fn serve(listener: TcpListener, page: impl Fn() -> String, stop: CancellationToken) {
    let mut answering = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            Some(_done) = answering.join_next() => continue,
            accepted = listener.accept(), if answering.len() < CONNECTIONS_MAX => accepted,
        };
        match accepted {
            Ok((stream, _address)) => {
                answering.spawn(tokio::time::timeout(ANSWER_TIMEOUT, answer(stream, page())));
            }
            Err(why) => {
                tracing::warn!(%why, "no connection for metrics can be accepted");
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

/// Reads one request's head, answers, and closes.
async fn answer(mut stream: TcpStream, page: String) -> io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut buffer).await?;
        if read == 0 || HEAD_BYTES_MAX < head.len() {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..read]);
    }
    let (status, body) = if head.starts_with(b"GET /metrics ") {
        ("200 OK", page)
    } else {
        ("404 Not Found", "metrics are at /metrics\n".to_owned())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
