//! `countersign init` and `countersign server`.

use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use countersign_api::admin::TrustFingerprint;
use countersign_identity::{Code, DurationText, Lifetime, Name, TrustDomain};
use countersign_pki::DnsName;
use countersign_program::run::{Dump, Logging, harden, run};
use countersign_program::trace::{OTLP, TRACE_SHARE, Tracing};
use countersign_server::{
    Config, ConsoleConfig, InitConfig, KeyWrap, NodeAuthorities, Ready, RequestReport, StartError,
};
use serde_json::json;

use super::again::Again;
use super::store::store_at;
use super::unlock::{
    Openers, PASSPHRASE_FILE, PIN_FILE, SEAL, Seal, check_token_uri, new_passphrase, token, unlock,
    vault,
};
use crate::exit::Exit;
use crate::output::{self, Output};
use crate::settings::{Field, MaybeAddress, Program, Settings, remember};

/// Where the state is kept.
pub(super) const STORE: Field = Field::one(
    "store",
    "URL",
    "The database of the state, `postgres://USER@HOST/DATABASE?sslrootcert=FILE`, never with a password [default: in the data directory]",
);
/// What the database asks for.
pub(super) const PASSWORD_FILE: Field = Field::one(
    "store-password-file",
    "FILE",
    "The file of the database's password, read at each connection [default: as PGPASSFILE or PGPASSWORD say]",
);

/// `countersign init`.
#[derive(Clone, Debug)]
pub(crate) struct InitProgram;

impl Program for InitProgram {
    const NAME: &'static str = "init";
    const FIELDS: &'static [Field] = &[
        Field::one("data", "DIR", "The data directory to make: missing, or empty"),
        STORE,
        PASSWORD_FILE,
        Field::one(
            "kek",
            "FILE",
            "The key of a trust domain that the database holds already: makes the data directory of one more server",
        ),
        Field::one(
            "trust-domain",
            "NAME",
            "The name under which identities are issued, `shop.example`; for good",
        ),
        Field::one("root-lifetime", "SPAN", "How long the root lives").or("365d"),
        Field::one("issuer-lifetime", "SPAN", "How long the first issuer lives").or("7d"),
        Field::one(
            "root-key",
            "WHERE",
            "Where the root's key is: `here`, sealed in the state; `pkcs11:token=…;object=…?module-path=…`, in a token, where it is \
             made if it is not there; or `external`, with an authority that signs the issuer by ceremony: then \
             DIR/request.pem is made, and `--import` goes on",
        )
        .or("here"),
        PIN_FILE,
        Field::one(
            "seal",
            "HOW",
            "How the key file that seals all other keys is itself kept: `file`, as it is; `passphrase`, sealed by one; or \
             `pkcs11:token=…;object=…?module-path=…`, sealed by a key in a token, where it is made if it is not there",
        )
        .or("file"),
        PASSPHRASE_FILE,
        Field::one(
            "import",
            "FILE",
            "The chain that the external authority gave for DIR/request.pem, PEM: issuer, those above it, root",
        ),
    ];
}

/// Where the root's key is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum RootKey {
    Here,
    External,
    Token(String),
}

impl RootKey {
    fn token(self) -> Option<String> {
        match self {
            Self::Token(uri) => Some(uri),
            Self::Here | Self::External => None,
        }
    }
}

impl std::str::FromStr for RootKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "here" => Ok(Self::Here),
            "external" => Ok(Self::External),
            token if token.starts_with("pkcs11:") => check_token_uri(token).map(Self::Token),
            other => {
                let other = output::printable(other);
                Err(format!(
                    "`{other}` is no place for a root's key: write `here`, `external` or `pkcs11:…`"
                ))
            }
        }
    }
}

/// `countersign server`.
#[derive(Clone, Debug)]
pub(crate) struct ServerProgram;

