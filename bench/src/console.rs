//! What a page of the console costs where there is much to show.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use countersign_api::admin::{AdminClient, ApplyRequest};
use countersign_server::{Config, ConsoleConfig, InitConfig};
use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::figure::{Asked, Figure, Output, Verdict};

const WORKLOADS: usize = 10_000;
const ROUNDS: usize = 3;
/// Every page of the console, the last page of the long list, a search of it, and one of it.
const PAGES: [&str; 12] = [
    "/",
    "/map",
    "/workloads",
    "/workloads?page=200",
    "/workloads?q=w0999",
    "/workloads/w00042",
    "/nodes",
    "/authorities",
    "/policies",
    "/revocations",
    "/log",
    "/handshakes",
];

/// The slowest page of all, each the best of three, asked for by curl over connections of their own, TLS included.
pub(crate) fn page(output: Output) -> Result<Verdict> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let millis = runtime.block_on(slowest())?;
    let figure = Figure {
        name: "console_page",
        value: millis,
        unit: "ms",
        limit: 200.0,
        limit_is: "ms for any page with 10,000 workloads, asked for",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
}

async fn slowest() -> Result<f64> {
    let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp")?;
    let data = folder.path().join("d");
    countersign_server::init(InitConfig::new(&data, "bench.example".parse()?)).await?;
    let config = Config {
        console: Some(ConsoleConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            names: vec!["localhost".parse()?],
        }),
        ..Config::new(&data, ([127, 0, 0, 1], 0).into())
    };
    let stop = CancellationToken::new();
    let (tell, told) = oneshot::channel();
    let server = tokio::spawn(countersign_server::run(config, stop.clone(), tell));
    let ready = told.await.context("the server does not start")?;
    let admin = AdminClient::new(&ready.admin);
    let resources = (0..WORKLOADS).map(workload).collect();
    admin.apply(&ApplyRequest { resources, base: None, prune: false, dry_run: false }).await?;
    let link = admin.console_link().await?;
    let root = folder.path().join("root.pem");
    std::fs::write(&root, &link.root)?;
    let place = folder.path().to_owned();
    let millis = tokio::task::spawn_blocking(move || browse(&place, &link.url)).await??;
    stop.cancel();
    server.await??;
    Ok(millis)
}

fn workload(number: usize) -> serde_json::Value {
    json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "Workload",
        "metadata": { "name": format!("w{number:05}") },
        "spec": { "selectors": [format!("launch:w{number:05}")], "lifetime": "15m" },
    })
}

fn browse(place: &Path, link: &str) -> Result<f64> {
    let (login, secret) = link.split_once('#').context("a link has a secret")?;
    let origin = login.trim_end_matches("/login");
    let (header, form) = (format!("Origin: {origin}"), format!("link={secret}"));
    // The console's first certificate may be on its way still.
    let patient = ["--retry", "20", "--retry-delay", "1", "--retry-all-errors"];
    curl(place, &patient, login)?;
    curl(place, &["-H", &header, "-d", &form], login)?;
    let mut worst: f64 = 0.0;
    for page in PAGES {
        let url = format!("{origin}{page}");
        let mut best = f64::INFINITY;
        for _round in 0..ROUNDS {
            best = best.min(curl(place, &[], &url)?);
        }
        worst = worst.max(best);
    }
    Ok(worst)
}

/// Asks for one address: how many milliseconds it took.
fn curl(place: &Path, more: &[&str], url: &str) -> Result<f64> {
    let jar = place.join("cookies");
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code} %{time_total}", "--cacert"]);
    curl.arg(place.join("root.pem")).arg("-b").arg(&jar).arg("-c").arg(&jar);
    let output = curl.args(more).arg(url).output().context("curl is installed")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (status, seconds) = said.split_once(' ').context("curl says what it measured")?;
    ensure!(status == "200" || status == "303", "{url} was answered with {status}");
    let page = !url.ends_with("/login");
    ensure!(!page || status == "200", "{url} was answered with {status}");
    Ok(seconds.parse::<f64>()? * 1000.0)
}
