//! Whether the same sources give the same bytes: two builds of a program from nothing, in folders of different names and with
//! cargo's home under different names, compared.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::shell::{cargo, output, root, step};

/// Which program, and where it is built.
#[derive(Args)]
pub(crate) struct Builds {
    /// Which program is built twice
    #[arg(long, default_value = "countersign")]
    bin: String,
    /// An example in its place, which is sooner done: `countersign-pki/gen_vectors`
    #[arg(long, value_name = "PACKAGE/NAME", conflicts_with = "bin")]
    example: Option<String>,
    /// How it is built: `dist` is linked as one, as it is shipped
    #[arg(long, default_value = "release", value_parser = ["release", "dist"])]
    profile: String,
    /// Keep both folders, to look for what differs
    #[arg(long)]
    keep: bool,
}

/// Where it is built, and under which name cargo finds its home there. No two are of one length, which alone could hide a
/// difference.
const PLACES: [(&str, &str); 2] = [("one", "home"), ("another-place", "a-second-home")];

/// Builds the last commit twice, and compares.
///
/// # Errors
/// When the bytes differ, hold a path of this machine, or something does not build.
pub(crate) fn run(builds: &Builds) -> Result<()> {
    let folder = root().join("target/reproducible");
    let (home, what) = (cargo_home()?, builds.what()?);
    let mut found = Vec::new();
    for (place, home_name) in PLACES {
        let place = Place { at: folder.join(place), home: folder.join(home_name) };
        place.make(&home)?;
        let program = place.build(&what)?;
        let bytes = std::fs::read(&program).with_context(|| program.display().to_string())?;
        println!("{}", output(Command::new("sha256sum").arg(&program))?.trim());
        found.push((place, bytes));
    }
    let [(_, first), (_, second)] = found.as_slice() else { unreachable!("there are two places") };
    for path in [&*folder, root().as_path(), home.as_path()] {
        if let Some(leak) = text_around(first, path) {
            println!("holds a path of this machine: {leak}");
        }
    }
    let apart = first.iter().zip(second).position(|(one, other)| one != other);
    ensure!(
        apart.is_none() && first.len() == second.len(),
        "two builds of the same sources differ: {} and {} bytes, from byte {} on; `--keep` keeps them in {}",
        first.len(),
        second.len(),
        apart.unwrap_or(first.len().min(second.len())),
        folder.display()
    );
    ensure!(
        text_around(first, &folder).is_none() && text_around(first, &home).is_none(),
        "the program holds paths of this machine"
    );
    println!("two builds in two folders, {} bytes, the same", first.len());
    if !builds.keep {
        remove(&folder)?;
    }
    Ok(())
}

/// What is built.
struct What {
    package: String,
    profile: String,
    /// As cargo is told.
    selected: [String; 2],
    /// Where it is then.
    program: String,
}

impl Builds {
    fn what(&self) -> Result<What> {
        let profile = self.profile.clone();
        if let Some(example) = &self.example {
            let named = example.split_once('/');
            let (package, name) =
                named.with_context(|| format!("`{example}` is not PACKAGE/NAME"))?;
            let selected = ["--example".to_owned(), name.to_owned()];
            let program = format!("examples/{name}");
            return Ok(What { package: package.to_owned(), profile, selected, program });
        }
        let bin = self.bin.clone();
        let package = if bin == "countersign" { "countersign-cli" } else { &bin }.to_owned();
        Ok(What { package, profile, selected: ["--bin".to_owned(), bin.clone()], program: bin })
    }
}

/// A folder with the sources of the last commit, and what is built of them.
struct Place {
    at: PathBuf,
    home: PathBuf,
}

impl Place {
    fn make(&self, home: &Path) -> Result<()> {
        remove(&self.at)?;
        std::fs::create_dir_all(&self.at)
            .with_context(|| format!("cannot make {}", self.at.display()))?;
        let sources = self.at.with_extension("tar");
        let mut archive = Command::new("git");
        archive.args(["archive", "--format=tar", "-o"]).arg(&sources).arg("HEAD");
        step("the sources of the last commit", archive.current_dir(root()))?;
        step("unpacked", Command::new("tar").arg("-xf").arg(&sources).arg("-C").arg(&self.at))?;
        // What was fetched is the same, under another name.
        let _absent = std::fs::remove_file(&self.home);
        std::os::unix::fs::symlink(home, &self.home)
            .with_context(|| format!("cannot make {}", self.home.display()))
    }

    fn build(&self, what: &What) -> Result<PathBuf> {
        let (at, home) = (self.at.display(), self.home.display());
        let paths = [format!("{at}=/countersign"), format!("{home}=/cargo")];
        let rust = paths.each_ref().map(|path| format!("--remap-path-prefix={path}"));
        let c = paths.each_ref().map(|path| format!("-ffile-prefix-map={path}"));
        let mut build = cargo(&["build", "--locked", "--profile", &what.profile]);
        build.args(["--package", &what.package]);
        build.args(&what.selected);
        build.current_dir(&self.at).env("CARGO_HOME", &self.home);
        build.env("CARGO_ENCODED_RUSTFLAGS", rust.join("\u{1f}")).env("CFLAGS", c.join(" "));
        // What the calling cargo or shell may have set would be part of it.
        for variable in ["RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "RUSTC_WRAPPER"] {
            build.env_remove(variable);
        }
        build.env("CARGO_INCREMENTAL", "0").env("SOURCE_DATE_EPOCH", "0");
        step(&format!("{} in {at}", what.program), &mut build)?;
        Ok(self.at.join("target").join(&what.profile).join(&what.program))
    }
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn cargo_home() -> Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let usual = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    home.or_else(usual).context("neither CARGO_HOME nor HOME says where cargo keeps its files")
}

/// The text around the first place where this path stands.
fn text_around(bytes: &[u8], path: &Path) -> Option<String> {
    let path = path.as_os_str().as_encoded_bytes();
    let at = bytes.windows(path.len()).position(|part| part == path)?;
    let rest = bytes[at..].iter().take_while(|byte| byte.is_ascii_graphic()).take(200);
    Some(rest.map(|byte| char::from(*byte)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_with_what_follows_it() {
        let bytes = b"\0\x01/home/me/.cargo/registry/x.rs\0more";
        let found = text_around(bytes, Path::new("/home/me"));
        assert_eq!(found.as_deref(), Some("/home/me/.cargo/registry/x.rs"));
        assert_eq!(text_around(bytes, Path::new("/home/you")), None);
    }
}
