//! What a program is made of, as a CycloneDX list: every crate that is linked into a binary, with its version, licence and
//! hash. It comes from the lock file and says nothing else, so that the same sources give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::str::SplitWhitespace;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::lock::{self, Lock, Locked, REGISTRY};
use crate::shell::{cargo, output, root};

/// What is built for.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// What is built for users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Binary {
    /// Everything.
    Countersign,
    /// The node alone.
    CountersignAgent,
    /// The data plane alone.
    CountersignProxy,
}

impl Binary {
    /// The package that it is built of.
    const fn package(self) -> &'static str {
        match self {
            Self::Countersign => "countersign-cli",
            Self::CountersignAgent => "countersign-agent",
            Self::CountersignProxy => "countersign-proxy",
        }
    }

    /// What it is called.
    const fn name(self) -> &'static str {
        match self {
            Self::Countersign => "countersign",
            Self::CountersignAgent => "countersign-agent",
            Self::CountersignProxy => "countersign-proxy",
        }
    }
}

/// `cargo metadata`, the part that matters here.
#[derive(Deserialize)]
pub(crate) struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

impl Dependency {
    /// Whether it is linked, and not only used to build or to test.
    fn is_linked(&self) -> bool {
        self.dep_kinds.iter().any(|kind| kind.kind.is_none())
    }
}

/// The hash of each crate of the registry, by name and version.
type Hashes = BTreeMap<(String, String), String>;

/// Names and versions of what is linked into a program.
type Names = BTreeSet<(String, String)>;

fn linked_names(of: &[&str]) -> Result<Names> {
    let asked = ["tree", "--locked", "--offline", "--target", PLATFORM];
    let form = ["--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"];
    let text = output(cargo(&asked).args(of).args(form))?;
    let of = |line: &str| {
        let (name, rest) = line.split_once(" v")?;
        Some((name.to_owned(), rest.split(' ').next()?.to_owned()))
    };
    Ok(text.lines().filter_map(of).collect())
}

fn hashes(lock: Lock) -> Hashes {
    let of = |locked: Locked| Some(((locked.name, locked.version), locked.checksum?));
    lock.packages.into_iter().filter_map(of).collect()
}

/// The product's lock file.
fn product() -> Result<Lock> {
    lock::all()?.into_iter().next().context("a lock file")
}

impl Metadata {
    pub(crate) fn ask(of: &[&str]) -> Result<Self> {
        let asked = ["metadata", "--format-version", "1", "--locked", "--offline"];
        let text = output(cargo(&asked).args(["--filter-platform", PLATFORM]).args(of))?;
        serde_json::from_str(&text).context("cargo metadata")
    }

    /// What is linked of it, by id. The description also names what no feature asks for.
    fn linked(&self, names: &Names) -> BTreeMap<&str, &Package> {
        let packages = self.packages.iter().filter(|package| names.contains(&package.key()));
        packages.map(|package| (&*package.id, package)).collect()
    }

    fn below<'a>(&'a self, id: &str, linked: &BTreeMap<&str, &'a Package>) -> BTreeSet<String> {
        let node = self.resolve.nodes.iter().find(|node| node.id == id);
        let deps = node.into_iter().flat_map(|node| &node.deps).filter(|one| one.is_linked());
        deps.filter_map(|one| linked.get(&*one.pkg)).map(|package| package.purl()).collect()
    }
}

impl Package {
    fn key(&self) -> (String, String) {
        (self.name.clone(), self.version.clone())
    }

    /// The name under which it is known outside.
    fn purl(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version)
    }

    fn component(&self, hashes: &Hashes) -> Result<Value> {
        let Self { name, version, .. } = self;
        let mut component = json!({
            "type": "library", "bom-ref": self.purl(), "name": name, "version": version,
            "purl": self.purl(),
        });
        let fields = component.as_object_mut().context("an object")?;
        if let Some(license) = &self.license {
            // Before there was a standard for it, a slash meant a choice.
            let license = license.replace('/', " OR ");
            let license = license.split_whitespace().collect::<Vec<_>>().join(" ");
            fields.insert("licenses".to_owned(), json!([{ "expression": license }]));
        }
        if let Some(source) = &self.source {
            ensure!(source == REGISTRY, "`{name}` comes from {source}");
            let hash = hashes.get(&self.key());
            let hash =
                hash.with_context(|| format!("`{name}` {version} has no hash in Cargo.lock"))?;
            fields.insert("hashes".to_owned(), json!([{ "alg": "SHA-256", "content": hash }]));
        }
        Ok(component)
    }
}

