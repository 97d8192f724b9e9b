//! The audit log at a million events: checking all of it, and proving one of them.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_audit::{
    Checkpoint, Edge, Event, EventKind, NoteKey, NoteKeyKind, Origin, Review, StoredLeaf,
};
use countersign_identity::{Clock as _, Revision, SystemClock, SystemEntropy};
use countersign_pki::{KeyKind, PrivateKey};
use countersign_server::{OfflineLog, Place};
use countersign_store::{Batch, CheckpointRow, Op, SqliteStore, Store as _};

use crate::figure::{Asked, Figure, Output, Verdict};

const EVENTS: u64 = 1_000_000;
const BATCH: usize = 10_000;
const PAGE: usize = 1000;

/// A store with a million events, all of them signed.
async fn fill(folder: &Path) -> Result<NoteKey> {
    let store = SqliteStore::create(folder, Arc::new(SystemEntropy))?;
    let now = SystemClock::new().now();
    let mut written = 0;
    while written < EVENTS {
        let event = |n: usize| {
            let subject = format!("spiffe://shop.example/workload-{n}");
            let details = serde_json::json!({ "count": n, "reason": "a figure" });
            Event::new(EventKind::Summary, now, "server", subject).with_details(details)
        };
        let events = (0..BATCH).map(event).collect();
        store.commit(Batch { events, ..Batch::default() }).await?;
        written += BATCH as u64;
    }
    let (mut edge, mut hashes) = (Edge::default(), Vec::new());
    while edge.size() < EVENTS {
        for leaf in store.leaf_hashes(edge.size(), 16 * PAGE).await? {
            edge.push(leaf, |tile| hashes.push(tile));
        }
    }
    let private = PrivateKey::generate(KeyKind::Ed25519)?;
    let public = private.public().spki().last_chunk::<32>().context("32 bytes end it")?;
    let key = NoteKey::new("shop.example/log", NoteKeyKind::Log, *public)?;
    let note = Checkpoint { origin: Origin::of(&key, 1), size: EVENTS, root: edge.root() }.note();
    let signature = private.sign(note.text().as_bytes())?;
    let note = note.with_signature(&key, &signature).to_string();
    let row = CheckpointRow { incarnation: 1, size: EVENTS, note };
    let ops = vec![Op::PutCheckpoint(row), Op::PutTileHashes { incarnation: 1, hashes }];
    store.commit(Batch { ops, ..Batch::default() }).await?;
    Ok(key)
}

fn filled<T>(work: impl AsyncFnOnce(OfflineLog, NoteKey) -> Result<T>) -> Result<T> {
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let key = fill(folder.path()).await?;
        let log = OfflineLog::open(&Place::Directory(folder.path().to_owned())).await?;
        work(log, key).await
    })
}

/// As `countersign log verify --store` reads and checks it.
pub(crate) fn verify(output: Output) -> Result<Verdict> {
    let seconds = filled(async |log: OfflineLog, key: NoteKey| {
        let begin = Instant::now();
        let mut review = Review::of(Revision { incarnation: 1, number: 0 });
        for note in log.log(None).await?.checkpoints {
            let (checkpoint, _) = Checkpoint::open(note.as_bytes(), std::slice::from_ref(&key))?;
            review.against(&checkpoint, "the checkpoint");
        }
        while review.next() < EVENTS {
            for view in log.leaves(1, review.next(), PAGE).await?.leaves {
                let salt = STANDARD.decode(view.salt.context("a salt")?)?;
                let salt: [u8; 16] = salt.as_slice().try_into()?;
                let details = view.details.as_ref().map(|details| (details.as_bytes(), &salt));
                let leaf = view.leaf.as_bytes();
                review.take(&StoredLeaf { index: view.index, leaf, hash: view.hash, details });
            }
        }
        let reviewed = review.finish(Some((EVENTS, "the head row")));
        ensure!(reviewed.findings.is_empty() && reviewed.signed == EVENTS, "{reviewed:?}");
        Ok(begin.elapsed().as_secs_f64())
    })?;
    let figure = Figure {
        name: "log_verify_1m",
        value: seconds,
        unit: "s",
        limit: 20.0,
        limit_is: "what checking a million events may take",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
}

/// From the store to a bundle, which is verified.
pub(crate) fn prove(output: Output) -> Result<Verdict> {
    let millis = filled(async |log: OfflineLog, key: NoteKey| {
        let trusted = [key];
        let mut all = Vec::new();
        for n in 0..1000_u64 {
            let index = n * 4_999 % EVENTS;
            let begin = Instant::now();
            let bundle = log.prove(None, index).await?;
            let millis = begin.elapsed().as_secs_f64() * 1000.0;
            bundle.verify(&trusted)?;
            // The first ones also open the connections.
            if 5 <= n {
                all.push(millis);
            }
        }
        all.sort_by(f64::total_cmp);
        all.get(all.len() * 99 / 100).copied().context("nothing was proven")
    })?;
    let figure = Figure {
        name: "log_proof",
        value: millis,
        unit: "ms p99",
        limit: 5.0,
        limit_is: "what proving one of a million events may take",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
}
