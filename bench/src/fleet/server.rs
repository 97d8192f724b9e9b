//! The real server, as a process of its own, and what the system says of it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use countersign_api::admin::{AdminClient, TrustFingerprint};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde_json::Value;

/// A server of a trust domain of its own, ended when this is dropped.
pub(crate) struct Server {
    child: Child,
    pid: u32,
    pub(crate) admin: AdminClient,
    pub(crate) address: std::net::SocketAddr,
    pub(crate) trust: TrustFingerprint,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Makes a trust domain and serves it.
    pub(crate) fn start(domain: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp")?;
        let data = folder.path().join("d");
        let mut init = command()?;
        init.arg("init").arg("--data").arg(&data).args(["--trust-domain", domain]);
        let made = init.args(["--output", "json"]).output().context("cannot run `init`")?;
        let made: Value = serde_json::from_slice(&made.stdout)
            .with_context(|| format!("`init`: {}", String::from_utf8_lossy(&made.stderr)))?;
        let mut serve = command()?;
        serve.arg("server").arg("--data").arg(&data);
        serve.args(["--listen", "127.0.0.1:0", "--metrics", "off", "--output", "json"]);
        let log = std::fs::File::create(folder.path().join("log"))?;
        let mut child = serve.stdout(Stdio::piped()).stderr(log).spawn()?;
        let ready = ready(&mut child)?;
        let text = |field: &str| ready[field].as_str().context("a field of `ready`");
        let admin = text("admin")?.trim_start_matches("unix://").to_owned();
        let trust = made["trust"].as_str().context("a fingerprint")?;
        let trust = trust.parse().map_err(|why| anyhow!("the root's fingerprint: {why}"))?;
        Ok(Self {
            pid: child.id(),
            child,
            admin: AdminClient::new(admin),
            address: text("listen")?.parse()?,
            trust,
            _folder: folder,
        })
    }

    pub(crate) const fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) const fn usage(&self) -> Usage {
        Usage::of(self.pid)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which the figures have told by then.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The first line that a program says.
pub(crate) fn ready(child: &mut Child) -> Result<Value> {
    let mut line = String::new();
    let output = child.stdout.take().context("an output")?;
    BufReader::new(output).read_line(&mut line)?;
    serde_json::from_str(&line).context("it did not become ready")
}

/// The product, from beside this program.
pub(crate) fn command() -> Result<Command> {
    let built: PathBuf = std::env::current_exe()?.with_file_name("countersign");
    let beside = std::env::var_os("COUNTERSIGN_BIN").map_or(built, PathBuf::from);
    Ok(Command::new(beside))
}

/// What a process uses.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    pid: u32,
}

impl Usage {
    pub(crate) const fn of(pid: u32) -> Self {
        Self { pid }
    }

    /// KiB of memory that are resident.
    pub(crate) fn resident(self) -> Result<f64> {
        self.status("VmRSS:")
    }

    /// Of these, the KiB that are the process's own. The others are pages of its program, which the kernel drops and reads again as
    /// it likes, and which are the same however much there is to do.
    pub(crate) fn own(self) -> Result<f64> {
        self.status("RssAnon:")
    }

    fn status(self, what: &'static str) -> Result<f64> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(what));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context(what)?.parse()?)
    }

    /// Time of a processor that was used so far.
    pub(crate) fn processor(self) -> Result<Duration> {
        let clock = clock_getcpuclockid(Pid::from_raw(self.pid.cast_signed()));
        let clock = clock.with_context(|| format!("process {} has ended", self.pid))?;
        Ok(clock_gettime(clock)?.into())
    }

    fn read(self, file: &str) -> Result<String> {
        let path = Path::new("/proc").join(self.pid.to_string()).join(file);
        std::fs::read_to_string(&path)
            .with_context(|| format!("the process has ended: {}", path.display()))
    }
}
