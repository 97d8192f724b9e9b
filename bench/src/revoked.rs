//! What revocation costs where it is enforced: the question at every handshake, and the cut.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use countersign::{Expected, Identity, Inbound, Outbound, accept, dial};
use countersign_identity::{
    Clock, KeyId, Name, NodeTag, Presented, Reason, Revision, Revocation, Revocations, Revoked,
    Serial, SpiffeId, SystemClock, Timestamp,
};
use countersign_pki::Bundles;
use countersign_policy::{Policies, PolicySource};
use countersign_tls::{Slice, Trust};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::credentials::Domain;
use crate::figure::{Asked, Figure, Output, Verdict, rate};

const SPAN: Duration = Duration::from_millis(700);
const RULES: u32 = 1_000_000;
const STRANGERS: u32 = 16_384;
const NODE: NodeTag = NodeTag::from_bytes([4; 8]);
const CONNECTIONS: usize = 2_000;
const ROUNDS: u32 = 60;

/// Asking a million rules about one certificate, against the microsecond that the design allows.
pub(crate) fn check(output: Output) -> Result<Verdict> {
    let now = SystemClock::new().now();
    let rules = (0..RULES).map(|number| many(number, now)).collect::<Result<Vec<_>>>()?;
    let rules = Revocations::new(rules);
    // None of them covers any of these, so each index is asked; and they are many, so that what a processor remembers of
    // the last question is of no use for the next.
    let strangers = (0..STRANGERS).map(stranger).collect::<Result<Vec<_>>>()?;
    let mut turn = strangers.iter().cycle();
    let per_second = rate(SPAN, || {
        let Some((id, serial, key, authorities)) = turn.next() else { return };
        let presented = Presented {
            id,
            serial: Some(*serial),
            key: *key,
            authorities,
            provenance: Some((Revision { incarnation: 1, number: 7 }, NODE)),
        };
        assert!(std::hint::black_box(&rules).covering(&presented).is_none());
    });
    let figure = Figure {
        name: "revoked_check",
        value: 1e6 / per_second,
        unit: "µs",
        limit: 1.0,
        limit_is: "µs a handshake with 1,000,000 live rules, asked for by the design",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
}

/// What somebody shows whom no rule covers.
fn stranger(number: u32) -> Result<(SpiffeId, Serial, KeyId, [KeyId; 2])> {
    let id = format!("spiffe://bench.example/stranger{number}").parse()?;
    let (mut serial, mut key) = ([9; 16], [3; 32]);
    serial[12..].copy_from_slice(&number.to_be_bytes());
    key[28..].copy_from_slice(&number.to_be_bytes());
    let serial = Serial::from_bytes(serial).context("a serial")?;
    let authorities = [KeyId::from_bytes([1; 32]), KeyId::from_bytes([2; 32])];
    Ok((id, serial, KeyId::from_bytes(key), authorities))
}

/// Rules of every kind, each on something of its own.
fn many(number: u32, now: Timestamp) -> Result<(Arc<str>, Arc<Revocation>)> {
    let mut bytes = [0; 32];
    bytes[28..].copy_from_slice(&number.to_be_bytes());
    let target = match number % 4 {
        0 => {
            let mut serial = [1; 16];
            serial[12..].copy_from_slice(&number.to_be_bytes());
            Revoked::Serial(Serial::from_bytes(serial).context("a serial")?)
        }
        1 => Revoked::Identity {
            id: format!("spiffe://bench.example/w{number}").parse()?,
            before: Revision { incarnation: 1, number: 9 },
        },
        2 => Revoked::Key(KeyId::from_bytes(bytes)),
        _ => Revoked::Authority(KeyId::from_bytes(bytes)),
    };
    let until = now + Duration::from_secs(3600);
    let reason = Reason::KeyCompromise;
    let rule = Revocation { target, about: None, reason, at: now, until };
    Ok((number.to_string().into(), Arc::new(rule)))
}

/// From a rule at an enforcement point to the end of the connection that it covers, among thousands of live ones,
/// against the design's 100 ms.
pub(crate) fn cut(output: Output) -> Result<Verdict> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let p99 = runtime.block_on(cuts())?;
    let figure = Figure {
        name: "revoked_cut",
        value: p99.as_secs_f64() * 1000.0,
        unit: "ms p99",
        limit: 100.0,
        limit_is: "ms from the rule to the cut, asked for by the design",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
}

async fn cuts() -> Result<Duration> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let domain = Domain::make(clock.now()).await?;
    let text = r#"@unscoped("bench") permit (principal, action == Action::"connect", resource == Service::"orders");"#;
    let source = PolicySource::enforced("bench".parse()?, text);
    let policies =
        Policies::compile(&[source], None).map_err(|problems| anyhow!("{problems:?}"))?;
    let slice = Slice {
        bundles: Arc::new(Bundles::new(vec![domain.bundle.clone()])?),
        policies: Arc::new(policies),
        ..Slice::nothing()
    };
    let trust = |identity: Identity| {
        let trust = Trust::new(Arc::clone(&clock), slice.clone());
        trust.set_identity(identity).map_err(|refused| anyhow!("{refused}")).map(|()| trust)
    };
    let identity = async |path: &str| -> Result<Identity> {
        let credential = domain.issue(path).await?;
        Ok(Identity::new(credential.chain, credential.key.pkcs8())?)
    };
    let orders = trust(identity("/orders").await?)?;
    let crowd = trust(identity("/crowd").await?)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service: Name = "orders".parse()?;
    let outbound =
        Outbound::service(service.clone(), Expected::Id("spiffe://bench.example/orders".parse()?));
    let inbound = Inbound::service(service);
    let connect = async |from: &Arc<Trust>| -> Result<_> {
        let (near, far) = tokio::join!(dial(from, address, &outbound), async {
            let (tcp, _) = listener.accept().await?;
            anyhow::Ok(accept(&orders, tcp, &inbound).await?)
        });
        Ok((near?, far?))
    };
    let mut standing = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        standing.push(connect(&crowd).await?);
    }
    let mut took = Vec::new();
    for round in 0..ROUNDS {
        let thief = trust(identity("/thief").await?)?;
        let (near, far) = connect(&thief).await?;
        let key = thief.identity().context("it was just set")?.leaf().key_id();
        let mut ends = JoinSet::new();
        let ended = far.stream.admitted().ended();
        ends.spawn(async move {
            ended.await;
            Instant::now()
        });
        tokio::task::yield_now().await;
        let begin = Instant::now();
        revoke(&orders, key, round);
        let end = ends.join_next().await.context("one was spawned")??;
        took.push(end.saturating_duration_since(begin));
        // Held until now: whoever lets go of it closes it as well.
        drop((near, far));
    }
    took.sort();
    drop(standing);
    took.get(took.len() * 99 / 100).copied().context("there were rounds")
}

/// A further rule, and nothing else that is new.
fn revoke(trust: &Trust, key: KeyId, round: u32) {
    let (before, now) = (trust.slice(), trust.clock().now());
    let until = now + Duration::from_secs(3600);
    let reason = Reason::KeyCompromise;
    let rule = Revocation { target: Revoked::Key(key), about: None, reason, at: now, until };
    let rules = Revocations::new([(round.to_string().into(), Arc::new(rule))]);
    let revocations = Arc::new(rules.keeping(&before.revocations, now));
    trust.apply(Slice { revocations, ..Slice::clone(&before) });
}
