//! A gRPC service of tonic over mutual TLS, and a client of it, with their identity from the Workload API.
//!
//! ```text
//! export SPIFFE_ENDPOINT_SOCKET=unix:///run/countersign/agent.sock
//! cargo run -p countersign --example tonic -- serve 127.0.0.1:8443 --allow spiffe://shop.example/web
//! cargo run -p countersign --example tonic -- call 127.0.0.1:8443 --peer spiffe://shop.example/orders
//! ```
//!
//! `--service NAME` says which service it is, as policies name it; the agent's policies decide then who may connect. The service that is
//! served is gRPC's own health check, so that there is nothing to generate.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use countersign::{
    Admitted, Authorization, Door, Expected, Inbound, Name, Outbound, Source, SpiffeId,
    WorkloadApiOptions, dial,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Endpoint, Server, Uri};
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const USAGE: &str = "usage: tonic serve ADDR [--service NAME] [--allow ID]… | tonic call ADDR --peer ID [--service NAME]";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let asked = Asked::read(std::env::args().skip(1))?;
    let mut options = WorkloadApiOptions::from_environment()?;
    if !asked.allow.is_empty() || asked.peer.is_some() {
        // Nobody connects to a client; whom it means is said by `--peer`.
        options.authorization = Authorization::AllowIds(asked.allow.clone());
    }
    let source = Source::from_workload_api(options).await?;
    source.ready().await?;
    let done = match &asked.peer {
        None => serve(&source, &asked).await,
        Some(peer) => call(&source, &asked, peer).await,
    };
    source.shutdown().await;
    done
}

/// Serves until interrupted.
async fn serve(source: &Source, asked: &Asked) -> anyhow::Result<()> {
    let listener = TcpListener::bind(asked.address).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", asked.address))?;
    println!("listening on {}", listener.local_addr()?);
    let mut inbound = Inbound::service(asked.service.clone());
    inbound.alpn = vec![b"h2".to_vec()];
    let connections = Door::new(source, listener, inbound).into_stream();
    let (_reporter, health) = tonic_health::server::health_reporter();
    Server::builder()
        .add_service(InterceptedService::new(health, see))
        .serve_with_incoming_shutdown(connections, async {
            // Without signals there is nothing to wait for.
            tokio::signal::ctrl_c().await.ok();
        })
        .await?;
    Ok(())
}

/// Sees each request before the service does. Whoever gets here was admitted: the door has asked the policies already.
#[expect(clippy::unnecessary_wraps, reason = "tonic asks for it")]
fn see(request: Request<()>) -> Result<Request<()>, Status> {
    let admitted = request.extensions().get::<Admitted>();
    let peer = admitted.and_then(Admitted::peer).map(|peer| peer.id.to_string());
    println!("asked by {}", peer.as_deref().unwrap_or("nobody"));
    Ok(request)
}

/// Makes one call, and prints the answer.
async fn call(source: &Source, asked: &Asked, peer: &SpiffeId) -> anyhow::Result<()> {
    let (trust, address) = (source.trust(), asked.address);
    let mut outbound = Outbound::service(asked.service.clone(), Expected::Id(peer.clone()));
    outbound.alpn = vec![b"h2".to_vec()];
    let connector = tower::service_fn(move |_uri: Uri| {
        let (trust, outbound) = (trust.clone(), outbound.clone());
        async move {
            dial(&trust, address, &outbound)
                .await
                .map(|established| TokioIo::new(established.stream))
        }
    });
    let channel = Endpoint::from_static("http://orders").connect_with_connector(connector).await?;
    let request = HealthCheckRequest { service: String::new() };
    let answer = HealthClient::new(channel).check(request).await?.into_inner();
    println!("{}", answer.status().as_str_name());
    Ok(())
}

/// What the command line says.
struct Asked {
    address: SocketAddr,
    service: Name,
    allow: Vec<SpiffeId>,
    /// Whom to call; nobody to serve.
    peer: Option<SpiffeId>,
}

impl Asked {
    fn read(mut words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let (Some(verb), Some(address)) = (words.next(), words.next()) else { bail!(USAGE) };
        let address = address.parse().with_context(|| format!("`{address}` is not `IP:PORT`"))?;
        let (mut service, mut allow, mut peer) = ("example".parse()?, Vec::new(), None);
        while let Some(option) = words.next() {
            let value = words.next().context(USAGE)?;
            match option.as_str() {
                "--service" => service = value.parse()?,
                "--allow" => allow.push(value.parse()?),
                "--peer" => peer = Some(value.parse()?),
                _ => bail!(USAGE),
            }
        }
        match (verb.as_str(), &peer) {
            ("serve", None) => {}
            ("call", Some(_)) if allow.is_empty() => {}
            _ => bail!(USAGE),
        }
        Ok(Self { address, service, allow, peer })
    }
}
