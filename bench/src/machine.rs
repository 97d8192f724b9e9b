//! A trust domain with one machine of its own: the real server and the real agent, as processes.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use countersign_api::admin::{AdminClient, ApplyRequest, CreateTokenRequest};
use countersign_api::workload::{X509svid, X509svidResponse};
use h2::client::SendRequest;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::fleet::server::{Server, command, ready};
use crate::fleet::wire::{Call, Refused, over};
use crate::peers::process::end;

/// How long anything may take that is not measured.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// `PERMISSION_DENIED`, by which the agent says that nobody has declared such a process.
const NOBODY: &str = "7";

/// The server and its one agent; ended when this is dropped.
pub(crate) struct Machine {
    server: Server,
    agent: Child,
    folder: tempfile::TempDir,
}

/// A connection of this process to the agent's Workload API.
pub(crate) struct Workloads {
    sender: SendRequest<Bytes>,
    _driven: JoinSet<Result<(), h2::Error>>,
}

impl Machine {
    pub(crate) async fn start(domain: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp")?;
        let server = Server::start(domain)?;
        let request = CreateTokenRequest { ttl: "10m".parse()?, labels: Vec::new() };
        let token = server.admin.create_token(&request).await?;
        let mut agent = command()?;
        agent.args(["agent", "--output", "json", "--server", &server.address.to_string()]);
        agent.arg("--data").arg(folder.path().join("agent"));
        agent.arg("--socket").arg(socket_in(folder.path()));
        agent.env("COUNTERSIGN_JOIN", token.token);
        agent.env("COUNTERSIGN_TRUST", token.trust.to_string());
        let log = std::fs::File::create(folder.path().join("agent.log"))?;
        let agent = agent.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let mut machine = Self { server, agent, folder };
        ready(&mut machine.agent).context("the agent")?;
        Ok(machine)
    }

    pub(crate) const fn admin(&self) -> &AdminClient {
        &self.server.admin
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket_in(self.folder.path())
    }

    pub(crate) async fn apply(&self, resources: Vec<Value>) -> Result<()> {
        let request = ApplyRequest { resources, base: None, prune: false, dry_run: false };
        self.admin().apply(&request).await?;
        Ok(())
    }

    pub(crate) async fn workloads(&self) -> Result<Workloads> {
        let (sender, connection) = over(UnixStream::connect(self.socket()).await?).await?;
        let mut driven = JoinSet::new();
        driven.spawn(connection);
        Ok(Workloads { sender, _driven: driven })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.agent);
    }
}

fn socket_in(folder: &Path) -> PathBuf {
    folder.join("agent.sock")
}

impl Workloads {
    /// Asks for this process's SVID until there is one, and goes on as long as the call is held.
    ///
    /// The standard leaves a process nothing else: whoever has no identity is refused at once, and has to come again. It
    /// comes after `pause`.
    pub(crate) async fn wait(&self, pause: Duration) -> Result<(Call, X509svid)> {
        let begin = Instant::now();
        loop {
            let mut call = Call::svids(&self.sender).await?;
            match call.hear::<X509svidResponse>().await {
                Ok(Some(answer)) => {
                    let svid = answer.svids.into_iter().next().context("an SVID")?;
                    return Ok((call, svid));
                }
                Ok(None) => bail!("the agent has ended"),
                Err(why) => nobody(why)?,
            }
            ensure!(begin.elapsed() < PATIENCE, "the agent gives no SVID");
            tokio::time::sleep(pause).await;
        }
    }
}

/// Waits until the agent says that this process is nobody any more.
pub(crate) async fn withdrawn(mut call: Call) -> Result<()> {
    let ended = async {
        loop {
            match call.hear::<X509svidResponse>().await {
                Ok(Some(_renewed)) => {}
                Ok(None) => bail!("the agent has ended"),
                Err(why) => return nobody(why),
            }
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.context("the SVID is not withdrawn")?
}

/// That it is nobody is no trouble; anything else is.
fn nobody(why: anyhow::Error) -> Result<()> {
    match why.downcast_ref::<Refused>() {
        Some(refused) if refused.status == NOBODY => Ok(()),
        Some(_) | None => Err(why),
    }
}
