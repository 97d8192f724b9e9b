//! What the system gives a program: files, variables, addresses of sockets.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::exit::Failure;

/// Reads a regular file as UTF-8.
///
/// # Errors
/// With what is wrong with it.
pub fn read_regular(path: &Path, max: usize) -> Result<String, String> {
    let cannot = |error: &std::io::Error| format!("cannot be read: {}", plain(error));
    // Asked before opening, because opening a pipe waits for somebody to write into it.
    let metadata = fs::metadata(path).map_err(|error| cannot(&error))?;
    if !metadata.is_file() {
        return Err("is not a regular file".to_owned());
    }
    read(File::open(path).map_err(|error| cannot(&error))?, max)
}

/// Reads UTF-8 to its end.
///
/// # Errors
/// With what is wrong with it.
pub fn read(from: impl std::io::Read, max: usize) -> Result<String, String> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    from.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot be read: {}", plain(&error)))?;
    if max < bytes.len() {
        return Err(format!(
            "is larger than {max} bytes, which is the most that is read: split it"
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("is not UTF-8 in line {line}: save it as UTF-8")
    })
}

/// What the system said, without its number.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut characters = text.chars();
    let first = characters.next();
    first.map_or(String::new(), |first| first.to_lowercase().chain(characters).collect())
}

/// Writes a file of this user's as a whole: a reader sees the old text or the new.
///
/// # Errors
/// When the system says no; what was there before is whole then.
pub fn replace(path: &Path, text: &[u8]) -> Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// The value of an environment variable; an empty one counts as absent.
///
/// # Errors
/// When it is not UTF-8.
pub fn variable(name: &str) -> Result<Option<String>, Failure> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(Failure::not_understood(format!("{name} is not UTF-8")))
        }
    }
}

/// The path of a Unix socket's address: `unix:///path`, `unix:/path`, or the path alone.
///
/// # Errors
/// When it is something else.
pub fn socket_path(address: &str) -> Result<PathBuf, Failure> {
    let path = address
        .strip_prefix("unix://")
        .or_else(|| address.strip_prefix("unix:"))
        .unwrap_or(address);
    if path.starts_with('/') && !path.contains(['\0', '?', '#']) {
        return Ok(PathBuf::from(path));
    }
    let shown = crate::output::printable(address);
    Err(Failure::not_understood(format!(
        "`{shown}` is not the address of a Unix socket: expected `unix:///` and an absolute path"
    )))
}
