//! Whether a request really goes through.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One request may take this long before the next is tried.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Asks a front door for its first page. Whether it answered with anything but a failure of what is behind it.
pub(crate) async fn goes_through(front: SocketAddr) -> bool {
    let status = tokio::time::timeout(REQUEST_TIMEOUT, status(front)).await;
    matches!(status, Ok(Ok(Some(status))) if status < 500)
}

async fn status(front: SocketAddr) -> std::io::Result<Option<u16>> {
    let mut stream = TcpStream::connect(front).await?;
    let request = format!("GET / HTTP/1.1\r\nHost: {front}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    let text = String::from_utf8_lossy(&head);
    Ok(text.split(' ').nth(1).and_then(|status| status.parse().ok()))
}
