//! The lock files of this repository: one of the product, and one of each workspace that is kept apart from it. What they may
//! name is looked at without a download.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::shell::root;

/// Where crates come from; nothing else is taken (`deny.toml`).
pub(crate) const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The manifests of workspaces of their own, each with a lock file beside it.
pub(crate) const APART: [&str; 2] = ["fuzz/Cargo.toml", "crates/audit/oracles/Cargo.toml"];

/// A lock file.
#[derive(Deserialize)]
pub(crate) struct Lock {
    #[serde(skip)]
    pub(crate) file: String,
    #[serde(rename = "package")]
    pub(crate) packages: Vec<Locked>,
}

/// A crate that it names.
#[derive(Clone, Deserialize)]
pub(crate) struct Locked {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) source: Option<String>,
    pub(crate) checksum: Option<String>,
}

impl Lock {
    fn read(file: &str) -> Result<Self> {
        let text = std::fs::read_to_string(root().join(file)).with_context(|| file.to_owned())?;
        Self::parse(file, &text)
    }

    pub(crate) fn parse(file: &str, text: &str) -> Result<Self> {
        let lock: Self = toml::from_str(text).with_context(|| file.to_owned())?;
        ensure!(!lock.packages.is_empty(), "{file} names no crate: what was looked through?");
        Ok(Self { file: file.to_owned(), ..lock })
    }
}

/// All of them.
pub(crate) fn all() -> Result<Vec<Lock>> {
    let apart = APART.iter().map(|manifest| manifest.replace("Cargo.toml", "Cargo.lock"));
    std::iter::once("Cargo.lock".to_owned()).chain(apart).map(|file| Lock::read(&file)).collect()
}

/// Checks that each crate comes from the registry or from this repository, that one name and version is the same bytes in all files,
/// and that none was yanked, as far as cargo's own copy of the index knows.
///
/// # Errors
/// With the first that is not so.
pub(crate) fn check(locks: &[Lock]) -> Result<()> {
    println!("── sources");
    sources(locks, &ours()?)?;
    let mut asked = 0;
    for lock in locks {
        for one in lock.packages.iter().filter(|one| one.source.is_some()) {
            let Some(line) = index_line(one) else { continue };
            asked += 1;
            ensure!(
                !line.yanked,
                "{}: `{}` {} was yanked: run `cargo update -p {}`",
                lock.file,
                one.name,
                one.version,
                one.name
            );
        }
    }
    let named = locks.iter().flat_map(|lock| &lock.packages).filter(|one| one.source.is_some());
    println!(
        "   cargo's copy of the index knows {asked} of {} crates: none is yanked",
        named.count()
    );
    Ok(())
}

/// The names of the crates whose sources are here.
fn ours() -> Result<Vec<String>> {
    let text = crate::shell::output(&mut crate::shell::cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
    ]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let named = packages.iter().filter_map(|package| package["name"].as_str());
    let mut names: Vec<String> = named.map(str::to_owned).collect();
    for manifest in APART {
        let text = std::fs::read_to_string(root().join(manifest)).context(manifest)?;
        let manifest: Manifest = toml::from_str(&text).context(manifest)?;
        names.push(manifest.package.name);
    }
    Ok(names)
}

#[derive(Deserialize)]
struct Manifest {
    package: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

fn sources(locks: &[Lock], ours: &[String]) -> Result<()> {
    let mut sums: BTreeMap<(&str, &str), (&str, &str)> = BTreeMap::new();
    for lock in locks {
        let mut once: BTreeMap<(&str, &str), ()> = BTreeMap::new();
        for Locked { name, version, source, checksum } in &lock.packages {
            let shown = format!("{}: `{name}` {version}", lock.file);
            ensure!(
                once.insert((name, version), ()).is_none(),
                "{shown} is there from two sources"
            );
            let is_ours = ours.contains(name);
            let Some(source) = source else {
                ensure!(
                    is_ours,
                    "{shown} comes from a folder that is none of this repository's crates"
                );
                continue;
            };
            ensure!(source == REGISTRY, "{shown} comes from {source}");
            ensure!(!is_ours, "{shown} comes from the registry under the name of a crate of ours");
            let sum = checksum.as_deref().with_context(|| format!("{shown} has no checksum"))?;
            let (before, elsewhere) = *sums.entry((name, version)).or_insert((sum, &lock.file));
            ensure!(before == sum, "{shown} is not the one of {elsewhere}: the checksums differ");
        }
    }
    Ok(())
}

/// What cargo's index says of one version.
#[derive(Deserialize)]
struct IndexLine {
    vers: String,
    #[serde(default)]
    yanked: bool,
}

/// From the copy of the index that cargo keeps of what it was asked for; nothing when it knows none.
fn index_line(one: &Locked) -> Option<IndexLine> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")))?;
    let indexes = std::fs::read_dir(home.join("registry/index")).ok()?;
    let files =
        indexes.filter_map(|index| Some(index.ok()?.path().join(".cache").join(place(&one.name))));
    files
        .filter_map(|file| std::fs::read(file).ok())
        .find_map(|bytes| in_cache(&bytes, &one.version))
}

