//! A trust domain out of a backup, in a new place and a new incarnation.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{
    Clock as _, Code, Entropy, Revision, Sha256, SystemClock, SystemEntropy, Timestamp, TrustDomain,
};
use countersign_pki::NoVault;
use countersign_seal::{Kek, KekFile, KeyWrap};
use countersign_store::{Filling, Head, Page};

use super::Progress;
use super::file::{About, End, Part, Reading};
use super::make::place;
use crate::authority::{Unsealed, internal, unseal};
use crate::config::{StartError, StoreAt, kek_path};
use crate::directory::{self, Domain};
use crate::incarnation::{Beginning, Cause, ClockIs, Known, LogKey, begin, read_rules};
use crate::refusal::Refused;
use crate::storage;

/// What is to be restored, and where.
#[derive(Clone, Debug)]
pub struct RestoreConfig {
    /// The backup.
    pub file: PathBuf,
    /// The data directory to make: missing, or empty.
    pub data: PathBuf,
    /// Where the state is to be kept.
    pub store: StoreAt,
    /// The key that sealed the backup.
    pub kek: PathBuf,
    /// How long nothing is issued after the first server starts on it.
    pub hold_off: Duration,
    /// The folder of a journal of rules, if one was kept.
    pub journal: Option<PathBuf>,
    /// What opens the key file, if it is wrapped.
    pub unlock: Option<Arc<dyn KeyWrap>>,
    /// Whether an operator vouches for the clock, should what is restored be of a later time.
    pub clock_is_right: bool,
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreReport {
    /// Whose state it is.
    pub trust_domain: TrustDomain,
    /// The state's revision in the new incarnation.
    pub revision: Revision,
    /// Its last revision in the one before.
    pub before: Revision,
    /// The size and the root of the log before.
    pub log: (u64, Sha256),
    /// What happened after this moment is lost, but for what agents and journals remember of revocations.
    pub lost_from: Timestamp,
    /// Until now.
    pub lost_until: Timestamp,
    /// Until when nothing is issued.
    pub hold_until: Timestamp,
    /// Rules that were taken from the journal.
    pub from_journal: usize,
    /// Lines of the journal that are not rules of this trust domain.
    pub refused_lines: usize,
}

/// Restores a backup where there is nothing, and begins a new incarnation.
///
/// The whole file is read and verified before anything is written. Blocks its thread.
///
/// # Errors
/// When the place is in use, the file is cut off, changed, of a newer version or sealed under another key, or the clock is
/// behind what is restored. Nothing is left of the new place then.
pub async fn restore(
    config: &RestoreConfig,
    progress: Progress<'_>,
) -> Result<RestoreReport, StartError> {
    restore_at(config, SystemClock::new().now(), progress).await
}

/// Restores it at this moment.
pub(crate) async fn restore_at(
    config: &RestoreConfig,
    now: Timestamp,
    progress: Progress<'_>,
) -> Result<RestoreReport, StartError> {
    let kek = KekFile::open_by(&config.kek, config.unlock.as_deref())?;
    // 1. The file, all of it.
    let (_about, end) = read(&config.file, &kek, |_page| Ok(()))?;
    // 2. A place beside the one that is asked for.
    let building = Building::begin(&config.data)?;
    // 3. The state as it was, in a new incarnation.
    let place = NewPlace { config, kek: &kek, data: &building.path, now };
    let report = fill(&place, &end, progress).await?;
    // 4. The place gets its name when it is whole.
    building.finish(&config.data)?;
    Ok(report)
}

/// Reads and verifies a backup from its beginning to its end.
fn read(
    file: &Path,
    kek: &Kek,
    mut each: impl FnMut(&[u8]) -> Result<(), StartError>,
) -> Result<(About, End), StartError> {
    let (mut reading, about) = Reading::open(file, kek)?;
    loop {
        match reading.next()? {
            Part::Page(part) => {
                for page in reading.pages(&part)? {
                    each(page)?;
                }
            }
            Part::End(end) => return Ok((about, end)),
        }
    }
}

/// Where and when something is restored, and by which key.
struct NewPlace<'a> {
    config: &'a RestoreConfig,
    kek: &'a Kek,
    data: &'a Path,
    now: Timestamp,
}

async fn fill(
    new: &NewPlace<'_>,
    end: &End,
    progress: Progress<'_>,
) -> Result<RestoreReport, StartError> {
    let NewPlace { config, kek, data, .. } = *new;
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let at = place(&config.store, data);
    let filling = Filling::create(at, Arc::clone(&entropy)).await;
    let filling = filling.map_err(|error| match (&config.store, error) {
        (StoreAt::Postgres { url, .. }, countersign_store::StoreError::AlreadyExists { .. }) => {
            StartError::StoreExists { place: url.to_string() }
        }
        (_, other) => other.into(),
    })?;
    let (mut reading, about) = Reading::open(&config.file, kek)?;
    let mut done = (String::new(), 0);
    while let Part::Page(part) = reading.next()? {
        for page in reading.pages(&part)? {
            filling.put(page).await?;
            let Page { table, rows, .. } = Page::parse(page)?;
            let before = if done.0 == table { done.1 } else { 0 };
            done = (table.to_owned(), before + rows);
            progress(&done.0, done.1);
        }
    }
    let head = Head { revision: about.revision, fence: about.fence, log_size: about.log_size };
    filling.finish(&head, &end.tables, end.log_root).await?;
    let report = reborn(new, &about, entropy).await?;
    directory::copy_private(&config.kek, &kek_path(data))?;
    let domain = Domain::new(about.trust_domain, &SystemEntropy).map_err(internal)?;
    domain.write(data)?;
    Ok(report)
}

