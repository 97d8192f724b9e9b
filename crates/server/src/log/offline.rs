//! A log read straight from where it is kept, with no server between.

use std::sync::Arc;

use countersign_api::admin::{LeavesResponse, LogResponse, TileHashesResponse};
use countersign_audit::{Bundle, NoteKey};
use countersign_identity::{Incarnation, SystemEntropy};
use countersign_seal::KekFile;
use countersign_store::{Observed, Place, PostgresStore, SqliteStore, Store};

use super::reader::LogReader;
use super::shown;
use crate::config::{StartError, kek_path};
use crate::directory::Domain;
use crate::incarnation::LogKey;
use crate::refusal::Refused;

/// The logs of a store, only read, also while servers run on it.
#[derive(Debug)]
pub struct OfflineLog {
    store: Opened,
    key: Option<NoteKey>,
}

#[derive(Debug)]
enum Opened {
    Directory(Observed),
    Database(Box<PostgresStore>),
}

impl OfflineLog {
    /// Opens what is there. In a data directory that is not sealed the log's public key is found, too.
    ///
    /// # Errors
    /// When there is no store.
    pub async fn open(place: &Place) -> Result<Self, StartError> {
        let store = match place {
            Place::Directory(path) => Opened::Directory(SqliteStore::observe(path)?),
            Place::Database(url, password) => {
                let entropy = Arc::new(SystemEntropy);
                let store = PostgresStore::open(url.clone(), password.clone(), entropy).await?;
                Opened::Database(Box::new(store))
            }
        };
        let mut log = Self { store, key: None };
        if let Place::Directory(path) = place
            && let (Ok(kek), Ok(domain)) = (KekFile::open(&kek_path(path)), Domain::read(path))
            // A sealed or changed key is none; then whoever verifies has to bring it.
            && let Ok(Some(key)) = LogKey::open(log.store(), &kek).await
        {
            log.key = key.note_key(&domain.trust_domain).ok();
        }
        Ok(log)
    }

    fn store(&self) -> &dyn Store {
        match &self.store {
            Opened::Directory(observed) => &**observed,
            Opened::Database(store) => &**store,
        }
    }

    /// What is signed of a log; of the present one when no incarnation is named.
    ///
    /// # Errors
    /// When no such log is kept, or the store does not answer.
    pub async fn log(&self, incarnation: Option<Incarnation>) -> Result<LogResponse, Refused> {
        shown::log(self.store(), incarnation, self.key.as_ref()).await
    }

    /// Proof that an event is in what was signed last.
    ///
    /// # Errors
    /// When there is no such event, or it is not signed.
    pub async fn prove(
        &self,
        incarnation: Option<Incarnation>,
        index: u64,
    ) -> Result<Bundle, Refused> {
        let (log, _head) = LogReader::of(self.store(), incarnation).await?;
        Ok(log.prove(index).await?.bundle)
    }

    /// Leaves as they are stored, from this index on.
    ///
    /// # Errors
    /// When no such log is kept, or the store does not answer.
    pub async fn leaves(
        &self,
        incarnation: Incarnation,
        from: u64,
        limit: usize,
    ) -> Result<LeavesResponse, Refused> {
        shown::leaves(self.store(), Some(incarnation), from, limit).await
    }

    /// Hashes of full tiles as they are stored, of one level, from this place on.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn tile_hashes(
        &self,
        incarnation: Incarnation,
        level: u8,
        from: u64,
    ) -> Result<TileHashesResponse, Refused> {
        shown::tile_hashes(self.store(), incarnation, level, from).await
    }
}
