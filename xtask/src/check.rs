//! What is checked without running the product.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use crate::shell::{cargo, output, step};

/// Crates that would bring a second TLS or crypto stack into the product.
const REFUSED: [&str; 4] = ["ring", "openssl-sys", "native-tls", "rustls-native-certs"];

pub(crate) fn run() -> Result<()> {
    step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    crate::layers::run()?;
    one_stack()?;
    let locks = crate::lock::all()?;
    crate::lock::check(&locks)?;
    crate::advisories::check(&locks)?;
    crate::sbom::check()?;
    step(
        "lints",
        &mut cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]),
    )
}

fn one_stack() -> Result<()> {
    println!("── one TLS stack");
    let fixed = ["tree", "--workspace", "--edges", "normal", "--prefix", "none", "--no-dedupe"];
    let tree = output(cargo(&fixed).args(["--format", "{p}"]))?;
    let crates: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    ensure!(crates.contains("rustls"), "`cargo tree` names no rustls: what was looked through?");
    for name in REFUSED {
        ensure!(
            !crates.contains(name),
            "`{name}` is in the dependency tree: `cargo tree --workspace --edges normal --invert {name}` says why"
        );
    }
    Ok(())
}
