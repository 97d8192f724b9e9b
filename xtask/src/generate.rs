//! Files that are written by the code that they describe.

use std::path::Path;

use anyhow::{Context, Result};

use crate::shell::{cargo, output, root, step};

/// What the binary prints, and where the docs keep it.
const PAGES: [(&str, &[&str]); 6] = [
    ("docs/reference/configuration.md", &["reference", "config"]),
    ("docs/reference/codes.md", &["reference", "codes"]),
    ("docs/reference/commands.md", &["reference", "commands"]),
    ("docs/reference/manifests.md", &["reference", "manifests"]),
    ("docs/reference/metrics.md", &["reference", "metrics"]),
    ("docs/reference/events.md", &["reference", "events"]),
];

pub(crate) fn run() -> Result<()> {
    step(
        "verification vectors",
        &mut cargo(&["run", "--quiet", "--package", "countersign-pki", "--example", "gen_vectors"]),
    )?;
    for (path, arguments) in PAGES {
        println!("── {path}");
        let mut command = cargo(&["run", "--quiet", "--package", "countersign-cli", "--"]);
        write(&root().join(path), &output(command.args(arguments))?)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
