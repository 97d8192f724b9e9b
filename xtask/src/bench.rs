//! The benchmarks: each prints figures with their ratio to a stated limit, measured in the same run.

use anyhow::Result;

use crate::shell::{cargo, step};

/// How figures are printed.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Output {
    Human,
    Json,
}

/// What a fleet is measured with; everything else has no choices.
#[derive(clap::Args)]
pub(crate) struct FleetArguments {
    /// How many agents a fleet has
    #[arg(long)]
    agents: Option<usize>,
    /// Where the distribution is drawn as SVG: a file, or a folder for several
    #[arg(long, value_name = "FILE")]
    plot: Option<std::path::PathBuf>,
}

pub(crate) fn run(output: Output, name: Option<&str>, fleet: &FleetArguments) -> Result<()> {
    let format = match output {
        Output::Human => "human",
        Output::Json => "json",
    };
    // One figure runs the product itself.
    step_quietly(&mut cargo(&["build", "--quiet", "--release"]))?;
    let mut bench = cargo(&["run", "--quiet", "--release", "--package", "countersign-bench", "--"]);
    bench.args(["--output", format]).args(name);
    if let Some(agents) = fleet.agents {
        bench.args(["--agents", &agents.to_string()]);
    }
    if let Some(plot) = &fleet.plot {
        bench.arg("--plot").arg(std::path::absolute(plot)?);
    }
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
