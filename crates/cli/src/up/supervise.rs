//! Keeping processes alive: started again when they end, until told to stop.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use countersign_agent::launcher::Launcher;
use countersign_identity::{Backoff, BackoffPolicy, Clock, SystemClock, SystemEntropy};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::process::{Program, Running, Turn};
use crate::exit::Exit;

/// What a supervised process did.
#[derive(Debug)]
pub(crate) enum Happening {
    /// It runs.
    Started,
    /// It said something on its standard output.
    Said { name: String, event: Value },
    /// It ended, and is started again after the wait.
    Ended { name: String, status: String, wait: Duration },
    /// It does not come up: `up` as a whole has failed.
    Lost { name: String, status: String, log: PathBuf },
}

/// What it takes to start and to vouch for processes.
#[derive(Clone)]
pub(crate) struct Nursery {
    pub launcher: Arc<Mutex<Launcher>>,
    pub clock: Arc<SystemClock>,
    pub happenings: mpsc::Sender<Happening>,
    /// How long what a process needs may be held by another one without that counting as a failure.
    pub patience: Duration,
}

impl Nursery {
    fn launcher(&self) -> MutexGuard<'_, Launcher> {
        // Each call leaves the launcher whole, so a panic elsewhere in between does not matter.
        self.launcher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The processes of one tier; they are stopped together.
pub(crate) struct Tier {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<bool>>,
}

/// What a process gets as its standard input.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdin {
    Nothing,
    /// The launcher's word on every process that runs: for the agent.
    Launcher,
}

/// Tries of a process that never became ready, before `up` gives up.
const FAILURES_MAX: u32 = 4;
/// How long a process may go on to find that another one has what it needs: those of an `up` that was killed are just ending.
pub(crate) const CONFLICT_PATIENCE: Duration = Duration::from_secs(15);
const RESTART: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(100), longest: Duration::from_secs(5) };

impl Tier {
    pub(crate) fn new() -> Self {
        Self { stop: CancellationToken::new(), tasks: Vec::new() }
    }

    pub(crate) fn start(&mut self, nursery: &Nursery, program: Program, stdin: Stdin) {
        let keeper = Keeper { nursery: nursery.clone(), program, stdin };
        self.tasks.push(tokio::spawn(keeper.run(self.stop.clone())));
    }

    /// Stops all of them; says how many had to be cut off.
    pub(crate) async fn stop(self) -> usize {
        self.stop.cancel();
        let mut cut = 0;
        for task in self.tasks {
            cut += usize::from(!task.await.unwrap_or(false));
        }
        cut
    }
}

struct Keeper {
    nursery: Nursery,
    program: Program,
    stdin: Stdin,
}

impl Keeper {
    /// Runs until told to stop. Whether the process ended by itself then.
    async fn run(self, stop: CancellationToken) -> bool {
        let mut backoff = Backoff::new(RESTART);
        let (mut begun, mut failures) = (self.nursery.clock.now(), 0);
        loop {
            let (end, ready) = match self.start() {
                Ok(running) => match self.watch(running, &stop).await {
                    Watched::Stopped { by_itself } => return by_itself,
                    Watched::Ended { end, ready } => (end, ready),
                },
                Err(error) => (End { status: format!("{error:#}"), conflict: false }, false),
            };
            let now = self.nursery.clock.now();
            if ready {
                backoff.reset();
                (begun, failures) = (now, 0);
            }
            let again = backoff.failed(now, &SystemEntropy);
            let name = self.program.name.clone();
            let End { status, conflict } = end;
            if !conflict || self.nursery.patience <= now.since(begun) {
                failures += 1;
            }
            if FAILURES_MAX <= failures && !ready {
                self.tell(Happening::Lost { name, status, log: self.program.log.clone() }).await;
                stop.cancelled().await;
                return true;
            }
            self.tell(Happening::Ended { name, status, wait: again.since(now) }).await;
            tokio::select! {
                () = stop.cancelled() => return true,
                () = self.nursery.clock.sleep_until(again) => {}
            }
        }
    }

    fn start(&self) -> Result<Running> {
        let stdin = match self.stdin {
            Stdin::Nothing => None,
            Stdin::Launcher => Some(self.agent_end()?),
        };
        let running = self.program.start(stdin)?;
        if let Some(label) = &self.program.label {
            let label = label.parse().context("a label")?;
            self.nursery
                .launcher()
                .vouch(running.pid, &label)
                .context("cannot vouch for the process")?;
        }
        Ok(running)
    }

    fn agent_end(&self) -> Result<OwnedFd> {
        self.nursery.launcher().agent_end().context("cannot make the launcher's socket")
    }

    async fn watch(&self, mut running: Running, stop: &CancellationToken) -> Watched {
        let pid = running.pid;
        self.tell(Happening::Started).await;
        // A program that does not speak counts as ready once it runs.
        let mut ready = !self.program.speaks;
        loop {
            let turn = tokio::select! {
                () = stop.cancelled() => {
                    let by_itself = running.stop().await;
                    self.nursery.launcher().forget(pid);
                    return Watched::Stopped { by_itself };
                }
                turn = running.turn() => turn,
            };
            match turn {
                Turn::Said(event) => {
                    ready |= event["event"] == "ready";
                    self.tell(Happening::Said { name: self.program.name.clone(), event }).await;
                }
                Turn::Ended(status) => {
                    self.nursery.launcher().forget(pid);
                    return Watched::Ended { end: End::of(status), ready };
                }
            }
        }
    }

    async fn tell(&self, happening: Happening) {
        // Nobody listens any more once `up` is on its way out.
        let _gone = self.nursery.happenings.send(happening).await;
    }
}

enum Watched {
    Stopped { by_itself: bool },
    Ended { end: End, ready: bool },
}

/// How a process ended.
struct End {
    status: String,
    /// Whether because something else was in the way.
    conflict: bool,
}

impl End {
    fn of(status: io::Result<ExitStatus>) -> Self {
        match status {
            Ok(status) => {
                let conflict = status.code() == Some(Exit::Conflict as i32);
                Self { status: status.to_string(), conflict }
            }
            Err(error) => Self { status: error.to_string(), conflict: false },
        }
    }
}
