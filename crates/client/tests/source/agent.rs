//! An agent that says what the test tells it to say, and notes what it is told.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use countersign_api::v1;
use countersign_api::v1::enforcement_request::Step as Said;
use countersign_api::v1::enforcement_server::{
    Enforcement as EnforcementService, EnforcementServer,
};
use countersign_api::workload::spiffe_workload_api_server::{
    SpiffeWorkloadApi, SpiffeWorkloadApiServer,
};
use countersign_api::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svidRequest,
    X509svidResponse,
};
use futures_util::{StreamExt as _, stream};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a stream says; absent: nothing yet.
type Script<T> = watch::Sender<Option<Result<T, Status>>>;

/// What the agent heard on Enforcement streams.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    Said(Said),
    /// The stream was ended in an orderly way.
    Goodbye,
    /// It broke, or was dropped.
    Lost,
}

/// Whether the agent has the Enforcement service.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    Enforcement,
    WorkloadApiOnly,
}

pub(crate) struct Agent {
    path: PathBuf,
    offer: Offer,
    pub(crate) svids: Script<X509svidResponse>,
    pub(crate) steps: Script<v1::EnforcementResponse>,
    heard_sender: mpsc::UnboundedSender<Heard>,
    heard: mpsc::UnboundedReceiver<Heard>,
    runtime: Option<Runtime>,
    hung: Option<std::sync::mpsc::Sender<()>>,
}

/// Who ends a stream in an orderly way waits for the other end; one that was dropped is reset within this time.
const GRACE: Duration = Duration::from_millis(50);

/// Notes how a stream ended.
struct Listener {
    heard: mpsc::UnboundedSender<Heard>,
    last: Heard,
}

impl Listener {
    fn hears_goodbye(mut self) {
        self.last = Heard::Goodbye;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let last = std::mem::replace(&mut self.last, Heard::Lost);
        self.heard.send(last).unwrap_or(());
    }
}

#[derive(Clone)]
struct Service {
    svids: watch::Receiver<Option<Result<X509svidResponse, Status>>>,
    steps: watch::Receiver<Option<Result<v1::EnforcementResponse, Status>>>,
    heard: mpsc::UnboundedSender<Heard>,
}

impl Agent {
    pub(crate) fn start(folder: &Path, offer: Offer) -> Self {
        let (heard_sender, heard) = mpsc::unbounded_channel();
        let mut agent = Self {
            path: folder.join("agent.sock"),
            offer,
            svids: watch::Sender::new(None),
            steps: watch::Sender::new(None),
            heard_sender,
            heard,
            runtime: None,
            hung: None,
        };
        agent.run();
        agent
    }

    pub(crate) fn endpoint(&self) -> countersign::Endpoint {
        countersign::Endpoint::at(&self.path).unwrap()
    }

    /// Listens, also again after [`die`](Self::die).
    pub(crate) fn run(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let service = Service {
            svids: self.svids.subscribe(),
            steps: self.steps.subscribe(),
            heard: self.heard_sender.clone(),
        };
        let _inside = runtime.enter();
        let listener = UnixListener::bind(&self.path).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(SpiffeWorkloadApiServer::new(service.clone()))
            .add_optional_service(
                (self.offer == Offer::Enforcement).then(|| EnforcementServer::new(service)),
            );
        runtime.spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        self.runtime = Some(runtime);
    }

    /// Answers nothing any more, and ends nothing, as a stopped process does.
    pub(crate) fn hang(&mut self) {
        let (going_on, hung) = std::sync::mpsc::channel::<()>();
        // It has one thread.
        self.runtime.as_ref().unwrap().spawn(async move { hung.recv() });
        self.hung = Some(going_on);
    }

    /// Ends at once, with all its streams, as a killed process does.
    pub(crate) fn die(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        std::fs::remove_file(&self.path).unwrap();
    }

    pub(crate) fn give(&self, svids: X509svidResponse) {
        self.svids.send_replace(Some(Ok(svids)));
    }

