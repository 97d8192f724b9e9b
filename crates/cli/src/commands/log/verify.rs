//! Checks a whole log, or one proof.

use std::path::{Path, PathBuf};

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_api::admin::{LeafView, LogResponse};
use countersign_audit::{Checkpoint, EventKind, Finding, NoteKey, Review, Reviewed, StoredLeaf};
use countersign_identity::{Code, Incarnation, Revision, Sha256};
use countersign_server::OfflineLog;
use serde_json::json;

use super::source::{Exported, Source};
use super::{prove, read_file, trusted};
use crate::commands::store::Named;
use crate::exit::{Exit, Failure, Told};
use crate::find::Find;
use crate::output::{self, Output};

/// Check that nothing in the log was changed, dropped, moved or cut off, or check one proof
///
/// Reads every event and computes the tree anew: from the server, from a store without one (`--store`) or from an export
/// (`--export`). What was signed has to hold, and with `--from` also what somebody has kept elsewhere: only that notices a log
/// that was replaced as a whole. Says which events are not as they were, and ends with status 1 if there are any.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    find: Find,
    /// The log's public key, as `countersign log key` prints it (repeatable) [default: what the server or store says]
    #[arg(long, value_name = "KEY")]
    key: Vec<NoteKey>,
    /// A checkpoint that was kept: the log must have grown out of it (repeatable)
    #[arg(long, value_name = "FILE", conflicts_with = "proof")]
    from: Vec<PathBuf>,
    /// Read a data directory or `postgres://…` itself, and ask no server
    #[arg(long, value_name = "PLACE", conflicts_with_all = ["export", "proof", "data", "admin"])]
    store: Option<Named>,
    /// The file of the database's password [default: as PGPASSFILE or PGPASSWORD say]
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_STORE_PASSWORD_FILE")]
    store_password_file: Option<PathBuf>,
    /// Read a file that `countersign log export` wrote
    #[arg(long, value_name = "FILE", conflicts_with_all = ["proof", "data", "admin"])]
    export: Option<PathBuf>,
    /// Check this proof, as `countersign log prove` wrote it; needs `--key` and no server
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "admin"])]
    proof: Option<PathBuf>,
    /// Check that the proof is about this certificate (PEM or DER)
    #[arg(long, value_name = "FILE", requires = "proof")]
    certificate: Option<PathBuf>,
}

pub(crate) async fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    if let Some(proof) = &arguments.proof {
        return prove::check(proof, &arguments.key, arguments.certificate.as_ref(), output);
    }
    let source = match (&arguments.store, &arguments.export) {
        (Some(place), _) => {
            let place = place.place(arguments.store_password_file.as_ref())?;
            Source::Store(Box::new(OfflineLog::open(&place).await?))
        }
        (None, Some(path)) => Source::File(Exported::open(path)?),
        (None, None) => Source::Server(arguments.find.client()?),
    };
    let (verdicts, keys) = verify(source, &arguments.key, &arguments.from).await?;
    tell(&verdicts, &keys, output)?;
    let clean = verdicts.iter().all(Verdict::is_clean);
    Ok(if clean { Exit::Done } else { Exit::No })
}

/// Checks an export that is in memory: what its log was found to be, and what is wrong beside the events.
pub(in crate::commands) async fn of_export(
    text: Vec<u8>,
    keys: &[NoteKey],
) -> Result<Vec<(Reviewed, Vec<String>)>> {
    let lines = Box::new(std::io::Cursor::new(text));
    let source = Source::File(Exported::of(lines, Path::new("fuzz.jsonl"))?);
    let (verdicts, _keys) = verify(source, keys, &[]).await?;
    Ok(verdicts.into_iter().map(|verdict| (verdict.reviewed, verdict.further)).collect())
}

