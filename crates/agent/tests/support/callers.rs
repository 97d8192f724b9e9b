//! Processes that connect to a socket: each is this very binary, started again.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use countersign_agent::attest::{AttestRefused, Caller, Desk, Facts, Pinning};
use countersign_identity::SelectorKind;
use tokio::net::{UnixListener, UnixStream};

pub(crate) const WAYS: [Pinning; 2] = [Pinning::Auto, Pinning::ProcDirectory];

/// What a process does that was started by [`start_caller`]: it connects, and then what it is told. Nothing in any other process.
/// Each suite has a test by the name `caller_process` that is this.
pub(crate) fn be_caller(then: impl FnOnce(std::os::unix::net::UnixStream, &str)) {
    let Ok(socket) = std::env::var("CALL") else { return };
    let stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    match std::env::var("THEN").unwrap().as_str() {
        "stay" => loop {
            std::thread::park();
        },
        other => then(stream, other),
    }
}

/// A process that was started, ended with the test.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    pub(crate) fn number(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().ok();
    }

    /// Waits for its end, after which its number may be another's.
    pub(crate) fn reap(&mut self) {
        self.0.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        self.reap();
    }
}

/// Starts a caller of the socket.
pub(crate) fn start_caller(socket: &Path, then: &str) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "caller_process", "--nocapture"]);
    Process::start(command.env("CALL", socket).env("THEN", then))
}

/// The socket.
pub(crate) struct Door {
    directory: tempfile::TempDir,
    listener: UnixListener,
}

impl Door {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        Self { directory, listener }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    pub(crate) async fn accept(&self) -> UnixStream {
        self.listener.accept().await.unwrap().0
    }
}

pub(crate) async fn facts(
    caller: &Arc<dyn Caller>,
    kinds: &[SelectorKind],
) -> Result<Facts, AttestRefused> {
    Desk::default().facts(caller, kinds.iter().copied().collect()).await
}
