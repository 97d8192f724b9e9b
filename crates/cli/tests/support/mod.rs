//! A real trust domain for a test: `countersign up` as a process of its own, and commands against it.

#![expect(dead_code, reason = "each test binary uses its own part of this")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// The binary under test: the release build when the test command made one, else cargo's.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("COUNTERSIGN_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_countersign")), PathBuf::from)
}

/// The project's root folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The example's manifests.
pub(crate) fn shop() -> PathBuf {
    root().join("examples/shop")
}

/// The Python in which the outside clients are installed.
pub(crate) fn python() -> PathBuf {
    std::env::var_os("COUNTERSIGN_PYTHON")
        .map_or_else(|| root().join("target/venv/bin/python"), PathBuf::from)
}

/// A folder with a short path, since Unix sockets may come to lie in it.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap()
}

/// Puts a program to where everybody may run it; its own folder may be closed to others.
///
/// A child makes the copy. Were it this process, then a program that another thread starts meanwhile would hold the copy open
/// for writing for a moment, and nobody could run it ("text file busy").
pub(crate) fn put_program(program: &Path, at: &Path) {
    if std::fs::hard_link(program, at).is_err() {
        let copied = Command::new("cp").arg("--").arg(program).arg(at).status().unwrap();
        assert!(copied.success(), "cp {} {}: {copied}", program.display(), at.display());
    }
}

/// How long a test waits for anything before it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A running `up`.
pub(crate) struct Up {
    child: Child,
    events: Receiver<Value>,
    /// The first line that it printed.
    pub(crate) ready: Value,
    /// From its start to that line.
    pub(crate) took: Duration,
    pub(crate) data: PathBuf,
    _state: Option<TempDir>,
}

impl Up {
    /// The example's shop with state of its own.
    pub(crate) fn shop() -> Self {
        let state = folder();
        let mut up = Self::start(&shop(), state.path(), &[]);
        up._state = Some(state);
        up
    }

    /// `up DIR --data STATE` and more arguments.
    pub(crate) fn start(manifests: &Path, state: &Path, more: &[&str]) -> Self {
        Self::start_in(manifests, state, more, &[])
    }

    /// The same, with more environment.
    pub(crate) fn start_in(
        manifests: &Path,
        state: &Path,
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let begin = Instant::now();
        let mut child = Command::new(binary())
            .arg("up")
            .arg(manifests)
            .args(["--output", "json", "--data"])
            .arg(state)
            .args(more)
            .env("XDG_STATE_HOME", state.join("xdg"))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let events = lines(child.stdout.take().unwrap());
        let Ok(ready) = events.recv_timeout(PATIENCE) else {
            let _ended = child.kill();
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("`up` did not become ready; it said:\n{said}\n{}", logs(state));
        };
        assert_eq!(ready["event"], "ready", "the first line is `ready`: {ready}");
        Self { child, events, ready, took: begin.elapsed(), data: state.to_owned(), _state: None }
    }

