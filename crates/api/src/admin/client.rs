//! A small client over the admin socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use countersign_identity::{Code, Incarnation, KeyId, Name, NodeId, Revision, Serial};

use super::{
    ApplyRequest, ApplyResponse, ApproveRequest, AuthoritiesResponse, CeremonyRequest,
    ConsoleLinkResponse, Convergence, CreateTokenRequest, CreateTokenResponse, CrlResponse,
    EventFilter, EventsResponse, ExplainRequest, ExplainResponse, FlowsResponse, HandshakeFilter,
    HandshakeHistory, HandshakesResponse, HistoryResponse, ImportRequest, ImportResponse,
    InventoryResponse, LeavesResponse, LogResponse, NodesResponse, PlanResponse, ProblemDetails,
    ProofResponse, RecoverRequest, RecoverResponse, RequestView, ResourcesResponse, ResumeRequest,
    ReviewReport, ReviewView, ReviewsResponse, RevisionResponse, RevocationsResponse,
    RevokeRequest, RevokeResponse, RollbackRequest, RotateRequest, SignReviewRequest,
    StartReviewRequest, Status, Step, StepRequest, SuspendRequest, TileHashesResponse,
};
use crate::resource::Kind;

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a change may take: `apply` of a large domain compiles its policies.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Speaks to one server over its admin socket. Each request is a connection of its own.
#[derive(Clone, Debug)]
pub struct AdminClient {
    socket: PathBuf,
}

/// Why there is no answer, or it is a refusal.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens there.
    #[error(
        "no server answers at `unix://{path}`: {why}; is it running? `--data DIR`, `--admin unix:///…` or `COUNTERSIGN_ADMIN` say where it is", path = .path.display(), why = plain(.source)
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The socket admits root and the owner of the data directory only.
    #[error(
        "this user may not use the admin socket `unix://{path}`: run as its owner or as root", path = .path.display()
    )]
    NotAdmitted {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke, or what came back is not HTTP.
    #[error("the server at `unix://{path}` broke the connection: {source}", path = .path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It took too long.
    #[error("the server at `unix://{path}` did not answer within {} s", .limit.as_secs(), path = .path.display())]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// The answer is not what this version understands.
    #[error(
        "the answer of the server to `{request}` is not understood: {why}; are both of one version?"
    )]
    NotUnderstood {
        /// What was asked.
        request: String,
        /// What is wrong.
        why: String,
    },
    /// The server says no.
    #[error("{}", .0.detail)]
    Refused(Box<ProblemDetails>),
}

impl AdminError {
    /// The code.
    pub fn code(&self) -> Code {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } => Code::Unavailable,
            Self::NotAdmitted { .. } => Code::Forbidden,
            Self::TimedOut { .. } => Code::TimedOut,
            Self::NotUnderstood { .. } => Code::Internal,
            Self::Refused(problem) => problem.code,
        }
    }
}

impl AdminClient {
    /// For the server whose admin socket is here. Nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether the server is ready; when it is not, the refusal says why.
    ///
    /// # Errors
    /// When it is not.
    pub async fn ready(&self) -> Result<(), AdminError> {
        self.ask(Method::GET, "/ready", None).await.map(drop)
    }

