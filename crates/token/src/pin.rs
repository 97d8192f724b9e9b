//! Where the PIN of a token comes from: a file, or the environment.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::TokenUri;

/// The longest PIN that is read.
const PIN_BYTES_MAX: usize = 1024;

/// Where the PIN is looked for, before the place that a key's name gives.
#[derive(Clone, Default)]
pub struct PinFrom {
    /// This file.
    pub file: Option<PathBuf>,
    /// This text.
    pub text: Option<Zeroizing<String>>,
}

impl PinFrom {
    /// The PIN for a key, read anew each time: it may have been changed.
    pub(crate) fn read(&self, uri: &TokenUri) -> Result<Zeroizing<String>, String> {
        if let Some(file) = &self.file {
            return read(file);
        }
        if let Some(text) = &self.text {
            return Ok(text.clone());
        }
        match &uri.pin_source {
            Some(file) => read(file),
            None => Err("its PIN is not known: give a file with `--pin-file` or in the URI (`pin-source=file:/path`), or \
                         COUNTERSIGN_PIN in the environment"
                .to_owned()),
        }
    }
}

fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    let shown = path.display();
    let cannot = |error: std::io::Error| format!("its PIN cannot be read from `{shown}`: {error}");
    let file = File::open(path).map_err(cannot)?;
    // Asked of the open file: the path may name another by then.
    let mode = file.metadata().map_err(cannot)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "`{shown}` has mode {mode:03o}, which lets others read its PIN; run `chmod 600` on it"
        ));
    }
    // As long as it may become, so that no copy is left behind by growth.
    let mut text = Zeroizing::new(String::with_capacity(PIN_BYTES_MAX + 1));
    file.take(PIN_BYTES_MAX as u64 + 1).read_to_string(&mut text).map_err(cannot)?;
    if PIN_BYTES_MAX < text.len() {
        return Err(format!("`{shown}` holds more than {PIN_BYTES_MAX} bytes, which is no PIN"));
    }
    let length = text.trim_end_matches(['\r', '\n']).len();
    text.truncate(length);
    Ok(text)
}

impl fmt::Debug for PinFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PinFrom")
    }
}
