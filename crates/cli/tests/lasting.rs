//! Connections that cannot be drained, through real proxies: they outlive their certificates, and not a revocation.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use support::{PATIENCE, Up, folder, until};

/// What a handshake has proven lasts for half of it at least; a re-proof has the last three sixteenths of that, more than 5 s.
const LIFETIME: Duration = Duration::from_secs(60);

fn manifests(folder: &Path) {
    let place = folder.display();
    let lifetime = LIFETIME.as_secs();
    let text = format!(
        r#"
apiVersion: countersign.dev/v1alpha1
kind: TrustDomain
metadata: {{name: shop}}
spec: {{trustDomain: shop.example, svidLifetime: {lifetime}s}}
---
apiVersion: countersign.dev/v1alpha1
kind: Workload
metadata: {{name: echo}}
spec: {{selectors: ["launch:echo"]}}
---
apiVersion: countersign.dev/v1alpha1
kind: Workload
metadata: {{name: caller}}
spec: {{selectors: ["launch:caller"]}}
---
apiVersion: countersign.dev/v1alpha1
kind: Service
metadata: {{name: raw}}
spec: {{workload: echo, protocol: tcp, listen: "127.0.0.1:0", forward: "unix:{place}/raw.sock"}}
---
apiVersion: countersign.dev/v1alpha1
kind: Service
metadata: {{name: site}}
spec: {{workload: echo, protocol: http, listen: "127.0.0.1:0", forward: "unix:{place}/site.sock"}}
---
apiVersion: countersign.dev/v1alpha1
kind: Service
metadata: {{name: caller}}
spec:
  workload: caller
  upstreams:
    - {{service: raw, local: "unix:{place}/to-raw.sock"}}
    - {{service: site, local: "unix:{place}/to-site.sock"}}
---
apiVersion: countersign.dev/v1alpha1
kind: Policy
metadata: {{name: all-to-echo}}
spec:
  cedar: |
    permit (principal == Workload::"caller", action == Action::"connect", resource == Service::"raw");
    permit (principal == Workload::"caller", action == Action::"connect", resource == Service::"site");
"#
    );
    std::fs::create_dir(folder.join("manifests")).unwrap();
    std::fs::write(folder.join("manifests/all.yaml"), text).unwrap();
}

/// A program behind a proxy.
fn program(path: &Path, serve: impl Fn(UnixStream) -> std::io::Result<()> + Copy + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // Whoever goes away goes away.
            std::thread::spawn(move || serve(stream).ok());
        }
    });
}

/// Says back what it hears.
fn echo(mut stream: UnixStream) -> std::io::Result<()> {
    let mut bytes = [0; 1024];
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            read => stream.write_all(&bytes[..read])?,
        }
    }
}

/// Answers requests; upgrades one, and streams the answer to another without end.
fn site(mut stream: UnixStream) -> std::io::Result<()> {
    loop {
        let head = head(&mut stream)?;
        if head.starts_with("GET /socket ") {
            let accepted = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(accepted.as_bytes())?;
            return echo(stream);
        }
        if head.starts_with("GET /stream ") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            loop {
                stream.write_all(b"5\r\ntick\n\r\n")?;
                std::thread::park_timeout(Duration::from_millis(50));
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
    }
}

/// The head of a message.
fn head(stream: &mut impl Read) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        head.extend(byte);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// A connection of the caller's program to its proxy.
fn open(path: &Path) -> UnixStream {
    let stream = until("the way out is open", || UnixStream::connect(path).ok());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[track_caller]
fn ping(stream: &mut UnixStream, what: &str, round: u64) {
    let said = format!("ping {round:08}");
    stream.write_all(said.as_bytes()).unwrap_or_else(|error| panic!("{what}, {round}: {error}"));
    let mut heard = vec![0; said.len()];
    stream.read_exact(&mut heard).unwrap_or_else(|error| panic!("{what}, {round}: {error}"));
    assert_eq!(String::from_utf8_lossy(&heard), said, "{what}");
}

/// Tells when nothing more comes.
fn end_of(mut from: impl Read + Send + 'static) -> Receiver<Instant> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 1024];
        while from.read(&mut bytes).is_ok_and(|read| read != 0) {}
        // The test may be over.
        tell.send(Instant::now()).ok();
    });
    told
}

