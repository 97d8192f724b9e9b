//! How a program lives: it logs, tells when it is ready, and ends when asked to.

use std::future::Future;
use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::exit::Exit;
use crate::log::{Log, LogForm};
use crate::output::{self, Output};
use crate::settings::Resolved;

/// Logging, ready to be begun.
#[derive(Debug)]
pub struct Logging {
    form: LogForm,
    filter: EnvFilter,
}

impl Logging {
    /// Reads the settings that all programs share.
    pub fn resolve(resolved: &mut Resolved) -> Option<Self> {
        let form = resolved.required("log");
        let filter = resolved.required::<EnvFilter>("log-level");
        Some(Self { form: form?, filter: filter? })
    }

    fn begin(self) {
        let colour = std::io::stderr().is_terminal();
        let log = Log::new(self.form, std::io::stderr());
        let builder = tracing_subscriber::fmt().with_env_filter(self.filter).with_writer(log);
        match self.form {
            LogForm::Human => builder.with_ansi(colour).with_target(false).init(),
            LogForm::Json => builder.json().flatten_event(true).init(),
        }
    }
}

/// How long after it is ready a program has done what it does only once, its first handshakes among it.
const SETTLING: std::time::Duration = std::time::Duration::from_secs(2);

/// Whether the kernel may show the process's memory to others of its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dump {
    /// No: it holds the keys of the trust domain.
    Never,
    /// By the usual rules, but in no core dump: an agent without root must be able to look at it in `/proc`.
    AsUsual,
}

/// Keeps keys out of core dumps, and makes room for connections, each of which takes a descriptor, and in a proxy one at either side.
pub fn harden(dump: Dump) -> Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("cannot turn core dumps off")?;
    // First, because a process that is not dumpable may not write there, unless it is root's.
    no_memory_in_dumps().context("cannot keep memory out of core dumps")?;
    if dump == Dump::Never {
        // A limit of 0 does not hold for a core dump that goes to a program (core(5)).
        nix::sys::prctl::set_dumpable(false).context("cannot turn core dumps off")?;
    }
    let (_, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).context("cannot ask for the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")
}

/// A core dump that is made all the same, for a program that takes it, holds no memory.
fn no_memory_in_dumps() -> std::io::Result<()> {
    match std::fs::write("/proc/self/coredump_filter", "0") {
        // A kernel that makes no core dumps has no such file.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Runs a program until it ends, or is asked to by SIGINT or SIGTERM. SIGHUP, which others take for a word to read their settings
/// again, and which a shell sends that is closed, ends nothing.
pub fn run<R, F>(
    logging: Logging,
    dump: Dump,
    output: Output,
    program: impl FnOnce(CancellationToken, oneshot::Sender<R>) -> F,
    say: impl FnOnce(R, Output) -> String,
) -> Result<Exit>
where
    F: Future<Output = Result<()>>,
{
    harden(dump)?;
    logging.begin();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(live(output, program, say));
    // What still blocks after its own deadline is left behind.
    runtime.shutdown_background();
    ended
}

async fn live<R, F>(
    output: Output,
    program: impl FnOnce(CancellationToken, oneshot::Sender<R>) -> F,
    say: impl FnOnce(R, Output) -> String,
) -> Result<Exit>
where
    F: Future<Output = Result<()>>,
{
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let stop = CancellationToken::new();
    let (ready, is_ready) = oneshot::channel();
    let mut program = std::pin::pin!(program(stop.clone(), ready));
    let mut is_ready = std::pin::pin!(is_ready);
    let mut say = Some(say);
    let mut settled = None;
    loop {
        tokio::select! {
            () = when(settled.as_mut()) => {
                settled = None;
                crate::resident::give_back_code();
            }
            ended = &mut program => {
                ended?;
                if output == Output::Json {
                    told(output::json(&serde_json::json!({ "event": "stopped" })));
                }
                return Ok(Exit::Done);
            }
            Ok(ready) = &mut is_ready, if say.is_some() => {
                if let Some(say) = say.take() {
                    told(output::line(&say(ready, output)));
                    settled = Some(Box::pin(tokio::time::sleep(SETTLING)));
                }
            }
            _ = interrupt.recv() => stop.cancel(),
            _ = terminate.recv() => stop.cancel(),
            _ = hangup.recv() => tracing::warn!(
                "SIGHUP reads no settings again, and ends nothing: restart this part to change them"
            ),
        }
    }
}

/// Ends when what is there ends, and never when there is nothing.
async fn when<F: Future<Output = ()> + Unpin>(there: Option<&mut F>) {
    match there {
        Some(there) => there.await,
        None => std::future::pending().await,
    }
}

/// A program goes on when nobody listens to what it says.
fn told(result: Result<()>) {
    if let Err(error) = result {
        tracing::debug!("nobody hears it: {error:#}");
    }
}
