//! `countersign backup`, `restore` and `resume-issuing`.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Result;
use countersign_identity::DurationText;
use countersign_server::{
    BackupConfig, BackupReport, PostgresUrl, RestoreConfig, RestoreReport, StoreAt,
};
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::find::{self, Find};
use crate::output::{self, Output};
use crate::serve::{Again, Openers, Seal, harden_process, password, unlock};

/// Save a trust domain's state in one sealed file, also while its servers run
///
/// The state is saved as it is at one moment, whichever store it lies in. The file is sealed by the server's key (`kek`), which
/// is not in it: keep that key in another place, or neither the backup nor the trust domain can be opened.
#[derive(Debug, clap::Args)]
pub(crate) struct BackupArguments {
    /// The file to make
    file: PathBuf,
    /// The data directory of a server, or of an `up`
    #[arg(long, value_name = "DIR", env = "COUNTERSIGN_DATA")]
    data: PathBuf,
    /// The database of the state, `postgres://…` [default: in the data directory]
    #[arg(long, value_name = "URL", env = "COUNTERSIGN_STORE")]
    store: Option<PostgresUrl>,
    /// The file of the database's password [default: as PGPASSFILE or PGPASSWORD say]
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_STORE_PASSWORD_FILE")]
    store_password_file: Option<PathBuf>,
    /// The key that seals the file [default: DIR/kek]
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_KEK")]
    kek: Option<PathBuf>,
    /// The file of the passphrase by which the key is sealed [default: COUNTERSIGN_PASSPHRASE, or asked for at a terminal]
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    token: TokenArguments,
}

/// Make a data directory out of a backup, in a new incarnation
///
/// It replaces nothing. Every agent takes a snapshot and has everything issued anew; revocations and suspensions that were
/// made since the backup are taken back from the agents that remember them, and from a journal. Nothing is issued before the
/// hold-off is over. What nobody remembers is lost, and the span of time that this is about is told. A clock that is behind the
/// backup, its log or the journal is refused: by it, suspensions would be lost, and issuing would not wait.
#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArguments {
    /// The backup
    file: PathBuf,
    /// The data directory to make: missing, or empty
    #[arg(long, value_name = "DIR", env = "COUNTERSIGN_DATA")]
    data: PathBuf,
    /// An empty database for the state, `postgres://…` [default: in the data directory]
    #[arg(long, value_name = "URL", env = "COUNTERSIGN_STORE")]
    store: Option<PostgresUrl>,
    /// The file of the database's password [default: as PGPASSFILE or PGPASSWORD say]
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_STORE_PASSWORD_FILE")]
    store_password_file: Option<PathBuf>,
    /// The key that sealed the backup
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_KEK")]
    kek: PathBuf,
    /// The file of the passphrase by which the key is sealed [default: COUNTERSIGN_PASSPHRASE, or asked for at a terminal]
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    token: TokenArguments,
    /// How long nothing is issued, so that agents can hand back what they remember
    #[arg(long, value_name = "SPAN", default_value = "60s")]
    hold_off: DurationText,
    /// The folder of a journal of revocations, if one was kept (`countersign server --journal`); one without any is refused
    #[arg(long, value_name = "DIR")]
    journal: Option<PathBuf>,
    /// The clock is right, also where the backup or the journal is of a later time: that was written under one that was ahead
    #[arg(long)]
    clock_is_right: bool,
}

// The key in a token that a key file may be sealed by. A sentence for `--help` would stand in place of the command's.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct TokenArguments {
    /// The key in a token that the key is sealed by, if it is, `pkcs11:token=…;object=…?module-path=…`
    #[arg(long, value_name = "WHERE", env = "COUNTERSIGN_SEAL")]
    seal: Option<Seal>,
    /// The file of the PIN of that token [default: COUNTERSIGN_PIN, or `pin-source` of its URI]
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_PIN_FILE")]
    pin_file: Option<PathBuf>,
}

impl TokenArguments {
    /// With the file of a passphrase, all that may open a key file.
    pub(super) fn openers(&self, passphrase_file: Option<&PathBuf>) -> Openers {
        let Self { seal, pin_file } = self.clone();
        let seal = seal.and_then(Seal::token);
        Openers { passphrase_file: passphrase_file.cloned(), seal, pin_file }
    }
}

fn store(url: Option<&PostgresUrl>, file: Option<&PathBuf>) -> Result<StoreAt> {
    let Some(url) = url else { return Ok(StoreAt::Directory) };
    Ok(StoreAt::Postgres { url: url.clone(), password: password(file.cloned())? })
}

/// Shows how far it is, for people who watch.
fn progress(output: Output) -> impl FnMut(&str, u64) + Send {
    let shown = output == Output::Human && std::io::stderr().is_terminal();
    move |table, rows| {
        if shown && rows.is_multiple_of(1000) {
            // Progress that cannot be shown is no reason to stop.
            let _shown = write!(std::io::stderr(), "\r\x1b[K{table}: {rows}");
        }
    }
}

fn clear(output: Output) {
    if output == Output::Human && std::io::stderr().is_terminal() {
        // As above.
        let _shown = write!(std::io::stderr(), "\r\x1b[K");
    }
}

