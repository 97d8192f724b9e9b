//! `countersign log`: read the audit log, prove what is in it, and check that nobody has rewritten it.

mod export;
mod prove;
mod read;
mod ship;
mod source;
mod verify;
mod watched;
mod witness;

pub(super) use self::ship::METRICS;
pub(super) use self::verify::of_export;

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use clap::Subcommand;
use countersign_audit::NoteKey;
use countersign_identity::{Incarnation, Serial};
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::find::Find;
use crate::output::{self, Output};

/// What to do with the audit log.
#[derive(Debug, Subcommand)]
pub(crate) enum What {
    Tail(read::TailArguments),
    Search(read::SearchArguments),
    Show(read::ShowArguments),
    Prove(prove::Arguments),
    Verify(Box<verify::Arguments>),
    /// Print the newest checkpoint: the log's size and root, signed
    Checkpoint {
        #[command(flatten)]
        find: Find,
        /// Of the log of an earlier incarnation
        #[arg(long, value_name = "NUMBER")]
        incarnation: Option<Incarnation>,
    },
    /// Print the public key that the log is verified with
    ///
    /// Whoever is to verify proofs, or to watch the log, keeps it: it stays the same for all incarnations of a trust domain.
    Key {
        #[command(flatten)]
        find: Find,
    },
    Witness(Box<witness::Arguments>),
    Export(export::Arguments),
}

pub(crate) async fn run(what: What, output: Output) -> Result<Exit> {
    match what {
        What::Tail(arguments) => read::tail(&arguments, output).await,
        What::Search(arguments) => read::search(&arguments, output).await,
        What::Show(arguments) => read::show(&arguments, output).await,
        What::Prove(arguments) => prove::run(&arguments, output).await,
        What::Verify(arguments) => verify::run(&arguments, output).await,
        What::Checkpoint { find, incarnation } => checkpoint(&find, incarnation, output).await,
        What::Key { find } => key(&find, output).await,
        What::Witness(arguments) => witness::run(&arguments, output).await,
        What::Export(arguments) => export::run(&arguments, output).await,
    }
}

async fn checkpoint(find: &Find, incarnation: Option<Incarnation>, output: Output) -> Result<Exit> {
    let note = find.client()?.checkpoint(incarnation).await?;
    match output {
        Output::Json => output::json(&json!({ "checkpoint": String::from_utf8_lossy(&note) }))?,
        Output::Human => output::write(&note)?,
    }
    Ok(Exit::Done)
}

async fn key(find: &Find, output: Output) -> Result<Exit> {
    let key = find.client()?.log(None).await?.key.unwrap_or_default();
    match output {
        Output::Json => output::json(&json!({ "key": key }))?,
        Output::Human => output::line(&key)?,
    }
    Ok(Exit::Done)
}

/// An event: the one at an index, or the issue of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Index(u64),
    Serial(Serial),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A serial has 32 digits, which no index has.
        let serial = text.parse().map(Self::Serial).ok();
        let target = serial.or_else(|| text.parse().map(Self::Index).ok());
        target.ok_or_else(|| {
            "expected the index of an event or the serial of a certificate, as `countersign log tail` shows them".to_owned()
        })
    }
}

/// A file's bytes, at most as many as anything has that is verified here.
fn read_file(path: &PathBuf) -> Result<Vec<u8>, Failure> {
    super::read_file(path, countersign_audit::BUNDLE_BYTES_MAX as u64)
}

/// The keys that are given, or the one that whoever was asked has named.
fn trusted(given: &[NoteKey], named: Option<&str>) -> Result<Vec<NoteKey>, Failure> {
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    let named = named.ok_or_else(|| {
        let why = "the log's public key is not known here: give it with `--key`, as `countersign log key` prints it";
        Failure::not_understood(why)
    })?;
    let bad = |bad| Failure::not_understood(format!("the key `{named}` is not understood: {bad}"));
    Ok(vec![named.parse().map_err(bad)?])
}
