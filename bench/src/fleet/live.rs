//! From `revoke` to the end of live connections at real proxies: the example shop, every process on this machine.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use countersign::{Expected, Identity, Outbound, dial};
use countersign_api::admin::{AdminClient, Reissue, RevokeRequest, Target};
use countersign_identity::{Reason, Serial, SystemClock};
use countersign_pki::{Bundle, Bundles, Chain, PrivateKey};
use countersign_tls::{Slice, Trust};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;

use super::figures::Options;
use super::rotate::Shop;
use crate::figure::{Asked, Figure, Verdict};

/// Live connections that one rule has to end, over the doors of the shop.
const CONNECTIONS: usize = 200;
const DOORS: [&str; 2] = ["orders", "payments"];
const ROUNDS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);
const DOMAIN: &str = "shop.example";

/// A connection that was ended, and when; or a door, and when it refused.
type Ends = JoinSet<Result<Instant>>;

/// Measures it.
pub(super) async fn run(options: &Options) -> Result<Verdict> {
    let shop = Shop::open()?;
    let admin = shop.place().await?.admin;
    declare(&admin).await?;
    let (mut cut, mut refused) = (Vec::new(), Vec::new());
    let mut before = None;
    for round in 0..ROUNDS {
        let identity = fetched(&shop, before).await?;
        let serial = identity.serial().context("a serial of ours")?;
        before = Some(serial);
        let trust = trusting(&admin, identity).await?;
        let mut ends = connected(&shop, &trust).await?;
        let mut doors = Ends::new();
        for door in DOORS {
            doors.spawn(refused_at(shop.address(door)?, door, Arc::clone(&trust)));
        }
        let request = RevokeRequest {
            targets: vec![Target::Serial(serial)],
            reason: Reason::KeyCompromise,
            issued_before: None,
            reissue: Reissue::ByReason,
            dry_run: false,
        };
        // From before the command, so that its own commit counts as well.
        let begin = Instant::now();
        admin.revoke(&request).await?;
        let committed = begin.elapsed();
        let took = ended(&mut ends, begin).await?;
        let shut = ended(&mut doors, begin).await?;
        let last = |took: &[Duration]| took.last().copied().unwrap_or_default();
        eprintln!(
            "  revoke_live {}: answered after {committed:.1?}, the last of {} connections ended after {:.1?}, the last door refused after {:.1?}",
            round + 1,
            took.len(),
            last(&took),
            last(&shut)
        );
        cut.extend(took);
        refused.extend(shut);
    }
    cut.extend(refused);
    cut.sort();
    let at = (cut.len() - 1) * 99 / 100;
    let figure = Figure {
        name: "revoke_live",
        value: cut.get(at).context("there were rounds")?.as_secs_f64() * 1000.0,
        unit: "ms p99",
        limit: 100.0,
        limit_is: "ms from the request until 200 live connections at the shop's proxies are gone and new ones refused, asked for by the design",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(options.output))
}

/// Lets this program be `thief`, who may use what has a door.
async fn declare(admin: &AdminClient) -> Result<()> {
    let uid = nix::unistd::geteuid();
    let thief = json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "Workload", "metadata": { "name": "thief" },
        "spec": { "selectors": [format!("unix:uid:{uid}")], "lifetime": "10m" },
    });
    let policy = |service: &str| {
        let text = format!(
            r#"permit (principal == Workload::"thief", action == Action::"connect", resource == Service::"{service}");"#
        );
        json!({
            "apiVersion": "countersign.dev/v1alpha1", "kind": "Policy",
            "metadata": { "name": format!("thief-to-{service}") }, "spec": { "cedar": text },
        })
    };
    let resources = std::iter::once(thief).chain(DOORS.map(policy)).collect();
    let request = countersign_api::admin::ApplyRequest {
        resources,
        base: None,
        prune: false,
        dry_run: false,
    };
    let revision = admin.apply(&request).await?.revision;
    let enforced = admin.convergence(Some(revision), PATIENCE).await?;
    ensure!(enforced.is_converged(), "the policies are not enforced");
    Ok(())
}

