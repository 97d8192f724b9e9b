//! What agents may ask: finds out who calls, and hands on to the folder that does the work.

use std::sync::Arc;
use std::time::Duration;

use countersign_api::v1;
use countersign_api::v1::answer::Outcome;
use countersign_api::v1::call::Asked;
use countersign_api::v1::node_server::{Node, NodeServer};
use countersign_identity::Code;
use countersign_tls::Permit;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::attest::{Caller, caller};
use crate::control::Control;
use crate::edge::Peer;
use crate::incarnation::hand_back;
use crate::publish::Live;
use crate::refusal::Refused;
use crate::{attest, issue, publish, views};

/// The largest message of a caller without an identity.
const STRANGER_MESSAGE_BYTES_MAX: usize = 32 * 1024;
/// How long a call that is no stream may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The service, for callers with an identity and for those without.
#[derive(Clone)]
pub(crate) struct NodeRoutes {
    known: Arc<NodeService>,
    strangers: NodeServer<NodeService>,
}

impl NodeRoutes {
    /// Serves this control plane.
    pub(crate) fn new(control: Arc<Control>) -> Self {
        let known = Arc::new(NodeService::new(control));
        let strangers = NodeServer::from_arc(Arc::clone(&known))
            .max_decoding_message_size(STRANGER_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(countersign_api::wire::MESSAGE_SIZE_MAX);
        Self { known, strangers }
    }

    /// What agents may ask on their standing connections.
    pub(crate) fn known(&self) -> Arc<NodeService> {
        Arc::clone(&self.known)
    }

    /// What others may ask, over gRPC.
    pub(crate) fn strangers(&self) -> NodeServer<NodeService> {
        self.strangers.clone()
    }
}

/// What agents may ask.
pub(crate) struct NodeService {
    control: Arc<Control>,
}

impl NodeService {
    /// Answers of this control plane.
    pub(crate) fn new(control: Arc<Control>) -> Self {
        Self { control }
    }

    async fn caller(&self, peer: &Peer) -> Result<Caller, Refused> {
        let control = &self.control;
        let domain = control.feed.current().domain().trust_domain.clone();
        caller(peer, control, &domain, control.clock.now()).await
    }

    /// One more request of a stranger may be worked on.
    fn works(&self, peer: &Peer) -> Result<Permit, Refused> {
        let refused = |refused: &Refused| self.control.watch.attestation_refused(refused.code);
        peer.conduct.works().inspect_err(refused)
    }

    async fn within<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, Refused>>,
    ) -> Result<T, Refused> {
        let began = self.control.clock.now();
        let outcome = tokio::time::timeout(CALL_TIMEOUT, work).await.unwrap_or_else(|_elapsed| {
            Err(Refused::new(Code::TimedOut, format!("`{call}` took too long")))
        });
        let took = self.control.clock.now().since(began);
        self.control.watch.called(call, outcome.as_ref().err().map(|refused| refused.code), took);
        outcome
    }

    /// Opens a caller's stream.
    #[tracing::instrument(name = "sync", skip_all)]
    pub(crate) async fn sync(
        &self,
        peer: Arc<Peer>,
        hello: v1::SyncHello,
    ) -> Result<Live, Refused> {
        let opening = async {
            let caller = self.caller(&peer).await?;
            publish::open(Arc::clone(&self.control), Arc::clone(&peer), caller, &hello).await
        };
        tokio::time::timeout(CALL_TIMEOUT, opening).await.unwrap_or_else(|_elapsed| {
            Err(Refused::new(Code::TimedOut, "to open the stream took too long"))
        })
    }

    /// Answers a call.
    pub(crate) async fn answer(&self, peer: &Peer, asked: Asked) -> Result<Outcome, Refused> {
        match asked {
            Asked::Sign(request) => self.sign(peer, request).await.map(Outcome::Sign),
            Asked::HandBack(request) => self.hand_back(peer, request).await.map(Outcome::HandBack),
            Asked::Report(request) => self.report(peer, request).await.map(Outcome::Report),
            Asked::Lists(request) => self.lists(peer, request).await.map(Outcome::Lists),
        }
    }

