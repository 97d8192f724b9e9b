//! A trust domain out of a backup, in a new place and a new incarnation.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{
    Clock as _, Code, Entropy, Revision, Sha256, SystemClock, SystemEntropy, Timestamp, TrustDomain,
};
use countersign_pki::NoVault;
use countersign_seal::{Kek, KekFile, KeyWrap};
use countersign_store::{Filled, Filling, Head, Kind, Page, Place, Record, Snapshot, StoreError};

use super::Progress;
use super::building::Building;
use super::file::{About, End, Part, Reading};
use super::make::place;
use crate::authority::{Unsealed, internal, unseal};
use crate::config::{StartError, StoreAt, kek_path};
use crate::directory::{self, Domain};
use crate::incarnation::{
    Beginning, Cause, ClockIs, Handed, Known, LogKey, begin, check_kept, read_rules,
};
use crate::refusal::Refused;
use crate::storage;
use crate::watch::KeptTime;

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
    /// Whether the backup had wrong hashes of the log's full tiles, which were reckoned anew from its leaves.
    pub tiles_mended: bool,
}

/// Restores a backup where there is nothing, and begins a new incarnation.
///
/// The whole file is read and verified before anything is written. Blocks its thread.
///
/// # Errors
/// When the place is in use, the file is cut off, changed, of a newer version or sealed under another key, the folder of the
/// journal has none, or the clock is behind what is restored. Nothing is left of the new place then.
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
    if let Some(folder) = &config.journal {
        check_kept(folder)?;
    }
    // 1. The file, all of it.
    let (reading, _about) = Reading::open(&config.file, &kek)?;
    let end = reading.read_to_end(|_page| Ok(()))?;
    // 2. A place beside the one that is asked for.
    check_empty(config).await?;
    let building = Building::begin(&config.data)?;
    // 3. The state as it was, in a new incarnation; of one that is for a database, too, nobody else sees anything before.
    let state = building.state(&config.store)?;
    let place = NewPlace { config, kek: &kek, data: building.path(), state: &state, now };
    let report = fill(&place, &end, progress).await?;
    directory::copy_private(&config.kek, &kek_path(building.path()))?;
    let domain = Domain::new(report.trust_domain.clone(), &SystemEntropy).map_err(internal)?;
    domain.write(building.path())?;
    // 4. A database has it only when nothing is left to do but to give the place its name, which it gets when it is whole.
    if let StoreAt::Postgres { .. } = config.store {
        move_into(config, &state).await?;
    }
    building.finish(&config.data)?;
    Ok(report)
}

/// Refuses a database in which there is something, before anything is done.
async fn check_empty(config: &RestoreConfig) -> Result<(), StartError> {
    let StoreAt::Postgres { url, .. } = &config.store else { return Ok(()) };
    match storage::open(&config.store, &config.data, Arc::new(SystemEntropy)).await {
        Ok(store) => {
            let head = store.head().await?;
            // A beginning that was cut off is gone on with.
            if head.log_size == 0 && head.revision.number == 0 {
                return Ok(());
            }
            Err(StartError::DatabaseInUse { place: url.to_string() })
        }
        Err(StoreError::Missing { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Moves a state into a database, in one transaction: there is all of it, in its new incarnation, or nothing.
async fn move_into(config: &RestoreConfig, state: &Path) -> Result<(), StartError> {
    let from = Place::Directory(state.to_owned());
    let to = place(&config.store, state);
    // This program has just begun an incarnation in it, so it understands the records.
    let (entropy, known) = (Arc::new(SystemEntropy), |_records| Ok(()));
    countersign_store::copy::<StoreError>(&from, &to, entropy, known).await?;
    let failed = |source| StartError::File { action: "remove", path: state.into(), source };
    std::fs::remove_dir_all(state).map_err(failed)
}

/// Where and when something is restored, and by which key.
struct NewPlace<'a> {
    config: &'a RestoreConfig,
    kek: &'a Kek,
    /// The data directory that is made.
    data: &'a Path,
    /// The directory of the state.
    state: &'a Path,
    now: Timestamp,
}

async fn fill(
    new: &NewPlace<'_>,
    end: &End,
    progress: Progress<'_>,
) -> Result<RestoreReport, StartError> {
    let NewPlace { config, kek, state, .. } = *new;
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let at = Place::Directory(state.to_owned());
    let filling = Filling::create(at, Arc::clone(&entropy)).await?;
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
    let Filled { tiles_mended, .. } = filling.finish(&head, &end.tables, end.log_root).await?;
    Ok(RestoreReport { tiles_mended, ..reborn(new, &about, entropy).await? })
}

/// Puts a backup's state into a directory as it was, in its old incarnation: what an operator does who copies files.
#[cfg(test)]
pub(crate) async fn put_old(file: &Path, kek: &Kek, data: &Path) -> Result<(), StartError> {
    let at = Place::Directory(data.to_owned());
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
    let NewPlace { config, kek, data, state, now } = *new;
    let store = storage::open(&StoreAt::Directory, state, Arc::clone(&entropy)).await?;
    if let Unsealed::Sealed(why) = unseal(&*store, kek, &NoVault).await? {
        return Err(StartError::WrongKek { path: config.kek.clone(), why });
    }
    let log_key = LogKey::open_or_make(&*store, kek, &*entropy).await?;
    let (rules, refused_lines) = match &config.journal {
        Some(folder) => read_rules(folder, &log_key)?,
        None => (Vec::new(), 0),
    };
    // How long ago that was only the clock says, which may be ahead: until it has gone on for an hour nothing is dropped by it.
    let newest = rules.iter().map(Handed::at).fold(about.at, Timestamp::max);
    let steady = newest.min(now);
    KeptTime::write(data, steady)?;
    let before = rules_of(store.snapshot().await?);
    let clock = if config.clock_is_right { ClockIs::Right } else { ClockIs::Compared };
    let beginning = Beginning {
        store: &*store,
        cause: Cause::Restored,
        now,
        steady,
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
        from_journal: rules_of(after).difference(&before).count(),
        refused_lines,
        tiles_mended: false,
    })
}

/// What a state has of the kinds that a journal keeps.
fn rules_of(state: Snapshot) -> BTreeSet<(Kind, String)> {
    let kept = |record: &Record| matches!(record.kind, Kind::Revocation | Kind::Suspension);
    let records = state.records.into_iter().filter(kept);
    records.map(|record| (record.kind, record.name)).collect()
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
