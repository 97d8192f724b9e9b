//! The benchmarks: each prints figures with their ratio to a stated limit, measured in the same run.

use anyhow::Result;

use crate::shell::{cargo, step};

/// How figures are printed.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Output {
    Human,
    Json,
}

pub(crate) fn run(output: Output, name: Option<&str>) -> Result<()> {
    let format = match output {
        Output::Human => "human",
        Output::Json => "json",
    };
    // One figure runs the product itself.
    step_quietly(&mut cargo(&["build", "--quiet", "--release"]))?;
    let mut bench = cargo(&["run", "--quiet", "--release", "--package", "countersign-bench", "--"]);
    bench.args(["--output", format]).args(name);
    match output {
        Output::Human => step("benchmarks", &mut bench),
        // One object a line and nothing else.
        Output::Json => step_quietly(&mut bench),
    }
}

fn step_quietly(command: &mut std::process::Command) -> Result<()> {
    anyhow::ensure!(command.status()?.success(), "{command:?} failed");
    Ok(())
}
