//! The binary `countersign-proxy`: the proxy alone, with none of the control plane's code.

use std::process::ExitCode;

fn main() -> ExitCode {
    countersign_proxy::command::main()
}
