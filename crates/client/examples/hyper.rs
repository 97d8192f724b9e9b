//! A small HTTP server and client over mutual TLS, with their identity from the Workload API.
//!
//! ```text
//! export SPIFFE_ENDPOINT_SOCKET=unix:///run/countersign/agent.sock
//! cargo run -p countersign --example hyper -- serve 127.0.0.1:8443 --allow spiffe://shop.example/web
//! cargo run -p countersign --example hyper -- call 127.0.0.1:8443 --peer spiffe://shop.example/orders
//! ```
//!
//! `--service NAME` says which service it is, as policies name it. The agent's policies decide who may connect; with
//! `--allow`, and for a `call` that names no service, they are not asked.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{Context, bail};
use countersign::{
    Admitted, Authorization, Connection, Door, Expected, Inbound, Name, Outbound, Source, SpiffeId,
    WorkloadApiOptions, dial,
};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const USAGE: &str = "usage: hyper serve ADDR [--allow ID]… [--service NAME] | hyper call ADDR --peer ID [--service NAME]";

/// How many connections are served at a time.
const CONNECTIONS_MAX: usize = 256;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let command = Command::read(std::env::args().skip(1))?;
    let mut options = WorkloadApiOptions::from_environment()?;
    options.authorization = command.authorization();
    let source = Source::from_workload_api(options).await?;
    source.ready().await?;
    let named = |service: Option<Name>| service.map_or_else(|| "example".parse(), Ok);
    let done = match command {
        Command::Serve { address, service, .. } => serve(&source, address, named(service)?).await,
        Command::Call { address, service, peer } => {
            call(&source, address, named(service)?, peer).await
        }
    };
    source.shutdown().await;
    done
}

/// Serves until interrupted.
async fn serve(source: &Source, address: SocketAddr, service: Name) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
    println!("listening on {}", listener.local_addr()?);
    let mut inbound = Inbound::service(service);
    inbound.alpn = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut door = Door::new(source, listener, inbound);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            done = tokio::signal::ctrl_c() => return Ok(done?),
            Some(ended) = connections.join_next() => ended?,
            connection = door.accept(), if connections.len() < CONNECTIONS_MAX => {
                connections.spawn(serve_one(connection));
            }
        }
    }
}

/// One connection. It ends when the peer does, or loses the right to it.
async fn serve_one(connection: Connection) {
    let admitted = connection.admitted().clone();
    let greet = service_fn(move |request| greet(request, admitted.clone()));
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    if let Err(error) = builder.serve_connection(TokioIo::new(connection), greet).await {
        eprintln!("connection ended: {error}");
    }
}

async fn greet(
    request: Request<Incoming>,
    admitted: Admitted,
) -> Result<Response<String>, Infallible> {
    let peer = admitted.peer().map_or_else(|| "nobody".to_owned(), |peer| peer.id.to_string());
    Ok(Response::new(format!("{} {}: hello, {peer}\n", request.method(), request.uri().path())))
}

/// Makes one request, and prints the answer.
async fn call(
    source: &Source,
    address: SocketAddr,
    service: Name,
    peer: SpiffeId,
) -> anyhow::Result<()> {
    let mut outbound = Outbound::service(service, Expected::Id(peer));
    outbound.alpn = vec![b"http/1.1".to_vec()];
    let established = match dial(&source.trust(), address, &outbound).await {
        Ok(established) => established,
        Err(failure) => {
            source.report(*failure.fact.clone());
            return Err(failure.into());
        }
    };
    source.report(established.fact);
    let io = TokioIo::new(established.stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let request = Request::get("/").header("host", "orders").body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        print!("{status} {}", String::from_utf8_lossy(&body));
        drop(sender);
        anyhow::Ok(())
    };
    let (ended, exchanged) = tokio::join!(connection, exchange);
    exchanged?;
    Ok(ended?)
}

enum Command {
    Serve { address: SocketAddr, service: Option<Name>, allow: Vec<SpiffeId> },
    Call { address: SocketAddr, service: Option<Name>, peer: SpiffeId },
}

impl Command {
    fn read(mut words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let (Some(verb), Some(address)) = (words.next(), words.next()) else { bail!(USAGE) };
        let address = address.parse().with_context(|| format!("`{address}` is not `IP:PORT`"))?;
        let (mut service, mut allow, mut peer) = (None, Vec::new(), None);
        while let Some(option) = words.next() {
            let value = words.next().context(USAGE)?;
            match option.as_str() {
                "--allow" => allow.push(value.parse()?),
                "--peer" => peer = Some(value.parse()?),
                "--service" => service = Some(value.parse()?),
                _ => bail!(USAGE),
            }
        }
        match (verb.as_str(), peer) {
            ("serve", None) => Ok(Self::Serve { address, service, allow }),
            ("call", Some(peer)) if allow.is_empty() => Ok(Self::Call { address, service, peer }),
            _ => bail!(USAGE),
        }
    }

    fn authorization(&self) -> Authorization {
        match self {
            Self::Serve { allow, .. } if !allow.is_empty() => {
                Authorization::AllowIds(allow.clone())
            }
            // Nobody connects here, and whom we mean is said by `--peer`.
            Self::Call { service: None, .. } => Authorization::AllowIds(Vec::new()),
            Self::Serve { .. } | Self::Call { .. } => Authorization::FromAgent,
        }
    }
}
