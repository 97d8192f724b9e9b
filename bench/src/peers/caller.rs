//! Who calls the proxies: connections of mutual TLS that are opened once, and carry load whenever they are told to.
//!
//! It is a process of its own, so that it has a core of its own. It is told on its standard input what to open, says so when that
//! stands, and then takes milliseconds, one line each, for which it calls in a closed loop.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::process::pinned;
use crate::child::{End, say};
use crate::client::{client_config, one_suite};

/// The name of its credentials in its folder.
pub(crate) const CREDENTIALS: &str = "client0";
/// Operations of [`Way::Operations`], by the first segment of the path: `/o0/…` to `/o9/…`.
pub(crate) const OPERATIONS: usize = 10;
/// Requests at once on each connection of HTTP/2.
const STREAMS: usize = 5;
const MESSAGE_BYTES: usize = 64;
/// Longest head of an answer; also what is read at once, which is what one record holds.
const READ_BYTES_MAX: usize = 16 * 1024;
/// After which a call has failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How it calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Way {
    /// `GET /` over HTTP/1.1, one at a time on each connection.
    Http1,
    /// The same of paths with an operation and a number that changes.
    Operations,
    /// `GET /` over HTTP/2, several at a time on each.
    Http2,
    /// Answers of 16 MiB over HTTP/1.1.
    Bulk,
    /// Messages of 64 bytes that come back.
    Echo,
}

/// What it is to open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Errand {
    pub(crate) way: Way,
    pub(crate) connections: usize,
}

/// What it has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) calls: u64,
    pub(crate) bytes: u64,
}

/// The process, from outside.
pub(crate) struct Caller {
    child: Child,
    orders: ChildStdin,
    says: BufReader<ChildStdout>,
}

impl Caller {
    /// Opens connections to this door, with one exchange on each.
    pub(crate) fn start(
        core: u32,
        folder: &Path,
        door: SocketAddr,
        errand: Errand,
    ) -> Result<Self> {
        let command = pinned(core, &std::env::current_exe()?);
        let mut child = End::Caller.of(command, folder).spawn()?;
        let orders = child.stdin.take().context("an input")?;
        let says = BufReader::new(child.stdout.take().context("an output")?);
        let mut caller = Self { child, orders, says };
        let way = format!("{:?}", errand.way).to_lowercase();
        let ready = caller.ask(&format!("{way} {door} {}", errand.connections))?;
        ensure!(ready == READY, "the caller said `{ready}`");
        Ok(caller)
    }

    /// Calls for so long.
    pub(crate) fn load(&mut self, span: Duration) -> Result<Done> {
        let done = self.ask(&span.as_millis().to_string())?;
        let (calls, bytes) = done.split_once(' ').context("what was done")?;
        Ok(Done { calls: calls.parse()?, bytes: bytes.parse()? })
    }