    #[tracing::instrument(name = "sign", skip_all)]
    async fn sign(
        &self,
        peer: &Peer,
        request: v1::SignRequest,
    ) -> Result<v1::SignResponse, Refused> {
        let work = async {
            let caller = self.caller(peer).await?;
            self.control.whole(issue::sign(Arc::clone(&self.control), caller, request)).await
        };
        self.within("sign", work).await
    }

    #[tracing::instrument(name = "hand_back", skip_all)]
    async fn hand_back(
        &self,
        peer: &Peer,
        request: v1::HandBackRequest,
    ) -> Result<v1::HandBackResponse, Refused> {
        let work = async {
            let caller = self.caller(peer).await?;
            let control = Arc::clone(&self.control);
            self.control.whole(hand_back(control, caller, request)).await
        };
        self.within("hand_back", work).await
    }

    #[tracing::instrument(name = "report", skip_all)]
    async fn report(
        &self,
        peer: &Peer,
        request: v1::ReportRequest,
    ) -> Result<v1::ReportResponse, Refused> {
        let work = async {
            let caller = self.caller(peer).await?;
            publish::report(&self.control, &caller, request)
        };
        self.within("report", work).await
    }

    /// The same of a caller that is known already. It waits for nothing.
    pub(super) fn report_of(
        &self,
        caller: &Caller,
        report: v1::ReportRequest,
    ) -> Result<Outcome, Refused> {
        let began = self.control.clock.now();
        let outcome = publish::report(&self.control, caller, report);
        let took = self.control.clock.now().since(began);
        let code = outcome.as_ref().err().map(|refused| refused.code);
        self.control.watch.called("report", code, took);
        outcome.map(Outcome::Report)
    }

    #[tracing::instrument(name = "lists", skip_all)]
    async fn lists(
        &self,
        peer: &Peer,
        request: v1::ListsRequest,
    ) -> Result<v1::ListsResponse, Refused> {
        let work = async {
            self.caller(peer).await?;
            views::lists_for_agents(&self.control, &request).await
        };
        self.within("lists", work).await
    }
}

fn peer<T>(request: &Request<T>) -> Result<Arc<Peer>, Refused> {
    let peer = request.extensions().get::<Arc<Peer>>();
    peer.cloned().ok_or_else(|| Refused::new(Code::Internal, "the connection has no peer"))
}

/// Work that holds its place until it has ended.
async fn held<T>(place: Permit, work: impl Future<Output = T>) -> T {
    let done = work.await;
    drop(place);
    done
}

#[tonic::async_trait]
impl Node for NodeService {
    #[tracing::instrument(name = "attest", skip_all)]
    async fn attest(
        &self,
        request: Request<v1::AttestRequest>,
    ) -> Result<Response<v1::AttestResponse>, Status> {
        let peer = peer(&request)?;
        let place = self.works(&peer)?;
        let work = attest::join(Arc::clone(&self.control), peer, request.into_inner());
        let work = held(place, work);
        let attested = self.within("attest", self.control.whole(work)).await?;
        Ok(Response::new(attested))
    }

    type AttestX509Stream = ReceiverStream<Result<v1::AttestX509Response, Status>>;

    #[tracing::instrument(name = "attest_x509", skip_all)]
    async fn attest_x509(
        &self,
        request: Request<Streaming<v1::AttestX509Request>>,
    ) -> Result<Response<Self::AttestX509Stream>, Status> {
        let peer = peer(&request)?;
        let place = self.works(&peer)?;
        let (answers, stream) = mpsc::channel(2);
        let control = Arc::clone(&self.control);
        // Once the node is recorded, its certificate is made, also when the caller has gone.
        let work = attest::attest_x509(control, peer, request.into_inner(), answers);
        drop(self.control.tasks.spawn(held(place, work)));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type RenewStream = ReceiverStream<Result<v1::RenewResponse, Status>>;

    #[tracing::instrument(name = "renew", skip_all)]
    async fn renew(
        &self,
        request: Request<Streaming<v1::RenewRequest>>,
    ) -> Result<Response<Self::RenewStream>, Status> {
        let peer = peer(&request)?;
        let place = self.works(&peer)?;
        let (answers, stream) = mpsc::channel(2);
        let control = Arc::clone(&self.control);
        // Once the successor is recorded, its certificate is made, also when the caller has gone.
        let work = attest::renew(control, peer, request.into_inner(), answers);
        drop(self.control.tasks.spawn(held(place, work)));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
