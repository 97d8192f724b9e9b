//! The socket's routes, and who may reach them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Extension, Request, State as Shared};
use axum::http::Method;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{delete, get, post};
use countersign_identity::{Code, Timestamp};
use countersign_tls::{Rank, Room, RoomBounds, Stay};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::change::Operator;
use crate::admin::problem::Problem;
use crate::admin::{
    Admin, AdminSocket, approval, ask, authority, change, console, history, list, log, openapi,
    plan, policy, review, revoke,
};

/// The largest body: the manifests of some ten thousand workloads.
pub(crate) const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Operators' connections at once. More wait in the kernel.
const CONNECTIONS_MAX: usize = 128;
/// Connections of those who are no operators, such as approvers, by uid. They have places of their own, so that they keep no
/// operator waiting, and no uid the others: the one that goes for a newcomer is the oldest of the uid that has most. Who is named
/// to approve makes no room for those who are not, however many uids those have.
const FOREIGN: RoomBounds = RoomBounds { all: 64, each: 8, yields_after: Duration::ZERO };
/// How long a caller may take to send a request's head, and an idle connection may last.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait after the system refused to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Every route. The check of the caller lies outside of all of them, so that none can be forgotten.
fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/live", get(ask::live))
        .route("/ready", get(ask::ready))
        .route("/v1/openapi.json", get(openapi::openapi))
        .route("/v1/status", get(ask::status))
        .route("/v1/resources", get(ask::resources))
        .route("/v1/resources/{kind}/{name}", delete(change::remove_resource))
        .route("/v1/bundle", get(ask::bundle))
        .route("/v1/nodes", get(ask::nodes))
        .route("/v1/nodes/{id}", delete(change::remove_node))
        .route("/v1/handshakes", get(ask::handshakes))
        .route("/v1/handshakes/history", get(ask::handshake_history))
        .route("/v1/events", get(ask::events))
        .route("/v1/apply", post(change::apply))
        .route("/v1/console-links", post(console::link))
        .route("/v1/join-tokens", post(change::create_token))
        .route("/v1/revocations", get(revoke::revocations).post(revoke::revoke))
        .route("/v1/suspensions", post(revoke::suspend))
        .route("/v1/resume", post(revoke::resume))
        .route("/v1/resume-issuing", post(revoke::resume_issuing))
        .route("/v1/accept-clock", post(revoke::accept_clock))
        .route("/v1/convergence", get(revoke::convergence))
        .route("/v1/authorities", get(authority::authorities))
        .route("/v1/authorities/report", get(authority::report))
        .route("/v1/authorities/request", post(authority::request))
        .route("/v1/authorities/import", post(authority::import))
        .route("/v1/authorities/approve", post(authority::approve))
        .route("/v1/authorities/{step}", post(authority::step))
        .route("/v1/rotations/root", post(authority::rotate_root))
        .route("/v1/rotations/issuer", post(authority::rotate_issuer))
        .route("/v1/recoveries", post(authority::recover))
        .route("/v1/crl", get(list::crl))
        .route("/v1/log", get(log::log))
        .route("/v1/log/leaves", get(log::leaves))
        .route("/v1/log/tile-hashes", get(log::tile_hashes))
        .route("/v1/log/checkpoint", get(log::checkpoint))
        .route("/v1/log/tile/{*path}", get(log::tile))
        .route("/v1/log/proof", get(log::proof))
        .route("/v1/trials", post(revoke::try_out))
        .route("/v1/explain", post(policy::explain))
        .route("/v1/flows", get(policy::flows))
        .route("/v1/inventory", get(policy::inventory))
        .route("/v1/reviews", get(review::reviews).post(review::start))
        .route("/v1/reviews/{id}", get(review::report))
        .route("/v1/reviews/{id}/signature", post(review::sign))
        .route("/v1/plan", post(plan::plan))
        .route("/v1/plans/approve", post(approval::approve))
        .route("/v1/history", get(history::history))
        .route("/v1/rollback", post(history::rollback))
        .fallback(|| async { Problem::new(Code::NotFound, "there is no such route") })
        .method_not_allowed_fallback(|| async {
            Problem::new(Code::NotUnderstood, "the route has no such method")
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(in_time))
        .layer(middleware::from_fn_with_state(Arc::clone(&admin), admit))
        .with_state(admin)
}

async fn admit(
    Shared(admin): Shared<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if let Err(refused) = admin.operators.admit(operator.0) {
        // Who is named to approve sees what there is to approve, and says the word; nothing else.
        let route = (request.method(), request.uri().path());
        let approving = route == (&Method::GET, "/v1/authorities")
            || route == (&Method::POST, "/v1/authorities/approve");
        let planning =
            route == (&Method::POST, "/v1/plan") || route == (&Method::POST, "/v1/plans/approve");
        let may = approving && admin.is_approver(operator)
            || planning && admin.approves_changes(operator);
        if !may {
            return Err(refused.into());
        }
    }
    Ok(next.run(request).await)
}

async fn in_time(request: Request, next: Next) -> Result<Response, Problem> {
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await;
    answer.map_err(|_elapsed| Problem::new(Code::TimedOut, "the request took too long"))
}

/// Serves the socket until stopped; then lets requests in flight end, for as long as `drain` lasts.
pub(crate) async fn serve(
    socket: AdminSocket,
    admin: Arc<Admin>,
    drain: Duration,
    stop: CancellationToken,
) {
    let doorway = Doorway::new(Arc::clone(&admin));
    let router = router(admin);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = accept(&socket, &doorway) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let Some((operator, held)) = doorway.let_in(&stream, place) else { continue };
                let router = router.clone().layer(Extension(operator));
                connections.spawn(held.until_it_goes(converse(stream, router, stop.clone())));
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept on the admin socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(drain, drained).await.is_err() {
        tracing::warn!("cut operators' requests that did not end in time");
    }
}

