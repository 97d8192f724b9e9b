//! Where the state is kept, from the settings and from PostgreSQL's own environment variables.

use std::path::PathBuf;

use anyhow::Result;
use countersign_server::{Password, PostgresUrl, StoreAt};
use zeroize::Zeroizing;

use crate::find;
use crate::settings::Resolved;

/// What `--store` and `--store-password-file` say together.
pub(super) fn store_at(resolved: &mut Resolved) -> Result<StoreAt> {
    let url = resolved.optional::<PostgresUrl>("store");
    let file = resolved.optional::<PathBuf>("store-password-file");
    if file.is_some() && !resolved.has("store") {
        resolved.problem("`--store-password-file` needs a `--store`".to_owned());
    }
    let Some(url) = url else { return Ok(StoreAt::Directory) };
    Ok(StoreAt::Postgres { url, password: password(file)? })
}

/// Where the password is: our own setting first, then what every client of PostgreSQL knows.
pub(crate) fn password(file: Option<PathBuf>) -> Result<Password> {
    if let Some(file) = file {
        return Ok(Password::File(file));
    }
    if let Some(file) = find::variable("PGPASSFILE")? {
        return Ok(Password::Passfile(file.into()));
    }
    let given = find::variable("PGPASSWORD")?.map(Zeroizing::new);
    Ok(given.map_or(Password::None, Password::Given))
}
