//! `countersign proxy`.

mod fixed;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use countersign::{Authorization, Choice, Endpoint, NotReady, SourceFault};
use countersign_identity::{Code, Name, SpiffeId, TrustDomain};
use countersign_program::exit::{Exit, Known};
use countersign_program::output::{Output, printable};
use countersign_program::run::{Dump, Logging, run};
use countersign_program::settings::{Field, MaybeAddress, Program, Resolved, Settings, remember};
use countersign_program::system::socket_path;
use countersign_program::trace::{OTLP, TRACE_SHARE, Tracing};
use serde_json::json;

use self::fixed::{Inbound, Outbound};
use crate::{Config, IdentitySource, ListenFault, Listeners, Ready};

/// `countersign proxy`.
#[derive(Clone, Debug)]
pub struct ProxyProgram;

impl Program for ProxyProgram {
    const NAME: &'static str = "proxy";
    const FIELDS: &'static [Field] = &[
        Field::one("name", "NAME", "Its name among the enforcement points of its workload")
            .or("proxy"),
        Field::one(
            "agent",
            "ADDRESS",
            "The Workload API to get the identity from, `unix:///…` [default: SPIFFE_ENDPOINT_SOCKET]",
        ),
        Field::one(
            "id",
            "SPIFFE-ID",
            "Which identity, when the Workload API gives several: it waits for this one, and is never another [default: the first]",
        ),
        Field::one(
            "run-dir",
            "DIR",
            "Follow the `Service` manifests of the own workload, with Unix sockets in this folder",
        ),
        Field::one("chain", "FILE", "The certificate chain, PEM, instead of a Workload API"),
        Field::one("key", "FILE", "Its private key, PEM"),
        Field::one("bundle", "FILE", "The authorities to trust, PEM or SPIFFE JSON"),
        Field::one(
            "trust-domain",
            "NAME",
            "Whose bundle it is [default: the chain's own trust domain]",
        ),
        Field::many("federated", "NAME=FILE", "The bundle of another trust domain (repeatable)"),
        Field::one("policy", "FILE", "Cedar policies that decide, instead of the agent's"),
        Field::many(
            "allow",
            "SPIFFE-ID",
            "A peer that may connect, instead of policies (repeatable)",
        ),
        Field::many(
            "inbound",
            "DOOR",
            "A door for peers, `service=NAME,listen=IP:PORT,forward=unix:/path[,protocol=tcp]` (repeatable)",
        ),
        Field::many(
            "outbound",
            "WAY",
            "A way to a peer, `service=NAME,local=unix:/path,peer=SPIFFE-ID,address=HOST:PORT[,protocol=tcp]` (repeatable; `address` too)",
        ),
        Field::one(
            "metrics",
            "ADDRESS",
            "Where Prometheus finds metrics, `IP:PORT`; `off` for nowhere",
        )
        .or("off"),
        OTLP,
        TRACE_SHARE,
    ];
}

/// `NAME=FILE`.
struct Federated(TrustDomain, PathBuf);

impl std::str::FromStr for Federated {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shown = printable(text);
        let (name, file) = text.split_once('=').ok_or_else(|| {
            format!("`{shown}` is not understood: expected `NAME=FILE`, such as `other.example=other.pem`")
        })?;
        let name =
            name.parse().map_err(|error: countersign_identity::IdError| error.to_string())?;
        Ok(Self(name, file.into()))
    }
}

/// The command line of the program by itself.
#[derive(Debug, clap::Parser)]
#[command(
    name = "countersign-proxy",
    version,
    about = "Run a proxy: mutual TLS for a service that speaks none",
    max_term_width = 100
)]
struct Alone {
    /// For whom to print: `human`, or `json` for scripts: one object a line, of a failure `{"error":{"code":…,"message":…}}`
    #[arg(long, value_enum, default_value_t, value_name = "FORM", hide_possible_values = true)]
    output: Output,

    #[command(flatten)]
    settings: Settings<ProxyProgram>,
}

