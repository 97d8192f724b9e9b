//! The ends of a measurement that are processes of their own: this program again, told which end it is, or another.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use countersign::Authorization;
use countersign_proxy::{Config, FixedInbound, IdentitySource, Listeners, Protocol, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::peers::process::Family;
use crate::peers::{caller, process, program};

/// Which end a child process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum End {
    Proxy,
    Backend,
    /// Sends the load of [`crate::peers`].
    Caller,
    /// The program behind its proxies.
    Program,
}

impl End {
    /// This program, told to be this end.
    pub(crate) fn of(self, mut command: Command, folder: &Path) -> Command {
        let name = match self {
            Self::Proxy => "proxy",
            Self::Backend => "backend",
            Self::Caller => "caller",
            Self::Program => "program",
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
    pub(crate) fn start(end: End, folder: &Path) -> Result<Self> {
        Self::be(Command::new(std::env::current_exe()?), end, folder)
    }

    /// The same on one core.
    pub(crate) fn start_on(core: u32, end: End, folder: &Path) -> Result<Self> {
        Self::be(process::pinned(core, &std::env::current_exe()?), end, folder)
    }

    fn be(command: Command, end: End, folder: &Path) -> Result<Self> {
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
    if end == End::Caller {
        return caller::serve(folder);
    }
    let runtime = match end {
        // It has one core at most.
        End::Program => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        // As many threads as it has cores.
        End::Proxy | End::Backend | End::Caller => {
            tokio::runtime::Builder::new_multi_thread().enable_all().build()?
        }
    };
    let stop = CancellationToken::new();
    let ended = stop.clone();
    std::thread::spawn(move || {
        let _closed = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ended.cancel();
    });
    runtime.block_on(async move {
        let work = async {
            match end {
                End::Proxy => proxy(folder, stop.clone()).await,
                End::Backend => backend().await,
                End::Program => program::serve().await,
                End::Caller => Ok(()),
            }
        };
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

fn backend_of(folder: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(folder.join("backend"))?)
}

async fn proxy(folder: &Path, stop: CancellationToken) -> Result<()> {
    let config = Config {
        name: "bench".parse()?,
        identity: IdentitySource::Files {
            chain: folder.join("server.pem"),
            key: folder.join("server.key"),
            bundle: folder.join("bundle.pem"),
            trust_domain: None,
            federated: Vec::new(),
        },
        authorization: Authorization::AllowIds(vec!["spiffe://bench.example/client".parse()?]),
        listeners: Listeners::Fixed {
            inbound: vec![FixedInbound {
                service: "server".parse()?,
                listen: "127.0.0.1:0".parse()?,
                forward: Target::Tcp(backend_of(folder)?),
                protocol: Protocol::Tcp,
            }],
            outbound: Vec::new(),
        },
        metrics: None,
        tracing: None,
    };
    let (ready, told) = tokio::sync::oneshot::channel::<countersign_proxy::Ready>();
    let telling = async {
        let ready = told.await.context("the proxy did not become ready")?;
        say(ready.inbound.first().context("a door")?.listen)
    };
    let (served, said) = tokio::join!(countersign_proxy::run(config, stop, ready), telling);
    said.and(served)
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