/// Who may be at the socket at once.
struct Doorway {
    admin: Arc<Admin>,
    places: Arc<Semaphore>,
    foreign: Room<u32>,
}

/// A place at the socket. Dropped, it is free again.
enum Held {
    Operator { _place: OwnedSemaphorePermit },
    Foreign(Stay<u32>),
}

impl Doorway {
    fn new(admin: Arc<Admin>) -> Self {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { admin, places, foreign: Room::new(FOREIGN) }
    }

    /// Gives whoever is there the place of an operator, or one of those that the others have.
    fn let_in(&self, stream: &UnixStream, place: OwnedSemaphorePermit) -> Option<(Operator, Held)> {
        let uid = match stream.peer_cred() {
            Ok(credentials) => credentials.uid(),
            Err(error) => {
                tracing::warn!(%error, "could not tell who is at the other end of the admin socket");
                return None;
            }
        };
        let operator = Operator(uid);
        if self.admin.operators.admit(uid).is_ok() {
            return Some((operator, Held::Operator { _place: place }));
        }
        drop(place);
        // Places are had without waiting for time to pass, whatever the time is.
        let named = self.admin.is_approver(operator) || self.admin.approves_changes(operator);
        let rank = if named { Rank::Known } else { Rank::Stranger };
        let stay = self.foreign.enter(uid, rank, Timestamp::EPOCH)?;
        Some((operator, Held::Foreign(stay)))
    }
}

impl Held {
    /// Lets it run, for as long as the place is not somebody else's.
    async fn until_it_goes(self, connection: impl Future<Output = ()>) {
        match self {
            Self::Operator { _place } => connection.await,
            Self::Foreign(stay) => tokio::select! {
                () = stay.give_way().cancelled() => {}
                () = connection => {}
            },
        }
    }
}

async fn accept(
    socket: &AdminSocket,
    doorway: &Doorway,
) -> std::io::Result<(UnixStream, OwnedSemaphorePermit)> {
    // An operator's place first: who finds none waits in the kernel, and costs nothing. Who turns out to be none gives it back at once.
    let place = Arc::clone(&doorway.places).acquire_owned();
    let place = place.await.expect("the semaphore is never closed");
    let (stream, _) = socket.listener.accept().await?;
    Ok((stream, place))
}

async fn converse(stream: UnixStream, router: Router, stop: CancellationToken) {
    let service = TowerToHyperService::new(router);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an operator's connection ended");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::Body;
    use axum::http::StatusCode;
    use countersign_identity::SystemEntropy;
    use countersign_store::MemoryStore;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;
    use crate::admin::{Mode, Operators};
    use crate::watch::{About, LogTree};

    /// The uid that nobody has.
    const NOBODY: Operator = Operator(u32::MAX);
    const ROOT: Operator = Operator(0);

    fn sealed() -> Arc<Admin> {
        Arc::new(Admin {
            about: About {
                domain: "shop.example".parse().unwrap(),
                address: String::new(),
                started: Timestamp::EPOCH,
                views: None,
            },
            store: Arc::new(MemoryStore::new(Arc::new(SystemEntropy))),
            log: LogTree::default(),
            operators: Operators::of(std::path::Path::new("/")).unwrap(),
            mode: Mode::Sealed { why: "a test".to_owned() },
            console: None,
        })
    }

    async fn ask(operator: Operator, method: &str, path: &str) -> (StatusCode, String) {
        let request = Request::builder()
            .method(Method::from_bytes(method.to_uppercase().as_bytes()).unwrap())
            .uri(path)
            .body(Body::empty())
            .unwrap();
        let router = router(sealed()).layer(Extension(operator));
        let answer = router.oneshot(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    /// Every route that the description names, with its methods.
    fn described() -> Vec<(String, String)> {
        let description: serde_json::Value = serde_json::from_str(&openapi::text()).unwrap();
        let mut routes = Vec::new();
        for (path, methods) in description["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                let path = path.replace("{kind}", "Workload").replace("{name}", "web");
                routes.push((method.clone(), path.replace("{id}", &"0".repeat(32))));
            }
        }
        routes
    }

    #[tokio::test]
    async fn no_route_answers_a_foreign_uid() {
        let unknown = [("get".to_owned(), "/".to_owned()), ("post".to_owned(), "/live".to_owned())];
        let routes = described();
        assert_eq!(routes.len(), 50, "{routes:?}");
        for (method, path) in routes.into_iter().chain(unknown) {
            let (status, body) = ask(NOBODY, &method, &path).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}");
            assert!(body.contains("\"code\":\"forbidden\""), "{method} {path}: {body}");
        }
    }

    #[tokio::test]
    async fn sealed_server_answers_health_status_and_its_description_and_nothing_else() {
        for (method, path) in described() {
            let (status, body) = ask(ROOT, &method, &path).await;
            let open = ["/live", "/v1/status", "/v1/openapi.json"].contains(&path.as_str());
            let expected = if open { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            assert_eq!(status, expected, "{method} {path}: {body}");
            assert_eq!(!open, body.contains("\"code\":\"sealed\""), "{method} {path}: {body}");
        }
    }

    #[tokio::test]
    async fn unknown_routes_and_methods_are_problems() {
        let (status, body) = ask(ROOT, "get", "/v1/no-such").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(body.contains("not-found"), "{body}");
        let (status, body) = ask(ROOT, "put", "/v1/status").await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(body.contains("not-understood"), "{body}");
    }
}
