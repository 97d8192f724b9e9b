//! The gRPC service for agents: finds out who calls, and hands on to the folder that does the work.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::v1;
use countersign_api::v1::node_server::{Node, NodeServer};
use countersign_identity::Code;
use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::attest::{Caller, caller};
use crate::control::Control;
use crate::edge::Peer;
use crate::incarnation::hand_back;
use crate::refusal::Refused;
use crate::{attest, issue, publish, views};

/// The largest message of a caller with an identity: a full report.
const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The largest message of a caller without one.
const STRANGER_MESSAGE_BYTES_MAX: usize = 32 * 1024;
/// How long a call that is no stream may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service, once for callers with an identity and once for those without.
#[derive(Clone)]
pub(crate) struct NodeRoutes {
    known: NodeServer<NodeService>,
    strangers: NodeServer<NodeService>,
}

impl NodeRoutes {
    /// Serves this control plane.
    pub(crate) fn new(control: Arc<Control>) -> Self {
        let service = Arc::new(NodeService { control });
        let of_size = |max| {
            NodeServer::from_arc(Arc::clone(&service))
                .max_decoding_message_size(max)
                .max_encoding_message_size(countersign_api::wire::MESSAGE_SIZE_MAX)
        };
        Self { known: of_size(MESSAGE_BYTES_MAX), strangers: of_size(STRANGER_MESSAGE_BYTES_MAX) }
    }

    /// The service as agents see it.
    pub(crate) fn known(&self) -> NodeServer<NodeService> {
        self.known.clone()
    }

    /// The service as all others see it.
    pub(crate) fn strangers(&self) -> NodeServer<NodeService> {
        self.strangers.clone()
    }
}

/// What agents may ask.
pub(crate) struct NodeService {
    control: Arc<Control>,
}

impl NodeService {
    async fn caller(&self, peer: &Peer) -> Result<Caller, Refused> {
        let control = &self.control;
        let domain = control.feed.current().domain().trust_domain.clone();
        caller(peer, &*control.store, &domain, control.clock.now()).await
    }

    async fn within<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, Refused>>,
    ) -> Result<Response<T>, Status> {
        let outcome = tokio::time::timeout(CALL_TIMEOUT, work).await.unwrap_or_else(|_elapsed| {
            Err(Refused::new(Code::TimedOut, format!("`{call}` took too long")))
        });
        self.control.watch.called(call, outcome.as_ref().err().map(|refused| refused.code));
        Ok(Response::new(outcome?))
    }
}

fn peer<T>(request: &Request<T>) -> Result<Arc<Peer>, Refused> {
    let peer = request.extensions().get::<Arc<Peer>>();
    peer.cloned().ok_or_else(|| Refused::new(Code::Internal, "the connection has no peer"))
}

#[tonic::async_trait]
impl Node for NodeService {
    #[tracing::instrument(name = "attest", skip_all)]
    async fn attest(
        &self,
        request: Request<v1::AttestRequest>,
    ) -> Result<Response<v1::AttestResponse>, Status> {
        let source = peer(&request)?.address;
        let work = attest::join(Arc::clone(&self.control), source, request.into_inner());
        self.within("attest", self.control.whole(work)).await
    }

    type AttestX509Stream = ReceiverStream<Result<v1::AttestX509Response, Status>>;

    #[tracing::instrument(name = "attest_x509", skip_all)]
    async fn attest_x509(
        &self,
        request: Request<Streaming<v1::AttestX509Request>>,
    ) -> Result<Response<Self::AttestX509Stream>, Status> {
        let peer = peer(&request)?;
        let (answers, stream) = mpsc::channel(2);
        let control = Arc::clone(&self.control);
        // Once the node is recorded, its certificate is made, also when the caller has gone.
        let work = attest::attest_x509(control, peer, request.into_inner(), answers);
        drop(self.control.tasks.spawn(work));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type RenewStream = ReceiverStream<Result<v1::RenewResponse, Status>>;

    #[tracing::instrument(name = "renew", skip_all)]
    async fn renew(
        &self,
        request: Request<Streaming<v1::RenewRequest>>,
    ) -> Result<Response<Self::RenewStream>, Status> {
        let peer = peer(&request)?;
        let (answers, stream) = mpsc::channel(2);
        let control = Arc::clone(&self.control);
        // Once the successor is recorded, its certificate is made, also when the caller has gone.
        let work = attest::renew(control, peer, request.into_inner(), answers);
        drop(self.control.tasks.spawn(work));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type SyncStream = Answers<v1::SyncResponse>;

    #[tracing::instrument(name = "sync", skip_all)]
    async fn sync(
        &self,
        request: Request<Streaming<v1::SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let peer = peer(&request)?;
        let caller = self.caller(&peer).await?;
        let control = Arc::clone(&self.control);
        let stream = publish::sync_stream(control, peer, caller, request.into_inner()).await?;
        Ok(Response::new(Box::pin(stream)))
    }

    #[tracing::instrument(name = "sign", skip_all)]
    async fn sign(
        &self,
        request: Request<v1::SignRequest>,
    ) -> Result<Response<v1::SignResponse>, Status> {
        let work = async {
            let caller = self.caller(&*peer(&request)?).await?;
            let work = issue::sign(Arc::clone(&self.control), caller, request.into_inner());
            self.control.whole(work).await
        };
        self.within("sign", work).await
    }

    #[tracing::instrument(name = "hand_back", skip_all)]
    async fn hand_back(
        &self,
        request: Request<v1::HandBackRequest>,
    ) -> Result<Response<v1::HandBackResponse>, Status> {
        let work = async {
            let caller = self.caller(&*peer(&request)?).await?;
            let control = Arc::clone(&self.control);
            self.control.whole(hand_back(control, caller, request.into_inner())).await
        };
        self.within("hand_back", work).await
    }

    #[tracing::instrument(name = "report", skip_all)]
    async fn report(
        &self,
        request: Request<v1::ReportRequest>,
    ) -> Result<Response<v1::ReportResponse>, Status> {
        let work = async {
            let caller = self.caller(&*peer(&request)?).await?;
            publish::report(&self.control, &caller, request.into_inner())
        };
        self.within("report", work).await
    }

    #[tracing::instrument(name = "lists", skip_all)]
    async fn lists(
        &self,
        request: Request<v1::ListsRequest>,
    ) -> Result<Response<v1::ListsResponse>, Status> {
        let work = async {
            self.caller(&*peer(&request)?).await?;
            views::lists_for_agents(&self.control, &request.into_inner()).await
        };
        self.within("lists", work).await
    }
}
