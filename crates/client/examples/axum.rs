//! An HTTP service of axum over mutual TLS, with its identity from the Workload API. Handlers see who calls.
//!
//! ```text
//! export SPIFFE_ENDPOINT_SOCKET=unix:///run/countersign/agent.sock
//! cargo run -p countersign --example axum -- 127.0.0.1:8443 --service orders
//! cargo run -p countersign --example axum -- 127.0.0.1:8443 --allow spiffe://shop.example/web
//! ```
//!
//! With `--service NAME` the agent's policies decide who may connect to the service of that name, and who may ask it for what if it
//! declares operations; with `--allow` the list does.

use anyhow::{Context, bail};
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::Extensions;
use axum::routing::get;
use axum::{Router, ServiceExt};
use countersign::{
    Admitted, Authorization, Connection, Door, Inbound, Name, RequestLayer, Source, SpiffeId,
    WorkloadApiOptions,
};
use tokio::net::TcpListener;
use tower::Layer;

const USAGE: &str = "usage: axum ADDR [--service NAME] [--allow ID]…";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (address, service, allow) = read(std::env::args().skip(1))?;
    let mut options = WorkloadApiOptions::from_environment()?;
    if !allow.is_empty() {
        options.authorization = Authorization::AllowIds(allow);
    }
    let source = Source::from_workload_api(options).await?;
    source.ready().await?;

    let listener = TcpListener::bind(&address).await;
    let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
    println!("listening on {}", listener.local_addr()?);
    let mut inbound = Inbound::service(service.clone());
    inbound.alpn = vec![b"http/1.1".to_vec()];
    let door = Mutual(Door::new(&source, listener, inbound));

    let router = Router::new().route("/", get(greet));
    // Around the whole router, so that a path is decided on in the form by which its route is chosen.
    let layer = RequestLayer::new(&source, service).finding(caller);
    let decided = tower::ServiceExt::<Request>::map_response(layer.layer(router), |answer| {
        answer.map(Body::new)
    });
    let service = ServiceExt::<Request>::into_make_service_with_connect_info::<Caller>(decided);
    axum::serve(door, service).with_graceful_shutdown(interrupted()).await?;
    source.shutdown().await;
    Ok(())
}

/// A handler. Whoever gets here was admitted, and may ask for this: the door and the layer have asked the policies already.
async fn greet(ConnectInfo(Caller(admitted)): ConnectInfo<Caller>) -> String {
    let peer = admitted.peer().map_or_else(|| "nobody".to_owned(), |peer| peer.id.to_string());
    format!("hello, {peer}\n")
}

/// Who is at the other end of a connection.
#[derive(Clone)]
struct Caller(Admitted);

/// Where axum keeps it.
fn caller(extensions: &Extensions) -> Option<Admitted> {
    extensions.get::<ConnectInfo<Caller>>().map(|info| info.0.0.clone())
}

/// The door as axum wants it.
struct Mutual(Door);

impl axum::serve::Listener for Mutual {
    type Io = Connection;
    type Addr = Admitted;

    async fn accept(&mut self) -> (Connection, Admitted) {
        let connection = self.0.accept().await;
        let admitted = connection.admitted().clone();
        (connection, admitted)
    }

    /// There is no one at the other end of a listener, and axum asks for it only to log it.
    fn local_addr(&self) -> std::io::Result<Admitted> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Mutual>> for Caller {
    fn connect_info(stream: axum::serve::IncomingStream<'_, Mutual>) -> Self {
        Self(stream.remote_addr().clone())
    }
}

async fn interrupted() {
    // Without signals there is nothing to wait for.
    tokio::signal::ctrl_c().await.ok();
}

fn read(mut words: impl Iterator<Item = String>) -> anyhow::Result<(String, Name, Vec<SpiffeId>)> {
    let address = words.next().context(USAGE)?;
    let (mut service, mut allow) = ("example".parse()?, Vec::new());
    while let Some(option) = words.next() {
        let value = words.next().context(USAGE)?;
        match option.as_str() {
            "--service" => service = value.parse()?,
            "--allow" => allow.push(value.parse()?),
            _ => bail!(USAGE),
        }
    }
    Ok((address, service, allow))
}