/// The SVID that the agent serves to this program, once it is another than the one before.
async fn fetched(shop: &Shop, before: Option<Serial>) -> Result<Identity> {
    let begin = Instant::now();
    let out = shop.folder().join("thief");
    loop {
        let mut fetch = shop.command()?;
        let fetched = fetch.args(["fetch", "x509", "--write"]).arg(&out).output()?;
        if fetched.status.success() {
            let identity = read(&out)?;
            if identity.serial() != before {
                return Ok(identity);
            }
        }
        let why = String::from_utf8_lossy(&fetched.stderr);
        ensure!(begin.elapsed() < PATIENCE, "no SVID for this program: {why}");
        tokio::time::sleep(LOOK).await;
    }
}

fn read(folder: &Path) -> Result<Identity> {
    let text = |name: &str| std::fs::read_to_string(folder.join(name));
    let chain = Chain::from_pem(&text("svid.pem")?)?;
    let key = PrivateKey::from_pem(&text("svid-key.pem")?)?;
    Ok(Identity::new(chain, key.pkcs8())?)
}

async fn trusting(admin: &AdminClient, identity: Identity) -> Result<Arc<Trust>> {
    let roots = admin.authorities().await?.roots;
    let trusted = roots.into_iter().filter(|root| root.trusted).map(|root| root.certificate);
    let bundle = Bundle::from_pem(DOMAIN.parse()?, &trusted.collect::<String>())?;
    let slice = Slice { bundles: Arc::new(Bundles::of(bundle)), ..Slice::nothing() };
    let trust = Trust::new(Arc::new(SystemClock::new()), slice);
    trust.set_identity(identity).map_err(|refused| anyhow!("{}", refused.why))?;
    Ok(trust)
}

fn outbound(door: &str) -> Result<Outbound> {
    Ok(Outbound::control(Expected::Id(format!("spiffe://{DOMAIN}/{door}").parse()?)))
}

/// Connections that stay until they are ended.
async fn connected(shop: &Shop, trust: &Arc<Trust>) -> Result<Ends> {
    let mut ends = Ends::new();
    for number in 0..CONNECTIONS {
        let door = DOORS[number % DOORS.len()];
        let established = dial(trust, shop.address(door)?, &outbound(door)?).await;
        let mut stream = established.map_err(|failure| anyhow!("{failure}"))?.stream;
        ends.spawn(async move {
            let mut nothing = [0];
            // Whether it ends by an alert, a reset or in silence, it has ended.
            let heard = stream.read(&mut nothing).await;
            ensure!(!matches!(heard, Ok(1..)), "the door said something");
            Ok(Instant::now())
        });
    }
    Ok(ends)
}

/// When a door refuses a new handshake for the first time.
async fn refused_at(
    address: std::net::SocketAddr,
    door: &str,
    trust: Arc<Trust>,
) -> Result<Instant> {
    let outbound = outbound(door)?;
    loop {
        let begun = Instant::now();
        let Ok(mut established) = dial(&trust, address, &outbound).await else {
            return Ok(begun);
        };
        // The door judges after this end is done: what it lets in stays open and silent.
        let mut nothing = [0];
        let heard = established.stream.read(&mut nothing);
        if tokio::time::timeout(LOOK / 4, heard).await.is_ok() {
            return Ok(begun);
        }
    }
}

async fn ended(ends: &mut Ends, begin: Instant) -> Result<Vec<Duration>> {
    let all = async {
        let mut took = Vec::new();
        while let Some(end) = ends.join_next().await {
            took.push(end??.saturating_duration_since(begin));
        }
        took.sort();
        anyhow::Ok(took)
    };
    tokio::time::timeout(PATIENCE, all).await.context("some connections live still")?
}
