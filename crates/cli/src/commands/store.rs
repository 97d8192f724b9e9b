//! `countersign store copy` and `countersign store verify`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use clap::parser::ValueSource;
use countersign_server::{
    BadUrl, Copied, KekFile, KeyAt, KeyWrap, Place, PostgresUrl, StartError, Verification,
    Verified, WrapMethod,
};
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::output::{self, Output};
use crate::serve::{Openers, Seal, harden_process, password, unlock, unlock_unasked};

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
    // Before the arguments that it looks at, which are taken out as they are read.
    #[command(flatten)]
    opener: Opener,
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
    /// The key in a token that the key is sealed by, if it is, `pkcs11:token=…;object=…?module-path=…`
    #[arg(long, value_name = "WHERE", env = "COUNTERSIGN_SEAL")]
    seal: Option<String>, // Read where it is needed: what the environment says is for other commands, too.
    /// The file of the PIN of that token [default: COUNTERSIGN_PIN, or `pin-source` of its URI]
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_PIN_FILE")]
    pin_file: Option<PathBuf>,
}

/// Whether the command line says what opens the key, by which the key is meant that is sealed so. The environment means none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opener {
    Typed,
    Around,
}

impl clap::FromArgMatches for Opener {
    fn from_arg_matches(matches: &clap::ArgMatches) -> std::result::Result<Self, clap::Error> {
        let typed = |name| matches.value_source(name) == Some(ValueSource::CommandLine);
        Ok(if typed("passphrase_file") || typed("seal") { Self::Typed } else { Self::Around })
    }

    fn update_from_arg_matches(
        &mut self,
        matches: &clap::ArgMatches,
    ) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Opener {
    fn augment_args(command: clap::Command) -> clap::Command {
        command
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        command
    }
}

impl VerifyArguments {
    fn names_a_key(&self) -> bool {
        self.kek.is_some() || self.opener == Opener::Typed
    }

    /// The key that was named, or the one that lies beside the state; or why there is none to try.
    fn key(&self) -> Result<std::result::Result<KeyAt, String>> {
        let path = match (&self.kek, &self.at) {
            (Some(path), _) => path.clone(),
            (None, Named::Directory(directory)) => directory.join("kek"),
            (None, Named::Database(_)) => {
                return Ok(Err("no key was named by `--kek`".to_owned()));
            }
        };
        if self.names_a_key() {
            let unlock = unlock(&path, self.openers(self.seal.as_ref())?)?;
            return open(path, unlock.as_deref()).map(Ok);
        }
        // Nobody meant it, so whatever stands in its way says nothing of the state.
        Ok(self.key_beside(path).map_err(|why| format!("{why:#}")))
    }

    fn key_beside(&self, path: PathBuf) -> Result<KeyAt> {
        let in_token = matches!(KekFile::method(&path), Ok(Some(WrapMethod::Token)));
        let seal = self.seal.as_ref().filter(|_| in_token);
        let unlock = unlock_unasked(&path, self.openers(seal)?)?;
        open(path, unlock.as_deref())
    }

    fn openers(&self, seal: Option<&String>) -> Result<Openers> {
        let bad = |why| Failure::not_understood(format!("`--seal`: {why}"));
        let seal = seal.map(|text| text.parse::<Seal>()).transpose().map_err(bad)?;
        let (passphrase_file, pin_file) = (self.passphrase_file.clone(), self.pin_file.clone());
        Ok(Openers { passphrase_file, seal: seal.and_then(Seal::token), pin_file })
    }
}

fn open(path: PathBuf, unlock: Option<&dyn KeyWrap>) -> Result<KeyAt> {
    let kek = KekFile::open_by(&path, unlock).map_err(StartError::from)?;
    Ok(KeyAt { path, kek })
}

pub(crate) async fn verify(arguments: &VerifyArguments, output: Output) -> Result<Exit> {
    harden_process()?;
    let place = arguments.at.place(arguments.store_password_file.as_ref())?;
    let key = arguments.key()?;
    let Verified { state, opened } =
        countersign_server::verify_store(&place, key.as_ref().ok()).await?;
    let opened = match (opened, key) {
        (Some(Ok(opened)), _) => Ok(opened),
        (Some(Err(wrong)), _) if arguments.names_a_key() => return Err(wrong.into()),
        (_, Ok(key)) => {
            let path = key.path.display();
            Err(format!("`{path}` is another key: name the server's with `--kek`"))
        }
        (_, Err(why)) => Err(why),
    };
    let Verification { head, root, records, issued } = state;
    match output {
        Output::Json => output::json(&json!({
            "event": "verified", "revision": head.revision, "logSize": head.log_size, "logRoot": root,
            "records": records, "issued": issued, "opened": opened.as_ref().ok(), "notOpened": opened.as_ref().err(),
        }))?,
        Output::Human => {
            output::line(&format!(
                "in order: revision {}, {records} records, {issued} issued certificates, log of {} entries with root {root}",
                head.revision, head.log_size
            ))?;
            output::line(&match opened {
                Ok(opened) => format!("the key opens all {opened} sealed keys"),
                Err(why) => format!("whether the sealed keys open was not tried: {why}"),
            })?;
        }
    }
    Ok(Exit::Done)
}
