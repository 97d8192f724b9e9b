//! A root's rotation, from the order to the proof of its end, while requests go through proxies.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use countersign_api::admin::{AdminClient, OrderView, RotateRequest};
use serde_json::Value;

use super::figures::Options;
use super::server::{command, ready};
use super::{Fleet, Place, limits};
use crate::figure::{Asked, Figure, Verdict};
use crate::load::Load;

const AGENTS_MAX: usize = 1000;
const WORKLOADS: usize = 5;
const REQUESTS_PER_SECOND: u32 = 200;
/// Traffic before and after, so that a failure at either end is seen.
const AROUND: Duration = Duration::from_secs(3);
const ROTATION_TIMEOUT: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);
/// The domain of the example that carries the requests.
const DOMAIN: &str = "shop.example";

/// `countersign up` with the example shop, ended when this is dropped.
pub(super) struct Shop {
    child: Child,
    folder: tempfile::TempDir,
    ready: Value,
}

impl Shop {
    pub(super) fn open() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp")?;
        let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shop");
        let mut up = command()?;
        up.arg("up").arg(manifests).args(["--output", "json", "--data"]);
        up.arg(folder.path().join("data")).env("XDG_STATE_HOME", folder.path());
        let log = std::fs::File::create(folder.path().join("log"))?;
        let mut child = up.stdout(Stdio::piped()).stderr(log).spawn()?;
        let ready = ready(&mut child)?;
        Ok(Self { child, ready, folder })
    }

    /// A folder that lives as long as the shop.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A command that speaks to this shop.
    pub(super) fn command(&self) -> Result<Command> {
        let mut command = command()?;
        command.env("XDG_STATE_HOME", self.folder());
        Ok(command)
    }

    /// Where the door of a service is.
    pub(super) fn address(&self, service: &str) -> Result<SocketAddr> {
        let url = self.text(service)?;
        let address = url.split_once("://").map_or(url, |(_, address)| address);
        Ok(address.trim_end_matches('/').parse()?)
    }

    fn text(&self, field: &str) -> Result<&str> {
        self.ready[field].as_str().with_context(|| format!("`{field}` of {}", self.ready))
    }

    pub(super) async fn place(&self) -> Result<Place> {
        let admin = AdminClient::new(self.text("admin")?.trim_start_matches("unix://"));
        let trust = admin.authorities().await?.roots.first().context("a root")?.key;
        let address = self.text("server")?.parse()?;
        Ok(Place { admin, address, trust, domain: DOMAIN.to_owned(), sorts: 1 })
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        // It may have ended by itself, which the figure has told by then.
        let _ended = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
        let _reaped = self.child.wait();
    }
}

pub(super) async fn run(options: &Options) -> Result<Verdict> {
    let count = options.agents.min(AGENTS_MAX);
    limits::allow(count)?;
    let shop = Shop::open()?;
    let mut fleet = Fleet::join(shop.place().await?, count, WORKLOADS).await?;
    fleet.sign().await?;
    fleet.attend().await?;
    let web = shop.text("web")?.trim_start_matches("http://").to_owned();
    let load = Load::start(&web, REQUESTS_PER_SECOND);
    tokio::time::sleep(AROUND).await;
    let took = rotate(&fleet.place.admin).await;
    tokio::time::sleep(AROUND).await;
    let outcome = tokio::task::spawn_blocking(|| load.stop()).await?;
    let took = took.with_context(|| fleet.seen.trouble().unwrap_or_default())?;
    let failures = &outcome.failures;
    ensure!(failures.is_empty(), "{} requests failed: {:?}", failures.len(), failures.first());
    let again = fleet.seen.lost.load(Ordering::Relaxed);
    eprintln!(
        "  {} requests meanwhile, none failed; {again} streams tried again",
        outcome.answered
    );
    fleet.end().await;
    let figure = Figure {
        name: "rotate_fleet",
        value: took.as_secs_f64(),
        unit: "s",
        limit: 60.0,
        limit_is: "s from the order to its proven end, 5 workloads an agent, while 200 requests a second go through proxies",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(options.output))
}

/// Orders a rotation, and waits for its end.
async fn rotate(admin: &AdminClient) -> Result<Duration> {
    let begin = Instant::now();
    admin
        .rotate_root(&RotateRequest {
            reason: Some("a rehearsal".to_owned()),
            ..RotateRequest::default()
        })
        .await?;
    loop {
        let view = admin.authorities().await?;
        match (view.order, view.last) {
            (None, Some(last)) if last.ended.is_some() => {
                tell(&last);
                return Ok(begin.elapsed());
            }
            (Some(order), _) if ROTATION_TIMEOUT < begin.elapsed() => {
                return Err(anyhow!("the rotation waits: {:?}", order.steps));
            }
            (None, _) if ROTATION_TIMEOUT < begin.elapsed() => {
                return Err(anyhow!("the rotation is not there"));
            }
            (Some(_) | None, _) => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn tell(order: &OrderView) {
    for view in &order.steps {
        if let Some(at) = view.at {
            eprintln!("  {} after {:.1} s", view.step, at.since(order.begun).as_secs_f64());
        }
    }
}