/// The whole list.
fn list(binary: Binary, hashes: &Hashes) -> Result<Value> {
    let names = linked_names(&["--package", binary.package()])?;
    let metadata = Metadata::ask(&[])?;
    let linked = metadata.linked(&names);
    let is_product = |package: &Package| package.name == binary.package();
    let product = linked.values().find(|package| is_product(package)).context("the product")?;
    let mut components = BTreeMap::new();
    let mut dependencies = BTreeMap::new();
    for (id, package) in &linked {
        if !is_product(package) {
            components.insert(package.purl(), package.component(hashes)?);
        }
        let below = metadata.below(id, &linked);
        dependencies.insert(package.purl(), json!({ "ref": package.purl(), "dependsOn": below }));
    }
    let about = json!({
        "type": "application", "bom-ref": product.purl(), "name": binary.name(),
        "version": product.version, "purl": product.purl(),
        "licenses": [{ "expression": product.license }],
    });
    Ok(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": { "component": about },
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": dependencies.into_values().collect::<Vec<_>>(),
    }))
}

/// Prints the list.
pub(crate) fn run(binary: Binary) -> Result<()> {
    let list = list(binary, &hashes(product()?))?;
    println!("{}", serde_json::to_string_pretty(&list)?);
    Ok(())
}

/// Checks every crate's licence against `deny.toml`, and that nothing is used that it bans, without a download. In the workspaces
/// apart that can be done only where their crates have been downloaded, and it is said where they have not.
///
/// # Errors
/// With the first that may not enter.
pub(crate) fn check() -> Result<()> {
    println!("── licences");
    let rules = Rules::read()?;
    rules.hold(&["--package", Binary::Countersign.package()], &[])?;
    for manifest in lock::APART {
        let of = ["--manifest-path", manifest];
        let known = cargo(&["metadata", "--format-version", "1", "--locked", "--offline"])
            .args(of)
            .output()
            .context("cargo metadata")?;
        if known.status.success() {
            rules.hold(&of, &of)?;
            continue;
        }
        let why = format!(
            "the licences of {manifest} are not looked at: its crates are not on this machine; run `cargo fetch --locked \
             --manifest-path {manifest}` first"
        );
        ensure!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
        eprintln!("xtask: warning: {why}");
    }
    Ok(())
}

#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

/// What one crate may have beside.
#[derive(Deserialize)]
struct Exception {
    name: String,
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Banned>,
}

#[derive(Deserialize)]
struct Banned {
    name: String,
}

impl Rules {
    fn read() -> Result<Self> {
        let rules = std::fs::read_to_string(root().join("deny.toml")).context("deny.toml")?;
        toml::from_str(&rules).context("deny.toml")
    }

    /// Whether all that is described may enter, and nothing is linked that may not.
    fn hold(&self, linked: &[&str], described: &[&str]) -> Result<()> {
        let linked = linked_names(linked)?;
        for package in Metadata::ask(described)?.packages {
            let refused = linked.contains(&package.key()) && self.denies(&package.name);
            let Package { name, version, license, .. } = package;
            let license = license.unwrap_or_default();
            // Crates of ours that are never published may say nothing.
            ensure!(
                package.source.is_none() && license.is_empty() || self.allows(&name, &license),
                "`{name}` {version} is licensed `{license}` (deny.toml)"
            );
            ensure!(!refused, "`{name}` {version} may not be used (deny.toml)");
        }
        Ok(())
    }

    /// Whether one of the choices that an SPDX expression gives is allowed in all its parts.
    fn allows(&self, name: &str, expression: &str) -> bool {
        let Licenses { allow, exceptions } = &self.licenses;
        let of_its_own = exceptions.iter().filter(|exception| exception.name == name);
        let listed = allow.iter().chain(of_its_own.flat_map(|exception| &exception.allow));
        let allowed: BTreeSet<&str> = listed.map(String::as_str).collect();
        let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let mut words = spaced.split_whitespace().peekable();
        any(&mut words, &allowed) == Some(true) && words.next().is_none()
    }

    fn denies(&self, name: &str) -> bool {
        self.bans.deny.iter().any(|banned| banned.name == name)
    }
}

type Words<'a> = Peekable<SplitWhitespace<'a>>;

