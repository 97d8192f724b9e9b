//! `countersign crl`: revocation lists, as files for programs that want them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use countersign_api::admin::CrlResponse;
use countersign_identity::{Clock as _, KeyId, SystemClock, Timestamp};
use countersign_pki::{Shard, encode_crl};
use serde_json::json;

use super::when;
use crate::exit::Exit;
use crate::find::Find;
use crate::out::New;
use crate::output::{self, Output};

/// Get a revocation list: what is out of service, for programs that know no Countersign
///
/// It tells of every revocation up to this moment, whether or not the server's port for lists is open (`--views`). Each
/// authority has a list of its own.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Whose certificates it tells of, by the SHA-256 of its key [default: the issuer that signs now]
    #[arg(long, value_name = "KEY-ID", value_parser = super::named::authority)]
    issuer: Option<KeyId>,

    /// Only what was revoked since an older list that is still good
    #[arg(long, conflicts_with = "shard")]
    delta: bool,

    /// One part of the list, `COUNT-INDEX`: `4-2` is the part with number 2 of 0 to 3
    #[arg(long, value_name = "SHARD")]
    shard: Option<Shard>,

    /// Write the list in DER
    #[arg(long, conflicts_with = "pem")]
    der: bool,

    /// Write the list in PEM; so does `--out` when nothing else is said
    #[arg(long)]
    pem: bool,

    /// Where to write it, in place of what is there, as a whole [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    #[command(flatten)]
    find: Find,
}

pub(crate) async fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    let shard = arguments.shard.map(|shard| shard.to_string());
    let part = if arguments.delta { Some("delta") } else { shard.as_deref() };
    let list = arguments.find.client()?.crl(arguments.issuer, part).await?;
    let der = STANDARD.decode(&list.der)?;
    let bytes = if arguments.der { der } else { encode_crl(&der).into_bytes() };
    match &arguments.out {
        Some(path) => crate::out::write(path, New::Public, &bytes)?,
        None if arguments.der || arguments.pem => {
            output::write(&bytes)?;
            return Ok(Exit::Done);
        }
        None => {}
    }
    match output {
        Output::Json => output::json(&as_json(&list, arguments.out.as_deref()))?,
        Output::Human => output::write(describe(&list, SystemClock::new().now()).as_bytes())?,
    }
    Ok(Exit::Done)
}

fn as_json(list: &CrlResponse, out: Option<&Path>) -> serde_json::Value {
    let mut value = json!({
        "issuer": list.issuer, "number": list.number, "thisUpdate": list.this_update,
        "nextUpdate": list.next_update, "count": list.count, "issuers": list.issuers,
    });
    for (name, field) in [("base", &list.base), ("shard", &list.shard)] {
        if let Some(field) = field {
            value[name] = json!(field);
        }
    }
    if let Some(out) = out {
        value["out"] = json!(out);
    }
    value
}

fn describe(list: &CrlResponse, now: Timestamp) -> String {
    let what = match (&list.base, &list.shard) {
        (Some(base), _) if base == "0" => "changes, for any older list".to_owned(),
        (Some(base), _) => format!("changes since list {base}"),
        (None, Some(shard)) => format!("shard {shard}"),
        (None, None) => "the whole list".to_owned(),
    };
    let mut text = format!(
        "{what} of issuer {}\n  number {}\n  {} certificates, good until {} ({})\n",
        list.issuer,
        list.number,
        list.count,
        list.next_update,
        when::relative(list.next_update, now)
    );
    for other in list.issuers.iter().filter(|issuer| **issuer != list.issuer) {
        text.push_str(&format!("other authorities with lists: {other} (`--issuer`)\n"));
    }
    text
}
