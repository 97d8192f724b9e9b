//! Upgraded connections, and those that `CONNECT` has opened, of a service that begins to declare operations.

use std::convert::Infallible;

use bytes::Bytes;
use countersign::{AskedBody, Door, Expected, Inbound, Outbound, RequestLayer, Source, dial};
use http::request::Builder;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tower::Layer;

use super::shop::slice;
use crate::agent::Offer;
use crate::enforcement::{orders, web};
use crate::world::World;

/// Says everything back over an upgraded connection, or one that `CONNECT` has opened.
async fn echo(mut request: Request<AskedBody<Incoming>>) -> Response<Full<Bytes>> {
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrading.await.unwrap()));
        // It ends when the connection is cut.
        tokio::io::copy(&mut read, &mut write).await.ok();
    });
    let mut response = Response::new(Full::default());
    if request.method() != Method::CONNECT {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("connection", "upgrade".parse().unwrap());
        response.headers_mut().insert("upgrade", "echo".parse().unwrap());
    }
    response
}

/// Opens such a connection of `web` to a door of `orders`.
async fn opened(web: &Source, orders: &Source, request: Builder) -> TokioIo<Upgraded> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut door = Door::new(orders, listener, Inbound::service("orders".parse().unwrap()));
    let address = door.local_address().unwrap();
    let layer = RequestLayer::new(orders, "orders".parse().unwrap());
    tokio::spawn(async move {
        let connection = door.accept().await;
        let answer = tower::service_fn(async |request| Ok::<_, Infallible>(echo(request).await));
        let service = TowerToHyperService::new(layer.of(&connection).layer(answer));
        let http = hyper::server::conn::http1::Builder::new();
        http.serve_connection(TokioIo::new(connection), service).with_upgrades().await
    });
    let expected = Expected::Id("spiffe://shop.example/orders".parse().unwrap());
    let outbound = Outbound::service("orders".parse().unwrap(), expected);
    let stream = dial(&web.trust(), address, &outbound).await.unwrap().stream;
    let io = TokioIo::new(stream);
    let (mut send, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = request.header("host", "orders").body(Full::<Bytes>::default()).unwrap();
    let response = send.send_request(request).await.unwrap();
    assert!(matches!(response.status().as_u16(), 101 | 200));
    TokioIo::new(hyper::upgrade::on(response).await.unwrap())
}

async fn echoes(io: &mut TokioIo<Upgraded>) -> bool {
    let mut answer = [0; 4];
    let sent = io.write_all(b"ping").await;
    sent.is_ok() && io.read_exact(&mut answer).await.is_ok() && answer == *b"ping"
}

#[tokio::test]
async fn what_was_upgraded_before_a_service_declared_operations_is_decided_on_as_soon_as_it_does() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    let upgrade = |path: &str| {
        Request::get(path.to_owned()).header("connection", "upgrade").header("upgrade", "echo")
    };
    let mut denied = opened(&web, &orders, upgrade("/follow")).await;
    let mut kept = opened(&web, &orders, upgrade("/see/1")).await;
    let mut through = opened(&web, &orders, Request::builder().method("CONNECT").uri("a:1")).await;
    for io in [&mut denied, &mut kept, &mut through] {
        assert!(echoes(io).await);
    }
    world.agent.enforce(slice(&world, 6, &[("", "GET", "see")]));
    assert_eq!(world.agent.acknowledged().await, (6, 2), "two connections are cut");
    assert!(!echoes(&mut denied).await && !echoes(&mut through).await);
    assert!(echoes(&mut kept).await, "what is permitted goes on");
}
