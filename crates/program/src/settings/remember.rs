//! What a program was told, left behind for `status --config`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::resolve::Resolved;

/// The settings of one program, as it started with them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Remembered {
    /// Its name.
    pub program: String,
    /// What it was told.
    pub settings: Vec<RememberedSetting>,
}

/// One setting.
#[derive(Debug, Serialize, Deserialize)]
pub struct RememberedSetting {
    /// Its name in a file of settings.
    pub name: String,
    /// Its value, unless it is a secret.
    pub value: String,
    /// Who said it.
    pub source: String,
}

/// What such a file is called, after the program's own name.
pub const REMEMBERED_END: &str = "settings.json";

/// Leaves the settings of this program in a folder of its own. Secrets are left out. That it cannot be written
/// is no reason not to run.
pub fn remember(folder: &Path, program: &str, resolved: &Resolved) {
    let settings = resolved.given.values().filter(|given| !given.field.hidden).map(|given| {
        let value = if given.field.secret { "(secret)".to_owned() } else { given.texts.join(" ") };
        RememberedSetting { name: given.field.key(), value, source: given.source.to_string() }
    });
    let shown = Remembered { program: program.to_owned(), settings: settings.collect() };
    let path = folder.join(format!("{program}.{REMEMBERED_END}"));
    let written = serde_json::to_vec(&shown)
        .map_err(anyhow::Error::from)
        .and_then(|bytes| crate::system::replace(&path, &bytes));
    if let Err(error) = written {
        tracing::debug!("the settings cannot be remembered: {error:#}");
    }
}
