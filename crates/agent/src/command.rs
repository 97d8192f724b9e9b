//! `countersign agent`.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use countersign_api::admin::TrustFingerprint;
use countersign_api::resource::HostPort;
use countersign_identity::{Code, TrustDomain};
use countersign_program::exit::{Exit, Failure, Known};
use countersign_program::output::Output;
use countersign_program::run::{Dump, Logging, run};
use countersign_program::settings::{Field, MaybeAddress, Program, Resolved, Settings, remember};
use countersign_program::trace::{OTLP, TRACE_SHARE, Tracing};
use serde_json::json;

use crate::{Config, MachineFiles, Ready, StartRefused};

/// `countersign agent`.
#[derive(Clone, Debug)]
pub struct AgentProgram;

impl Program for AgentProgram {
    const NAME: &'static str = "agent";
    const FIELDS: &'static [Field] = &[
        Field::one("data", "DIR", "Where it keeps its key and what it knows; made when missing"),
        Field::many("server", "ADDRESS", "A server, `HOST:PORT` (repeatable: tried in this order)"),
        Field::one(
            "trust-domain",
            "NAME",
            "The trust domain that it must be [default: the server's]",
        ),
        Field::one(
            "join",
            "TOKEN",
            "The join token, once; better in the environment, which other users cannot read",
        )
        .secret(),
        Field::one(
            "attest",
            "HOW",
            "How a new node proves itself: `token` (`--join`) or `x509` (`--certificate`, `--key`)",
        )
        .or("token"),
        Field::one(
            "certificate",
            "FILE",
            "The machine's own certificate and those above it, PEM, for `--attest x509`",
        ),
        Field::one(
            "key",
            "FILE",
            "The certificate's private key, PKCS#8 in PEM, for `--attest x509`; nobody else may read it",
        ),
        Field::one(
            "trust",
            "FINGERPRINT",
            "The root's fingerprint, `sha256:…`, that comes with the token",
        ),
        Field::one("socket", "PATH", "The Workload API's socket [default: DIR/run/agent.sock]"),
        Field::one(
            "metrics",
            "ADDRESS",
            "Where Prometheus finds metrics, `IP:PORT`; `off` for nowhere",
        )
        .or("off"),
        OTLP,
        TRACE_SHARE,
        Field::switch(
            "launcher-stdin",
            "Standard input is the socket of a launcher that vouches for processes",
        )
        .hidden(),
    ];
}

/// The command line of the program by itself.
#[derive(Debug, clap::Parser)]
#[command(
    name = "countersign-agent",
    version,
    about = "Run the agent of this machine: attest processes, keep their certificates fresh",
    max_term_width = 100
)]
struct Alone {
    /// For whom to print: `human`, or `json` for scripts: one object a line, of a failure `{"error":{"code":…,"message":…}}`
    #[arg(long, value_enum, default_value_t, value_name = "FORM", hide_possible_values = true)]
    output: Output,

    #[command(flatten)]
    settings: Settings<AgentProgram>,
}

