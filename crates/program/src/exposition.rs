//! A page of metrics for scrapers, on an address of its own that serves nothing else, and that no crowd shuts.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_tls::{Rank, Room, RoomBounds, Source};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Callers at once. Nobody says who they are here, so that whoever comes finds a place: when there is none, the one that goes is the
/// oldest of the source that has most of them.
const CALLERS: RoomBounds = RoomBounds { all: 64, each: 64, yields_after: Duration::ZERO };
/// How long a caller may take to ask.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the answer may take from then on. The page may have to wait for a store.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const HEAD_BYTES_MAX: usize = 8 * 1024;
const PLAIN: &str = "text/plain";
/// How long to wait when the system has no descriptors left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// What a page is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own, version 0.0.4.
    Prometheus,
    /// OpenMetrics, version 1.0.0.
    OpenMetrics,
}

impl Format {
    const fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Listens for scrapers.
///
/// # Errors
/// When the address cannot be had.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves the page at `/metrics`, as it is when it is asked for, until stopped: one request a connection.
pub async fn serve<P>(
    listener: TcpListener,
    format: Format,
    page: impl Fn() -> P + Send + Sync + 'static,
    stop: CancellationToken,
) where
    P: Future<Output = String> + Send + 'static,
{
    let (page, room) = (Arc::new(page), Room::new(CALLERS));
    let mut answering = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            Some(_done) = answering.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                // Places are had without waiting for time to pass, whatever the time is.
                let source = Source::of(address.ip());
                let Some(stay) = room.enter(source, Rank::Stranger, Timestamp::EPOCH) else {
                    continue;
                };
                let page = Arc::clone(&page);
                answering.spawn(async move {
                    tokio::select! {
                        () = stay.give_way().cancelled() => {}
                        // How a scraper's connection ends concerns nobody.
                        _ended = converse(stream, format, &*page) => {}
                    }
                });
            }
            Err(why) => {
                tracing::warn!(%why, "no connection for metrics can be accepted");
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
}

/// Reads one request's head, answers, and closes.
async fn converse<P: Future<Output = String>>(
    mut stream: TcpStream,
    format: Format,
    page: impl Fn() -> P,
) -> io::Result<()> {
    let Some(head) = tokio::time::timeout(HEAD_TIMEOUT, head(&mut stream)).await?? else {
        return Ok(());
    };
    let answered = async {
        let (status, kind, body) = match asked(&head) {
            Asked::Page => ("200 OK", format.media_type(), page().await),
            Asked::Otherwise => ("405 Method Not Allowed", PLAIN, "ask with GET\n".to_owned()),
            Asked::Elsewhere => ("404 Not Found", PLAIN, "metrics are at /metrics\n".to_owned()),
        };
        let bytes = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nallow: GET\r\ncontent-type: {kind}\r\ncontent-length: {bytes}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.shutdown().await
    };
    tokio::time::timeout(ANSWER_TIMEOUT, answered).await?
}

/// All that comes until the head has ended; `None` when it never does.
async fn head(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut buffer).await?;
        if read == 0 || HEAD_BYTES_MAX < head.len() {
            return Ok(None);
        }
        head.extend_from_slice(&buffer[..read]);
    }
    Ok(Some(head))
}

/// What a request is for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Page,
    /// For the page, in a way that there is none.
    Otherwise,
    Elsewhere,
}

fn asked(head: &[u8]) -> Asked {
    let mut words = head.split(|byte| matches!(byte, b' ' | b'\r'));
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split(|byte| *byte == b'?').next();
    match (path == Some(b"/metrics".as_slice()), method) {
        (true, b"GET") => Asked::Page,
        (true, _) => Asked::Otherwise,
        (false, _) => Asked::Elsewhere,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpSocket;

    use super::*;

    /// A port at work with a page of one line, for as long as the guard lives.
    async fn port() -> (SocketAddr, JoinSet<()>) {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let page = || std::future::ready("a_metric 1\n".to_owned());
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, Format::Prometheus, page, CancellationToken::new()));
        (address, serving)
    }

    async fn call(port: SocketAddr, last: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
        socket.connect(port).await.unwrap()
    }

    /// All that is said to this caller until its connection ends.
    async fn told(mut caller: TcpStream, request: &str) -> String {
        caller.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        caller.read_to_string(&mut answer).await.unwrap();
        answer
    }

    const SCRAPE: &str = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";

    #[tokio::test]
    async fn a_crowd_of_silent_callers_keeps_nobody_out_wherever_they_come_from() {
        let (port, _serving) = port().await;
        let early = call(port, 3).await;
        let mut crowd = Vec::new();
        for _ in 0..5 * CALLERS.all {
            crowd.push(call(port, 2).await);
        }
        // From elsewhere, also by who was there before; and from where the crowd is.
        for scraper in [early, call(port, 4).await, call(port, 2).await] {
            let answer = told(scraper, SCRAPE).await;
            assert!(answer.ends_with("\r\n\r\na_metric 1\n"), "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_half_of_a_request_is_cut() {
        let (port, _serving) = port().await;
        let begin = tokio::time::Instant::now();
        for said in ["", "GET /metrics HTTP/1.1\r\n"] {
            assert_eq!(told(call(port, 2).await, said).await, "", "{said:?}");
        }
        assert_eq!(begin.elapsed().as_secs(), 2 * HEAD_TIMEOUT.as_secs());
    }

    #[test]
    fn only_the_page_is_there_and_it_is_only_read() {
        let asks = |line: &str| asked(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        for line in ["GET /metrics", "GET /metrics?collect=all"] {
            assert_eq!(asks(line), Asked::Page, "{line}");
        }
        for line in ["POST /metrics", "HEAD /metrics", "get /metrics"] {
            assert_eq!(asks(line), Asked::Otherwise, "{line}");
        }
        for line in ["GET /", "GET /metrics/", "GET /metricsx", "GET //metrics", "GET", ""] {
            assert_eq!(asks(line), Asked::Elsewhere, "{line}");
        }
    }
}
