//! The calls beside the stream, over the same standing connection.

use async_trait::async_trait;
use bytes::Bytes;
use countersign_api::standing::{self, Failed};
use countersign_api::v1;
use countersign_identity::Revision;
use countersign_program::trace::Context;

use super::timed;
use crate::server_link::wire::{self, broken};
use crate::server_link::{Calls, LinkFault, SignAnswer, SignItem, Subject};

pub(super) struct StandingCalls {
    pub(super) calls: standing::Calls,
}

#[async_trait]
impl Calls for StandingCalls {
    async fn sign(
        &self,
        items: Vec<SignItem>,
        from: Option<Context>,
    ) -> Result<Vec<SignAnswer>, LinkFault> {
        let asked = items.len();
        let items = items
            .into_iter()
            .map(|SignItem { subject, csr }| {
                let (workload, canary) = match subject {
                    Subject::Workload(name) => (name.to_string(), String::new()),
                    Subject::Canary(id) => (String::new(), id.to_string()),
                };
                v1::SignItem { workload, csr: csr.into(), canary }
            })
            .collect();
        let traceparent = from.map(|from| from.to_string()).unwrap_or_default();
        let answer = answered(self.calls.sign(v1::SignRequest { items, traceparent })).await?;
        if answer.results.len() != asked {
            return Err(broken(format!("{} results for {asked} items", answer.results.len())));
        }
        Ok(answer.results.into_iter().map(wire::sign_answer).collect())
    }

    async fn report(&self, report: v1::ReportRequest) -> Result<(), LinkFault> {
        answered(self.calls.report(report)).await.map(|_answer| ())
    }

    async fn lists(&self, revision: Revision) -> Result<Vec<Bytes>, LinkFault> {
        let request = v1::ListsRequest { revision: Some(revision.into()) };
        answered(self.calls.lists(request)).await.map(|answer| answer.lists)
    }

    async fn hand_back(&self, records: Vec<v1::SignedRecord>) -> Result<u64, LinkFault> {
        let request = v1::HandBackRequest { records };
        answered(self.calls.hand_back(request)).await.map(|answer| answer.taken)
    }
}

/// A call and its time limit.
async fn answered<T>(call: impl Future<Output = Result<T, Failed>>) -> Result<T, LinkFault> {
    timed(async { call.await.map_err(wire::failed) }).await
}