impl Program for ServerProgram {
    const NAME: &'static str = "server";
    const FIELDS: &'static [Field] = &[
        Field::one("data", "DIR", "The data directory that `countersign init` made"),
        STORE,
        PASSWORD_FILE,
        Field::one("listen", "ADDRESS", "Where agents connect, `IP:PORT`; port 0 takes a free one")
            .or(countersign_server::LISTEN),
        Field::one(
            "admin-socket",
            "PATH",
            "The operators' socket; open to root and the owner of the data directory [default: DIR/run/admin.sock]",
        ),
        Field::one(
            "metrics",
            "ADDRESS",
            "Where Prometheus finds metrics, `IP:PORT`; `off` for nowhere",
        )
        .or("127.0.0.1:9464"),
        OTLP,
        TRACE_SHARE,
        Field::one(
            "views",
            "ADDRESS",
            "Where revocation lists and OCSP are served over plain HTTP, `IP:PORT`; `off` for nowhere",
        )
        .or("off"),
        Field::one(
            "console",
            "ADDRESS",
            "Where the console is served to browsers over TLS, `IP:PORT`; `off` for nowhere",
        )
        .or("off"),
        Field::many(
            "console-name",
            "NAME",
            "A DNS name by which browsers know the console; the first is in its links (repeatable) [default: localhost]",
        ),
        Field::one(
            "advertise",
            "ADDRESS",
            "The address that agents are told to dial [default: where it listens]",
        ),
        Field::one("issuer-lifetime", "SPAN", "How long an issuer lives that this server makes")
            .or("7d"),
        Field::one("drain", "SPAN", "How long requests in flight may take when the server stops")
            .or("10s"),
        Field::one(
            "hold-off",
            "SPAN",
            "How long nothing is issued when the store was found behind what had been seen of it",
        )
        .or("60s"),
        Field::one(
            "journal",
            "DIR",
            "A folder in a second place, where every revocation and suspension is written as well [default: none]",
        ),
        Field::one(
            "node-ca",
            "FILE",
            "Authorities, PEM, whose machines may become nodes by `agent --attest x509` [default: none]",
        ),
        Field::many(
            "node-label",
            "NAME",
            "A label of nodes that come by `--node-ca` (repeatable)",
        ),
        Field::one(
            "details-kept",
            "SPAN",
            "How long the details of the audit log's events are kept; the events themselves always are [default: for ever]",
        ),
        SEAL,
        PASSPHRASE_FILE,
        PIN_FILE,
    ];
}

/// An address to listen on.
fn listen(resolved: &mut crate::settings::Resolved) -> Option<SocketAddr> {
    let address = resolved.required::<countersign_api::resource::ListenAddress>("listen");
    address.map(|countersign_api::resource::ListenAddress(address)| address)
}

/// What opens the key file that is there already, however it is kept, or seals the one that is to be made.
fn sealed_by(
    there: Option<&PathBuf>,
    seal: Option<Seal>,
    openers: Openers,
) -> Result<Option<Arc<dyn KeyWrap>>> {
    match (there, seal) {
        (Some(kek), _) => unlock(kek, openers),
        (None, Some(Seal::Passphrase)) => new_passphrase(openers.passphrase_file).map(Some),
        (None, Some(Seal::Token(key))) => token(&key, openers.pin_file).map(Some),
        (None, Some(Seal::File) | None) => Ok(None),
    }
}

