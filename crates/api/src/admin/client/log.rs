//! What a client asks of the audit log.

use bytes::Bytes;
use countersign_identity::{Incarnation, Serial};
use http::Method;

use super::{AdminClient, AdminError, not_understood};
use crate::admin::{
    EventFilter, EventsResponse, LeavesResponse, LogResponse, ProofResponse, TileHashesResponse,
};

impl AdminClient {
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
}
