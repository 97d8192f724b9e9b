//! Who may know whom: a crate knows only crates of lower layers (ARCHITECTURE.md).

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell::{cargo, output};

/// Layer of each package. A dependency must lie in a lower one, but for the exceptions below.
const LAYERS: [(&str, u8); 20] = [
    ("countersign-identity", 0),
    ("countersign-pki", 1),
    ("countersign-policy", 1),
    ("countersign-audit", 1),
    ("countersign-seal", 1),
    ("countersign-api", 2),
    ("countersign-store", 2),
    ("countersign-tls", 2),
    ("countersign-token", 2),
    ("countersign", 3),
    ("countersign-program", 3),
    ("countersign-server", 4),
    ("countersign-agent", 4),
    ("countersign-proxy", 4),
    ("countersign-shop", 4),
    ("countersign-cli", 5),
    ("countersign-sim", 5),
    ("countersign-bench", 5),
    ("countersign-bench-bare", 5),
    ("xtask", 6),
];

/// A crate that is drawn to keep a dependency out of all others: nobody else may name it.
const KEPT: [(&str, &str); 7] = [
    ("cryptoki", "countersign-token"),
    ("rusqlite", "countersign-store"),
    ("tokio-postgres", "countersign-store"),
    ("cedar-policy", "countersign-policy"),
    ("prost", "countersign-api"),
    ("tonic-prost", "countersign-api"),
    ("fluke-hpack", "countersign-agent"),
];

/// What the programs on each machine may never link: neither databases nor what holds the trust domain's keys, nor each
/// other. `countersign-agent` and `countersign-proxy` are made of these packages alone.
const SLIM: [(&str, [&str; 8]); 2] = [
    (
        "countersign-proxy",
        [
            "cryptoki",
            "argon2",
            "rusqlite",
            "tokio-postgres",
            "countersign-store",
            "countersign-server",
            "countersign-agent",
            "countersign-seal",
        ],
    ),
    (
        "countersign-agent",
        [
            "cryptoki",
            "argon2",
            "rusqlite",
            "tokio-postgres",
            "countersign-store",
            "countersign-server",
            "countersign-proxy",
            "countersign-seal",
        ],
    ),
];

pub(crate) fn run() -> Result<()> {
    println!("── layers");
    let text = output(&mut cargo(&["metadata", "--format-version", "1", "--no-deps"]))?;
    let problems = problems(&serde_json::from_str(&text)?)?;
    if !problems.is_empty() {
        bail!("layers:\n  {}", problems.join("\n  "));
    }
    SLIM.iter().try_for_each(|(program, refused)| links_none(program, refused))
}

/// What a program may never link.
#[cfg(test)]
pub(crate) fn refused(program: &str) -> &'static [&'static str] {
    let of = SLIM.iter().find(|(slim, _)| *slim == program);
    of.map_or(&[], |(_, refused)| refused)
}

/// Whether a program links none of these packages.
fn links_none(program: &str, refused: &[&str]) -> Result<()> {
    let tree = output(&mut cargo(&[
        "tree", "-p", program, "--edges", "normal", "--prefix", "none", "--format", "{p}",
    ]))?;
    let linked = |name: &str| tree.lines().any(|line| line.split(' ').next() == Some(name));
    match refused.iter().find(|name| linked(name)) {
        Some(name) => bail!("layers: `{program}` links `{name}`"),
        None => Ok(()),
    }
}

fn problems(metadata: &Value) -> Result<Vec<String>> {
    let layers: BTreeMap<&str, u8> = LAYERS.into_iter().collect();
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().context("no packages")? {
        let name = package["name"].as_str().context("no name")?;
        let Some(layer) = layers.get(name) else {
            problems.push(format!("`{name}` is in no layer: add it to xtask/src/layers.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().context("no dependencies")? {
            let other = dependency["name"].as_str().context("no name")?;
            // Tests may know more than the code does, but never the other way round.
            if dependency["kind"].is_null() {
                problems.extend(problem(name, *layer, other, &layers));
            }
        }
    }
    Ok(problems)
}

fn problem(name: &str, layer: u8, other: &str, layers: &BTreeMap<&str, u8>) -> Option<String> {
    if let Some(&below) = layers.get(other) {
        return (layer <= below)
            .then(|| format!("`{name}` (layer {layer}) knows `{other}` (layer {below})"));
    }
    let (_, keeper) = KEPT.into_iter().find(|(kept, _)| *kept == other)?;
    (name != keeper && name != "xtask")
        .then(|| format!("`{name}` knows `{other}`, which only `{keeper}` may"))
}
