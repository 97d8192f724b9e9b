//! Metrics over plain HTTP, for Prometheus.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use countersign::Parts;
use countersign_tls::Limit;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::service::service_fn;
use tokio_util::sync::CancellationToken;

use crate::body::{Arriving, Body};
use crate::bounds::{SCRAPE_TIMEOUT, SCRAPES_MAX};
use crate::listener::{Arrived, Listener};
use crate::plane::Plane;
use crate::session::{self, Patience, Session, Spoken};

const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Answers `GET /metrics` until stopped.
pub(crate) async fn serve(
    listener: Listener,
    plane: Arc<Plane>,
    parts: Parts,
    stop: CancellationToken,
) {
    let places = Limit::new(SCRAPES_MAX);
    loop {
        let arrived = tokio::select! {
            () = stop.cancelled() => return,
            arrived = listener.accept() => arrived,
        };
        let (Arrived::Tcp(tcp, _), Some(place)) = (arrived, places.take()) else {
            continue;
        };
        let (plane, parts, stop) = (plane.clone(), parts.clone(), stop.clone());
        plane.clone().tasks.start(async move {
            let session = Session::new();
            let tasks = plane.tasks.clone();
            let service = service_fn({
                let session = session.clone();
                move |request: Request<Arriving>| {
                    let response = session.leave(answer(&request, &plane, &parts), session.enter());
                    std::future::ready(Ok::<_, Infallible>(response))
                }
            });
            let how = (Spoken::Http1, Patience::Peer);
            let served = session::serve(tcp, how, service, session, (stop.cancelled(), &tasks));
            // How a scraper's connection ends concerns nobody.
            let _ended = tokio::time::timeout(SCRAPE_TIMEOUT, served).await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Arriving>, plane: &Plane, parts: &Parts) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    // Whoever would keep the connection kept a place from others.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            let text = plane.metrics.text(&plane.trust, parts, plane.tracer.dropped());
            *response.body_mut() = Body::from(Bytes::from(text));
            response.headers_mut().insert(CONTENT_TYPE, OPEN_METRICS);
        }
        (_, "/metrics") => *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED,
        _ => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    response
}
