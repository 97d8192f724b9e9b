//! The stream of SVIDs.

use std::sync::Arc;
use std::time::Duration;

use countersign_api::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use countersign_api::workload::{X509svidRequest, X509svidResponse};
use countersign_identity::{Backoff, BackoffPolicy, Clock, Entropy};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};

use crate::endpoint::explain;
use crate::keeper::Keeper;
use crate::svid::Unusable;
use crate::{Choice, Endpoint, Link, svid};

/// The largest message: 64 SVIDs and 1,024 bundles fit many times.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

pub(crate) const RETRY: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(50), longest: Duration::from_secs(5) };
/// A stream that lasted this long counts as a success: one that ends at once each time must not be
/// opened again without a pause.
pub(crate) const LASTING: Duration = Duration::from_secs(2);
/// How soon an SVID that could not be used is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How long an agent may take to accept a stream.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Follows the stream, and comes again when it ends.
pub(crate) struct WorkloadApi {
    pub(crate) endpoint: Endpoint,
    pub(crate) choice: Choice,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
}

impl WorkloadApi {
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(RETRY);
        loop {
            let begun = self.clock.now();
            let why = tokio::select! {
                () = stop.cancelled() => return,
                why = self.follow() => why,
            };
            if LASTING <= self.clock.now().since(begun) {
                backoff.reset();
            }
            tracing::warn!(%why, endpoint = %self.endpoint, "the Workload API is away");
            let now = self.clock.now();
            self.keeper.link(Link::Lost { since: now, why });
            let again = backoff.failed(now, &*self.entropy);
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.clock.sleep_until(again) => {}
            }
        }
    }

    /// Says why the stream ended.
    async fn follow(&self) -> String {
        let channel = match self.endpoint.channel().await {
            Ok(channel) => channel,
            Err(error) => return format!("`{}`: {}", self.endpoint, explain(&error)),
        };
        let mut client =
            SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let late = self.clock.now() + OPEN_TIMEOUT;
        let opened = tokio::select! {
            opened = client.fetch_x509svid(workload_request(X509svidRequest {})) => opened,
            () = self.clock.sleep_until(late) => return "the agent does not answer".to_owned(),
        };
        let mut stream = match opened {
            Ok(response) => response.into_inner(),
            Err(status) => return self.refused(&status),
        };
        // What is not valid yet to a clock that was set back becomes so, and the agent does not say it again.
        let mut unusable: Option<X509svidResponse> = None;
        loop {
            let again = self.clock.now() + LOOK_AGAIN;
            let next = tokio::select! {
                next = stream.message() => next,
                () = self.clock.sleep_until(again), if unusable.is_some() => Ok(unusable.take()),
            };
            match next {
                Ok(Some(message)) => {
                    self.keeper.link(Link::Connected);
                    let read = svid::read(message.clone(), &self.choice, self.clock.now());
                    match &read {
                        Err(Unusable::Bad(_)) => unusable = Some(message),
                        // It says nothing, and so takes nothing back.
                        Err(Unusable::Empty) => {}
                        Ok(_) | Err(Unusable::Withdrawn(_)) => unusable = None,
                    }
                    self.keeper.update(read);
                }
                Ok(None) => return "the agent ended the stream".to_owned(),
                Err(status) => return self.refused(&status),
            }
        }
    }

    /// Only the agent's own word withdraws an identity: any other error is an outage.
    fn refused(&self, status: &tonic::Status) -> String {
        let why = format!("{}: {}", status.code(), status.message());
        if status.code() == Code::PermissionDenied {
            self.keeper.withdraw(match self.choice.id() {
                Some(id) => format!("this process is not `{id}`: {why}"),
                None => why.clone(),
            });
        }
        why
    }
}

/// A request with the header that no browser can be tricked into sending (SPIFFE Workload Endpoint, 6).
pub(crate) fn workload_request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = tonic::metadata::MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", value);
    request
}