/// Choices; nothing when the expression is not one.
fn any(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> Option<bool> {
    let mut found = all(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        found |= all(words, allowed)?;
    }
    Some(found)
}

/// Parts of one choice, which bind closer.
fn all(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> Option<bool> {
    let mut found = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        found &= one(words, allowed)?;
    }
    Some(found)
}

/// A licence, with its exception; or what stands in brackets.
fn one(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> Option<bool> {
    // Who may have it under this version or a later one may have it under this.
    let word = words.next()?.trim_end_matches('+');
    if word == "(" {
        let found = any(words, allowed)?;
        return words.next_if_eq(&")").map(|_| found);
    }
    if words.next_if_eq(&"WITH").is_some() {
        let exception = words.next()?;
        return Some(allowed.contains(&*format!("{word} WITH {exception}")));
    }
    Some(allowed.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_the_lock_file_s_and_the_same_each_time() {
        let hashes = hashes(product().unwrap());
        let made = || list(Binary::Countersign, &hashes).unwrap();
        let once = made();
        assert_eq!(once.to_string(), made().to_string());
        let components = once["components"].as_array().unwrap();
        let named = |name: &str| components.iter().find(|component| component["name"] == name);
        for component in components {
            let (name, version) = (&component["name"], &component["version"]);
            let key = (name.as_str().unwrap().to_owned(), version.as_str().unwrap().to_owned());
            let told = component["hashes"][0]["content"].as_str().map(str::to_owned);
            assert_eq!(told.as_ref(), hashes.get(&key), "{name} {version}");
            assert!(component["licenses"][0]["expression"].is_string(), "{name} {version}");
        }
        // What is linked is there, and what only builds or tests is not.
        assert!(named("rustls").is_some() && named("aws-lc-sys").is_some());
        for absent in ["proptest", "cc", "xtask", "ring", "syn", "serde_derive"] {
            assert!(named(absent).is_none(), "{absent}");
        }
        let ids: BTreeSet<&str> =
            components.iter().map(|component| component["bom-ref"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), components.len());
        for dependency in once["dependencies"].as_array().unwrap() {
            for below in dependency["dependsOn"].as_array().unwrap() {
                assert!(ids.contains(below.as_str().unwrap()), "{below}");
            }
        }
    }

    #[test]
    fn the_slim_programs_list_nothing_that_they_must_not_link() {
        let hashes = hashes(product().unwrap());
        let listed = |binary: Binary| -> BTreeSet<String> {
            let list = list(binary, &hashes).unwrap();
            assert_eq!(list["metadata"]["component"]["name"], binary.name());
            let components = list["components"].as_array().unwrap().iter();
            components.map(|component| component["name"].as_str().unwrap().to_owned()).collect()
        };
        let whole = listed(Binary::Countersign);
        for (binary, refused) in [Binary::CountersignProxy, Binary::CountersignAgent]
            .map(|binary| (binary, crate::layers::refused(binary.package())))
        {
            let slim = listed(binary);
            for name in
                refused.iter().chain(&["libsqlite3-sys", "postgres-protocol", "cryptoki-sys"])
            {
                assert!(
                    whole.contains(*name),
                    "`{name}` is linked nowhere: what was looked through?"
                );
                assert!(!slim.contains(*name), "{binary:?} lists {name}");
            }
            assert!(slim.contains("rustls") && slim.contains("aws-lc-sys"), "{binary:?}");
            assert!(slim.len() < whole.len(), "{binary:?}");
        }
    }

    #[test]
    fn a_licence_is_allowed_when_one_choice_is() {
        let allow = ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned).to_vec();
        let rules =
            Rules { licenses: Licenses { allow, exceptions: vec![] }, bans: Bans { deny: vec![] } };
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "MIT/Apache-2.0",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "GPL-3.0 AND MIT OR Apache-2.0",
            "((MIT) AND (GPL-3.0 OR Unicode-3.0))",
        ] {
            assert!(rules.allows("a", good), "{good}");
        }
        for bad in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "",
            "MIT OR",
            "(MIT",
            "MIT)",
            "MIT Apache-2.0",
            "Apache-2.0 WITH something",
            "MIT AND (GPL-3.0 OR GPL-2.0)",
            "(MIT OR Apache-2.0) AND GPL-3.0",
        ] {
            assert!(!rules.allows("a", bad), "{bad}");
        }
    }

    #[test]
    fn an_exception_is_for_the_one_crate_that_it_names() {
        let exception = Exception { name: "a".to_owned(), allow: vec!["MPL-2.0".to_owned()] };
        let licenses = Licenses { allow: vec!["MIT".to_owned()], exceptions: vec![exception] };
        let rules = Rules { licenses, bans: Bans { deny: vec![] } };
        assert!(rules.allows("a", "MPL-2.0+") && !rules.allows("b", "MPL-2.0+"));
    }

    #[test]
    fn every_crate_may_enter() {
        check().unwrap();
    }
}