/// Runs the program `countersign-proxy` with the arguments of its process.
pub fn main() -> ExitCode {
    let Alone { output, settings } = match countersign_program::arguments::read() {
        Ok(alone) => alone,
        Err(ended) => return ended,
    };
    let known = |cause: &(dyn Error + 'static)| code_of(cause).map(Known::from);
    countersign_program::main("countersign-proxy", output, || proxy(&settings, output), known)
}

/// Runs it until it is stopped.
///
/// # Errors
/// When it is told what it does not understand, or does not start.
pub fn proxy(settings: &Settings<ProxyProgram>, output: Output) -> Result<Exit> {
    let mut resolved = settings.resolve()?;
    let name = resolved.required::<Name>("name");
    let identity = identity(&mut resolved);
    let authorization = authorization(&mut resolved);
    let listeners = listeners(&mut resolved);
    let metrics = resolved.required::<MaybeAddress>("metrics");
    let tracing = Tracing::resolve(&mut resolved);
    let logging = Logging::resolve(&mut resolved);
    resolved.finish()?;
    let (Some(name), Some(identity), Some(authorization), Some(listeners)) =
        (name, identity, authorization, listeners)
    else {
        return Ok(Exit::NotUnderstood);
    };
    let (Some(MaybeAddress(metrics)), Some(logging)) = (metrics, logging) else {
        return Ok(Exit::NotUnderstood);
    };
    let folder = match &listeners {
        Listeners::FromAgent { run_dir } => Some(run_dir.clone()),
        Listeners::Fixed { .. } => None,
    };
    let known_as = name.to_string();
    let config = Config { name, identity, authorization, listeners, metrics, tracing };
    run(
        logging,
        Dump::AsUsual,
        output,
        |stop, ready| crate::run(config, stop, ready),
        |ready, output| {
            if let Some(folder) = folder {
                remember(&folder, &known_as, &resolved);
            }
            say(&ready, output)
        },
    )
}

/// Who it is: what a Workload API says, or files.
fn identity(resolved: &mut Resolved) -> Option<IdentitySource> {
    let files = ["chain", "key", "bundle"];
    let named = files.into_iter().filter(|flag| resolved.has(flag)).count();
    let id = resolved.optional::<SpiffeId>("id");
    if named == 0 {
        let choice = id.map_or(Choice::Default, Choice::Id);
        let endpoint = endpoint(resolved).map_err(|why| resolved.problem(why)).ok();
        return endpoint.map(|endpoint| IdentitySource::WorkloadApi { endpoint, choice });
    }
    if resolved.has("id") {
        resolved.problem("`--id` stands beside `--chain`, `--key` or `--bundle`: it chooses among what a Workload API gives, and files hold one identity, which the certificate names".to_owned());
    }
    if resolved.has("agent") {
        resolved.problem("`--agent` stands beside `--chain`, `--key` or `--bundle`: the identity comes from one of the two".to_owned());
    }
    let chain = resolved.required("chain");
    let key = resolved.required("key");
    let bundle = resolved.required("bundle");
    let trust_domain = resolved.optional("trust-domain");
    let federated = resolved.list::<Federated>("federated");
    Some(IdentitySource::Files {
        chain: chain?,
        key: key?,
        bundle: bundle?,
        trust_domain,
        federated: federated.into_iter().map(|Federated(name, file)| (name, file)).collect(),
    })
}

fn endpoint(resolved: &mut Resolved) -> Result<Endpoint, String> {
    match resolved.optional::<String>("agent") {
        Some(address) => {
            let path = socket_path(&address).map_err(|failure| format!("`--agent`: {failure}"))?;
            Endpoint::at(&path).map_err(|error| format!("`--agent`: {error}"))
        }
        None => Endpoint::from_environment().map_err(|error| {
            format!("nothing says where the identity comes from: {error}; give `--agent unix:///…`, or `--chain`, `--key` and `--bundle`")
        }),
    }
}

/// Who may connect. Nobody says: nobody may.
fn authorization(resolved: &mut Resolved) -> Option<Authorization> {
    let allowed = resolved.list::<SpiffeId>("allow");
    let policy = resolved.optional::<PathBuf>("policy");
    match (policy, resolved.has("allow")) {
        (Some(_), true) => {
            resolved
                .problem("`--policy` stands beside `--allow`: one of the two decides".to_owned());
            None
        }
        (Some(file), false) => Some(Authorization::PolicyFile(file)),
        (None, true) => Some(Authorization::AllowIds(allowed)),
        (None, false) if resolved.has("chain") => Some(Authorization::Nothing),
        (None, false) => Some(Authorization::FromAgent),
    }
}

fn listeners(resolved: &mut Resolved) -> Option<Listeners> {
    let inbound = resolved.list::<Inbound>("inbound");
    let outbound = resolved.list::<Outbound>("outbound");
    let run_dir = resolved.optional::<PathBuf>("run-dir");
    let fixed = resolved.has("inbound") || resolved.has("outbound");
    match (run_dir, fixed) {
        (Some(run_dir), false) => Some(Listeners::FromAgent { run_dir }),
        (None, true) => Some(Listeners::Fixed {
            inbound: inbound.into_iter().map(|Inbound(door)| door).collect(),
            outbound: outbound.into_iter().map(|Outbound(way)| way).collect(),
        }),
        (Some(_), true) => {
            resolved.problem("`--run-dir` stands beside `--inbound` or `--outbound`: either manifests or flags say where to listen".to_owned());
            None
        }
        (None, false) => {
            resolved.problem("nothing says where to listen: give `--run-dir` to follow manifests, or `--inbound` and `--outbound`".to_owned());
            None
        }
    }
}

fn say(ready: &Ready, output: Output) -> String {
    match output {
        Output::Json => {
            let inbound: Vec<_> = ready
                .inbound
                .iter()
                .map(|door| json!({ "service": door.service, "listen": door.listen }))
                .collect();
            let outbound: Vec<_> = ready
                .outbound
                .iter()
                .map(|way| json!({ "service": way.service, "upstream": way.upstream, "local": way.local.to_string() }))
                .collect();
            json!({
                "event": "ready", "point": ready.point, "id": ready.id, "inbound": inbound,
                "outbound": outbound, "metrics": ready.metrics, "warnings": ready.warnings,
            })
            .to_string()
        }
        Output::Human => {
            let mut lines = vec![format!("ready: {} as {}", ready.point, ready.id)];
            let doors = ready
                .inbound
                .iter()
                .map(|door| format!("  {} is open at {}", door.service, door.listen));
            lines.extend(doors);
            let ways = ready
                .outbound
                .iter()
                .map(|way| format!("  {} finds {} at {}", way.service, way.upstream, way.local));
            lines.extend(ways);
            lines.extend(ready.metrics.map(|at| format!("  metrics at http://{at}/metrics")));
            lines.extend(ready.warnings.iter().map(|warning| format!("  warning: {warning}")));
            lines.join("\n")
        }
    }
}

/// The code of an error that this program knows.
pub fn code_of(cause: &(dyn Error + 'static)) -> Option<Code> {
    if let Some(fault) = cause.downcast_ref::<ListenFault>() {
        return Some(match fault {
            ListenFault::Taken(_) | ListenFault::SocketTaken(_) | ListenFault::NotSocket(_) => {
                Code::AlreadyExists
            }
            ListenFault::LongPath { .. } => Code::NotUnderstood,
            ListenFault::Tcp { .. } | ListenFault::Unix { .. } => Code::Unavailable,
        });
    }
    if let Some(fault) = cause.downcast_ref::<SourceFault>() {
        return Some(match fault {
            SourceFault::Policy(_) | SourceFault::Files(_) | SourceFault::NoAgent => {
                Code::NotUnderstood
            }
            SourceFault::Ending => Code::NotReady,
        });
    }
    cause.is::<NotReady>().then_some(Code::NotReady)
}
