//! `countersign fetch`: what the Workload API gives this process.

mod files;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use countersign_api::wire::{MESSAGE_SIZE_MAX, refusal_of};
use countersign_api::workload::X509svidRequest;
use countersign_api::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use countersign_identity::{Code, SpiffeId};
use countersign_pki::{Bundle, Chain, PrivateKey, encode_crl, encode_private_key};
use serde_json::json;

use super::when;
use crate::agent_channel;
use crate::exit::{Exit, Failure};
use crate::find::{self, Find};
use crate::output::{self, Output};

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    X509(X509),
}

/// Get this process's X.509-SVIDs, with their keys and bundles
#[derive(Debug, Args)]
pub(crate) struct X509 {
    /// The Workload API's socket, `unix:///…`; also SPIFFE_ENDPOINT_SOCKET [default: the agent of the last `up`]
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["data", "admin"])]
    socket: Option<String>,

    /// Write svid.pem, svid-key.pem (0600), bundle.pem, and crl.pem if the workload asks for lists, into this folder, replaced as one set
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,

    /// Only this identity, when there are several [default: all are shown, and the first is written]
    #[arg(long, value_name = "SPIFFE-ID", value_parser = super::named::identity)]
    id: Option<SpiffeId>,

    #[command(flatten)]
    find: Find,
}

/// How long the agent may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// What the standard demands of every call.
const HEADER: (&str, &str) = ("workload.spiffe.io", "true");

/// One identity, whole and consistent.
struct Svid {
    id: SpiffeId,
    chain: Chain,
    key: PrivateKey,
    bundle: Bundle,
    hint: String,
}

pub(crate) async fn run(what: &What, output: Output) -> Result<Exit> {
    let What::X509(arguments) = what;
    let socket = socket(arguments)?;
    let (svids, crls) =
        tokio::time::timeout(ANSWER_TIMEOUT, fetch(&socket)).await.map_err(|_elapsed| {
            let message =
                format!("the agent at `unix://{}` did not answer within 10 s", socket.display());
            Failure::new(Code::TimedOut, message)
        })??;
    let svids = wanted(svids, arguments.id.as_ref())?;
    let chosen = &svids[0];
    if let Some(folder) = &arguments.write {
        let (chain, bundle) = (chosen.chain.pem(), chosen.bundle.to_pem());
        let (key, lists) = (encode_private_key(&chosen.key), pem_of(&crls));
        let mut set = vec![
            ("svid.pem", chain.as_bytes(), 0o644),
            ("svid-key.pem", key.as_bytes(), 0o600),
            ("bundle.pem", bundle.as_bytes(), 0o644),
        ];
        if !crls.is_empty() {
            set.push(("crl.pem", lists.as_bytes(), 0o644));
        }
        files::write(folder, &set)?;
    }
    match output {
        Output::Json => output::json(&as_json(&svids, &crls, arguments.write.as_deref()))?,
        Output::Human => {
            output::write(describe(&svids, &crls, arguments.write.as_deref()).as_bytes())?;
        }
    }
    Ok(Exit::Done)
}

fn socket(arguments: &X509) -> Result<PathBuf> {
    if let Some(address) = &arguments.socket {
        return Ok(find::socket_path(address)?);
    }
    if arguments.find.data.is_none()
        && let Some(address) = find::variable("SPIFFE_ENDPOINT_SOCKET")?
    {
        return Ok(find::socket_path(&address)?);
    }
    arguments.find.agent_socket()
}

/// The identities, and the revocation lists if this process's workload asks for them.
async fn fetch(socket: &Path) -> Result<(Vec<Svid>, Vec<Vec<u8>>)> {
    let hint = "`--socket unix:///…`, SPIFFE_ENDPOINT_SOCKET or `--data DIR` say where it is";
    let channel = agent_channel::open(socket, hint).await?;
    let mut client =
        SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MESSAGE_SIZE_MAX);
    let mut request = tonic::Request::new(X509svidRequest {});
    request.metadata_mut().insert(HEADER.0, tonic::metadata::MetadataValue::from_static(HEADER.1));
    let mut stream = client
        .fetch_x509svid(request)
        .await
        .map_err(|status| refused(socket, &status))?
        .into_inner();
    let message = stream.message().await.map_err(|status| refused(socket, &status))?;
    let Some(message) = message else {
        return Err(Failure::unreachable("the agent ended the stream without an answer").into());
    };
    let svids = message.svids.into_iter().map(open).collect::<Result<_>>()?;
    Ok((svids, message.crl))
}

fn pem_of(crls: &[Vec<u8>]) -> String {
    crls.iter().map(|der| encode_crl(der)).collect()
}

