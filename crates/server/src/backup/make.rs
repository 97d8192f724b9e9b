//! Making a backup, also while servers run.

use std::path::PathBuf;
use std::sync::Arc;

use countersign_identity::{
    Clock as _, Revision, Sha256, SystemClock, SystemEntropy, Timestamp, TrustDomain,
};
use countersign_seal::{KekFile, KeyWrap};
use countersign_store::{Dumping, Place};

use super::Progress;
use super::file::{About, End, Writing};
use crate::config::{StartError, StoreAt, kek_path};
use crate::directory::Domain;
use crate::incarnation::Seen;

/// What is to be saved, and where.
#[derive(Clone, Debug)]
pub struct BackupConfig {
    /// The data directory of a server.
    pub data: PathBuf,
    /// Where the state is kept.
    pub store: StoreAt,
    /// The key that seals the backup; the server's own when absent.
    pub kek: Option<PathBuf>,
    /// The file to make.
    pub file: PathBuf,
    /// What opens the key file, if it is wrapped.
    pub unlock: Option<Arc<dyn KeyWrap>>,
}

/// What was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupReport {
    /// The state's revision.
    pub revision: Revision,
    /// When it was made.
    pub at: Timestamp,
    /// The log's size.
    pub log_size: u64,
    /// The log's root.
    pub log_root: Sha256,
    /// Each table and its rows.
    pub tables: Vec<(&'static str, u64)>,
    /// How long the file is.
    pub bytes: u64,
}

pub(super) fn place(store: &StoreAt, data: &std::path::Path) -> Place {
    match store {
        StoreAt::Directory => Place::Directory(data.to_owned()),
        StoreAt::Postgres { url, password } => Place::Database(url.clone(), password.clone()),
    }
}

/// Saves a trust domain's state, as it is at one moment, in one sealed file. Servers may run.
///
/// The key that seals it is not in it. Blocks its thread.
///
/// # Errors
/// When there is such a file already, the key does not open, or the store does not answer. Nothing is left of the file then.
pub async fn backup(
    config: &BackupConfig,
    progress: Progress<'_>,
) -> Result<BackupReport, StartError> {
    backup_at(config, SystemClock::new().now(), progress).await
}

/// Saves it at this moment.
pub(crate) async fn backup_at(
    config: &BackupConfig,
    at: Timestamp,
    progress: Progress<'_>,
) -> Result<BackupReport, StartError> {
    let domain = Domain::read(&config.data)?;
    let kek = config.kek.clone().unwrap_or_else(|| kek_path(&config.data));
    let kek = KekFile::open_by(&kek, config.unlock.as_deref())?;
    let from = place(&config.store, &config.data);
    let writing = Writing::create(&config.file, &kek, &SystemEntropy)?;
    // Before the state is looked at, which a server goes on to change.
    let seen = Seen::read(&config.data);
    let dumping = Dumping::open_after(&from, Seen::reached(&config.data)).await?;
    if let Some(seen) = seen {
        seen.check_head(dumping.head(), &config.data)?;
    }
    write(&dumping, writing, (domain.trust_domain, at), progress).await
}

/// Writes what is read of a state, as it is at this moment.
pub(super) async fn write(
    dumping: &Dumping,
    mut writing: Writing<'_>,
    (trust_domain, at): (TrustDomain, Timestamp),
    progress: Progress<'_>,
) -> Result<BackupReport, StartError> {
    let head = dumping.head();
    let (revision, log_size) = (head.revision, head.log_size);
    if revision.number == 0 {
        return Err(StartError::Nothing);
    }
    writing.about(&About { trust_domain, at, revision, fence: head.fence, log_size })?;
    let mut done = ("", 0);
    let dumped = dumping
        .pages(|page| {
            done = if done.0 == page.table {
                (done.0, done.1 + page.rows)
            } else {
                (page.table, page.rows)
            };
            progress(done.0, done.1);
            writing.page(&page)
        })
        .await?;
    let tables = dumped.tables.iter().map(|(name, rows)| ((*name).to_owned(), *rows)).collect();
    let bytes = writing.finish(&End { tables, log_root: dumped.root })?;
    let (tables, log_root) = (dumped.tables, dumped.root);
    Ok(BackupReport { revision, at, log_size, log_root, tables, bytes })
}
