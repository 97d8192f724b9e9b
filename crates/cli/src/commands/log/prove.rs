//! Proofs in files, which need no server any more.

use std::path::{Path, PathBuf};

use anyhow::Result;
use countersign_audit::{Bundle, NoteKey, Proven};
use countersign_identity::Incarnation;
use countersign_pki::Certificate;
use serde_json::json;

use super::Target;
use crate::commands::verify;
use crate::exit::{Exit, Failure};
use crate::find::Find;
use crate::out::New;
use crate::output::{self, Output, printable};

/// Write a proof that an event, or the issue of a certificate, is in the log
///
/// The file holds all that it takes but the log's public key (`countersign log key`): the leaf, its way to the root, and the signed
/// root. `countersign log verify --proof FILE --key KEY` checks it anywhere, with no server; its form is C2SP's tlog-proof.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    find: Find,
    /// The serial of the certificate, or the index of the event
    #[arg(value_name = "SERIAL|INDEX")]
    target: Target,
    /// In the log of an earlier incarnation; with an index only
    #[arg(long, value_name = "NUMBER")]
    incarnation: Option<Incarnation>,
    /// Where to write it, in place of what is there, as a whole [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) async fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    let client = arguments.find.client()?;
    let proof = match arguments.target {
        Target::Index(index) => client.proof(arguments.incarnation, index).await?,
        Target::Serial(serial) => client.proof_of(serial).await?,
    };
    if let Some(out) = &arguments.out {
        crate::out::write(out, New::Public, proof.bundle.as_bytes())?;
    }
    match (output, &arguments.out) {
        (Output::Json, _) => output::json(&proof)?,
        (Output::Human, None) => output::write(proof.bundle.as_bytes())?,
        (Output::Human, Some(out)) => output::line(&format!(
            "event {} is in the log of {} events; anybody can check it:\n\n  \
             countersign log verify --proof {} --key {}",
            proof.index,
            proof.size,
            out.display(),
            proof.key
        ))?,
    }
    Ok(Exit::Done)
}

/// Checks a proof from a file, and that it is about a certificate, if one is given.
pub(super) fn check(
    proof: &PathBuf,
    keys: &[NoteKey],
    certificate: Option<&PathBuf>,
    output: Output,
) -> Result<Exit> {
    if keys.is_empty() {
        let why = "a proof is checked against the log's key, which nobody is asked for here: add `--key` and what \
             `countersign log key` prints, from where you trust it";
        return Err(Failure::not_understood(why).into());
    }
    let bundle = super::read_file(proof)?;
    let proven = Bundle::parse(&bundle).and_then(|bundle| Ok((bundle.verify(keys)?, bundle.index)));
    let (verdict, why) = match proven {
        Err(bad) => (None, Some(bad.to_string())),
        Ok((proven, index)) => {
            let why = match certificate {
                Some(path) => differs(&proven, path)?,
                None => None,
            };
            (Some((proven, index)), why)
        }
    };
    tell(verdict.as_ref(), why.as_deref(), certificate.map(PathBuf::as_path), output)?;
    Ok(if why.is_none() { Exit::Done } else { Exit::No })
}

/// Why a certificate is not the one that a proof is about.
fn differs(proven: &Proven, path: &PathBuf) -> Result<Option<String>, Failure> {
    let refuse = |why: String| Failure::not_understood(format!("`{}` {why}", path.display()));
    let ders = verify::certificates(&super::read_file(path)?).map_err(refuse)?;
    let first = ders.first().map(Vec::as_slice).unwrap_or_default();
    let certificate =
        Certificate::parse(first).map_err(|bad| refuse(format!("is not understood: {bad}")))?;
    let digest = certificate.tbs_digest();
    Ok(match proven.entry.tbs {
        Some(tbs) if tbs == digest => None,
        Some(tbs) => Some(format!(
            "the proof is about other contents than the certificate's: {tbs}, and not {digest}"
        )),
        None => {
            Some(format!("the proof is about no certificate, but about `{}`", proven.entry.kind))
        }
    })
}

fn tell(
    verdict: Option<&(Proven, u64)>,
    why: Option<&str>,
    certificate: Option<&Path>,
    output: Output,
) -> Result<()> {
    if output == Output::Json {
        let mut told = json!({ "event": "proof", "proven": why.is_none() });
        if let Some((Proven { entry, checkpoint, signed }, index)) = verdict {
            let signed =
                signed.iter().map(|one| json!({ "key": one.key.to_string(), "at": one.at_secs }));
            told["index"] = json!(index);
            told["log"] = json!(checkpoint.origin.to_string());
            told["size"] = json!(checkpoint.size);
            told["root"] = json!(checkpoint.root);
            told["kind"] = json!(entry.kind);
            told["at"] = json!(entry.at);
            told["subject"] = json!(entry.subject);
            told["serial"] = json!(entry.serial);
            told["tbs"] = json!(entry.tbs);
            told["signedBy"] = signed.collect();
        }
        if let Some(why) = why {
            told["why"] = json!(why);
        }
        return output::json(&told);
    }
    if let Some(why) = why {
        return output::line(&format!("not proven: {why}"));
    }
    let Some((Proven { entry, checkpoint, signed }, index)) = verdict else { return Ok(()) };
    let mut text = format!(
        "proven: event {index} of log {}, one of {} events\n  {} of {} at {}, by {}\n",
        checkpoint.origin,
        checkpoint.size,
        entry.kind,
        printable(&entry.subject),
        entry.at,
        printable(&entry.actor),
    );
    if let Some(serial) = entry.serial {
        text.push_str(&format!("  serial {serial}\n"));
    }
    if let Some(path) = certificate {
        text.push_str(&format!(
            "  the contents of `{}` are those that were written down\n",
            path.display()
        ));
    }
    for one in signed {
        let name = one.key.name();
        match one.at_secs {
            None => text.push_str(&format!("  signed by {name}\n")),
            Some(at) => {
                let at = i64::try_from(at).unwrap_or(i64::MAX);
                let at = countersign_identity::Timestamp::from_secs(at);
                text.push_str(&format!("  cosigned by {name} at {at}\n"));
            }
        }
    }
    output::write(text.as_bytes())
}