    /// Who is alive.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn status(&self) -> Result<Status, AdminError> {
        self.get("/v1/status").await
    }

    /// The latest handshakes, newest first; only those after this index.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn handshakes(
        &self,
        limit: usize,
        after: Option<u64>,
    ) -> Result<HandshakesResponse, AdminError> {
        let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
        self.get(&format!("/v1/handshakes?limit={limit}{after}")).await
    }

    /// Stored handshakes that fit, newest first, but for so many of the newest.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn handshake_history(
        &self,
        filter: &HandshakeFilter,
        limit: usize,
        skip: usize,
    ) -> Result<HandshakeHistory, AdminError> {
        let path = "/v1/handshakes/history";
        let filter = serde_urlencoded::to_string(filter)
            .map_err(|bad| not_understood(path, bad.to_string()))?;
        self.get(&format!("{path}?{filter}&limit={limit}&skip={skip}")).await
    }

    /// A page of events, oldest first; only those after this index.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn events(
        &self,
        limit: usize,
        after: Option<u64>,
    ) -> Result<EventsResponse, AdminError> {
        let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
        self.get(&format!("/v1/events?limit={limit}{after}")).await
    }

    /// A page of the events that fit, oldest first; only those after this index.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn search(
        &self,
        filter: &EventFilter,
        limit: usize,
        after: Option<u64>,
    ) -> Result<EventsResponse, AdminError> {
        let path = "/v1/events";
        let filter = serde_urlencoded::to_string(filter)
            .map_err(|bad| not_understood(path, bad.to_string()))?;
        let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
        self.get(&format!("{path}?{filter}&limit={limit}{after}")).await
    }

    /// What is signed of a log; of the present one when no incarnation is named.
    ///
    /// # Errors
    /// When the server cannot be asked, or keeps no such log.
    pub async fn log(&self, incarnation: Option<Incarnation>) -> Result<LogResponse, AdminError> {
        let of = incarnation.map(|number| format!("?incarnation={number}")).unwrap_or_default();
        self.get(&format!("/v1/log{of}")).await
    }

    /// Leaves of a log as they are stored, from this index on.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn leaves(
        &self,
        incarnation: Incarnation,
        from: u64,
        limit: usize,
    ) -> Result<LeavesResponse, AdminError> {
        self.get(&format!("/v1/log/leaves?incarnation={incarnation}&from={from}&limit={limit}"))
            .await
    }

    /// Hashes of full tiles of a log as they are stored, of one level, from this place on.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn tile_hashes(
        &self,
        incarnation: Incarnation,
        level: u8,
        from: u64,
    ) -> Result<TileHashesResponse, AdminError> {
        let path = "/v1/log/tile-hashes";
        self.get(&format!("{path}?incarnation={incarnation}&level={level}&from={from}")).await
    }

    /// Proof that an event is in a log.
    ///
    /// # Errors
    /// When the server cannot be asked, or there is no such event.
    pub async fn proof(
        &self,
        incarnation: Option<Incarnation>,
        index: u64,
    ) -> Result<ProofResponse, AdminError> {
        let of = incarnation.map(|number| format!("&incarnation={number}")).unwrap_or_default();
        self.get(&format!("/v1/log/proof?index={index}{of}")).await
    }

    /// Proof that the issue of a certificate is in a log.
    ///
    /// # Errors
    /// When the server cannot be asked, or knows no such certificate.
    pub async fn proof_of(&self, serial: Serial) -> Result<ProofResponse, AdminError> {
        self.get(&format!("/v1/log/proof?serial={serial}")).await
    }

    /// The newest signed checkpoint of a log, as a note.
    ///
    /// # Errors
    /// When the server cannot be asked, or nothing is signed.
    pub async fn checkpoint(&self, incarnation: Option<Incarnation>) -> Result<Bytes, AdminError> {
        let of = incarnation.map(|number| format!("?incarnation={number}")).unwrap_or_default();
        self.ask(Method::GET, &format!("/v1/log/checkpoint{of}"), None).await
    }

    /// A tile of a log's tree by its path after `tile/`: the hashes, one behind the other.
    ///
    /// # Errors
    /// When the server cannot be asked, or the log has no such tile.
    pub async fn tile(&self, incarnation: Incarnation, path: &str) -> Result<Bytes, AdminError> {
        let path = format!("/v1/log/tile/{path}?incarnation={incarnation}");
        self.ask(Method::GET, &path, None).await
    }

    /// The resources in force.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn resources(&self) -> Result<ResourcesResponse, AdminError> {
        self.get("/v1/resources").await
    }

    /// The trust bundle, as SPIFFE writes it.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn bundle(&self) -> Result<Bytes, AdminError> {
        self.ask(Method::GET, "/v1/bundle", None).await
    }

    /// A page of the registered nodes.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn nodes(&self, after: Option<NodeId>) -> Result<NodesResponse, AdminError> {
        let after = after.map(|after| format!("?after={after}")).unwrap_or_default();
        self.get(&format!("/v1/nodes{after}")).await
    }

    /// Makes a set of resources the desired state.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses; nothing is half-applied.
    pub async fn apply(&self, request: &ApplyRequest) -> Result<ApplyResponse, AdminError> {
        self.post("/v1/apply", request).await
    }

    /// What policies say about a question.
    ///
    /// # Errors
    /// When the server cannot be asked, or the question names nothing that is declared.
    pub async fn explain(&self, request: &ExplainRequest) -> Result<ExplainResponse, AdminError> {
        self.post("/v1/explain", request).await
    }

    /// Who has talked to whom within this time.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn flows(&self, since: Option<Duration>) -> Result<FlowsResponse, AdminError> {
        let since = since.map(|since| format!("?since={}", since.as_secs())).unwrap_or_default();
        self.get(&format!("/v1/flows{since}")).await
    }

    /// What is declared, and in what it differs from what was seen within this time.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn inventory(&self, since: Duration) -> Result<InventoryResponse, AdminError> {
        self.get(&format!("/v1/inventory?since={}", since.as_secs())).await
    }

    /// The reviews of policies.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn reviews(&self) -> Result<ReviewsResponse, AdminError> {
        self.get("/v1/reviews").await
    }

    /// Opens a review of policies.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn start_review(
        &self,
        request: &StartReviewRequest,
    ) -> Result<ReviewView, AdminError> {
        self.post("/v1/reviews", request).await
    }

    /// What a review finds: who could, who did, and what would be enough.
    ///
    /// # Errors
    /// When the server cannot be asked, or there is no such review.
    pub async fn review(&self, id: &Name) -> Result<ReviewReport, AdminError> {
        self.get(&format!("/v1/reviews/{id}")).await
    }

    /// Signs a review.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn sign_review(
        &self,
        id: &Name,
        request: &SignReviewRequest,
    ) -> Result<ReviewView, AdminError> {
        self.post(&format!("/v1/reviews/{id}/signature"), request).await
    }

    /// What a set of resources would change, and whom that would hit.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn plan(&self, request: &ApplyRequest) -> Result<PlanResponse, AdminError> {
        self.post("/v1/plan", request).await
    }

    /// Approves a plan: exactly this one, of manifests for the revision that it names.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn approve_plan(&self, request: &ApplyRequest) -> Result<PlanResponse, AdminError> {
        self.post("/v1/plans/approve", request).await
    }

    /// What has changed, newest first, before a revision.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn history(
        &self,
        limit: usize,
        before: Option<Revision>,
        all: bool,
    ) -> Result<HistoryResponse, AdminError> {
        let before = before.map(|before| format!("&before={before}")).unwrap_or_default();
        self.get(&format!("/v1/history?limit={limit}&all={all}{before}")).await
    }

    /// What was declared at a revision.
    ///
    /// # Errors
    /// When the server cannot be asked, or the revision is no longer kept.
    pub async fn resources_at(&self, at: Revision) -> Result<ResourcesResponse, AdminError> {
        self.get(&format!("/v1/resources?revision={at}")).await
    }

    /// Goes back to what was declared at a revision, as a new one.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn rollback(&self, request: &RollbackRequest) -> Result<ApplyResponse, AdminError> {
        self.post("/v1/rollback", request).await
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn create_token(
        &self,
        request: &CreateTokenRequest,
    ) -> Result<CreateTokenResponse, AdminError> {
        self.post("/v1/join-tokens", request).await
    }

    /// Makes a link to the console, which lets one browser in, once.
    ///
    /// # Errors
    /// When the server cannot be asked, or has no console.
    pub async fn console_link(&self) -> Result<ConsoleLinkResponse, AdminError> {
        self.post("/v1/console-links", &()).await
    }

    /// Removes a node, which can never renew again.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn remove_node(&self, node: NodeId) -> Result<(), AdminError> {
        self.ask(Method::DELETE, &format!("/v1/nodes/{node}"), None).await.map(drop)
    }

    /// Takes credentials out of service.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses; nothing is half-done.
    pub async fn revoke(&self, request: &RevokeRequest) -> Result<RevokeResponse, AdminError> {
        self.post("/v1/revocations", request).await
    }

    /// What is out of service.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn revocations(&self) -> Result<RevocationsResponse, AdminError> {
        self.get("/v1/revocations").await
    }

    /// Stops what would be issued.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn suspend(&self, request: &SuspendRequest) -> Result<RevisionResponse, AdminError> {
        self.post("/v1/suspensions", request).await
    }

    /// Lifts a suspension.
    ///
    /// # Errors
    /// When the server cannot be asked, or there is no such suspension.
    pub async fn resume(&self, request: &ResumeRequest) -> Result<RevisionResponse, AdminError> {
        self.post("/v1/resume", request).await
    }

    /// Every authority, and what is under way.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn authorities(&self) -> Result<AuthoritiesResponse, AdminError> {
        self.get("/v1/authorities").await
    }

    /// The last walk that came to its end, signed by the active root, as it came.
    ///
    /// # Errors
    /// When the server cannot be asked, or none has come to its end yet.
    pub async fn report(&self) -> Result<Bytes, AdminError> {
        self.ask(Method::GET, "/v1/authorities/report", None).await
    }

    /// Takes one step of the roots' walk.
    ///
    /// # Errors
    /// When the server cannot be asked, or the step's gate is not open.
    pub async fn walk(
        &self,
        step: Step,
        request: &StepRequest,
    ) -> Result<RevisionResponse, AdminError> {
        self.post(&format!("/v1/authorities/{step}"), request).await
    }

    /// Says that a new root may sign.
    ///
    /// # Errors
    /// When the server cannot be asked, or the word is not this operator's to give.
    pub async fn approve(&self, request: &ApproveRequest) -> Result<RevisionResponse, AdminError> {
        self.post("/v1/authorities/approve", request).await
    }

    /// The request that an authority outside is to sign: the one that waits, or a new one.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn request_issuer(
        &self,
        request: &CeremonyRequest,
    ) -> Result<RequestView, AdminError> {
        self.post("/v1/authorities/request", request).await
    }

    /// Brings what an authority outside has signed.
    ///
    /// # Errors
    /// When the server cannot be asked, or what is brought cannot be taken.
    pub async fn import_issuer(
        &self,
        request: &ImportRequest,
    ) -> Result<ImportResponse, AdminError> {
        self.post("/v1/authorities/import", request).await
    }

    /// Orders the rotation of the root, step after step.
    ///
    /// # Errors
    /// When the server cannot be asked, or another walk is under way.
    pub async fn rotate_root(
        &self,
        request: &RotateRequest,
    ) -> Result<RevisionResponse, AdminError> {
        self.post("/v1/rotations/root", request).await
    }

    /// Puts a new issuer in the place of the one that signs now.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn rotate_issuer(
        &self,
        request: &RotateRequest,
    ) -> Result<RevisionResponse, AdminError> {
        self.post("/v1/rotations/issuer", request).await
    }

    /// Recovers from an authority's leaked key, or says what that comes to.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn recover(&self, request: &RecoverRequest) -> Result<RecoverResponse, AdminError> {
        self.post("/v1/recoveries", request).await
    }

    /// Ends the time after the beginning of an incarnation in which nothing is issued.
    ///
    /// # Errors
    /// When the server cannot be asked, or issuing is not held off.
    pub async fn resume_issuing(&self) -> Result<RevisionResponse, AdminError> {
        self.post("/v1/resume-issuing", &serde_json::json!({})).await
    }

    /// Who enforces a revision, or the newest; waits for at most so long until all do and nothing is to be issued anew.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn convergence(
        &self,
        revision: Option<Revision>,
        wait: Duration,
    ) -> Result<Convergence, AdminError> {
        let wait = wait.as_millis();
        let revision = revision.map(|revision| format!("&revision={revision}")).unwrap_or_default();
        self.get(&format!("/v1/convergence?wait={wait}{revision}")).await
    }

    /// A revocation list: the whole one, what changed, or a part; of the issuer that signs now when none is named.
    ///
    /// # Errors
    /// When the server cannot be asked, or has no such list.
    pub async fn crl(
        &self,
        issuer: Option<KeyId>,
        part: Option<&str>,
    ) -> Result<CrlResponse, AdminError> {
        let issuer = issuer.map(|issuer| format!("&issuer={issuer}")).unwrap_or_default();
        let part = part.unwrap_or("whole");
        self.get(&format!("/v1/crl?part={part}{issuer}")).await
    }

    /// Begins a trial, named by its revision: agents show canaries at the doors of their enforcement points.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn try_out(&self) -> Result<RevisionResponse, AdminError> {
        self.post("/v1/trials", &serde_json::json!({})).await
    }

    /// As [`convergence`](Self::convergence), with what a trial has shown; waits for that as well.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn tried_out(
        &self,
        revision: Revision,
        trial: Revision,
        wait: Duration,
    ) -> Result<Convergence, AdminError> {
        let wait = wait.as_millis();
        self.get(&format!("/v1/convergence?wait={wait}&revision={revision}&trial={trial}")).await
    }

    /// Removes a resource.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn remove_resource(
        &self,
        kind: Kind,
        name: &Name,
    ) -> Result<ApplyResponse, AdminError> {
        let path = format!("/v1/resources/{kind}/{name}");
        let answer = self.ask(Method::DELETE, &path, None).await?;
        understand(&path, &answer)
    }

    /// The JSON of any `GET`, as it came.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminError> {
        let answer = self.ask(Method::GET, path, None).await?;
        understand(path, &answer)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AdminError> {
        let body =
            serde_json::to_vec(body).map_err(|error| not_understood(path, error.to_string()))?;
        let answer = self.ask(Method::POST, path, Some(body)).await?;
        understand(path, &answer)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, AdminError> {
        let limit = if method == Method::GET { ANSWER_TIMEOUT } else { CHANGE_TIMEOUT };
        tokio::time::timeout(limit, self.exchange(method, path, body))
            .await
            .map_err(|_elapsed| AdminError::TimedOut { path: self.socket.clone(), limit })?
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, AdminError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            let path = self.socket.clone();
            match source.kind() {
                std::io::ErrorKind::PermissionDenied => AdminError::NotAdmitted { path },
                _ => AdminError::Unreachable { path, source },
            }
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| not_understood(path, error.to_string()))?;
        // The connection makes progress only while it is polled, and ends with the answer.
        let (response, _connection) = tokio::join!(
            async move {
                let response = sender.send_request(request).await?;
                let (parts, body) = response.into_parts();
                Ok::<_, hyper::Error>((parts, Limited::new(body, ANSWER_BYTES_MAX).collect().await))
            },
            connection,
        );
        let (parts, collected) = response.map_err(|error| self.broken(error))?;
        let answer = collected.map_err(|error| self.broken(error))?.to_bytes();
        refuse(path, parts.status, &answer)?;
        Ok(answer)
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> AdminError {
        AdminError::Broken { path: self.socket.clone(), source: source.into() }
    }
}

/// What the system said, without its number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut characters = text.chars();
    characters
        .next()
        .map_or(String::new(), |first| first.to_lowercase().chain(characters).collect())
}

fn refuse(request: &str, status: StatusCode, answer: &[u8]) -> Result<(), AdminError> {
    if status.is_success() {
        return Ok(());
    }
    match ProblemDetails::decode(answer) {
        Ok(problem) => Err(AdminError::Refused(Box::new(problem))),
        Err(bad) => Err(not_understood(request, format!("HTTP status {status}; {bad}"))),
    }
}

fn understand<T: DeserializeOwned>(request: &str, answer: &[u8]) -> Result<T, AdminError> {
    serde_json::from_slice(answer).map_err(|error| not_understood(request, error.to_string()))
}

fn not_understood(request: &str, why: String) -> AdminError {
    AdminError::NotUnderstood { request: request.to_owned(), why }
}