    /// Runs a command against this trust domain.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--data").arg(&self.data);
        command.env("XDG_STATE_HOME", self.data.join("xdg"));
        command
    }

    /// Runs a command with `--output json` and reads its answer.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--output", "json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", text(&output.stdout)))
    }

    /// The address of a service's door or front door, `127.0.0.1:port`.
    pub(crate) fn address(&self, service: &str) -> String {
        let url =
            self.ready[service].as_str().unwrap_or_else(|| panic!("no {service}: {}", self.ready));
        url.split_once("://").unwrap().1.trim_end_matches('/').to_owned()
    }

    pub(crate) fn get(&self, service: &str, path: &str) -> (u16, String) {
        get(&self.address(service), path).unwrap()
    }

    /// Waits until `status` says so.
    #[track_caller]
    pub(crate) fn status_until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        until(what, || {
            let output = self.run(&["status", "--output", "json"]);
            serde_json::from_slice(&output.stdout).ok().filter(&holds)
        })
    }

    /// The server's own word, and not its agent's, who speaks for it while it is slow.
    #[track_caller]
    pub(crate) fn server_status(&self) -> Value {
        self.status_until("the server speaks for itself", |status| status["source"] == "server")
    }

    /// A workload `me` for every process of this user.
    pub(crate) fn make_me(&self, lifetime: &str) {
        let manifest = self.data.join("me.yaml");
        std::fs::write(&manifest, manifest_of_me(lifetime)).unwrap();
        self.json(&["apply", manifest.to_str().unwrap()]);
    }

    /// The roots that the trust domain's own verifiers trust, as PEM.
    pub(crate) fn bundle_pem(&self) -> String {
        let listed = self.json(&["authority", "list"]);
        let roots = listed["roots"].as_array().unwrap();
        let trusted = roots.iter().filter(|root| root["trusted"] == true);
        trusted.map(|root| root["certificate"].as_str().unwrap()).collect()
    }

    /// The server's process.
    pub(crate) fn server(&self) -> i32 {
        i32::try_from(self.server_status()["server"]["pid"].as_u64().unwrap()).unwrap()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// What it has said since it became ready.
    pub(crate) fn said(&self) -> Vec<Value> {
        self.events.try_iter().collect()
    }

    /// As ctrl-C does.
    pub(crate) fn interrupt(mut self) -> ExitStatus {
        signal(self.pid(), "INT");
        ended(&mut self.child)
    }

    /// Waits for it to end by itself.
    pub(crate) fn wait(mut self) -> ExitStatus {
        ended(&mut self.child)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // A test that failed may have left it stopped, and then it would take no other signal.
            signal(self.pid(), "CONT");
            signal(self.pid(), "TERM");
            ended(&mut self.child);
        }
        if std::thread::panicking() {
            eprintln!("{}", logs(&self.data));
        }
    }
}

/// The manifest of a workload `me` for every process of this user.
pub(crate) fn manifest_of_me(lifetime: &str) -> String {
    let uid = nix::unistd::geteuid();
    format!(
        "apiVersion: countersign.dev/v1alpha1\nkind: Workload\nmetadata: {{name: me}}\n\
         spec: {{selectors: [\"unix:uid:{uid}\"], lifetime: {lifetime}}}\n"
    )
}

/// The shop with another lifetime for its SVIDs, and for agents.
pub(crate) fn shop_with_lifetimes(to: &Path, svid: &str, agent: &str) -> PathBuf {
    let folder = to.join("shop");
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(shop()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    std::fs::write(
        folder.join("trust-domain.yaml"),
        format!(
            "apiVersion: countersign.dev/v1alpha1\nkind: TrustDomain\nmetadata: {{name: shop}}\n\
             spec: {{trustDomain: shop.example, svidLifetime: {svid}, agentLifetime: {agent}}}\n"
        ),
    )
    .unwrap();
    folder
}

fn lines(stdout: ChildStdout) -> Receiver<Value> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
            if sender.send(value).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Sends a signal by its name to a process that the test started.
pub(crate) fn signal(pid: i32, name: &str) {
    let status =
        Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap();
    assert!(status.success(), "cannot signal {pid}");
}

fn ended(child: &mut Child) -> ExitStatus {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if PATIENCE < begin.elapsed() {
            let _ended = child.kill();
            panic!("the process did not end in {PATIENCE:?}");
        }
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Waits until the condition gives something.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begin.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// One HTTP/1.1 request on a connection of its own: status and body.
pub(crate) fn get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn logs(state: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(state.join("logs")) else { return String::new() };
    let mut all = String::new();
    for entry in entries.flatten() {
        let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let tail: Vec<_> = log.lines().rev().take(15).collect();
        all.push_str(&format!("── {}\n", entry.file_name().to_string_lossy()));
        for line in tail.into_iter().rev() {
            all.push_str(&format!("{line}\n"));
        }
    }
    all
}
