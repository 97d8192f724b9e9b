//! Issuance from CSR to certificate, durable record included, against what the cryptography alone costs.
//!
//! It is the server's own way from the proof of possession to the certificate that our verifier has accepted, step by step, with
//! the store under it. What comes before and after is not in it: the wire, and who may have which identity.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use countersign_audit::{Event, EventKind};
use countersign_identity::{Clock, SystemClock, SystemEntropy};
use countersign_pki::{
    Bundles, ChainMemory, KeyKind, PrivateKey, Role, make_csr, open_csr, verify_fresh,
};
use countersign_store::{Batch, IssuedRow, Password, PostgresStore, SqliteStore, Store};

use crate::credentials::Domain;
use crate::figure::{Asked, Figure, Output, Verdict, rate};
use crate::postgres::{Cluster, Listen};

/// Callers at once, as agents batch them.
const CALLERS: usize = 64;
const SPAN: Duration = Duration::from_secs(4);

/// Who issues, and verifies what was issued.
struct Authority {
    domain: Domain,
    bundles: Bundles,
    memory: ChainMemory,
}

impl Authority {
    async fn make() -> Result<Arc<Self>> {
        let domain = Domain::make(SystemClock::new().now()).await?;
        let bundles = Bundles::new(vec![domain.bundle.clone()])?;
        Ok(Arc::new(Self { domain, bundles, memory: ChainMemory::new() }))
    }
}

/// With the state in the data directory.
pub(crate) fn embedded(output: Output) -> Result<Verdict> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().to_owned();
    measure(("issue_embedded", Asked::AtLeast(0.7)), output, async move {
        Ok(Arc::new(SqliteStore::create(&path, Arc::new(SystemEntropy))?) as Arc<dyn Store>)
    })
}

/// With the state in a PostgreSQL on the same machine.
pub(crate) fn postgres(output: Output) -> Result<Verdict> {
    let installed = std::path::Path::new("/usr/lib/postgresql").is_dir();
    ensure!(installed, "PostgreSQL is missing: `apt-get install postgresql`");
    let cluster = Cluster::start(Listen::Nowhere, &["fsync = on"]);
    let url = cluster.url(&cluster.database("read committed")).parse()?;
    measure(("issue_postgres", Asked::AtLeast(0.5)), output, async move {
        let store = PostgresStore::create(url, Password::None, Arc::new(SystemEntropy)).await?;
        Ok(Arc::new(store) as Arc<dyn Store>)
    })
}

/// What one more event costs an issuance: the rate with an event more, beside the rate without.
pub(crate) fn append(output: Output) -> Result<Verdict> {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(cores).enable_all().build()?;
    let authority = runtime.block_on(Authority::make())?;
    let csr = Arc::new(make_csr(&PrivateKey::generate(KeyKind::P256)?)?);
    let rate = |more: usize| -> Result<f64> {
        let folder = tempfile::tempdir()?;
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::create(folder.path(), Arc::new(SystemEntropy))?);
        runtime.block_on(issue_for(&authority, &store, &csr, more))
    };
    // In turns, so that what else the machine does falls on both.
    let (mut without, mut with) = (0.0, 0.0);
    for _round in 0..3 {
        without += rate(0)?;
        with += rate(1)?;
    }
    let figure = Figure {
        name: "log_append",
        value: (1.0 - with / without) * 100.0,
        unit: "% of the rate",
        limit: 10.0,
        limit_is: "what one more event in its transaction may cost an issuance",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
}

fn measure(
    (name, asked): (&'static str, Asked),
    output: Output,
    store: impl Future<Output = Result<Arc<dyn Store>>>,
) -> Result<Verdict> {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(cores).enable_all().build()?;
    let authority = runtime.block_on(Authority::make())?;
    let key = PrivateKey::generate(KeyKind::P256)?;
    let csr = Arc::new(make_csr(&key)?);

    let limit = crypto_alone(cores, &csr, &key);
    let store = runtime.block_on(store)?;
    let value = runtime.block_on(issue_for(&authority, &store, &csr, 0))?;
    let figure = Figure {
        name,
        value,
        unit: "certificates/s",
        limit,
        limit_is: "verifying one CSR and signing one certificate, on the same cores",
        asked,
    };
    Ok(figure.print(output))
}

/// What all cores together could issue if there were nothing but one verification and one signature.
fn crypto_alone(cores: usize, csr: &[u8], key: &PrivateKey) -> f64 {
    let to_sign = [7_u8; 400];
    std::thread::scope(|scope| {
        let one = || {
            rate(Duration::from_millis(800), || {
                open_csr(csr).expect("a good CSR");
                key.sign(&to_sign).expect("a good key");
            })
        };
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
    })
}

async fn issue_for(
    authority: &Arc<Authority>,
    store: &Arc<dyn Store>,
    csr: &Arc<Vec<u8>>,
    more_events: usize,
) -> Result<f64> {
    let issued = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let (authority, store, csr, issued) =
            (authority.clone(), store.clone(), csr.clone(), issued.clone());
        callers.spawn(async move {
            while begin.elapsed() < SPAN {
                issue(&authority, &*store, &csr, more_events).await?;
                issued.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of some seconds")]
    let count = issued.load(Ordering::Relaxed) as f64;
    Ok(count / begin.elapsed().as_secs_f64())
}

/// The design's path: prove, draft, review, record, sign, and verify as those will who have to accept it.
async fn issue(
    authority: &Authority,
    store: &dyn Store,
    csr: &[u8],
    more_events: usize,
) -> Result<()> {
    let Authority { domain, bundles, memory } = authority;
    let now = SystemClock::new().now();
    let reviewed =
        domain.draft("/web", open_csr(csr)?, now)?.review(&domain.profile()?, &domain.issuer)?;
    let summary = reviewed.summary();
    let id = summary.id.clone().context("a leaf has an identity")?;
    let event = Event {
        kind: EventKind::SvidIssued,
        at: now,
        actor: "bench".to_owned(),
        subject: id.to_string(),
        serial: Some(summary.serial),
        tbs: Some(summary.tbs),
        details: serde_json::json!({"key": summary.key.to_string()}),
    };
    let row = IssuedRow {
        serial: summary.serial,
        tbs: summary.tbs,
        spiffe_id: id,
        key: summary.key,
        issuer: summary.issuer,
        node: None,
        validity: summary.validity,
        revision: countersign_identity::Revision { incarnation: 1, number: 0 },
    };
    let another = || Event { kind: EventKind::Summary, serial: None, tbs: None, ..event.clone() };
    let mut events: Vec<Event> = (0..more_events).map(|_| another()).collect();
    events.push(event);
    let batch = Batch { events, issued: vec![row], ..Batch::default() };
    let committed = store.commit(batch).await?;
    let receipt = committed.receipts.into_iter().next().context("a receipt for each row")?;
    let fresh = reviewed.sign_fresh(receipt, &domain.signer).await?;
    let above = [domain.issuer.certificate().clone()];
    verify_fresh(&fresh, &above, bundles, (Role::Client, now), memory)?;
    Ok(())
}