pub(crate) fn init(settings: &Settings<InitProgram>, output: Output) -> Result<Exit> {
    let mut resolved = settings.resolve()?;
    let data = resolved.required::<PathBuf>("data");
    let store = store_at(&mut resolved)?;
    let kek = resolved.optional::<PathBuf>("kek");
    let import = resolved.optional::<PathBuf>("import");
    let trust_domain = match &import {
        // It is on record where the request waits.
        Some(_chain) => None,
        None => resolved.required::<TrustDomain>("trust-domain"),
    };
    let root_key = resolved.required::<RootKey>("root-key");
    let seal = resolved.required::<Seal>("seal");
    let openers = Openers {
        passphrase_file: resolved.optional("passphrase-file"),
        seal: seal.clone().and_then(Seal::token),
        pin_file: resolved.optional("pin-file"),
    };
    let vault = vault(openers.pin_file.clone())?;
    let root_lifetime = resolved.required::<Lifetime>("root-lifetime");
    let issuer_lifetime = resolved.required::<Lifetime>("issuer-lifetime");
    let logging = Logging::resolve(&mut resolved);
    resolved.finish()?;
    let (Some(data), Some(root_key), Some(root_lifetime), Some(issuer_lifetime), Some(_)) =
        (data, root_key, root_lifetime, issuer_lifetime, logging)
    else {
        return Ok(Exit::NotUnderstood);
    };
    harden(Dump::Never)?;
    let again = Again::new(data.clone(), &store, &openers)?;
    let waiting = data.join("kek");
    let unlock = sealed_by(kek.as_ref().or(import.as_ref().map(|_chain| &waiting)), seal, openers)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = match (import, trust_domain) {
        (Some(chain), _) => runtime.block_on(countersign_server::init_import(
            &data,
            &store,
            &chain,
            unlock.as_deref(),
        ))?,
        (None, Some(trust_domain)) if root_key == RootKey::External => {
            let report = countersign_server::init_request(&data, trust_domain, unlock.as_deref())?;
            return requested(&report, &data, &again, output);
        }
        (None, Some(trust_domain)) => {
            let data = data.clone();
            let root_key = root_key.token();
            let config = InitConfig {
                data,
                store,
                kek,
                trust_domain,
                root_lifetime,
                issuer_lifetime,
                root_key,
                vault,
                unlock,
            };
            runtime.block_on(countersign_server::init(config))?
        }
        (None, None) => return Ok(Exit::NotUnderstood),
    };
    let trust = TrustFingerprint(report.trust);
    match output {
        Output::Json => output::json(&json!({
            "event": "initialized", "trustDomain": report.trust_domain, "trust": trust, "data": data,
        }))?,
        Output::Human => output::line(&format!(
            "trust domain {} is made in {}\n  root {trust}\n{}",
            report.trust_domain,
            data.display(),
            again.next("server", "")
        ))?,
    }
    Ok(Exit::Done)
}

/// Says what is to be signed.
fn requested(report: &RequestReport, data: &Path, again: &Again, output: Output) -> Result<Exit> {
    let RequestReport { trust_domain, key, request } = report;
    match output {
        Output::Json => output::json(&json!({
            "event": "requested", "trustDomain": trust_domain, "key": key, "request": request,
            "data": data,
        }))?,
        Output::Human => output::line(&format!(
            "trust domain {trust_domain} waits for its issuer's certificate\n  have {} signed by the authority outside, with the \
             extensions that it asks for\n{}",
            request.display(),
            again.next("init", " --import CHAIN.pem")
        ))?,
    }
    Ok(Exit::Done)
}