    pub(crate) fn refuse(&self, status: Status) {
        self.svids.send_replace(Some(Err(status)));
    }

    pub(crate) fn enforce(&self, slice: v1::Slice) {
        self.say(v1::enforcement_response::Step::Slice(slice));
    }

    pub(crate) fn mark(&self, number: u64) {
        let revision = Some(v1::Revision { incarnation: 1, number });
        let mark = v1::enforcement_response::Mark { revision };
        self.say(v1::enforcement_response::Step::EnforceMark(mark));
    }

    pub(crate) fn say(&self, step: v1::enforcement_response::Step) {
        self.steps.send_replace(Some(Ok(v1::EnforcementResponse { step: Some(step) })));
    }

    pub(crate) async fn next(&mut self) -> Heard {
        self.heard.recv().await.unwrap()
    }

    /// How the stream that is open now ends.
    pub(crate) async fn end(&mut self) -> Heard {
        loop {
            match self.next().await {
                Heard::Said(_) => {}
                end @ (Heard::Goodbye | Heard::Lost) => return end,
            }
        }
    }

    /// The next acknowledgement, past statuses and facts.
    pub(crate) async fn acknowledged(&mut self) -> (u64, u64) {
        loop {
            if let Heard::Said(Said::Acknowledge(acknowledge)) = self.next().await {
                return (acknowledge.revision.unwrap().number, acknowledge.cut);
            }
        }
    }

    /// The same, with how many connections drain.
    pub(crate) async fn acknowledged_draining(&mut self) -> (u64, u64, u64) {
        loop {
            if let Heard::Said(Said::Acknowledge(acknowledge)) = self.next().await {
                let v1::Acknowledge { revision, cut, draining } = acknowledge;
                return (revision.unwrap().number, cut, draining);
            }
        }
    }

    /// The next message of facts.
    pub(crate) async fn facts(&mut self) -> v1::Facts {
        loop {
            if let Heard::Said(Said::Facts(facts)) = self.next().await {
                return facts;
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn follow<T: Clone + Send + Sync + 'static>(
    mut script: watch::Receiver<Option<Result<T, Status>>>,
) -> Answers<T> {
    let (sender, receiver) = mpsc::channel(1);
    script.mark_changed();
    tokio::spawn(async move {
        while script.changed().await.is_ok() {
            let said = script.borrow_and_update().clone();
            let Some(said) = said else { continue };
            let last = said.is_err();
            if sender.send(said).await.is_err() || last {
                return;
            }
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

/// The header without which a browser could be tricked into asking.
fn check_header<T>(request: &Request<T>) -> Result<(), Status> {
    let header = request.metadata().get("workload.spiffe.io").map(|value| value.as_bytes());
    if header == Some(b"true") { Ok(()) } else { Err(Status::invalid_argument("no header")) }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        check_header(&request)?;
        Ok(Response::new(follow(self.svids.clone())))
    }

    async fn fetch_x509_bundles(
        &self,
        _request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwtsvid(
        &self,
        _request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwt_bundles(
        &self,
        _request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn validate_jwtsvid(
        &self,
        _request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl EnforcementService for Service {
    type SubscribeStream = Answers<v1::EnforcementResponse>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::EnforcementRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        check_header(&request)?;
        let mut requests = request.into_inner();
        let heard = self.heard.clone();
        let (over, ended) = oneshot::channel::<()>();
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                // The test may be over.
                heard.send(Heard::Said(request.step.unwrap())).unwrap_or(());
            }
            tokio::time::sleep(GRACE).await;
            drop(over);
        });
        let listener = Listener { heard: self.heard.clone(), last: Heard::Lost };
        let goodbye = async move {
            listener.hears_goodbye();
            None
        };
        let said = follow(self.steps.clone()).take_until(ended).map(Some);
        let steps = said.chain(stream::once(goodbye)).filter_map(std::future::ready);
        Ok(Response::new(Box::pin(steps)))
    }
}
