//! The program of an earlier commit, built from this repository's history, and the test in which it goes on beside this one on one
//! database.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::shell::{cargo, output, root, step};
use crate::test::packages;

/// The last commit before the newest step of the schema (`crates/store/src/postgres/schema.rs`).
const EARLIER: &str = "034e4c70d0698b48c682443c9e0462d96b1fe287";

/// Which program.
#[derive(Args)]
pub(crate) struct Older {
    /// The commit that it is built of; its schema has to have fewer steps than this one's
    #[arg(long, value_name = "REV", default_value = EARLIER)]
    revision: String,
    /// Leave the machine's packages as they are
    #[arg(long)]
    no_install: bool,
}

/// Builds it, and runs the test.
///
/// # Errors
/// When the commit is not in the history, something does not build, or the two do not get on with each other.
pub(crate) fn run(older: &Older) -> Result<()> {
    let commit = commit(&root(), &older.revision)?;
    if !older.no_install {
        packages(&["postgresql", "curl", "openssl"])?;
    }
    let folder = root().join("target/older");
    let program = build(&folder, &commit)?;
    let mut test = cargo(&["test", "--package", "countersign-cli", "--test", "older_replica"]);
    test.args(["--", "--nocapture"]).env("COUNTERSIGN_OLDER", &program);
    step(&format!("this program beside that of {}", &commit[..12]), &mut test)
}

/// The whole name of a commit that is here.
fn commit(repository: &Path, revision: &str) -> Result<String> {
    let asked = git(repository, &["rev-parse", "--is-shallow-repository"]).output();
    let asked = asked.context("cannot start git")?;
    if !asked.status.success() {
        bail!("an earlier program is built from the history, and this is no git repository");
    }
    let named = format!("{revision}^{{commit}}");
    let arguments = ["rev-parse", "--verify", "--quiet", "--end-of-options", &named];
    if let Ok(commit) = output(&mut git(repository, &arguments)) {
        return Ok(commit.trim().to_owned());
    }
    if asked.stdout.starts_with(b"true") {
        bail!(
            "`{revision}` is not in what is here of the history: fetch the rest with `git fetch --unshallow`"
        );
    }
    bail!("`{revision}` is no commit of this repository: name one with `--revision`")
}

fn git(repository: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(repository).args(arguments);
    command
}

/// The sources of a commit, which are removed again. What was built of them stays, so that the next time is shorter.
struct Sources {
    at: PathBuf,
}

impl Sources {
    fn check_out(at: PathBuf, commit: &str) -> Result<Self> {
        let sources = Self { at };
        // A run that was cut off may have left some.
        sources.remove();
        let mut add = git(&root(), &["worktree", "add", "--quiet", "--force", "--detach"]);
        step(&format!("the sources of {commit}"), add.arg(&sources.at).arg(commit))?;
        Ok(sources)
    }

    fn remove(&self) {
        if self.at.exists() {
            let mut remove = git(&root(), &["worktree", "remove", "--force", "--force"]);
            if let Err(error) = step("the sources removed", remove.arg(&self.at)) {
                eprintln!("{error:#}");
            }
        }
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Builds a commit's program, not optimised, which is sooner done.
fn build(folder: &Path, commit: &str) -> Result<PathBuf> {
    let sources = Sources::check_out(folder.join("sources"), commit)?;
    let target = folder.join("target");
    if !target.exists() {
        let here = std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), Into::into);
        lend(&here.join("debug"), &target.join("debug"))?;
    }
    // In a folder of its own: cargo takes two checkouts of one workspace for the same.
    let mut build = cargo(&["build", "--locked", "--bin", "countersign"]);
    build.current_dir(&sources.at).env("CARGO_TARGET_DIR", &target);
    step("the earlier program", &mut build)?;
    Ok(target.join("debug/countersign"))
}

/// Copies what was built here of crates that are not this workspace's: of those that the earlier program has as well, most take longer
/// than all of its own.
fn lend(from: &Path, to: &Path) -> Result<()> {
    for part in ["deps", ".fingerprint", "build"] {
        let Ok(entries) = std::fs::read_dir(from.join(part)) else { continue };
        for entry in entries {
            let entry = entry.with_context(|| from.join(part).display().to_string())?;
            if is_foreign(&entry.file_name().to_string_lossy(), part) {
                copy(&entry.path(), &to.join(part).join(entry.file_name()))?;
            }
        }
    }
    Ok(())
}

/// Whether a file or folder that cargo has made there is of no crate of this workspace.
fn is_foreign(name: &str, part: &str) -> bool {
    let made_of = name.strip_prefix("lib").unwrap_or(name);
    let ours = ["countersign", "xtask"].iter().any(|ours| made_of.starts_with(ours));
    // Programs of tests have no ending.
    let library = [".rlib", ".rmeta", ".so", ".dylib", ".d"].iter().any(|end| name.ends_with(end));
    !ours && (library || part != "deps")
}

/// Copies a file or a folder with the times of its files, by which cargo knows what is up to date.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let told = || format!("cannot copy {} to {}", from.display(), to.display());
    if from.is_dir() {
        for entry in std::fs::read_dir(from).with_context(told)? {
            let entry = entry.with_context(told)?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    let folder = to.parent().context("a copy lies in a folder")?;
    std::fs::create_dir_all(folder).with_context(told)?;
    std::fs::copy(from, to).with_context(told)?;
    let time = from.metadata().and_then(|of| of.modified()).with_context(told)?;
    let copied = std::fs::File::options().append(true).open(to).with_context(told)?;
    copied.set_modified(time).with_context(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_of_this_workspace_is_lent() {
        let foreign = |name, part| is_foreign(name, part);
        assert!(foreign("libtokio-0a1b.rlib", "deps") && foreign("tokio-0a1b.d", "deps"));
        assert!(foreign("libserde_derive-0a1b.so", "deps"));
        assert!(foreign("aws-lc-sys-0a1b", "build") && foreign("aws-lc-sys-0a1b", ".fingerprint"));
        assert!(!foreign("libcountersign_store-0a1b.rlib", "deps"));
        assert!(!foreign("countersign-store-0a1b", ".fingerprint"));
        assert!(!foreign("xtask-0a1b.d", "deps") && !foreign("replicas-0a1b", "deps"));
    }

    #[test]
    fn a_commit_that_is_not_here_is_told_of_by_what_can_be_done() {
        let folder = root().join("target/older-tests");
        let _absent = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let place = |name: &str| folder.join(name);
        let told = |at: &Path, revision: &str| commit(at, revision).unwrap_err().to_string();
        output(git(&folder, &["init", "--quiet"]).arg(place("whole"))).unwrap();
        let whole = place("whole");
        let identity = ["-c", "user.name=me", "-c", "user.email=me@example.com"];
        for text in ["one", "two"] {
            let save = ["commit", "--quiet", "--allow-empty", "--no-gpg-sign", "-m", text];
            output(&mut git(&whole, &[&identity[..], &save].concat())).unwrap();
        }
        let [one, two] = ["HEAD^", "HEAD"].map(|name| commit(&whole, name).unwrap());
        assert_eq!(
            told(&whole, "v9"),
            "`v9` is no commit of this repository: name one with `--revision`"
        );
        assert!(told(&whole, "--all").contains("no commit"));
        let mut clone = git(&folder, &["clone", "--quiet", "--depth", "1"]);
        output(clone.arg(format!("file://{}", whole.display())).arg(place("shallow"))).unwrap();
        let shallow = place("shallow");
        assert_eq!(commit(&shallow, "HEAD").unwrap(), two);
        assert!(told(&shallow, &one).contains("git fetch --unshallow"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