pub(crate) async fn backup(arguments: &BackupArguments, output: Output) -> Result<Exit> {
    let BackupArguments { file, data, store: url, store_password_file, kek, .. } = arguments;
    folder_is_there(file)?;
    harden_process()?;
    let store = store(url.as_ref(), store_password_file.as_ref())?;
    let (data, kek) = (find::server_data(data), kek.clone());
    let own = data.join("kek");
    let openers = arguments.token.openers(arguments.passphrase_file.as_ref());
    let unlock = unlock(kek.as_ref().unwrap_or(&own), openers)?;
    let config = BackupConfig { data, store, kek, file: file.clone(), unlock };
    let made = countersign_server::backup(&config, &mut progress(output)).await;
    clear(output);
    let BackupReport { revision, at, log_size, log_root, tables, bytes } = made?;
    match output {
        Output::Json => {
            let rows: serde_json::Map<_, _> =
                tables.iter().map(|(name, rows)| ((*name).to_owned(), json!(rows))).collect();
            output::json(&json!({
                "event": "saved", "file": file, "bytes": bytes, "at": at, "revision": revision,
                "logSize": log_size, "logRoot": log_root, "rows": rows,
            }))?;
        }
        Output::Human => output::line(&format!(
            "saved in {}, {bytes} bytes: revision {revision} of {at}, log of {log_size} entries with root {log_root}\n\
             the key that opens it is not in it: keep a copy of `kek` in another place",
            file.display()
        ))?,
    }
    Ok(Exit::Done)
}

/// Goes on only where a file can be made by this name. Asked before anything is opened, and before a passphrase is asked for.
fn folder_is_there(file: &Path) -> Result<(), Failure> {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            let (file, folder) = (file.display(), folder.display());
            Err(Failure::not_understood(format!(
                "there is no folder `{folder}` for `{file}`: make it, or name a file in another"
            )))
        }
        Some(_) | None => Ok(()),
    }
}

pub(crate) async fn restore(arguments: &RestoreArguments, output: Output) -> Result<Exit> {
    let RestoreArguments { file, data, store: url, store_password_file, .. } = arguments;
    harden_process()?;
    let openers = arguments.token.openers(arguments.passphrase_file.as_ref());
    let store = store(url.as_ref(), store_password_file.as_ref())?;
    let again = Again::new(data.clone(), &store, &openers)?;
    let config = RestoreConfig {
        file: file.clone(),
        data: data.clone(),
        store,
        kek: arguments.kek.clone(),
        hold_off: arguments.hold_off.0,
        journal: arguments.journal.clone(),
        unlock: unlock(&arguments.kek, openers)?,
        clock_is_right: arguments.clock_is_right,
    };
    let restored = countersign_server::restore(&config, &mut progress(output)).await;
    clear(output);
    let report = restored?;
    match output {
        Output::Json => output::json(&told(&report, arguments))?,
        Output::Human => output::write(shown(&report, arguments, &again).as_bytes())?,
    }
    Ok(Exit::Done)
}

fn told(report: &RestoreReport, arguments: &RestoreArguments) -> serde_json::Value {
    json!({
        "event": "restored", "trustDomain": report.trust_domain, "data": arguments.data,
        "revision": report.revision, "before": report.before, "logSizeBefore": report.log.0,
        "logRootBefore": report.log.1, "lostFrom": report.lost_from, "lostUntil": report.lost_until,
        "holdUntil": report.hold_until, "fromJournal": report.from_journal,
        "refusedLines": report.refused_lines, "tilesMended": report.tiles_mended,
    })
}

fn shown(report: &RestoreReport, arguments: &RestoreArguments, again: &Again) -> String {
    let RestoreReport { trust_domain, revision, before, log, lost_from, lost_until, .. } = report;
    let data = arguments.data.display();
    let mut text = format!(
        "trust domain {trust_domain} is restored in {data}: revision {revision}, after {before}\n\
         \x20 the log before had {} entries with root {}\n\
         \x20 what happened from {lost_from} to {lost_until} is lost, but for the revocations and suspensions that agents \
         or a journal remember; machines that joined in that time join again\n\
         \x20 nothing is issued until {}, or until `countersign resume-issuing`\n",
        log.0, log.1, report.hold_until
    );
    if arguments.journal.is_some() {
        text.push_str(&format!("  {} rules came from the journal\n", report.from_journal));
    }
    if 0 < report.refused_lines {
        let lines = report.refused_lines;
        text.push_str(&format!(
            "  {lines} lines of the journal are torn or not of this trust domain\n"
        ));
    }
    if report.tiles_mended {
        text.push_str(
            "  the backup had wrong hashes of the log's full tiles: they were reckoned anew from its leaves\n",
        );
    }
    text.push_str(&again.next("server", ""));
    text.push('\n');
    text
}

pub(crate) async fn resume_issuing(find: &Find, clock: bool, output: Output) -> Result<Exit> {
    let client = find.client()?;
    let response =
        if clock { client.accept_clock().await? } else { client.resume_issuing().await? };
    match output {
        Output::Json => output::json(&response)?,
        Output::Human => {
            output::line(&format!("issuing goes on as of revision {}", response.revision))?;
        }
    }
    Ok(Exit::Done)
}
