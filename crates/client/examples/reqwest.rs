//! A client of reqwest over mutual TLS, with its identity from the Workload API.
//!
//! ```text
//! export SPIFFE_ENDPOINT_SOCKET=unix:///run/countersign/agent.sock
//! cargo run -p countersign --example reqwest -- https://127.0.0.1:8443/ --peer spiffe://shop.example/orders
//! ```
//!
//! reqwest makes its connections by itself, so it gets a rustls configuration: who answers is verified in each handshake, on the
//! bundles of that moment, and by its SPIFFE ID, whatever the host in the address. But connections that it keeps are not looked
//! at again: bound how long it keeps them.

use std::time::Duration;

use anyhow::{Context, bail};
use countersign::{Authorization, Expected, Source, SpiffeId, WorkloadApiOptions};

const USAGE: &str = "usage: reqwest URL --peer ID";

/// A connection that nobody uses for so long is not used any more.
const IDLE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [url, option, peer] = words.as_slice() else { bail!(USAGE) };
    if option != "--peer" {
        bail!(USAGE);
    }
    let peer: SpiffeId = peer.parse().context(USAGE)?;
    let mut options = WorkloadApiOptions::from_environment()?;
    // Nobody connects here, and whom we mean is said by `--peer`.
    options.authorization = Authorization::AllowIds(Vec::new());
    let source = Source::from_workload_api(options).await?;
    source.ready().await?;

    let service = "example".parse()?;
    let tls = source.client_config(service, Expected::Id(peer), &[b"http/1.1"]);
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(countersign::rustls::ClientConfig::clone(&tls))
        .https_only(true)
        .no_proxy()
        .pool_idle_timeout(IDLE)
        .build()?;
    let answer = client.get(url).send().await?;
    let status = answer.status();
    print!("{status} {}", answer.text().await?);
    source.shutdown().await;
    Ok(())
}