/// What each log of a source was found to be, and the keys that vouch for it.
async fn verify(
    mut source: Source,
    given: &[NoteKey],
    from: &[PathBuf],
) -> Result<(Vec<Verdict>, Vec<NoteKey>)> {
    let present = source.log(None).await?;
    let keys = trusted(given, present.key.as_deref())?;
    let kept = kept(from, &keys)?;
    let mut logs = match source {
        Source::File(_) => Vec::new(),
        Source::Server(_) | Source::Store(_) => present.past.clone(),
    };
    logs.push(present.incarnation);
    let mut verdicts = Vec::new();
    for incarnation in logs {
        let log = source.log(Some(incarnation)).await?;
        verdicts.push(review(&mut source, &log, &keys, &kept, verdicts.last()).await?);
    }
    for (checkpoint, name) in &kept {
        if !verdicts.iter().any(|verdict| verdict.incarnation == checkpoint.origin.incarnation) {
            let found = format!("{name} is of log {}, which is not here", checkpoint.origin);
            verdicts.last_mut().into_iter().for_each(|last| last.further.push(found.clone()));
        }
    }
    Ok((verdicts, keys))
}

/// The checkpoints that were kept elsewhere, with the names by which to speak of them.
fn kept(files: &[PathBuf], keys: &[NoteKey]) -> Result<Vec<(Checkpoint, String)>, Failure> {
    let mut kept = Vec::new();
    for path in files {
        let (checkpoint, _signed) = Checkpoint::open(&read_file(path)?, keys).map_err(|bad| {
            Failure::not_understood(format!(
                "`{}` is no checkpoint of this log: {bad}",
                path.display()
            ))
        })?;
        kept.push((checkpoint, format!("the checkpoint in `{}`", path.display())));
    }
    Ok(kept)
}

/// What one log was found to be.
struct Verdict {
    incarnation: Incarnation,
    reviewed: Reviewed,
    /// What is wrong beside the events.
    further: Vec<String>,
}

impl Verdict {
    fn is_clean(&self) -> bool {
        self.reviewed.findings.is_empty() && self.further.is_empty()
    }
}

async fn review(
    source: &mut Source,
    log: &LogResponse,
    keys: &[NoteKey],
    kept: &[(Checkpoint, String)],
    before: Option<&Verdict>,
) -> Result<Verdict> {
    let incarnation = log.incarnation;
    let over = Revision { incarnation, number: u64::MAX };
    let mut review = Review::of(log.revision.unwrap_or(over));
    let mut further = Vec::new();
    let mut signed = 0;
    for (place, note) in log.checkpoints.iter().enumerate() {
        match Checkpoint::open(note.as_bytes(), keys) {
            Ok((checkpoint, _)) if checkpoint.origin.incarnation == incarnation => {
                signed = signed.max(checkpoint.size);
                review
                    .against(&checkpoint, &format!("the checkpoint of {} events", checkpoint.size));
            }
            Ok((checkpoint, _)) => {
                further.push(format!(
                    "a checkpoint of log {} is kept for this one",
                    checkpoint.origin
                ));
            }
            Err(bad) => further.push(format!("stored checkpoint {place} was changed: {bad}")),
        }
    }
    let counted = log.counted;
    for (checkpoint, name) in kept {
        if checkpoint.origin.incarnation == incarnation {
            review.against(checkpoint, name);
        }
    }
    if let Some(hashes) = source.tile_hashes(incarnation).await? {
        review.expect(hashes, signed);
    }
    let mut from = 0;
    while counted.is_none_or(|counted| from < counted) {
        let page = match source.leaves(incarnation, from).await {
            // What cannot be read is not what was written.
            Err(error) if Told::of(&error, crate::known).code == Code::Internal => {
                further.push(Told::of(&error, crate::known).message);
                break;
            }
            other => other?,
        };
        let Some(last) = page.last() else { break };
        from = last.index.saturating_add(1).max(from + 1);
        // What was appended since is not looked at: what it is held against is older.
        for leaf in page.iter().filter(|leaf| counted.is_none_or(|counted| leaf.index < counted)) {
            if leaf.index == 0
                && let Some(before) = before
            {
                further.extend(beginning(leaf, before));
            }
            take(&mut review, leaf);
        }
    }
    let reviewed = review.finish(counted.map(|counted| (counted, "the head row")));
    // Of a log that is over nothing is counted. In a store the next one names its size and root; a file is all that there is.
    let alone = matches!(source, Source::File(_)).then_some(reviewed.size);
    if log.checkpoints.is_empty() && counted.or(alone).is_some_and(|events| 0 < events) {
        further.push("no signed checkpoint is kept: nothing vouches for the events".to_owned());
    }
    Ok(Verdict { incarnation, reviewed, further })
}

