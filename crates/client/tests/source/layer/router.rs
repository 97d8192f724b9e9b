//! The layer around a router of axum, which is given connections of a door.

use axum::extract::{ConnectInfo, Path};
use bytes::Bytes;
use countersign::{Admitted, Connection, Door, Expected, Inbound, Outbound, RequestLayer, dial};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tower::Layer;

use super::shop::slice;
use crate::agent::Offer;
use crate::enforcement::{orders, web};
use crate::world::World;

/// A door as axum wants it, and who is at the other end of its connections.
struct Mutual(Door);

#[derive(Clone)]
struct Peer(Admitted);

impl axum::serve::Listener for Mutual {
    type Io = Connection;
    type Addr = Admitted;

    async fn accept(&mut self) -> (Connection, Admitted) {
        let connection = self.0.accept().await;
        let admitted = connection.admitted().clone();
        (connection, admitted)
    }

    fn local_addr(&self) -> std::io::Result<Admitted> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Mutual>> for Peer {
    fn connect_info(stream: axum::serve::IncomingStream<'_, Mutual>) -> Self {
        Self(stream.remote_addr().clone())
    }
}

fn of_axum(extensions: &http::Extensions) -> Option<Admitted> {
    extensions.get::<ConnectInfo<Peer>>().map(|info| info.0.0.clone())
}

#[tokio::test]
async fn around_a_router_of_axum_it_decides_before_the_route_is_chosen() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    world.agent.enforce(slice(&world, 6, &[("", "GET", "see")]));
    assert_eq!(world.agent.acknowledged().await, (6, 0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut inbound = Inbound::service("orders".parse().unwrap());
    inbound.alpn = vec![b"http/1.1".to_vec()];
    let door = Door::new(&orders, listener, inbound);
    let address = door.local_address().unwrap();
    let see = |Path(id): Path<String>| async move { format!("saw {id}") };
    let router = axum::Router::new()
        .route("/see/{id}", axum::routing::get(see).delete(|| async { "removed" }))
        .route("/other", axum::routing::get(|| async { "other" }));
    let layer = RequestLayer::new(&orders, "orders".parse().unwrap()).finding(of_axum);
    let decided =
        tower::ServiceExt::<axum::extract::Request>::map_response(layer.layer(router), |answer| {
            answer.map(axum::body::Body::new)
        });
    let service = axum::ServiceExt::<axum::extract::Request>::into_make_service_with_connect_info::<
        Peer,
    >(decided);
    tokio::spawn(async move { axum::serve(Mutual(door), service).await });
    for (method, path, status, said) in [
        ("GET", "/see/7", 200, "saw 7"),
        ("GET", "/%73ee/7?x=1", 200, "saw 7"),
        ("DELETE", "/see/7", 403, "policy-denied"),
        ("GET", "/other", 403, "policy-denied"),
        ("GET", "/see/../other", 400, "not-understood"),
        ("GET", "//other", 400, "not-understood"),
    ] {
        let expected = Expected::Id("spiffe://shop.example/orders".parse().unwrap());
        let mut outbound = Outbound::service("orders".parse().unwrap(), expected);
        outbound.alpn = vec![b"http/1.1".to_vec()];
        let stream = dial(&web.trust(), address, &outbound).await.unwrap().stream;
        let io = TokioIo::new(stream);
        let (mut send, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "orders");
        let response = send.send_request(request.body(Full::<Bytes>::default()).unwrap()).await;
        let response = response.unwrap();
        assert_eq!(response.status().as_u16(), status, "{method} {path}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        assert!(body.contains(said), "{method} {path}: {body}");
    }
}
