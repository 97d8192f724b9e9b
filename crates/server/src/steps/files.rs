//! What is read of files, as it is read: for fuzzing.

use std::path::Path;

use countersign_api::v1;
use countersign_identity::{Entropy, Timestamp, TrustDomain};
use countersign_pki::PrivateKey;
use countersign_seal::Kek;
use countersign_store::Place;

use crate::Refused;
use crate::backup;
use crate::config::StartError;
use crate::incarnation::{Handed, LogKey, line, read_lines};

/// Reads a backup to its end, as it is read before anything of it is restored. Says which pages it has.
///
/// # Errors
/// When it is none, was changed, is cut off, or was sealed under another key.
pub fn read_backup(bytes: &[u8], kek: &Kek) -> Result<Vec<Vec<u8>>, StartError> {
    backup::read_backup(bytes, kek)
}

/// Writes a backup of a state, with the chance that is given.
///
/// # Errors
/// When the state cannot be read, or the file not be written.
pub async fn write_backup(
    from: &Place,
    by: (&Kek, &dyn Entropy),
    about: (TrustDomain, Timestamp),
    file: &Path,
) -> Result<(), StartError> {
    backup::write_backup(from, by, about, file).await
}

/// The lines of a journal, and the key that signs them.
#[derive(Debug)]
pub struct JournalLines(LogKey);

impl JournalLines {
    /// Those that this key signs.
    pub fn of(key: PrivateKey) -> Self {
        Self(LogKey::of(key))
    }

    /// Signs a record, if it is one that takes rights away.
    pub fn sign(&self, record: v1::Record) -> Option<v1::SignedRecord> {
        self.0.sign(&[record]).pop()
    }

    /// Writes a rule as a line.
    pub fn line(&self, rule: &v1::SignedRecord) -> Vec<u8> {
        line(rule)
    }

    /// Reads a text. Says which rules are in it, and how many lines are none.
    ///
    /// # Panics
    /// Never: a text in memory can be read.
    pub fn read(&self, text: &[u8]) -> (Vec<v1::SignedRecord>, usize) {
        let mut rules = Vec::new();
        let refused = read_lines(text, &self.0, &mut rules).expect("it is in memory");
        (rules, refused)
    }

    /// Reads a rule of which it is known that it was signed here, as it is taken back.
    ///
    /// # Errors
    /// When this version does not understand it.
    pub fn take(&self, rule: &v1::SignedRecord) -> Result<Timestamp, Refused> {
        Handed::read(rule).map(|handed| handed.at())
    }
}
