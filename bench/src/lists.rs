//! What a revocation list costs that everything is on.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use countersign_audit::EventKind;
use countersign_identity::{
    Clock as _, KeyId, Lifetime, Reason, Revision, Revocation, Revocations, Revoked, Serial,
    Sha256, SystemClock, SystemEntropy, Timestamp, Validity,
};
use countersign_pki::{Crl, Signer};
use countersign_server::steps::revocation_list;
use countersign_store::{Batch, IssuedRow, SqliteStore, Store};

use crate::credentials::Domain;
use crate::figure::{Asked, Figure, Output, Verdict};

const REVOKED: usize = 100_000;
/// Rows that one commit records.
const BATCH: usize = 1000;
const ROUNDS: usize = 3;

/// From a rule for each of 100,000 certificates, over the table of what was issued on the disk, to the signed list: the
/// worst of three, against the second that is asked for.
pub(crate) fn run(output: Output) -> Result<Verdict> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let millis = runtime.block_on(slowest())?;
    let figure = Figure {
        name: "crl_100k",
        value: millis,
        unit: "ms",
        limit: 1000.0,
        limit_is: "ms for a list of 100,000 revoked certificates, asked for",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
}

async fn slowest() -> Result<f64> {
    let now = SystemClock::new().now();
    let domain = Domain::make(now).await?;
    let folder = tempfile::tempdir()?;
    let store = SqliteStore::create(folder.path(), Arc::new(SystemEntropy))?;
    let mut rules = Vec::with_capacity(REVOKED);
    for _batch in 0..REVOKED / BATCH {
        let rows = (0..BATCH).map(|_| row(&domain, now)).collect::<Result<Vec<_>>>()?;
        rules.extend(rows.iter().map(|row| rule(row, now)));
        let events =
            rows.iter().map(|row| row.event(EventKind::SvidIssued, now, "bench")).collect();
        store.commit(Batch { events, issued: rows, ..Batch::default() }).await?;
    }
    let rules = Revocations::new(rules);
    let signer: Arc<dyn Signer> = Arc::new(domain.signer);
    let mut worst: f64 = 0.0;
    for _round in 0..ROUNDS {
        let begin = Instant::now();
        let list =
            revocation_list(&store, &rules, &domain.issuer, Arc::clone(&signer), now).await?;
        worst = worst.max(begin.elapsed().as_secs_f64() * 1000.0);
        ensure!(Crl::parse(&list)?.entries.len() == REVOKED, "the list does not hold them all");
    }
    Ok(worst)
}

fn row(domain: &Domain, now: Timestamp) -> Result<IssuedRow> {
    let lifetime = Lifetime::from_secs(3600)?;
    let serial = Serial::draw(now, &SystemEntropy)?;
    let mut digest = [0; 32];
    digest[..16].copy_from_slice(serial.as_bytes());
    Ok(IssuedRow {
        serial,
        tbs: Sha256::from_bytes(digest),
        spiffe_id: domain.domain.with_path("/orders")?,
        key: KeyId::from_bytes(digest),
        issuer: domain.issuer.key_id(),
        node: None,
        validity: Validity { not_before: now, not_after: now + lifetime.duration() },
        revision: Revision { incarnation: 1, number: 0 },
    })
}

fn rule(row: &IssuedRow, now: Timestamp) -> (Arc<str>, Arc<Revocation>) {
    let rule = Revocation {
        target: Revoked::Serial(row.serial),
        about: None,
        reason: Reason::KeyCompromise,
        at: now,
        until: row.validity.not_after,
    };
    (row.serial.to_string().into(), Arc::new(rule))
}