pub(crate) fn server(settings: &Settings<ServerProgram>, output: Output) -> Result<Exit> {
    let mut resolved = settings.resolve()?;
    let data = resolved.required::<PathBuf>("data");
    let store = store_at(&mut resolved)?;
    let listen = listen(&mut resolved);
    let admin = resolved.optional::<PathBuf>("admin-socket");
    let metrics = resolved.required::<MaybeAddress>("metrics");
    let tracing = Tracing::resolve(&mut resolved);
    let views = resolved.required::<MaybeAddress>("views");
    let console = resolved.required::<MaybeAddress>("console");
    let console_names = resolved.list::<DnsName>("console-name");
    let advertise = resolved.optional::<countersign_api::resource::HostPort>("advertise");
    let issuer_lifetime = resolved.required::<Lifetime>("issuer-lifetime");
    let drain = resolved.required::<DurationText>("drain");
    let hold_off = resolved.required::<DurationText>("hold-off");
    let journal = resolved.optional::<PathBuf>("journal");
    let node_authorities = node_authorities(&mut resolved);
    let details_kept = resolved.optional::<DurationText>("details-kept");
    let openers = Openers::resolve(&mut resolved);
    let vault = vault(openers.pin_file.clone())?;
    let logging = Logging::resolve(&mut resolved);
    resolved.finish()?;
    let (Some(data), Some(listen), Some(MaybeAddress(metrics)), Some(issuer_lifetime)) =
        (data, listen, metrics, issuer_lifetime)
    else {
        return Ok(Exit::NotUnderstood);
    };
    let (Some(DurationText(drain)), Some(MaybeAddress(views)), Some(DurationText(hold_off))) =
        (drain, views, hold_off)
    else {
        return Ok(Exit::NotUnderstood);
    };
    let (Some(logging), Some(MaybeAddress(console))) = (logging, console) else {
        return Ok(Exit::NotUnderstood);
    };
    let advertise = advertise.map(|address| address.to_string());
    let data_given = data.clone();
    let unlock = unlock(&data.join("kek"), openers)?;
    let config = Config {
        data,
        store,
        listen,
        admin,
        metrics,
        tracing,
        views,
        console: console.map(|listen| ConsoleConfig { listen, names: named(console_names) }),
        advertise,
        issuer_lifetime,
        drain,
        hold_off,
        journal,
        node_authorities,
        details_kept: details_kept.map(|DurationText(kept)| kept),
        vault,
        unlock,
    };
    run(
        logging,
        Dump::Never,
        output,
        |stop, ready| countersign_server::run(config, stop, ready),
        |ready, output| {
            remember(&data_given, ServerProgram::NAME, &resolved);
            say(&ready, output)
        },
    )
}

/// By which names browsers know the console: to one on the same machine it is `localhost`.
fn named(names: Vec<DnsName>) -> Vec<DnsName> {
    match names.is_empty() {
        true => vec!["localhost".parse().expect("a label of letters is a DNS name")],
        false => names,
    }
}

/// Whose machines may become nodes, and what labels they get.
fn node_authorities(resolved: &mut crate::settings::Resolved) -> Option<NodeAuthorities> {
    let file = resolved.optional::<PathBuf>("node-ca");
    let labels = resolved.list::<Name>("node-label");
    if file.is_none() && !labels.is_empty() {
        resolved.problem(
            "`--node-label` is for nodes that come by `--node-ca`: write that as well".to_owned(),
        );
    }
    file.map(|file| NodeAuthorities { file, labels })
}

fn say(ready: &Ready, output: Output) -> String {
    // It is told to others, who may stand in another folder.
    let admin = std::path::absolute(&ready.admin).unwrap_or_else(|_| ready.admin.clone());
    let admin = format!("unix://{}", admin.display());
    match (output, ready.listen) {
        (Output::Json, listen) => {
            let (metrics, views, console) = (ready.metrics, ready.views, ready.console);
            json!({
                "event": "ready", "sealed": listen.is_none(), "listen": listen, "admin": admin, "metrics": metrics,
                "views": views, "console": console,
            })
            .to_string()
        }
        (Output::Human, Some(listen)) => {
            let metrics = ready
                .metrics
                .map(|at| format!(", metrics at http://{at}/metrics"))
                .unwrap_or_default();
            let views = ready
                .views
                .map(|at| format!(", lists and OCSP at http://{at}"))
                .unwrap_or_default();
            let console = ready
                .console
                .map(|at| format!(", console at port {} (`countersign console`)", at.port()))
                .unwrap_or_default();
            format!("ready: agents at {listen}, operators at {admin}{metrics}{views}{console}")
        }
        (Output::Human, None) => {
            format!("SEALED: the keys cannot be opened; operators at {admin} learn why")
        }
    }
}

pub(super) fn code_of(cause: &(dyn Error + 'static)) -> Option<Code> {
    cause.downcast_ref::<StartError>().map(StartError::code)
}
