//! A collector of OTLP over HTTP, as an organisation runs one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// A collector of OTLP over HTTP: it keeps what comes, under the path that it came to.
pub(crate) struct Collector {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<(String, Value)>>>,
    refusing: Arc<AtomicUsize>,
}

impl Collector {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let bodies = Arc::<Mutex<Vec<(String, Value)>>>::default();
        let refusing = Arc::new(AtomicUsize::new(0));
        let (kept, refused) = (Arc::clone(&bodies), Arc::clone(&refusing));
        std::thread::spawn(move || {
            for tcp in listener.incoming().map_while(Result::ok) {
                let (kept, refused) = (Arc::clone(&kept), Arc::clone(&refused));
                std::thread::spawn(move || collect(tcp, &kept, &refused));
            }
        });
        Self { address, bodies, refusing }
    }

    /// Answers the next so many with 503.
    pub(crate) fn refuse(&self, count: usize) {
        self.refusing.store(count, Ordering::SeqCst);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All that came to a path.
    pub(crate) fn of(&self, path: &str) -> Vec<Value> {
        let bodies = self.bodies.lock().unwrap();
        bodies.iter().filter(|(to, _)| to == path).map(|(_, body)| body.clone()).collect()
    }
}

fn collect(mut tcp: TcpStream, kept: &Mutex<Vec<(String, Value)>>, refusing: &AtomicUsize) {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    let (head, length) = loop {
        if let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.unwrap().parse().unwrap();
            break (head, end + 4 + length);
        }
        match tcp.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
        }
    };
    while bytes.len() < length {
        match tcp.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
        }
    }
    let refused =
        refusing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    if refused.is_ok() {
        let _told = tcp.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n");
        return;
    }
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let body = &bytes[head.len() + 4..length];
    kept.lock().unwrap().push((path, serde_json::from_slice(body).unwrap()));
    let _told = tcp.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
    );
}
