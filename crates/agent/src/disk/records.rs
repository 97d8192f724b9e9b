//! The records on the disk: the last snapshot, and the revocations with their signatures.

use std::collections::BTreeMap;
use std::sync::Arc;

use countersign_identity::{Revision, Revocation, Revocations, Timestamp};

use super::{Disk, DiskFault, FORMAT, check_format};
use crate::core::{Record, RecordKey, Remembered, Replica};
use crate::keepsakes::{Keepsake, Keepsakes};

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SnapshotFile {
    format: u32,
    incarnation: u64,
    number: u64,
    records: Vec<RecordFile>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordFile {
    kind: String,
    name: String,
    value: String,
}

/// Apart from the snapshot: it is small, so it is durable before the revision is acknowledged, and a snapshot that cannot
/// be read takes no rule away.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RulesFile {
    format: u32,
    seen: Timestamp,
    rules: BTreeMap<Arc<str>, Arc<Revocation>>,
    /// What can be handed back to a server that lost its tail.
    #[serde(default)]
    signed: Vec<SignedFile>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedFile {
    kind: String,
    name: String,
    value: String,
    signature: Vec<u8>,
    incarnation: u64,
}

impl Disk {
    /// What an earlier life wrote down.
    ///
    /// # Errors
    /// When the revocations are there and cannot be read: to go on without them would lift them.
    pub(crate) fn remembered(&self) -> Result<Remembered, DiskFault> {
        let replica = self.snapshot();
        let path = self.path.join("revocations.json");
        let Some(text) = self.read("revocations.json")? else {
            return Ok(Remembered { replica, ..Remembered::nothing() });
        };
        check_format(&path, &text)?;
        let file: RulesFile = serde_json::from_slice(&text)
            .map_err(|why| DiskFault::Broken { path, why: why.to_string() })?;
        Ok(Remembered { replica, rules: Arc::new(Revocations::new(file.rules)), seen: file.seen })
    }

    /// The rules with their signatures that an earlier life wrote down.
    ///
    /// # Errors
    /// When they are there and cannot be read.
    pub(crate) fn keepsakes(&self) -> Result<Keepsakes, DiskFault> {
        let path = self.path.join("revocations.json");
        let Some(text) = self.read("revocations.json")? else { return Ok(Keepsakes::default()) };
        let broken = |why: String| DiskFault::Broken { path: path.clone(), why };
        let file: RulesFile =
            serde_json::from_slice(&text).map_err(|why| broken(why.to_string()))?;
        let read = |one: SignedFile| -> Result<_, DiskFault> {
            let key =
                RecordKey::read(&one.kind, &one.name).map_err(|bad| broken(bad.to_string()))?;
            let (value, signature) = (one.value.into_bytes().into(), one.signature.into());
            Ok((key, Keepsake { value, signature, incarnation: one.incarnation }))
        };
        Ok(Keepsakes::of(file.signed.into_iter().map(read).collect::<Result<Vec<_>, _>>()?))
    }

    /// Writes the revocations down, with the signatures by which they can be handed back and the highest time that was
    /// seen.
    ///
    /// # Errors
    /// When the system says no. The ones before stay then.
    pub(crate) fn keep_rules(
        &self,
        rules: &Revocations,
        keepsakes: &Keepsakes,
        seen: Timestamp,
    ) -> Result<(), DiskFault> {
        let signed = keepsakes.iter().map(|(key, keepsake)| SignedFile {
            kind: key.kind.to_string(),
            name: key.name.to_string(),
            value: String::from_utf8_lossy(&keepsake.value).into_owned(),
            signature: keepsake.signature.to_vec(),
            incarnation: keepsake.incarnation,
        });
        let signed = signed.collect();
        let rules = rules.iter().map(|(name, rule)| (Arc::clone(name), Arc::clone(rule)));
        let file = RulesFile { format: FORMAT, seen, rules: rules.collect(), signed };
        let bytes = serde_json::to_vec(&file).expect("texts and numbers are JSON");
        self.write("revocations.json", &bytes)
    }

    /// The last records that were written down. What is not understood counts as nothing: a server tells it again.
    pub(super) fn snapshot(&self) -> Option<Replica> {
        let text = self.read("snapshot.json").ok()??;
        let file: SnapshotFile = serde_json::from_slice(&text).ok()?;
        if file.format != FORMAT {
            return None;
        }
        let revision = Revision { incarnation: file.incarnation, number: file.number };
        let records: Option<Vec<Record>> = file
            .records
            .iter()
            .map(|record| Record::read(&record.kind, &record.name, record.value.as_bytes()).ok())
            .collect();
        Some(Replica::of(revision, records?))
    }

    /// Writes the records down.
    ///
    /// # Errors
    /// When the system says no. The ones before stay then.
    pub(crate) fn keep_snapshot(&self, replica: &Replica) -> Result<(), DiskFault> {
        let records = replica
            .records()
            .map(|(key, value)| RecordFile {
                kind: key.kind.to_string(),
                name: key.name.to_string(),
                value: String::from_utf8_lossy(value).into_owned(),
            })
            .collect();
        let Revision { incarnation, number } = replica.revision();
        let file = SnapshotFile { format: FORMAT, incarnation, number, records };
        self.write("snapshot.json", &serde_json::to_vec(&file).expect("texts and numbers are JSON"))
    }
}