    fn ask(&mut self, order: &str) -> Result<String> {
        writeln!(self.orders, "{order}").context("the caller has ended")?;
        let mut answer = String::new();
        self.says.read_line(&mut answer)?;
        ensure!(!answer.is_empty(), "the caller has failed");
        Ok(answer.trim_end().to_owned())
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        // It has nothing that outlives it.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

const READY: &str = "ready";

/// The process, from inside.
pub(crate) fn serve(folder: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut orders = std::io::stdin().lines();
    let Some(errand) = orders.next().transpose()? else { return Ok(()) };
    let mut standing = runtime.block_on(open(folder, &errand))?;
    say(READY)?;
    while let Some(order) = orders.next().transpose()? {
        let span = Duration::from_millis(order.parse()?);
        let done = runtime.block_on(standing.load(span))?;
        say(format_args!("{} {}", done.calls, done.bytes))?;
    }
    Ok(())
}

/// Connections that stand.
enum Standing {
    OneByOne(Way, Vec<Line>),
    Together { lines: Vec<SendRequest<Bytes>>, _driven: JoinSet<Result<(), h2::Error>> },
}

async fn open(folder: &Path, errand: &str) -> Result<Standing> {
    let mut words = errand.split(' ');
    let mut word = || words.next().with_context(|| format!("`{errand}` lacks a word"));
    let way = <Way as clap::ValueEnum>::from_str(word()?, false).map_err(anyhow::Error::msg)?;
    let (door, count): (SocketAddr, usize) = (word()?.parse()?, word()?.parse()?);
    let connector = connector(folder, way)?;
    let (mut alone, mut together, mut driven) = (Vec::new(), Vec::new(), JoinSet::new());
    for _ in 0..count {
        let tcp = TcpStream::connect(door).await?;
        tcp.set_nodelay(true)?;
        let tls = connector.connect(ServerName::try_from("bench.example")?, tcp).await?;
        if way == Way::Http2 {
            ensure!(tls.get_ref().1.alpn_protocol() == Some(b"h2"), "HTTP/2 was not agreed on");
            let (line, connection) = h2::client::handshake(tls).await?;
            driven.spawn(connection);
            get(&line).await?;
            together.push(line);
        } else {
            let mut line = Line { tls, read: vec![0; READ_BYTES_MAX] };
            let first = if way == Way::Bulk { Way::Http1 } else { way };
            line.exchange(first, 0).await?;
            alone.push(line);
        }
    }
    Ok(match way {
        Way::Http2 => Standing::Together { lines: together, _driven: driven },
        Way::Http1 | Way::Operations | Way::Bulk | Way::Echo => Standing::OneByOne(way, alone),
    })
}

fn connector(folder: &Path, way: Way) -> Result<TlsConnector> {
    let mut config = client_config(folder, CREDENTIALS, Arc::new(one_suite()))?;
    config.alpn_protocols = match way {
        Way::Http1 | Way::Operations | Way::Bulk => vec![b"http/1.1".to_vec()],
        Way::Http2 => vec![b"h2".to_vec()],
        Way::Echo => Vec::new(),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Standing {
    async fn load(&mut self, span: Duration) -> Result<Done> {
        let until = Instant::now() + span;
        match self {
            Self::OneByOne(way, lines) => {
                let mut calling = JoinSet::new();
                for line in lines.drain(..) {
                    calling.spawn(line.call(*way, until));
                }
                let mut all = Done::default();
                while let Some(called) = calling.join_next().await {
                    let (line, done) = called??;
                    all.add(done);
                    lines.push(line);
                }
                Ok(all)
            }
            Self::Together { lines, .. } => {
                let mut calling = JoinSet::new();
                for line in lines.iter().flat_map(|line| std::iter::repeat_n(line, STREAMS)) {
                    calling.spawn(call_together(line.clone(), until));
                }
                let mut all = Done::default();
                while let Some(called) = calling.join_next().await {
                    all.add(called??);
                }
                Ok(all)
            }
        }
    }
}

impl Done {
    fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.bytes += other.bytes;
    }
}

async fn call_together(line: SendRequest<Bytes>, until: Instant) -> Result<Done> {
    let mut done = Done::default();
    while Instant::now() < until {
        let bytes = tokio::time::timeout(CALL_TIMEOUT, get(&line)).await??;
        done.add(Done { calls: 1, bytes });
    }
    Ok(done)
}

/// One request over HTTP/2: how long its answer was.
async fn get(line: &SendRequest<Bytes>) -> Result<u64> {
    let request = http::Request::get("https://bench.example/").body(())?;
    let (answer, _) = line.clone().ready().await?.send_request(request, true)?;
    let answer = answer.await?;
    ensure!(answer.status() == 200, "answered with {}", answer.status());
    let (mut body, mut bytes) = (answer.into_body(), 0);
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
        bytes += length as u64;
    }
    Ok(bytes)
}

/// One connection that carries one thing at a time.
struct Line {
    tls: TlsStream<TcpStream>,
    read: Vec<u8>,
}

impl Line {
    async fn call(mut self, way: Way, until: Instant) -> Result<(Self, Done)> {
        let mut done = Done::default();
        // Once at least, so that all are seen to stand.
        loop {
            let exchange = self.exchange(way, done.calls);
            let bytes = tokio::time::timeout(CALL_TIMEOUT, exchange).await??;
            done.add(Done { calls: 1, bytes });
            if until <= Instant::now() {
                return Ok((self, done));
            }
        }
    }

    /// One call: how many bytes came back.
    async fn exchange(&mut self, way: Way, turn: u64) -> Result<u64> {
        match way {
            Way::Http1 => self.ask(b"GET / HTTP/1.1\r\nHost: bench.example\r\n\r\n").await,
            Way::Bulk => self.ask(b"GET /bulk HTTP/1.1\r\nHost: bench.example\r\n\r\n").await,
            Way::Operations => {
                let operation = turn % OPERATIONS as u64;
                let head =
                    format!("GET /o{operation}/{turn} HTTP/1.1\r\nHost: bench.example\r\n\r\n");
                self.ask(head.as_bytes()).await
            }
            Way::Echo => {
                self.tls.write_all(&[7; MESSAGE_BYTES]).await?;
                self.tls.flush().await?;
                self.tls.read_exact(&mut self.read[..MESSAGE_BYTES]).await?;
                Ok(MESSAGE_BYTES as u64)
            }
            Way::Http2 => bail!("it carries one thing at a time"),
        }
    }

    /// One request over HTTP/1.1: how long its answer was.
    async fn ask(&mut self, request: &[u8]) -> Result<u64> {
        self.tls.write_all(request).await?;
        // Where this task has had its turn, a record waits in the session until it is flushed.
        self.tls.flush().await?;
        let mut filled = 0;
        let head = loop {
            let more = self.tls.read(&mut self.read[filled..]).await?;
            ensure!(0 < more, "the connection ended");
            filled += more;
            if let Some(end) = end_of_head(&self.read[..filled]) {
                break end;
            }
            ensure!(filled < self.read.len(), "a head that is too long");
        };
        let length = length_of(&self.read[..head])?;
        let mut rest = length.checked_sub((filled - head) as u64).context("more than its body")?;
        while 0 < rest {
            let more = self.tls.read(&mut self.read).await?;
            ensure!(0 < more, "the connection ended");
            rest = rest.checked_sub(more as u64).context("more than its body")?;
        }
        Ok(length)
    }
}

/// Where the body begins, if the head is whole.
pub(crate) fn end_of_head(read: &[u8]) -> Option<usize> {
    read.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// How long the body of a good answer is.
fn length_of(head: &[u8]) -> Result<u64> {
    let head = std::str::from_utf8(head)?;
    ensure!(
        head.starts_with("HTTP/1.1 200 "),
        "answered with `{}`",
        head.lines().next().unwrap_or("")
    );
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim())
    });
    Ok(length.context("an answer without a length")?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_proxies_write_them() {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length:  64\r\nserver: x\r\n\r\n";
        assert_eq!(end_of_head(head), Some(head.len()));
        assert_eq!(end_of_head(&head[..head.len() - 1]), None);
        assert_eq!(length_of(head).unwrap(), 64);
        assert!(length_of(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        let refused = length_of(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
        assert!(refused.unwrap_err().to_string().contains("403 Forbidden"));
    }
}
