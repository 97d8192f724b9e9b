//! The ends of a measurement that are processes of their own: this program again, told which end it is, or another.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use crate::flood;
use crate::peers::process::Family;
use crate::peers::{caller, process, program};

/// Which end a child process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum End {
    Backend,
    /// Sends the load of [`crate::peers`].
    Caller,
    /// The program behind its proxies.
    Program,
    /// Floods a door.
    Crowd,
}

impl End {
    /// This program, told to be this end.
    pub(crate) fn of(self, mut command: Command, folder: &Path) -> Command {
        let name = match self {
            Self::Backend => "backend",
            Self::Caller => "caller",
            Self::Program => "program",
            Self::Crowd => "crowd",
        };
        command.args(["--be", name, "--folder"]).arg(folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }
}

pub(crate) struct Peer {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Peer {
    /// This program on one core.
    pub(crate) fn start_on(core: u32, end: End, folder: &Path) -> Result<Self> {
        let command = process::pinned(core, &std::env::current_exe()?);
        Self::spawn(end.of(command, folder), &format!("{end:?}"))
    }

    /// A program that says where it listens and ends when its input closes.
    pub(crate) fn spawn(mut command: Command, who: &str) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("the child has an output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse().with_context(|| format!("{who} said `{line}`"))?;
        Ok(Self { child, address })
    }

    pub(crate) fn family(&self) -> Family {
        Family(self.child.id())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Ends by itself when its input closes; this only makes sure.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// What the child does: listens, says where, and serves until its input closes.
pub(crate) fn serve(end: End, folder: &Path) -> Result<()> {
    match end {
        End::Caller => caller::serve(folder),
        End::Crowd => flood::serve(folder),
        // It has one core at most.
        End::Program => until_closed(&mut Builder::new_current_thread(), program::serve()),
        // As many threads as it has cores.
        End::Backend => until_closed(&mut Builder::new_multi_thread(), backend()),
    }
}

fn until_closed(runtime: &mut Builder, work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = runtime.enable_all().build()?;
    let stop = CancellationToken::new();
    let ended = stop.clone();
    std::thread::spawn(move || {
        let _closed = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ended.cancel();
    });
    runtime.block_on(async move {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = work => ended,
        }
    })
}

/// Tells whoever started this process.
pub(crate) fn say(what: impl std::fmt::Display) -> Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{what}")?;
    Ok(stdout.flush()?)
}

async fn backend() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say(listener.local_addr()?)?;
    loop {
        let (mut tcp, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut request = [0; 512];
            let _read = tcp.read(&mut request).await?;
            tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                .await?;
            tcp.shutdown().await
        });
    }
}
