//! What is checked without running the product.

use anyhow::{Result, ensure};

use crate::shell::{cargo, step};

/// Crates that would bring a second TLS or crypto stack into the product.
const REFUSED: [&str; 4] = ["ring", "openssl-sys", "native-tls", "rustls-native-certs"];

pub(crate) fn run() -> Result<()> {
    step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    crate::layers::run()?;
    one_stack()?;
    crate::sbom::check()?;
    step(
        "lints",
        &mut cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]),
    )
}

fn one_stack() -> Result<()> {
    println!("── one TLS stack");
    for name in REFUSED {
        let found =
            cargo(&["tree", "--workspace", "--edges", "normal", "--invert", name]).output()?;
        let tree = String::from_utf8_lossy(&found.stdout);
        ensure!(tree.trim().is_empty(), "`{name}` is in the dependency tree:\n{tree}");
    }
    Ok(())
}
