//! What the agent asks of the server.

use std::sync::Arc;

use async_trait::async_trait;
use countersign_agent::core::{RecordKey, SyncMessage};
use countersign_agent::server_link::{
    AttestAsk, Attested, Calls, LinkFault, NodeCredential, Quiet, RenewAsk, Renewed, ServerLink,
    Session, SignAnswer, SignItem, Subject,
};
use countersign_api::v1;
use countersign_identity::{Clock, Code, Revision, Revocations};
use countersign_pki::{Bundle, ProvenKey, Reserved, open_csr};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

use super::{NODE, Server};

#[async_trait]
impl ServerLink for Server {
    fn present(
        &self,
        _credential: Option<NodeCredential<'_>>,
        bundle: &Bundle,
    ) -> Result<(), LinkFault> {
        self.lock().presented.push(bundle.sequence);
        Ok(())
    }

    fn revoke(&self, rules: &Arc<Revocations>) {
        self.lock().rules = Arc::clone(rules);
    }

    async fn attest(&self, _server: &str, ask: AttestAsk) -> Result<Attested, LinkFault> {
        self.lock().firsts.push(ask.first);
        self.check_up()?;
        if self.lock().tokens.pop().is_none() {
            return Err(LinkFault::new(Code::SpentToken, "the join token was used already"));
        }
        let key = open_csr(&ask.csr).unwrap();
        {
            let mut state = self.lock();
            if state.node_key == Some(key.public().id()) {
                // Nothing of it is done, so the token stays.
                state.tokens.push("token".to_owned());
                return Err(LinkFault::new(Code::AlreadyExists, "the key is registered"));
            }
            state.node_key = Some(key.public().id());
            if std::mem::take(&mut state.lose_next_attestation) {
                return Err(LinkFault::new(Code::TimedOut, "the answer was lost"));
            }
        }
        let issued = self.0.clock.now();
        let chain = self.node_svid(key).await;
        Ok(Attested { node: NODE, chain, issued, bundle: self.bundle(), generation: 1 })
    }

    async fn renew(&self, _server: &str, ask: RenewAsk) -> Result<Renewed, LinkFault> {
        self.check_up()?;
        let fault = |code| Err(LinkFault::new(code, "renewal refused"));
        let proven = {
            let mut state = self.lock();
            state.renewals_tried += 1;
            if let Some(code) = state.refuses_node.filter(|code| *code != Code::Revoked) {
                return fault(code);
            }
            if ask.generation < state.generation {
                return fault(Code::StaleGeneration);
            }
            if state.generation < ask.generation || state.node_key != Some(ask.key.public().id()) {
                return fault(Code::BadPossession);
            }
            let proven = if ask.successor_csr.is_empty() {
                ProvenKey::of(&ask.key)
            } else {
                state.generation += 1;
                open_csr(&ask.successor_csr).unwrap()
            };
            state.node_key = Some(proven.public().id());
            // It was the certificate that was refused, and this is another.
            state.refuses_node = None;
            state.renewals += 1;
            if std::mem::take(&mut state.lose_next_renewal) {
                return fault(Code::TimedOut);
            }
            proven
        };
        let generation = self.generation();
        let issued = self.0.clock.now();
        let chain = self.node_svid(proven).await;
        Ok(Renewed { chain, issued, bundle: self.bundle(), generation })
    }

    async fn open(&self, _server: &str, have: Option<Revision>) -> Result<Session, LinkFault> {
        self.check_up()?;
        let (stream, messages) = mpsc::channel(64);
        let (acks, mut ack_queue) = mpsc::channel::<v1::SyncAck>(4);
        {
            let mut state = self.lock();
            state.have.push(have);
            if let Some(code) = state.refuses_node {
                return Err(LinkFault::new(code, "this node is refused"));
            }
            let (revision, clock) = (state.revision(), Some(self.0.clock.now()));
            let records = state.records.values().cloned().collect();
            stream.try_send(Ok(SyncMessage::Snapshot { revision, records, clock })).unwrap();
            state.streams.push(stream);
        }
        let shared = Arc::clone(&self.0);
        let pump = tokio::spawn(async move {
            while let Some(ack) = ack_queue.recv().await {
                shared.acks_taken.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                shared.acks.send_replace(ack);
            }
        });
        Ok(Session {
            messages: ReceiverStream::new(messages),
            acks,
            calls: Arc::new(self.clone()),
            quiet: Quiet::default(),
            pump: AbortOnDropHandle::new(pump),
        })
    }
}

#[async_trait]
impl Calls for Server {
    async fn sign(
        &self,
        items: Vec<SignItem>,
        _from: Option<countersign_program::trace::Context>,
    ) -> Result<Vec<SignAnswer>, LinkFault> {
        self.check_up()?;
        let mut answers = Vec::new();
        for item in items {
            let workload = match item.subject {
                Subject::Workload(name) => name,
                Subject::Canary(id) if id.path().ends_with("/former") => {
                    answers.push(SignAnswer::Refused(Code::NotFound, "none".to_owned()));
                    continue;
                }
                Subject::Canary(id) => {
                    let proven = open_csr(&item.csr).unwrap();
                    let chain = self
                        .svid(&id, proven, std::time::Duration::from_secs(60), Reserved::Allow)
                        .await;
                    answers.push(SignAnswer::Issued { chain, issued: self.0.clock.now() });
                    continue;
                }
            };
            let key = RecordKey::read("Workload", workload.as_str()).unwrap();
            let (known, signs, lifetime, wrong) = {
                let state = self.lock();
                (
                    state.records.get(&key).cloned(),
                    state.signs,
                    state.lifetime,
                    state.wrong_identity,
                )
            };
            if self.lock().suspended.contains(&workload.to_string()) {
                answers.push(SignAnswer::Refused(Code::Suspended, "suspended".to_owned()));
                continue;
            }
            if self.lock().elsewhere.contains(&workload.to_string()) {
                answers.push(SignAnswer::Refused(Code::UnknownWorkload, "not here".to_owned()));
                continue;
            }
            let Some(record) = known.filter(|_| signs) else {
                answers.push(SignAnswer::Refused(Code::LongLifetime, "over the limit".to_owned()));
                continue;
            };
            let spec: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
            let path = if wrong { "/admin".to_owned() } else { format!("/{workload}") };
            let id = spec["spiffeId"].as_str().map_or_else(
                || self.0.domain.with_path(&path).unwrap(),
                |text| text.parse().unwrap(),
            );
            let proven = open_csr(&item.csr).unwrap();
            let chain = self.svid(&id, proven, lifetime, Reserved::Refuse).await;
            let mut state = self.lock();
            state.issued += 1;
            state.svids.push(chain.clone());
            drop(state);
            answers.push(SignAnswer::Issued { chain, issued: self.0.clock.now() });
        }
        Ok(answers)
    }

    async fn report(&self, report: v1::ReportRequest) -> Result<(), LinkFault> {
        self.check_up()?;
        self.0.reports.send_modify(|reports| reports.push(report));
        Ok(())
    }

    async fn lists(&self, revision: Revision) -> Result<Vec<bytes::Bytes>, LinkFault> {
        self.check_up()?;
        let told = self.lock().lists.clone().filter(|(at, _)| revision <= *at);
        told.map(|(_, lists)| lists)
            .ok_or_else(|| LinkFault::new(Code::NotReady, "the lists are not there yet"))
    }
}
