//! `countersign store copy` and `countersign store verify`.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Result;
use countersign_server::{
    BadUrl, Copied, KekFile, KeyAt, KeyWrap, Place, PostgresUrl, StartError, Verification,
};
use serde_json::json;

use super::backup::TokenArguments;
use crate::exit::{Exit, Failure};
use crate::output::{self, Output};
use crate::serve::{harden_process, password, unlock};

/// Copy a trust domain's state from a data directory to a database, or back, and check that all of it came
///
/// No server may run on either. Of a database it is watched whether a server renews its lease there: for three seconds, and for up to
/// ten if one did lately. Every row is counted at both places, and the log's root is computed anew at both. What
/// lies beside the state in a data directory (`kek`, `domain.json`) stays where it is and is still needed.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where it is: a data directory, or `postgres://USER@HOST/DATABASE?…`
    #[arg(long, value_name = "PLACE")]
    from: Named,
    /// Where it is to be: a data directory without a state, or an empty database
    #[arg(long, value_name = "PLACE")]
    to: Named,
    /// The file of the database's password [default: as PGPASSFILE or PGPASSWORD say]
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_STORE_PASSWORD_FILE")]
    store_password_file: Option<PathBuf>,
}

/// A place as it was named.
#[derive(Clone, Debug)]
pub(super) enum Named {
    Directory(PathBuf),
    Database(PostgresUrl),
}

impl FromStr for Named {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        if text.contains("://") {
            return text.parse().map(Self::Database);
        }
        Ok(Self::Directory(text.into()))
    }
}

impl Named {
    pub(super) fn place(&self, file: Option<&PathBuf>) -> Result<Place> {
        Ok(match self {
            Self::Directory(path) => Place::Directory(path.clone()),
            Self::Database(url) => Place::Database(url.clone(), password(file.cloned())?),
        })
    }
}

/// Goes on only with two places. One directory alone would be found in use, by the copy itself.
fn apart(from: &Named, to: &Named) -> Result<(), Failure> {
    let (Named::Directory(from), Named::Directory(to)) = (from, to) else { return Ok(()) };
    // One that is not there is told of when it is opened.
    let (Ok(one), Ok(other)) = (from.canonicalize(), to.canonicalize()) else { return Ok(()) };
    if one != other {
        return Ok(());
    }
    Err(Failure::not_understood(format!(
        "`--from` and `--to` are the same directory, `{}`: name another one, without a state, or an empty database, with `--to`",
        one.display()
    )))
}

pub(crate) async fn copy(arguments: &Arguments, output: Output) -> Result<Exit> {
    apart(&arguments.from, &arguments.to)?;
    let file = arguments.store_password_file.as_ref();
    let (from, to) = (arguments.from.place(file)?, arguments.to.place(file)?);
    let look_at = [&from, &to].into_iter().any(|place| matches!(place, Place::Database(..)));
    if look_at && output == Output::Human {
        output::line("looking whether servers work there (up to 10 s for each database)")?;
    }
    let Copied { tables, verification } = countersign_server::copy_store(&from, &to).await?;
    let head = verification.head;
    match output {
        Output::Json => {
            let rows: serde_json::Map<_, _> =
                tables.iter().map(|(name, rows)| ((*name).to_owned(), json!(rows))).collect();
            output::json(&json!({
                "event": "copied", "revision": head.revision, "logSize": head.log_size,
                "logRoot": verification.root, "rows": rows,
            }))?;
        }
        Output::Human => {
            for (name, rows) in &tables {
                output::line(&format!("{rows:>10}  {name}"))?;
            }
            output::line(&format!(
                "the same at both places: revision {}, log of {} entries with root {}",
                head.revision, head.log_size, verification.root
            ))?;
        }
    }
    Ok(Exit::Done)
}

/// Check a trust domain's whole state against itself, also while servers run on it
///
/// Every leaf of the log is read and the log's root computed anew: what was signed of it must be so, every issued row must be what
/// its leaf says, and the log of each incarnation must begin with the root of the one before. The records must be what the feed of
/// changes says, as far as it is kept, and be understood, as must every row of every other table; revisions and the feed must be
/// without gaps. The pages of a file are checked, and with the server's key (`kek`) it is tried whether the sealed keys open. Of
/// rows that nothing else in the state speaks of only the form is known, and of records that changed before the feed begins.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArguments {
    /// Where it is: a data directory, or `postgres://USER@HOST/DATABASE?…`
    #[arg(value_name = "PLACE")]
    at: Named,
    /// The file of the database's password [default: as PGPASSFILE or PGPASSWORD say]
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_STORE_PASSWORD_FILE")]
    store_password_file: Option<PathBuf>,
    /// The key that has to open the sealed keys [default: `kek` in a data directory, if it is there and opens]
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_KEK")]
    kek: Option<PathBuf>,
    /// The file of the passphrase by which the key is sealed [default: COUNTERSIGN_PASSPHRASE, or asked for at a terminal]
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    token: TokenArguments,
}

impl VerifyArguments {
    /// The key that was named, or the one that lies beside the state; or why there is none.
    fn key(&self) -> Result<std::result::Result<KeyAt, String>> {
        let openers = self.token.openers(self.passphrase_file.as_ref());
        let open = |path: PathBuf, unlock: Option<Arc<dyn KeyWrap>>| {
            let kek = KekFile::open_by(&path, unlock.as_deref());
            kek.map(|kek| KeyAt { path, kek })
        };
        if let Some(path) = self.kek.clone() {
            let unlock = unlock(&path, openers)?;
            return Ok(Ok(open(path, unlock).map_err(StartError::from)?));
        }
        let Named::Directory(directory) = &self.at else {
            return Ok(Err("no key was named by `--kek`".to_owned()));
        };
        let path = directory.join("kek");
        let unlock = unlock(&path, openers)?;
        Ok(open(path, unlock).map_err(|refused| refused.to_string()))
    }
}

pub(crate) async fn verify(arguments: &VerifyArguments, output: Output) -> Result<Exit> {
    harden_process()?;
    let place = arguments.at.place(arguments.store_password_file.as_ref())?;
    let key = arguments.key()?;
    let verified = countersign_server::verify_store(&place, key.as_ref().ok()).await?;
    let Verification { head, root, records, issued } = verified.state;
    match output {
        Output::Json => output::json(&json!({
            "event": "verified", "revision": head.revision, "logSize": head.log_size, "logRoot": root,
            "records": records, "issued": issued, "opened": verified.opened, "notOpened": key.err(),
        }))?,
        Output::Human => {
            output::line(&format!(
                "in order: revision {}, {records} records, {issued} issued certificates, log of {} entries with root {root}",
                head.revision, head.log_size
            ))?;
            output::line(&match (verified.opened, key.err()) {
                (Some(opened), _) => format!("the key opens all {opened} sealed keys"),
                (None, why) => {
                    let why = why.unwrap_or_default();
                    format!("whether the sealed keys open was not tried: {why}")
                }
            })?;
        }
    }
    Ok(Exit::Done)
}
