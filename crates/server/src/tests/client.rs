//! Both ways in which a machine speaks to the server.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use countersign_api::renewal::EXPORTER_LABEL;
use countersign_api::standing::{self, Calls, Failed, Standing};
use countersign_api::v1;
use countersign_api::v1::node_client::NodeClient;
use countersign_identity::Clock;
use countersign_pki::{Bundle, Bundles, Chain, PrivateKey};
use countersign_tls::{
    Expected, FirstContact, HandshakeFailure, Identity, Outbound, Pinned, Present, Slice, Stream,
    Trust, connect_pinned, dial,
};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use super::{Agent, DOMAIN, Realm, Running};
use crate::refusal::Refused;

/// A client and the secret of its connection.
pub(crate) struct Client {
    pub(crate) node: Node,
    pub(crate) exporter: [u8; 32],
}

/// What is asked of the server.
#[derive(Clone)]
pub(crate) struct Node {
    grpc: Option<NodeClient<Channel>>,
    standing: Option<(Arc<Open>, Dial)>,
}

/// Another connection like the first.
type Dial = Arc<dyn Fn() -> BoxFuture<'static, Open> + Send + Sync>;

/// A standing connection.
struct Open {
    calls: Calls,
    told: Mutex<Option<mpsc::Receiver<v1::SyncResponse>>>,
    _moving: AbortOnDropHandle<()>,
}

/// A stream that was opened, on a connection of its own, which ends with it.
pub(crate) struct Telling {
    first: Option<v1::SyncResponse>,
    told: mpsc::Receiver<v1::SyncResponse>,
    open: Open,
    _saying: AbortOnDropHandle<()>,
}

impl Open {
    fn over<S>(stream: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (Standing { calls, told }, moving) = Standing::over(stream);
        let _moving = AbortOnDropHandle::new(tokio::spawn(moving));
        Self { calls, told: Mutex::new(Some(told)), _moving }
    }
}

impl Node {
    async fn grpc<S>(stream: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut stream = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_| {
            let stream = stream.take();
            async move { stream.ok_or_else(|| std::io::Error::other("the connection was used up")) }
        });
        let endpoint = Endpoint::from_static("http://server");
        let channel = endpoint.connect_with_connector(connector).await.unwrap();
        Self { grpc: Some(NodeClient::new(channel)), standing: None }
    }

    async fn standing(dial: Dial) -> Self {
        Self { grpc: None, standing: Some((Arc::new(dial().await), dial)) }
    }

    fn calls(&self) -> &Calls {
        &self.standing.as_ref().expect("a standing connection").0.calls
    }

    fn strange(&mut self) -> &mut NodeClient<Channel> {
        self.grpc.as_mut().expect("a connection that speaks gRPC")
    }

    pub(crate) async fn attest(
        &mut self,
        request: v1::AttestRequest,
    ) -> Result<Response<v1::AttestResponse>, Status> {
        self.strange().attest(request).await
    }

    pub(crate) async fn attest_x509(
        &mut self,
        requests: ReceiverStream<v1::AttestX509Request>,
    ) -> Result<Response<tonic::Streaming<v1::AttestX509Response>>, Status> {
        self.strange().attest_x509(requests).await
    }

    pub(crate) async fn renew(
        &mut self,
        requests: ReceiverStream<v1::RenewRequest>,
    ) -> Result<Response<tonic::Streaming<v1::RenewResponse>>, Status> {
        self.strange().renew(requests).await
    }

    pub(crate) async fn sign(
        &self,
        request: v1::SignRequest,
    ) -> Result<Response<v1::SignResponse>, Status> {
        answered(self.calls().sign(request).await)
    }

    pub(crate) async fn report(
        &self,
        request: v1::ReportRequest,
    ) -> Result<Response<v1::ReportResponse>, Status> {
        answered(self.calls().report(request).await)
    }

    pub(crate) async fn lists(
        &self,
        request: v1::ListsRequest,
    ) -> Result<Response<v1::ListsResponse>, Status> {
        answered(self.calls().lists(request).await)
    }

    pub(crate) async fn hand_back(
        &self,
        request: v1::HandBackRequest,
    ) -> Result<Response<v1::HandBackResponse>, Status> {
        answered(self.calls().hand_back(request).await)
    }

    /// Says all of this, and is told until the connection ends.
    pub(crate) async fn sync(
        &self,
        mut said: ReceiverStream<v1::SyncRequest>,
    ) -> Result<Response<Telling>, Status> {
        let (_, dial) = self.standing.as_ref().expect("a standing connection");
        let open = dial().await;
        let mut told = open.told.lock().unwrap().take().expect("it is new");
        let say = open.calls.clone();
        let _saying = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Some(v1::SyncRequest { step: Some(step) }) = said.next().await {
                // The reason is heard.
                say.sync(step).await.ok();
            }
        }));
        let first = told.recv().await;
        if first.is_none() {
            return Err(status(open.calls.why_ended()));
        }
        Ok(Response::new(Telling { first, told, open, _saying }))
    }
}

impl std::fmt::Debug for Telling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Telling")
    }
}

impl Telling {
    pub(crate) async fn message(&mut self) -> Result<Option<v1::SyncResponse>, Status> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        match self.told.recv().await {
            Some(response) => Ok(Some(response)),
            None => Err(status(self.open.calls.why_ended())),
        }
    }
}

