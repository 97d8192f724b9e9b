//! The SPIFFE Workload API, X.509 profile.
//!
//! The first message comes at once, then one at each change, each with the full state. A caller without an identity gets
//! `PermissionDenied`, which clients take as a withdrawal; as long as this agent cannot know, it says `Unavailable`.
//! The JWT profile is not offered yet: `Unimplemented`.

mod messages;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::wire::refusal_status;
use countersign_api::workload::spiffe_workload_api_server::{
    SpiffeWorkloadApi, SpiffeWorkloadApiServer,
};
use countersign_api::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svidRequest,
    X509svidResponse,
};
use countersign_identity::{Code, Sha256, Timestamp};
use futures_util::stream;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

use crate::core::Workload;
use crate::enforcement::{Holding, Points};
use crate::reception::{Counted, Reception, Unknown, Visitor, visitor};
use crate::view::{Holdings, View};

/// The service.
pub(crate) struct WorkloadApi {
    reception: Reception,
    points: Points,
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;
type Guarded = InterceptedService<
    SpiffeWorkloadApiServer<WorkloadApi>,
    fn(Request<()>) -> Result<Request<()>, Status>,
>;

/// How long a first answer may be waited for, while this agent is about to know.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Requests of this API are empty, but for JWTs and audiences.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

impl WorkloadApi {
    /// The service, behind its guard against requests that somebody else was made to send.
    pub(crate) fn guarded(reception: Reception, points: Points) -> Guarded {
        let server = SpiffeWorkloadApiServer::new(Self { reception, points })
            .max_decoding_message_size(REQUEST_BYTES_MAX);
        InterceptedService::new(server, check_header)
    }

    fn stream<T: Send + 'static>(
        &self,
        visitor: Visitor,
        make: fn(&View, &[Arc<Workload>], Timestamp) -> Made<T>,
        holding: Option<Holding>,
    ) -> Result<Response<Messages<T>>, Status> {
        let place = self.reception.stream_place(visitor.caller.peer())?;
        let mut views = self.reception.views.clone();
        views.mark_changed();
        let deadline = self.reception.clock.now() + FIRST_ANSWER_TIMEOUT;
        let answers = Answers {
            reception: self.reception.clone(),
            views,
            visitor,
            make,
            holding,
            last: None,
            deadline,
            _place: place,
        };
        let messages = stream::try_unfold(answers, |mut answers| async move {
            Ok(answers.next().await?.map(|message| (message, answers)))
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

/// `workload.spiffe.io: true`, exactly once: a browser or a server that was tricked into a request cannot set it.
fn check_header(request: Request<()>) -> Result<Request<()>, Status> {
    let mut values = request.metadata().get_all("workload.spiffe.io").iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.as_encoded_bytes() == b"true" => Ok(request),
        (Some(_), _) | (None, _) => Err(refusal_status(
            tonic::Code::InvalidArgument,
            Code::NotUnderstood,
            "the request lacks the security header `workload.spiffe.io: true`",
        )),
    }
}

/// What can be said at one moment.
pub(crate) enum Made<T> {
    /// This, with the digest by which it is told from what was said before.
    Message(T, Sha256),
    /// Nothing yet, and why.
    Pending(String),
    /// The server's word that there is nothing.
    Refused(Code, String),
}

/// One stream of answers.
struct Answers<T> {
    reception: Reception,
    views: watch::Receiver<Option<Arc<View>>>,
    visitor: Visitor,
    make: fn(&View, &[Arc<Workload>], Timestamp) -> Made<T>,
    /// Counts the process among those who hold SVIDs, where the stream gives any.
    holding: Option<Holding>,
    last: Option<Sha256>,
    deadline: Timestamp,
    _place: Counted<u32>,
}

impl<T> Answers<T> {
    /// The next message, when there is something new to say; `None` when the agent stops.
    async fn next(&mut self) -> Result<Option<T>, Status> {
        let mut why = "this agent has just started".to_owned();
        loop {
            let clock = Arc::clone(&self.reception.clock);
            tokio::select! {
                changed = self.views.changed() => if changed.is_err() { return Ok(None) },
                () = clock.sleep_until(self.deadline), if self.last.is_none() => {
                    return Err(refusal_status(tonic::Code::Unavailable, Code::NotReady, &why));
                }
            }
            let view = self.views.borrow_and_update().clone();
            let Some(view) = view else { continue };
            match self.look(&view).await? {
                Made::Message(_, digest) if self.last == Some(digest) => {}
                Made::Message(message, digest) => {
                    self.last = Some(digest);
                    return Ok(Some(message));
                }
                Made::Pending(pending) => why = pending,
                Made::Refused(code, why) => {
                    return Err(refusal_status(tonic::Code::PermissionDenied, code, &why));
                }
            }
        }
    }

    /// Attests the caller anew: it may have run another program since, or be gone.
    async fn look(&mut self, view: &View) -> Result<Made<T>, Status> {
        let caller = &self.visitor.caller;
        match self.reception.who(&self.visitor, view).await {
            Ok(workloads) => {
                let made = (self.make)(view, &workloads, self.reception.clock.now());
                if let (Made::Message(..), Some(holding)) = (&made, &mut self.holding) {
                    holding.given(view.last_expiry(&workloads));
                }
                Ok(made)
            }
            Err(Unknown::CannotKnow(Code::NotReady, why)) => Ok(Made::Pending(why)),
            Err(unknown) => Err(unknown.status(caller.peer())),
        }
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Messages<X509svidResponse>;
    type FetchX509BundlesStream = Messages<X509BundlesResponse>;
    type FetchJWTBundlesStream = Messages<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let visitor = visitor(&request)?;
        let holding = self.points.holding(&visitor.caller);
        self.stream(visitor, svids, Some(holding))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.stream(visitor(&request)?, bundles, None)
    }

    async fn fetch_jwtsvid(
        &self,
        _request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        Err(no_jwt())
    }

    async fn fetch_jwt_bundles(
        &self,
        _request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(no_jwt())
    }

    async fn validate_jwtsvid(
        &self,
        _request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(no_jwt())
    }
}

fn svids(view: &View, workloads: &[Arc<Workload>], now: Timestamp) -> Made<X509svidResponse> {
    match view.holdings(workloads, now) {
        Holdings::Svids(svids) => messages::svids(view, &svids),
        Holdings::Pending(why) => Made::Pending(why),
        Holdings::Refused(code, why) => Made::Refused(code, why),
    }
}

/// Bundles are for those who have an identity.
fn bundles(view: &View, workloads: &[Arc<Workload>], now: Timestamp) -> Made<X509BundlesResponse> {
    match view.holdings(workloads, now) {
        Holdings::Svids(svids) => messages::bundles(view, &svids),
        Holdings::Pending(why) => Made::Pending(why),
        Holdings::Refused(code, why) => Made::Refused(code, why),
    }
}

fn no_jwt() -> Status {
    Status::unimplemented("this agent does not offer JWT-SVIDs yet; X.509-SVIDs it does")
}