fn take(review: &mut Review, view: &LeafView) {
    let salt = view.salt.as_deref().and_then(|salt| STANDARD.decode(salt).ok());
    let salt: [u8; 16] = salt.and_then(|salt| salt.try_into().ok()).unwrap_or_default();
    let details = view.details.as_ref().map(|details| (details.as_bytes(), &salt));
    review.take(&StoredLeaf {
        index: view.index,
        leaf: view.leaf.as_bytes(),
        hash: view.hash,
        details,
    });
}

/// What is wrong with how a log begins that follows another: it names that one's size and root.
fn beginning(first: &LeafView, before: &Verdict) -> Option<String> {
    let entry = countersign_audit::Entry::parse(first.leaf.as_bytes()).ok()?;
    let details = first.details.as_ref()?;
    let told: serde_json::Value = serde_json::from_str(details).ok()?;
    let (size, root): (u64, Sha256) = (before.reviewed.size, before.reviewed.root);
    let names = entry.kind == EventKind::IncarnationBegan
        && told["from"]["incarnation"] == before.incarnation
        && told["from"]["logSize"] == size
        && told["from"]["logRoot"] == root.to_string();
    let other = || {
        format!(
            "the log does not begin with the size and root of the one before, {size} events with root {root}"
        )
    };
    (!names).then(other)
}

fn tell(verdicts: &[Verdict], keys: &[NoteKey], output: Output) -> Result<()> {
    let name = keys.first().map(NoteKey::name).unwrap_or_default();
    for Verdict { incarnation, reviewed, further } in verdicts {
        let Reviewed { size, root, signed, findings } = reviewed;
        let all = findings.iter().map(Finding::to_string).chain(further.iter().cloned());
        if output == Output::Json {
            let about = |finding: &Finding| json!({ "kind": finding.kind(), "index": finding.index(), "text": finding.to_string() });
            let others = further.iter().map(|text| json!({ "kind": "other", "text": text }));
            let findings: Vec<_> = findings.iter().map(about).chain(others).collect();
            output::json(&json!({
                "event": "verified", "log": format!("{name}/{incarnation}"), "size": size, "root": root,
                "signed": signed, "findings": findings,
            }))?;
            continue;
        }
        let mut text = String::new();
        for finding in all {
            text.push_str(&format!("log {name}/{incarnation}: {finding}\n"));
        }
        if text.is_empty() {
            text = format!("in order: log {name}/{incarnation}, {size} events with root {root}, ");
            text.push_str(&match size - signed {
                0 => "all of them signed\n".to_owned(),
                open => format!("{open} of them not signed yet\n"),
            });
        }
        output::write(text.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::source::Heading;
    use super::*;

    /// Whoever leaves out what was signed, and that anything was counted, has changed what was exported.
    #[tokio::test]
    async fn an_export_for_which_nothing_vouches_is_not_in_order() {
        let whole = include_bytes!("../../../../../fuzz/corpus/log_export/whole").to_vec();
        let unsigned = include_bytes!("../../../../../fuzz/corpus/log_export/unsigned").to_vec();
        let heading: Heading =
            serde_json::from_slice(whole.split(|b| *b == b'\n').next().unwrap()).unwrap();
        let key: NoteKey = heading.log.key.unwrap().parse().unwrap();
        let found = of_export(whole, std::slice::from_ref(&key)).await.unwrap();
        let (reviewed, further) = &found[0];
        assert_eq!((reviewed.size, reviewed.signed, further.as_slice()), (14, 14, &[][..]));
        let found = of_export(unsigned, &[key]).await.unwrap();
        assert_eq!(found[0].1, ["no signed checkpoint is kept: nothing vouches for the events"]);
    }
}