fn answered<T>(answer: Result<T, Failed>) -> Result<Response<T>, Status> {
    answer.map(Response::new).map_err(status)
}

/// As gRPC says it, which tests of both ways understand.
fn status(failed: Failed) -> Status {
    match failed {
        Failed::Refused(refused) => Refused::new(refused.code, refused.message).into(),
        Failed::Lost(why) => Status::unavailable(why),
        Failed::Broken(why) => Status::internal(why),
    }
}

async fn pinned(contact: FirstContact, time: Arc<dyn Clock>, address: SocketAddr) -> Pinned {
    let tcp = TcpStream::connect(address).await.unwrap();
    connect_pinned(&time, tcp, &contact).await.unwrap()
}

fn contact(realm: &Realm, alpn: &[u8]) -> FirstContact {
    FirstContact {
        pin: realm.trust,
        domain: Some(DOMAIN.parse().unwrap()),
        alpn: vec![alpn.to_vec()],
        timeout: Duration::from_secs(10),
    }
}

/// A connection that shows no certificate, to a server whose root is pinned.
pub(crate) async fn stranger(realm: &Realm, running: &Running) -> Client {
    let pinned = pinned(contact(realm, b"h2"), realm.time(), running.address()).await;
    let exporter = pinned.export(EXPORTER_LABEL).unwrap();
    Client { node: Node::grpc(pinned.stream).await, exporter }
}

/// The same from another address of this machine.
pub(crate) async fn stranger_from(realm: &Realm, running: &Running, source: [u8; 4]) -> Client {
    let pinned = raw_from(realm, running, source).await;
    let exporter = pinned.export(EXPORTER_LABEL).unwrap();
    Client { node: Node::grpc(pinned.stream).await, exporter }
}

/// The bytes of such a connection, on which nothing was said yet.
pub(crate) async fn raw_from(realm: &Realm, running: &Running, source: [u8; 4]) -> Pinned {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((source, 0))).unwrap();
    let tcp = socket.connect(running.address()).await.unwrap();
    connect_pinned(&realm.time(), tcp, &contact(realm, b"h2")).await.unwrap()
}

/// A stranger that would speak as agents do.
pub(crate) async fn nobody(realm: &Realm, running: &Running) -> Client {
    let (contact, time) = (contact(realm, standing::ALPN), realm.time());
    let address = running.address();
    let dial = move || {
        let pinned = pinned(contact.clone(), Arc::clone(&time), address);
        async { Open::over(pinned.await.stream) }.boxed()
    };
    Client { node: Node::standing(Arc::new(dial)).await, exporter: [0; 32] }
}

/// The bytes of such a connection, on which nothing was said yet.
pub(crate) async fn pinned_stander(realm: &Realm, running: &Running) -> Pinned {
    pinned(contact(realm, standing::ALPN), realm.time(), running.address()).await
}

/// Connections that show this identity.
pub(crate) async fn known(
    realm: &Realm,
    running: &Running,
    bundle: &Bundle,
    chain: &[Bytes],
    key: &PrivateKey,
) -> Client {
    let (trust, address) = (shows(realm, bundle, chain, key), running.address());
    let dial = move || {
        let trust = Arc::clone(&trust);
        async move { Open::over(dialled(&trust, address, standing::ALPN).await) }.boxed()
    };
    Client { node: Node::standing(Arc::new(dial)).await, exporter: [0; 32] }
}

/// The same, which speaks as strangers do.
pub(crate) async fn known_stranger(realm: &Realm, running: &Running, agent: &Agent) -> Client {
    let trust = shows(realm, &agent.bundle, &agent.chain, &agent.key);
    let stream = dialled(&trust, running.address(), b"h2").await;
    let exporter = stream.export(EXPORTER_LABEL).unwrap();
    Client { node: Node::grpc(stream).await, exporter }
}

/// What trusts this bundle and shows this identity.
pub(crate) fn shows(
    realm: &Realm,
    bundle: &Bundle,
    chain: &[Bytes],
    key: &PrivateKey,
) -> Arc<Trust> {
    shows_as(realm, vec![bundle.clone()], chain, key)
}

/// What trusts these bundles and shows this identity, which one of them has to vouch for.
pub(crate) fn shows_as(
    realm: &Realm,
    bundles: Vec<Bundle>,
    chain: &[Bytes],
    key: &PrivateKey,
) -> Arc<Trust> {
    let bundles = Arc::new(Bundles::new(bundles).unwrap());
    let trust = Trust::new(realm.time(), Slice { bundles, ..Slice::nothing() });
    let chain = Chain::from_ders(chain.iter().map(AsRef::as_ref)).unwrap();
    trust.set_identity(Identity::new(chain, key.pkcs8()).unwrap()).unwrap();
    trust
}

/// The bytes of such a connection.
pub(crate) async fn dialled(trust: &Arc<Trust>, address: SocketAddr, alpn: &[u8]) -> Stream {
    try_dialled(trust, address, alpn).await.unwrap()
}

/// The same, for who may be refused.
pub(crate) async fn try_dialled(
    trust: &Arc<Trust>,
    address: SocketAddr,
    alpn: &[u8],
) -> Result<Stream, HandshakeFailure> {
    let outbound = Outbound {
        alpn: vec![alpn.to_vec()],
        present: Present::Required,
        ..Outbound::control(Expected::Server(DOMAIN.parse().unwrap()))
    };
    dial(trust, address, &outbound).await.map(|established| established.stream)
}
