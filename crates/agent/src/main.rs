//! The binary `countersign-agent`: the node's agent alone, with none of the control plane's code.

use std::process::ExitCode;

fn main() -> ExitCode {
    countersign_agent::command::main()
}
