//! A program that writes down what reaches it, read by a parser of HTTP/1.1 that forgives nothing: what it takes for one request is one
//! to everybody.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::dial::Target;

pub(super) struct Recorder {
    path: PathBuf,
    seen: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Recorder {
    pub(super) fn start(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let log = log.clone();
                tokio::spawn(record(stream, log));
            }
        });
        Self { path: path.to_owned(), seen, task }
    }

    pub(super) fn target(&self) -> Target {
        Target::Unix(self.path.clone())
    }

    /// What has come so far: `METHOD TARGET BYTES`, or `cut METHOD TARGET` where the end did not come.
    pub(super) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    pub(super) fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Bytes of a connection, as far as they were read.
struct Incoming {
    stream: UnixStream,
    bytes: Vec<u8>,
}

impl Incoming {
    /// Everything up to this mark, which is taken out with it. None at the end of the connection.
    async fn until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.bytes.windows(mark.len()).position(|window| window == mark) {
                let rest = self.bytes.split_off(at + mark.len());
                let mut taken = std::mem::replace(&mut self.bytes, rest);
                taken.truncate(at);
                return Some(taken);
            }
            self.more().await?;
        }
    }

    async fn exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.bytes.len() < count {
            self.more().await?;
        }
        let rest = self.bytes.split_off(count);
        Some(std::mem::replace(&mut self.bytes, rest))
    }

    async fn more(&mut self) -> Option<()> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer).await {
            Ok(read @ 1..) => self.bytes.extend_from_slice(&buffer[..read]),
            Ok(0) | Err(_) => return None,
        }
        Some(())
    }
}

async fn record(stream: UnixStream, log: Arc<Mutex<Vec<String>>>) {
    let mut incoming = Incoming { stream, bytes: Vec::new() };
    while let Some(head) = incoming.until(b"\r\n\r\n").await {
        let head = match Head::read(&head) {
            Ok(head) => head,
            Err(why) => return log.lock().unwrap().push(format!("malformed: {why}")),
        };
        let line = match body(&mut incoming, head.framing).await {
            Some(bytes) => format!("{} {bytes}", head.line),
            None => format!("cut {}", head.line),
        };
        let cut = line.starts_with("cut");
        log.lock().unwrap().push(line);
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        if cut || incoming.stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

async fn body(incoming: &mut Incoming, framing: Framing) -> Option<usize> {
    let mut bytes = 0;
    match framing {
        Framing::Length(length) => incoming.exactly(length).await.map(|body| body.len()),
        Framing::Chunked => loop {
            let size = incoming.until(b"\r\n").await?;
            let size = usize::from_str_radix(str::from_utf8(&size).ok()?, 16).ok()?;
            if size == 0 {
                return (incoming.until(b"\r\n").await? == b"").then_some(bytes);
            }
            bytes += incoming.exactly(size).await?.len();
            if incoming.exactly(2).await? != b"\r\n" {
                return None;
            }
        },
    }
}

enum Framing {
    Length(usize),
    Chunked,
}

struct Head {
    /// Method and target.
    line: String,
    framing: Framing,
}

impl Head {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let text = str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default();
        let Some(line) = line.strip_suffix(" HTTP/1.1") else { return Err(line.to_owned()) };
        let (mut length, mut chunked, mut hosts) = (None, false, 0);
        if text.replace("\r\n", "").contains(|c: char| c.is_control() && c != '\t') {
            return Err(format!("control characters in {text:?}"));
        }
        for field in lines {
            let (name, value) = field.split_once(':').ok_or(field)?;
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic() && b != b'"') {
                return Err(format!("field {field:?}"));
            }
            match name.to_ascii_lowercase().as_str() {
                "host" => hosts += 1,
                "content-length" if length.is_none() => {
                    length = Some(value.trim().parse().map_err(|_bad| field.to_owned())?);
                }
                "transfer-encoding" if !chunked && value.trim() == "chunked" => chunked = true,
                "content-length" | "transfer-encoding" | "expect" | "upgrade" => {
                    return Err(field.to_owned());
                }
                _ => {}
            }
        }
        let framing = match (length, chunked) {
            (Some(_), true) => return Err("two lengths".to_owned()),
            (None, true) => Framing::Chunked,
            (length, false) => Framing::Length(length.unwrap_or(0)),
        };
        if hosts != 1 || line.split(' ').count() != 2 {
            return Err(text.to_owned());
        }
        Ok(Self { line: line.to_owned(), framing })
    }
}