/// Runs the program `countersign-agent` with the arguments of its process.
pub fn main() -> ExitCode {
    let Alone { output, settings } = match countersign_program::arguments::read() {
        Ok(alone) => alone,
        Err(ended) => return ended,
    };
    let known = |cause: &(dyn Error + 'static)| code_of(cause).map(Known::from);
    countersign_program::main("countersign-agent", output, || agent(&settings, output), known)
}

/// Runs it until it is stopped.
///
/// # Errors
/// When it is told what it does not understand, or does not start.
pub fn agent(settings: &Settings<AgentProgram>, output: Output) -> Result<Exit> {
    let mut resolved = settings.resolve()?;
    let data = resolved.required::<PathBuf>("data");
    let servers = resolved.list::<HostPort>("server");
    if !resolved.has("server") {
        resolved.problem("`--server` is missing: name at least one server, `HOST:PORT`".to_owned());
    }
    let trust_domain = resolved.optional::<TrustDomain>("trust-domain");
    let join = resolved.optional("join");
    let trust = resolved.optional::<TrustFingerprint>("trust");
    let machine = machine(&mut resolved);
    if resolved.has("join") && !resolved.has("trust") {
        resolved.problem("`--trust` is missing beside `--join`: give the root's fingerprint that came with the token".to_owned());
    }
    let socket = resolved.optional::<PathBuf>("socket");
    let metrics = resolved.required::<MaybeAddress>("metrics");
    let tracing = Tracing::resolve(&mut resolved);
    let launched = resolved.switch("launcher-stdin");
    let logging = Logging::resolve(&mut resolved);
    resolved.finish()?;
    let (Some(data), Some(MaybeAddress(metrics)), Some(logging)) = (data, metrics, logging) else {
        return Ok(Exit::NotUnderstood);
    };
    let launcher = match launched {
        true => Some(
            crate::launcher::from_stdin()
                .map_err(|error| Failure::not_understood(format!("`--launcher-stdin`: {error}")))?,
        ),
        false => None,
    };
    let config = Config {
        // It is told to others, who may stand in another folder.
        socket: std::path::absolute(socket.unwrap_or_else(|| data.join("run").join("agent.sock")))?,
        data: data.clone(),
        servers: servers.iter().map(ToString::to_string).collect(),
        trust_domain,
        join,
        machine,
        trust: trust.map(|TrustFingerprint(key)| key),
        launcher,
        metrics,
        tracing,
        pinning: crate::attest::Pinning::Auto,
    };
    run(
        logging,
        Dump::AsUsual,
        output,
        |stop, ready| crate::run(config, stop, ready),
        |ready, output| {
            remember(&data, AgentProgram::NAME, &resolved);
            say(&ready, output)
        },
    )
}

/// How a new node proves itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attest {
    Token,
    X509,
}

/// A text that is no way to prove a node.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no way to prove a node: write `token` or `x509`")]
struct UnknownAttest(String);

impl std::str::FromStr for Attest {
    type Err = UnknownAttest;

    fn from_str(text: &str) -> Result<Self, UnknownAttest> {
        match text {
            "token" => Ok(Self::Token),
            "x509" => Ok(Self::X509),
            other => Err(UnknownAttest(other.chars().take(80).collect())),
        }
    }
}

/// The machine's own certificate, when it is to prove itself by that.
fn machine(resolved: &mut Resolved) -> Option<MachineFiles> {
    let attest = resolved.required::<Attest>("attest")?;
    let certificate = resolved.optional::<PathBuf>("certificate");
    let key = resolved.optional::<PathBuf>("key");
    match (attest, certificate, key) {
        (Attest::Token, None, None) => None,
        (Attest::Token, _, _) => {
            let problem = "`--certificate` and `--key` are for `--attest x509`: write that as well";
            resolved.problem(problem.to_owned());
            None
        }
        (Attest::X509, Some(certificate), Some(key)) => {
            if resolved.has("join") {
                resolved.problem("`--join` is for `--attest token`: leave it out".to_owned());
            }
            if !resolved.has("trust") {
                let problem = "`--trust` is missing beside `--attest x509`: give the root's fingerprint, `sha256:…`, which `countersign authority list` shows";
                resolved.problem(problem.to_owned());
            }
            Some(MachineFiles { certificate, key })
        }
        (Attest::X509, _, _) => {
            let problem = "`--attest x509` needs `--certificate FILE` and `--key FILE`";
            resolved.problem(problem.to_owned());
            None
        }
    }
}

fn say(ready: &Ready, output: Output) -> String {
    let socket = format!("unix://{}", ready.socket.display());
    match output {
        Output::Json => {
            let metrics = ready.metrics;
            json!({ "event": "ready", "socket": socket, "metrics": metrics, "degraded": ready.degraded }).to_string()
        }
        Output::Human => {
            let degraded = ready.degraded.iter().map(|why| format!("\n  warning: {why}"));
            let metrics = ready.metrics.map(|at| format!(", metrics at http://{at}/metrics"));
            format!(
                "ready: the Workload API is at {socket}{}{}",
                metrics.unwrap_or_default(),
                degraded.collect::<String>()
            )
        }
    }
}

/// The code of an error that this program knows.
pub fn code_of(cause: &(dyn Error + 'static)) -> Option<Code> {
    cause.downcast_ref::<StartRefused>().map(StartRefused::code)
}
