//! What commands read of files, as they read it: for fuzzing.

use std::path::Path;

use anyhow::Result;
use countersign_audit::{NoteKey, Reviewed};
use serde_json::Value;

use super::log::of_export;
use super::plan::PlanFile;

/// Checks an export of a log, as `log verify --export` does: what its log was found to be, and what is wrong beside the events.
///
/// # Errors
/// When it is no export.
pub async fn verify_export(
    text: Vec<u8>,
    keys: &[NoteKey],
) -> Result<Vec<(Reviewed, Vec<String>)>> {
    of_export(text, keys).await
}

/// A plan that was written to a file.
#[derive(Debug)]
pub struct Plan(PlanFile);

impl Plan {
    /// Reads it, as `apply --plan` does.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Ok(Self(PlanFile::parse(Path::new("fuzz.json"), bytes)?))
    }

    /// Writes it, as `plan --out` does.
    ///
    /// # Errors
    /// Never: it was read from such a text.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        Ok(self.0.bytes()?)
    }

    /// The manifests that it puts in force.
    pub fn resources(&self) -> &[Value] {
        &self.0.resources
    }
}
