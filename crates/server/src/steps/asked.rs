//! What callers ask besides, as they ask it: for fuzzing.

use std::sync::Arc;

use bytes::Bytes;
use countersign_api::v1;
use countersign_api::v1::answer::Outcome;
use countersign_api::v1::call::Asked;
use countersign_identity::Sha256;
use countersign_pki::Certificate;

use super::{OPERATOR, Steps};
use crate::Refused;
use crate::attest::Attempt;
use crate::attest::token::presented;
use crate::attest::x509::{prove, register};
use crate::edge::{NodeService, read};
use crate::incarnation::{Handed, taken_back};

/// The digest by which a join token is looked up.
///
/// # Errors
/// When the text cannot be one.
pub fn token(text: &str) -> Result<Sha256, Refused> {
    presented(text)
}

impl Steps {
    /// Reads one message of an agent's standing connection.
    ///
    /// # Errors
    /// When it is none, or holds too much.
    pub fn read(&self, message: &Bytes) -> Result<v1::FromAgent, Refused> {
        read(message)
    }

    /// Answers a call on a connection that shows this chain.
    ///
    /// # Errors
    /// As the server refuses it.
    pub async fn answer(&self, shown: &[Bytes], asked: Asked) -> Result<Outcome, Refused> {
        let peer = self.peer(shown)?;
        let service = NodeService::new(Arc::clone(&self.control));
        self.while_advancing(service.answer(&peer, asked)).await
    }

    /// Answers `AttestX509`: a machine of these authorities has signed over the nonce and the connection's secret.
    ///
    /// # Errors
    /// As the server refuses it.
    pub async fn attest_x509(
        &self,
        authorities: &[Certificate],
        (nonce, exporter): (&[u8; 32], &[u8; 32]),
        proof: &v1::AttestX509Proof,
    ) -> Result<v1::AttestResponse, Refused> {
        let control = &*self.control;
        let peer = self.connection(None, *exporter);
        let attempt = Attempt::begin(control, &peer)?;
        let now = control.clock.now();
        let registered = match prove(&attempt, authorities, (nonce, exporter), proof, now) {
            Ok(proven) => self.while_advancing(register(control, proven, &proof.host, &[])).await,
            Err(refused) => Err(refused),
        };
        attempt.ended(&registered);
        registered
    }

    /// How many of these rules the state would take back, if the trust domain's own key had signed them.
    ///
    /// # Errors
    /// When one of them is no rule.
    pub fn would_take_back(&self, records: &[v1::SignedRecord]) -> Result<usize, Refused> {
        let state = self.control.feed.current();
        let handed = records.iter().map(Handed::read).collect::<Result<Vec<_>, _>>()?;
        let life = state.life();
        let at = self.control.desk.time.moment(&*self.control.clock);
        Ok(taken_back(&state, life.as_deref(), &handed, OPERATOR, at).changes.len())
    }
}
