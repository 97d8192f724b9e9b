//! Latency through three services while certificates of 10 s are renewed again and again, against the same without renewal.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::figure::{Asked, Figure, Output, Verdict};
use crate::load::Load;

/// Requests a second, and for how long.
const PER_SECOND: u32 = 500;
const SPAN: Duration = Duration::from_secs(60);

pub(crate) fn run(output: Output) -> Result<Verdict> {
    let calm = p99("1h")?;
    let rotating = p99("10s")?;
    let figure = Figure {
        name: "rotation_p99",
        value: rotating,
        unit: "ms",
        limit: calm,
        limit_is: "ms at the 99th percentile with certificates of one hour, the same load",
        asked: Asked::Less,
    };
    Ok(figure.print(output))
}

/// Milliseconds at the 99th percentile, over `up` with this lifetime. Not one request may fail.
fn p99(lifetime: &str) -> Result<f64> {
    let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp")?;
    let manifests = manifests(folder.path(), lifetime)?;
    let mut up = Command::new(binary()?)
        .arg("up")
        .arg(&manifests)
        .args(["--output", "json", "--data"])
        .arg(folder.path().join("data"))
        .env("XDG_STATE_HOME", folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start `countersign up`: build it with `cargo build --release`")?;
    let measured = measure(&mut up);
    let pid = up.id().to_string();
    Command::new("kill").args(["-INT", &pid]).status()?;
    up.wait()?;
    measured
}

fn measure(up: &mut Child) -> Result<f64> {
    let mut line = String::new();
    BufReader::new(up.stdout.take().context("an output")?).read_line(&mut line)?;
    let ready: serde_json::Value =
        serde_json::from_str(&line).context("`up` did not become ready")?;
    let web = ready["web"].as_str().context("a front door")?.trim_start_matches("http://");
    let load = Load::start(web, PER_SECOND);
    std::thread::park_timeout(SPAN);
    let outcome = load.stop();
    ensure!(
        outcome.failures.is_empty(),
        "{} requests failed: {:?}",
        outcome.failures.len(),
        outcome.failures.first()
    );
    Ok(outcome.quantile(990).as_secs_f64() * 1000.0)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.with_file_name("countersign"))
}

fn manifests(to: &Path, lifetime: &str) -> Result<PathBuf> {
    let folder = to.join("shop");
    std::fs::create_dir(&folder)?;
    for entry in std::fs::read_dir(root().join("examples/shop"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            std::fs::copy(&path, folder.join(path.file_name().context("a name")?))?;
        }
    }
    let domain = format!(
        "apiVersion: countersign.dev/v1alpha1\nkind: TrustDomain\nmetadata: {{name: shop}}\n\
         spec: {{trustDomain: shop.example, svidLifetime: {lifetime}}}\n"
    );
    std::fs::write(folder.join("trust-domain.yaml"), domain)?;
    Ok(folder)
}