/// What a refusal of the agent means for whoever asked.
fn refused(socket: &Path, status: &tonic::Status) -> Failure {
    if agent_channel::was_cut(status) {
        return agent_channel::cut(socket);
    }
    let message = output::printable(status.message());
    let no_match = || {
        let sentence = format!(
            "this process matches no workload, so it gets no identity; the agent says: {message}"
        );
        Failure::new(Code::NoMatch, sentence)
    };
    match refusal_of(status).map(|refused| refused.code) {
        Some(Code::NoMatch) => return no_match(),
        Some(code) => return Failure::new(code, format!("the agent gives no identity: {message}")),
        None => {}
    }
    match status.code() {
        tonic::Code::PermissionDenied => no_match(),
        tonic::Code::InvalidArgument | tonic::Code::Unimplemented => {
            Failure::not_understood(format!("the agent does not understand: {message}"))
        }
        other => Failure::unreachable(format!("the agent cannot answer now ({other}): {message}")),
    }
}

/// Takes one SVID apart and checks that its parts belong together.
fn open(svid: countersign_api::workload::X509svid) -> Result<Svid> {
    let wrong = |why: String| {
        Failure::new(Code::Malformed, format!("the agent's answer is not understood: {why}"))
    };
    let key_bytes = zeroize::Zeroizing::new(svid.x509_svid_key);
    let id: SpiffeId = svid.spiffe_id.parse().map_err(|error| wrong(format!("{error}")))?;
    let chain =
        Chain::from_concatenated(&svid.x509_svid).map_err(|error| wrong(error.to_string()))?;
    let key = PrivateKey::from_pkcs8(&key_bytes).map_err(|error| wrong(error.to_string()))?;
    let bundle = Bundle::from_concatenated(id.trust_domain().clone(), &svid.bundle)
        .map_err(|error| wrong(error.to_string()))?;
    if chain.leaf().spki() != key.public().spki() {
        return Err(wrong("its key does not belong to its certificate".to_owned()).into());
    }
    let named = chain.leaf().spiffe_id().map_err(|refused| wrong(refused.why))?;
    if named != id {
        return Err(wrong(format!("it says `{id}`, and its certificate `{named}`")).into());
    }
    Ok(Svid { id, chain, key, bundle, hint: svid.hint })
}

/// The identities that are asked for, at least one, in the agent's order.
fn wanted(svids: Vec<Svid>, id: Option<&SpiffeId>) -> Result<Vec<Svid>, Failure> {
    let (wanted, others): (Vec<_>, Vec<_>) =
        svids.into_iter().partition(|svid| id.is_none_or(|id| svid.id == *id));
    if !wanted.is_empty() {
        return Ok(wanted);
    }
    let held: Vec<_> = others.iter().map(|svid| format!("`{}`", svid.id)).collect();
    let message = match id {
        Some(id) if !held.is_empty() => {
            format!("this process is not `{id}`: it is {}", held.join(" and "))
        }
        Some(_) | None => "the agent's answer holds no identity".to_owned(),
    };
    Err(Failure::new(Code::NoMatch, message))
}

fn as_json(svids: &[Svid], crls: &[Vec<u8>], written: Option<&Path>) -> serde_json::Value {
    let svid = |svid: &Svid| {
        let leaf = svid.chain.leaf();
        json!({
            "spiffeId": svid.id,
            "serial": leaf.serial(),
            "notBefore": leaf.validity().not_before,
            "notAfter": leaf.validity().not_after,
            "keyType": svid.key.public().kind(),
            "hint": svid.hint,
            "chain": svid.chain.pem(),
            "bundle": svid.bundle.to_pem(),
        })
    };
    let svids: Vec<_> = svids.iter().map(svid).collect();
    json!({ "svids": svids, "crls": crls.len(), "written": written })
}

fn describe(svids: &[Svid], crls: &[Vec<u8>], written: Option<&Path>) -> String {
    use countersign_identity::Clock as _;
    let now = countersign_identity::SystemClock::new().now();
    let mut text = String::new();
    for svid in svids {
        let leaf = svid.chain.leaf();
        let validity = leaf.validity();
        text.push_str(&format!("{}\n", svid.id));
        text.push_str(&format!(
            "  valid  {} to {} (expires {})\n",
            validity.not_before,
            validity.not_after,
            when::relative(validity.not_after, now)
        ));
        if let Some(serial) = leaf.serial() {
            text.push_str(&format!("  serial {serial}\n"));
        }
        text.push_str(&format!("  key    {}\n", svid.key.public().kind()));
        for (index, certificate) in svid.chain.certificates().iter().enumerate() {
            let what = if index == 0 { "leaf" } else { "issuer" };
            text.push_str(&format!("  chain  {what} {}\n", certificate.fingerprint()));
        }
        for root in &svid.bundle.authorities {
            text.push_str(&format!(
                "  root   {} until {}\n",
                root.fingerprint(),
                root.validity().not_after
            ));
        }
        if !svid.hint.is_empty() {
            text.push_str(&format!("  hint   {}\n", output::printable(&svid.hint)));
        }
    }
    if let Some(folder) = written {
        text.push_str(&format!(
            "written to {}: svid.pem, svid-key.pem, bundle.pem{}\n",
            folder.display(),
            if crls.is_empty() { "" } else { ", crl.pem" }
        ));
    }
    text
}