/// `me`, with its own certificate, on a kept connection to the door of the site, after one request.
fn idle(up: &Up, folder: &Path) -> Child {
    up.make_me("10m");
    let policy = folder.join("policy.yaml");
    let permit = "apiVersion: countersign.dev/v1alpha1\nkind: Policy\nmetadata: {name: me}\nspec:\n  cedar: |\n    permit (principal == Workload::\"me\", action == Action::\"connect\", resource == Service::\"site\");\n";
    std::fs::write(&policy, permit).unwrap();
    up.json(&["apply", policy.to_str().unwrap()]);
    let out = folder.join("me");
    until("the SVID of `me` is served", || {
        let fetched = up.run(&["fetch", "x509", "--write", out.to_str().unwrap()]);
        fetched.status.success().then_some(())
    });
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &up.address("site"), "-quiet", "-verify_quiet"])
        .args(["-cert".as_ref(), out.join("svid.pem").as_os_str()])
        .args(["-cert_chain".as_ref(), out.join("svid.pem").as_os_str()])
        .args(["-key".as_ref(), out.join("svid-key.pem").as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(b"GET / HTTP/1.1\r\nHost: site\r\n\r\n").unwrap();
    let answer = head(child.stdout.as_mut().unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    child
}

#[test]
fn connections_outlive_their_certificates_and_not_the_revocation_of_one() {
    let state = folder();
    let at = |name: &str| state.path().join(name);
    manifests(state.path());
    program(&at("raw.sock"), echo);
    program(&at("site.sock"), site);
    let up = Up::start(&at("manifests"), &at("data"), &[]);
    let mut raw = open(&at("to-raw.sock"));
    ping(&mut raw, "raw TCP", 0);
    let mut socket = open(&at("to-site.sock"));
    let upgrade = "GET /socket HTTP/1.1\r\nHost: site\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(upgrade.as_bytes()).unwrap();
    assert!(head(&mut socket).unwrap().starts_with("HTTP/1.1 101"));
    let begin = Instant::now();
    for round in 1.. {
        ping(&mut raw, "raw TCP", round);
        ping(&mut socket, "the upgraded connection", round);
        if LIFETIME * 5 / 4 < begin.elapsed() {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(500));
    }
    let mut stream = open(&at("to-site.sock"));
    stream.write_all(b"GET /stream HTTP/1.1\r\nHost: site\r\n\r\n").unwrap();
    assert!(head(&mut stream).unwrap().starts_with("HTTP/1.1 200"));
    let mut idle = idle(&up, state.path());
    let ends = [
        ("raw TCP", end_of(raw)),
        ("the upgraded connection", end_of(socket)),
        ("the long answer", end_of(stream)),
        ("the idle connection", end_of(idle.stdout.take().unwrap())),
    ];
    for (what, end) in &ends {
        assert!(end.try_recv().is_err(), "{what} is open");
    }
    let begin = Instant::now();
    let id = "spiffe://shop.example/echo";
    let done = up.json(&["revoke", id, "--reason", "key-compromise", "--wait"]);
    assert_eq!(done["live"], done["enforcing"], "{done}");
    assert!(4 <= done["connections_cut"].as_u64().unwrap(), "each by one end at least: {done}");
    for (what, end) in ends {
        // All are cut by now. By its certificates alone, what was just opened would go on for longer than that.
        let end = end.recv_timeout(LIFETIME / 3);
        let end = end.unwrap_or_else(|_| panic!("{what} is still open"));
        println!("{what} was cut after {:?}", end.saturating_duration_since(begin));
    }
    idle.kill().ok();
    idle.wait().unwrap();
}