/// Puts a backup's state into a directory as it was, in its old incarnation: what an operator does who copies files.
#[cfg(test)]
pub(crate) async fn put_old(file: &Path, kek: &Kek, data: &Path) -> Result<(), StartError> {
    let at = countersign_store::Place::Directory(data.to_owned());
    let filling = Filling::create(at, Arc::new(SystemEntropy)).await?;
    let (mut reading, about) = Reading::open(file, kek)?;
    loop {
        match reading.next()? {
            Part::Page(part) => {
                for page in reading.pages(&part)? {
                    filling.put(page).await?;
                }
            }
            Part::End(end) => {
                let (revision, fence, log_size) = (about.revision, about.fence, about.log_size);
                let head = Head { revision, fence, log_size };
                filling.finish(&head, &end.tables, end.log_root).await?;
                return Ok(());
            }
        }
    }
}

/// Begins the new incarnation, with the rules of the journal.
async fn reborn(
    new: &NewPlace<'_>,
    about: &About,
    entropy: Arc<dyn Entropy>,
) -> Result<RestoreReport, StartError> {
    let NewPlace { config, kek, data, now } = *new;
    let store = storage::open(&config.store, data, Arc::clone(&entropy)).await?;
    if let Unsealed::Sealed(why) = unseal(&*store, kek, &NoVault).await? {
        return Err(StartError::WrongKek { path: config.kek.clone(), why });
    }
    let log_key = LogKey::open_or_make(&*store, kek, &*entropy).await?;
    let (rules, refused_lines) = match &config.journal {
        Some(folder) => read_rules(folder, &log_key)?,
        None => (Vec::new(), 0),
    };
    let before = store.snapshot().await?.records.len();
    let clock = if config.clock_is_right { ClockIs::Right } else { ClockIs::Compared };
    let beginning = Beginning {
        store: &*store,
        cause: Cause::Restored,
        now,
        hold_off: config.hold_off,
        seen: 0,
        reached: None,
        rules,
        by: "restore",
        known: Known { at: about.at, by: "the backup", clock },
    };
    let life = begin(beginning).await.map_err(clock_is_behind)?;
    let life = life.ok_or_else(|| internal("another server runs on it"))?;
    let after = store.snapshot().await?;
    Ok(RestoreReport {
        trust_domain: about.trust_domain.clone(),
        revision: after.revision,
        before: life.from.revision,
        log: (life.from.log_size, life.from.log_root),
        lost_from: about.at,
        lost_until: life.lost_until.unwrap_or(life.began),
        hold_until: life.hold_until,
        // The record of the incarnation itself is new, or replaces the one before.
        from_journal: after.records.len().saturating_sub(before + 1),
        refused_lines,
    })
}

/// Says of a clock that is behind what else may be the case.
fn clock_is_behind(refused: Refused) -> Refused {
    if refused.code != Code::NotReady {
        return refused;
    }
    let why = format!(
        "{}; if it is right, and that was written under a clock that was ahead, give `--clock-is-right`",
        refused.why
    );
    Refused::new(refused.code, why)
}

/// A data directory that is being made. Of one that is not finished nothing is left.
struct Building {
    path: PathBuf,
    /// The empty directory of that name, if it is ours.
    made: Option<PathBuf>,
    finished: bool,
}

impl Building {
    fn begin(data: &Path) -> Result<Self, StartError> {
        // Refuses what is in use; an empty directory stays empty until the end.
        let made = (!data.exists()).then(|| data.to_owned());
        directory::make(data)?;
        let mut path = data.as_os_str().to_owned();
        path.push(".restoring");
        let building = Self { path: PathBuf::from(path), made, finished: false };
        directory::make(&building.path)?;
        Ok(building)
    }

    fn finish(mut self, data: &Path) -> Result<(), StartError> {
        let failed = |source| StartError::File { action: "make", path: data.into(), source };
        std::fs::rename(&self.path, data).map_err(failed)?;
        self.finished = true;
        let folder = data.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = std::fs::File::open(folder.unwrap_or(Path::new(".")));
        folder.and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "what was begun is left");
        }
        if let Some(made) = &self.made
            && let Err(error) = std::fs::remove_dir(made)
        {
            tracing::warn!(%error, path = %made.display(), "an empty directory is left");
        }
    }
}
