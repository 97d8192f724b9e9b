//! Compiles the protos without protoc, and keeps their descriptors for reflection.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use protox::prost::Message;

/// Each set of protos with the name of its descriptor file. The Workload API stands apart: it has no
/// package, and is what reflection shows to everybody.
const SETS: [(&str, &[&str]); 3] = [
    ("workload", &["workload.proto"]),
    ("envoy", &["envoy/service/auth/v3/external_auth.proto"]),
    (
        "countersign.v1",
        &[
            "countersign/v1/node.proto",
            "countersign/v1/enforcement.proto",
            "countersign/v1/agent_status.proto",
            "countersign/v1/replica.proto",
        ],
    ),
];

/// What holds a key or a token. Its `Debug` is written by hand, in `secret_debug.rs`.
const SECRET: [&str; 5] = [
    ".X509SVID",
    ".JWTSVID",
    ".ValidateJWTSVIDRequest",
    ".countersign.v1.AttestRequest",
    ".countersign.v1.AttestRequest.evidence",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for (name, protos) in SETS {
        let descriptors = protox::compile(protos, ["proto"])?;
        fs::write(out.join(format!("{name}.bin")), descriptors.encode_to_vec())?;
        tonic_prost_build::configure()
            .bytes(".countersign.v1")
            .codec_path("crate::codec::LeanCodec")
            .skip_debug(SECRET)
            .compile_fds(descriptors)?;
    }
    Ok(())
}
