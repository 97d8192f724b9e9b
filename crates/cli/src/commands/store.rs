//! `countersign store copy` and `countersign store verify`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use countersign_server::{BadUrl, Copied, Place, PostgresUrl, Verification};
use serde_json::json;

use crate::exit::Exit;
use crate::output::{self, Output};
use crate::serve::password;

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

pub(crate) async fn copy(arguments: &Arguments, output: Output) -> Result<Exit> {
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
/// Every leaf of the log is read and the log's root computed anew; revisions and the feed must be in order, every issued row
/// must be what its leaf says, and the log of each incarnation must begin with the root of the one before.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArguments {
    /// Where it is: a data directory, or `postgres://USER@HOST/DATABASE?…`
    #[arg(value_name = "PLACE")]
    at: Named,
    /// The file of the database's password [default: as PGPASSFILE or PGPASSWORD say]
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_STORE_PASSWORD_FILE")]
    store_password_file: Option<PathBuf>,
}

pub(crate) async fn verify(arguments: &VerifyArguments, output: Output) -> Result<Exit> {
    let place = arguments.at.place(arguments.store_password_file.as_ref())?;
    let Verification { head, root, records, issued } =
        countersign_server::verify_store(&place).await?;
    match output {
        Output::Json => output::json(&json!({
            "event": "verified", "revision": head.revision, "logSize": head.log_size, "logRoot": root,
            "records": records, "issued": issued,
        }))?,
        Output::Human => output::line(&format!(
            "in order: revision {}, {records} records, {issued} issued certificates, log of {} entries with root {root}",
            head.revision, head.log_size
        ))?,
    }
    Ok(Exit::Done)
}
