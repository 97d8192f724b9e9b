//! One supervised process: started, restarted when it ends, told to stop.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// What to start.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// What people call it: `server`, `orders proxy`.
    pub name: String,
    /// The label that its launcher vouches for.
    pub label: Option<String>,
    pub path: PathBuf,
    pub arguments: Vec<OsString>,
    pub environment: Vec<(String, OsString)>,
    /// What it does not get of our own environment.
    pub withheld: Vec<OsString>,
    pub folder: PathBuf,
    pub log: PathBuf,
    /// Whether it says `{"event":"ready"}` on its standard output; else its output goes to the log.
    pub speaks: bool,
}

/// A process that runs.
pub(crate) struct Running {
    child: Child,
    lines: Option<tokio::io::Lines<BufReader<tokio::process::ChildStdout>>>,
    pub pid: u32,
}

/// What a process did.
pub(crate) enum Turn {
    /// It said this on its standard output.
    Said(Value),
    /// It ended, and is reaped.
    Ended(std::io::Result<ExitStatus>),
}

/// How long a process has to end by itself before it is cut off.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);

/// A log that has grown over this is begun anew at the next start.
const LOG_BYTES_MAX: u64 = 8 * 1024 * 1024;

impl Program {
    pub(crate) fn start(&self, stdin: Option<OwnedFd>) -> Result<Running> {
        let log = self.open_log()?;
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).current_dir(&self.folder);
        for name in &self.withheld {
            command.env_remove(name);
        }
        // After that: what it is told on purpose may have the same name.
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(stdin.map_or_else(Stdio::null, Stdio::from));
        command.stderr(log.try_clone().context("cannot share the log")?);
        command.stdout(if self.speaks { Stdio::piped() } else { Stdio::from(log) });
        // A group of its own: ctrl-C reaches `up` alone, which then stops the parts in order.
        command.process_group(0);
        // A process that cannot be vouched for is not left running unwatched.
        command.kill_on_drop(true);
        die_with_parent(&mut command);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {} ({})", self.name, self.path.display()))?;
        let pid = child.id().context("the process ended at once")?;
        let lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
        Ok(Running { child, lines, pid })
    }

    fn open_log(&self) -> Result<std::fs::File> {
        let large = std::fs::metadata(&self.log).is_ok_and(|meta| LOG_BYTES_MAX < meta.len());
        let mut options = OpenOptions::new();
        options.create(true).mode(0o600);
        if large {
            options.write(true).truncate(true)
        } else {
            options.append(true)
        };
        options.open(&self.log).with_context(|| format!("cannot write {}", self.log.display()))
    }
}

/// Whatever ends `up`, even a kill, ends what it started.
fn die_with_parent(command: &mut Command) {
    #[expect(
        unsafe_code,
        reason = "prctl is async-signal-safe, and nothing else is called in the child"
    )]
    // SAFETY: between fork and exec only prctl runs, which neither allocates nor locks.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).map_err(std::io::Error::from)
        });
    }
}

impl Running {
    /// What it does next. Can be dropped and asked again without losing anything.
    pub(crate) async fn turn(&mut self) -> Turn {
        loop {
            let Some(lines) = &mut self.lines else { return Turn::Ended(self.child.wait().await) };
            let line = tokio::select! {
                line = lines.next_line() => line,
                status = self.child.wait() => return Turn::Ended(status),
            };
            match line {
                Ok(Some(line)) => {
                    // Anything else on its output is not for us.
                    if let Ok(event) = serde_json::from_str(&line) {
                        return Turn::Said(event);
                    }
                }
                Ok(None) | Err(_) => self.lines = None,
            }
        }
    }

    /// Asks it to end, waits, and cuts it off when it takes too long. Whether it ended by itself.
    pub(crate) async fn stop(mut self) -> bool {
        self.signal(Signal::SIGTERM);
        if tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await.is_ok() {
            return true;
        }
        self.signal(Signal::SIGKILL);
        // It cannot refuse this; what remains is to reap it.
        self.child.wait().await.is_err()
    }

    fn signal(&self, signal: Signal) {
        let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) else { return };
        // The group, so that what the program started ends too. It is gone when this fails.
        let _gone = nix::sys::signal::killpg(Pid::from_raw(pid), signal);
    }
}
