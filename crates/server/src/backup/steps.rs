//! A backup as bytes: for fuzzing.

use std::path::Path;

use countersign_identity::{Entropy, Timestamp, TrustDomain};
use countersign_seal::Kek;
use countersign_store::{Dumping, Place};

use super::file::{Reading, Writing};
use super::make::write;
use crate::config::StartError;

/// Reads a backup to its end, as it is read before anything of it is restored. Says which pages it has.
///
/// # Errors
/// As [`restore`](super::restore) refuses it.
pub(crate) fn read_backup(bytes: &[u8], kek: &Kek) -> Result<Vec<Vec<u8>>, StartError> {
    let (reading, _about) = Reading::of(bytes, Path::new("fuzz.backup"), kek)?;
    let mut pages = Vec::new();
    reading.read_to_end(|page| {
        pages.push(page.to_vec());
        Ok(())
    })?;
    Ok(pages)
}

/// Writes a backup of a state, with the chance that is given.
///
/// # Errors
/// As [`backup`](super::backup).
pub(crate) async fn write_backup(
    from: &Place,
    (kek, entropy): (&Kek, &dyn Entropy),
    about: (TrustDomain, Timestamp),
    file: &Path,
) -> Result<(), StartError> {
    let writing = Writing::create(file, kek, entropy)?;
    let dumping = Dumping::open(from).await?;
    write(&dumping, writing, about, &mut |_table, _rows| {}).await.map(drop)
}
