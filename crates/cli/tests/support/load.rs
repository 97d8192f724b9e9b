//! Steady load on an HTTP address, over kept and over fresh connections, with every failure told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Load that runs until it is stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    /// How many requests were answered until now.
    pub(crate) answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Outcome>>,
}

/// What became of the requests.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) answered: u64,
    pub(crate) failures: Vec<String>,
    pub(crate) latencies: Vec<Duration>,
}

#[derive(Clone, Copy)]
enum Connections {
    Kept,
    Fresh,
}

const THREADS: u32 = 8;

impl Load {
    /// `per_second` requests in all: three quarters over kept connections, one quarter over fresh ones.
    pub(crate) fn start(address: &str, per_second: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let threads = (0..THREADS)
            .map(|number| {
                let connections =
                    if number % 4 == 3 { Connections::Fresh } else { Connections::Kept };
                let (address, stop) = (address.to_owned(), stop.clone());
                let answered = answered.clone();
                let pause = Duration::from_secs(1) * THREADS / per_second;
                std::thread::spawn(move || client(&address, connections, pause, &stop, &answered))
            })
            .collect();
        Self { stop, answered, threads }
    }

    pub(crate) fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Outcome::default();
        for thread in self.threads {
            let one = thread.join().expect("a client does not panic");
            all.failures.extend(one.failures);
            all.latencies.extend(one.latencies);
        }
        all.answered = self.answered.load(Ordering::Relaxed);
        all.latencies.sort();
        all
    }
}

impl Outcome {
    pub(crate) fn quantile(&self, thousandths: usize) -> Duration {
        self.latencies[(self.latencies.len() - 1) * thousandths / 1000]
    }
}

fn client(
    address: &str,
    connections: Connections,
    pause: Duration,
    stop: &AtomicBool,
    answered: &AtomicU64,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut kept: Option<BufReader<TcpStream>> = None;
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
        // Counted from when it was due, so that a stall is seen by every request that it delays.
        let begin = due.max(Instant::now() - Duration::from_secs(5));
        due += pause;
        let result = match connections {
            Connections::Fresh => connect(address).and_then(|mut stream| request(&mut stream)),
            Connections::Kept => on_kept(address, &mut kept),
        };
        match result {
            Ok(200) => {
                answered.fetch_add(1, Ordering::Relaxed);
                outcome.latencies.push(begin.elapsed());
            }
            Ok(status) => outcome.failures.push(format!("status {status}")),
            Err(error) => {
                kept = None;
                outcome.failures.push(error.to_string());
            }
        }
    }
    outcome
}

fn connect(address: &str) -> std::io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(15)))?;
    Ok(BufReader::new(stream))
}

fn on_kept(address: &str, kept: &mut Option<BufReader<TcpStream>>) -> std::io::Result<u16> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => connect(address)?,
    };
    let status = request(&mut stream)?;
    *kept = Some(stream);
    Ok(status)
}

fn request(stream: &mut BufReader<TcpStream>) -> std::io::Result<u16> {
    let bad = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(bad("closed before the answer"));
    }
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let mut length = 0;
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(|_| bad("content-length"))?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    status.ok_or_else(|| bad("status line"))
}