/// Where the index keeps a crate.
fn place(name: &str) -> String {
    let name = name.to_lowercase();
    match name.len() {
        1 | 2 => format!("{}/{name}", name.len()),
        3 => format!("3/{}/{name}", &name[..1]),
        _ => format!("{}/{}/{name}", &name[..2], &name[2..4]),
    }
}

/// One line is one version, between bytes of cargo's own.
fn in_cache(bytes: &[u8], version: &str) -> Option<IndexLine> {
    let lines = bytes.split(|byte| *byte == 0).filter(|part| part.first() == Some(&b'{'));
    let mut lines = lines.filter_map(|line| serde_json::from_slice::<IndexLine>(line).ok());
    lines.find(|line| line.vers == version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUSTLS: &str = "[[package]]\nname = \"rustls\"\nversion = \"0.23.46\"\n";
    const FROM: &str = "source = \"registry+https://github.com/rust-lang/crates.io-index\"\n";

    fn lock(file: &str, text: &str) -> Lock {
        Lock::parse(file, text).unwrap()
    }

    #[track_caller]
    fn refused(locks: &[Lock], why: &str) {
        let ours = ["countersign".to_owned()];
        let refused = sources(locks, &ours).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }

    #[test]
    fn every_lock_file_names_only_crates_of_the_registry_and_ours() {
        let locks = all().unwrap();
        assert_eq!(locks.len(), 3);
        check(&locks).unwrap();
    }

    #[test]
    fn what_comes_from_elsewhere_or_twice_is_refused() {
        let good = lock("a", &format!("{RUSTLS}{FROM}checksum = \"11\"\n"));
        sources(std::slice::from_ref(&good), &[]).unwrap();
        let git = format!("{RUSTLS}source = \"git+https://example.com/rustls#1\"\n");
        refused(&[lock("b", &git)], "b: `rustls` 0.23.46 comes from git+https://example.com");
        refused(&[lock("b", RUSTLS)], "comes from a folder");
        refused(&[lock("b", &format!("{RUSTLS}{FROM}"))], "has no checksum");
        let other = lock("b", &format!("{RUSTLS}{FROM}checksum = \"22\"\n"));
        refused(&[good, other], "b: `rustls` 0.23.46 is not the one of a");
        refused(&[lock("b", &format!("{RUSTLS}{FROM}checksum = \"1\"\n{RUSTLS}"))], "two sources");
        let shadow = format!("{RUSTLS}{FROM}checksum = \"1\"\n").replace("rustls", "countersign");
        refused(&[lock("b", &shadow)], "under the name of a crate of ours");
    }

    #[test]
    fn a_yanked_version_is_told_from_the_others_of_its_crate() {
        let cache = b"\x03\x02\0\0\0etag\x001.0.0\0{\"vers\":\"1.0.0\",\"yanked\":true}\x001.0.1\0{\"vers\":\"1.0.1\",\"yanked\":false}\0";
        assert!(in_cache(cache, "1.0.0").unwrap().yanked);
        assert!(!in_cache(cache, "1.0.1").unwrap().yanked);
        assert!(in_cache(cache, "1.0.2").is_none());
        assert_eq!(place("h2"), "2/h2");
        assert_eq!(place("der"), "3/d/der");
        assert_eq!(place("Rustls"), "ru/st/rustls");
    }
}
