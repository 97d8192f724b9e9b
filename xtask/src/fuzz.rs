//! Coverage-guided fuzzing on the stable compiler: libFuzzer with the compiler's own coverage pass.

use anyhow::{Context, Result};

use crate::shell::{cargo, root, step};

/// What `cargo fuzz --sanitizer none` passes, spelled out so that nothing has to be installed.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// With a target named, build scripts are not instrumented.
const TARGET: &str = "x86_64-unknown-linux-gnu";

pub(crate) fn run(seconds: u32, only: Option<&str>) -> Result<()> {
    let folder = root().join("fuzz");
    let mut build = cargo(&["build", "--release", "--target", TARGET]);
    build.current_dir(&folder).env("RUSTFLAGS", FLAGS);
    step("fuzz targets", &mut build)?;
    for target in targets(&folder)? {
        if only.is_some_and(|only| only != target) {
            continue;
        }
        let corpus = folder.join("corpus").join(&target);
        std::fs::create_dir_all(&corpus)
            .with_context(|| format!("cannot make {}", corpus.display()))?;
        // What is found goes to the first folder; the committed corpus is only read.
        let found = folder.join("target/corpus").join(&target);
        std::fs::create_dir_all(&found)
            .with_context(|| format!("cannot make {}", found.display()))?;
        // What fails is kept where no commit takes it by accident.
        let artifacts = folder.join("artifacts").join(&target);
        std::fs::create_dir_all(&artifacts)
            .with_context(|| format!("cannot make {}", artifacts.display()))?;
        let program = folder.join("target").join(TARGET).join("release").join(&target);
        let mut fuzz = std::process::Command::new(program);
        fuzz.arg(format!("-max_total_time={seconds}"));
        fuzz.arg(format!("-artifact_prefix={}/", artifacts.display()));
        fuzz.args([
            "-use_value_profile=1",
            "-rss_limit_mb=2048",
            "-timeout=10",
            "-print_final_stats=1",
        ]);
        fuzz.arg(&found).arg(&corpus).current_dir(&folder);
        step(&format!("fuzz {target}"), &mut fuzz)?;
    }
    Ok(())
}

fn targets(folder: &std::path::Path) -> Result<Vec<String>> {
    let sources = folder.join("fuzz_targets");
    let entries = std::fs::read_dir(&sources)
        .with_context(|| format!("cannot read {}", sources.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}
