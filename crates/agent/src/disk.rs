//! What the agent keeps on its disk: the node's key and SVID, and the last snapshot. Workloads' keys never.
//!
//! ```text
//! node-GENERATION.key   the registered key, PKCS#8 DER, 0600; one of the next generation is a successor on its way
//! node.json             the node's id, the generation in force, its SVID and the bundle
//! snapshot.json         the last records, with their revision
//! revocations.json      the revocations in force, also those that no server speaks of any more, and their signatures
//! lock                  held while an agent runs
//! ```
//!
//! Every file is written beside its place, synced, and renamed, and the directory synced after: a crash leaves the old
//! or the new, never a part. A key is durable before the server hears of it, so no crash can lose a registered key.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_identity::{NodeId, Revision, Revocation, Revocations, Timestamp};
use countersign_pki::{Bundle, Certificate, Chain, KeyFault, PrivateKey};
use zeroize::Zeroizing;

use crate::core::{Credential, Record, RecordKey, Remembered, Replica};
use crate::keepsakes::{Keepsake, Keepsakes};

/// The agent's data directory, held by this process alone.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    lock: File,
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Closing alone would leave it to a child that another thread starts right now, until that child's `exec`.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "the data directory may stay locked for a moment");
        }
    }
}

/// Who this node is: what it was registered as, and the SVID that shows it.
#[derive(Debug)]
pub(crate) struct Node {
    /// Its name.
    pub id: NodeId,
    /// Of the registered key.
    pub generation: u64,
    /// The registered key.
    pub key: Arc<PrivateKey>,
    /// Its SVID; possibly expired.
    pub chain: Chain,
    /// When the SVID was issued: its validity begins earlier, by the backdate.
    pub issued: Timestamp,
    /// The authorities of its trust domain.
    pub bundle: Bundle,
}

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskFault {
    /// Another agent runs on it.
    #[error(
        "another agent runs on `{0}`: stop it, or give this one a directory of its own with `--data`"
    )]
    Locked(PathBuf),
    /// Others could read keys in it.
    #[error("`{path}` is open to others (mode {mode:o}), expected 0700: run `chmod 700 {path}`")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error("`{path}` belongs to uid {owner}, and this agent runs as uid {ours}")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Us.
        ours: u32,
    },
    /// The system says no.
    #[error("`{path}` cannot be {what}: {why}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        why: io::Error,
    },
    /// A file does not hold what we wrote.
    #[error("`{path}` is not understood: {why}")]
    Broken {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A newer agent wrote it.
    #[error(
        "`{path}` has format {found}, and this version reads format {FORMAT}: run the newer agent again, or start with an empty directory and a new join token"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The task that wrote broke.
    #[error("a write was not finished: {0}")]
    Unfinished(String),
    /// A key could not be made.
    #[error("no key can be made: {0}")]
    Key(#[from] KeyFault),
}

const FORMAT: u32 = 1;
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NodeFile {
    format: u32,
    id: NodeId,
    generation: u64,
    issued: Timestamp,
    chain: String,
    trust_domain: countersign_identity::TrustDomain,
    bundle: String,
}

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

/// Read before the rest of a file, so that a newer format is told by its number.
#[derive(serde::Deserialize)]
struct Format {
    format: u32,
}

impl Disk {
    /// Opens the directory, makes it when it is missing, and takes its lock.
    ///
    /// # Errors
    /// When another agent runs on it, others can read it, or the system says no.
    pub(crate) fn open(path: &Path) -> Result<Self, DiskFault> {
        let io = |what, why| DiskFault::Io { path: path.to_owned(), what, why };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|why| io("made", why))?;
        let metadata = fs::metadata(path).map_err(|why| io("read", why))?;
        let (ours, owner) = (rustix::process::geteuid().as_raw(), metadata.uid());
        if owner != ours {
            return Err(DiskFault::Foreign { path: path.to_owned(), owner, ours });
        }
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(DiskFault::Open { path: path.to_owned(), mode });
        }
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|why| DiskFault::Io { path: lock_path.clone(), what: "opened", why })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), lock }),
            Err(fs::TryLockError::WouldBlock) => Err(DiskFault::Locked(path.to_owned())),
            Err(fs::TryLockError::Error(why)) => {
                Err(DiskFault::Io { path: lock_path, what: "locked", why })
            }
        }
    }

    /// The node that was registered from here; `None` before the first attestation.
    ///
    /// # Errors
    /// When what is there is not understood.
    pub(crate) fn node(&self) -> Result<Option<Node>, DiskFault> {
        let path = self.path.join("node.json");
        let Some(text) = self.read("node.json")? else { return Ok(None) };
        let broken = |why: String| DiskFault::Broken { path: path.clone(), why };
        check_format(&path, &text)?;
        let file: NodeFile =
            serde_json::from_slice(&text).map_err(|why| broken(why.to_string()))?;
        let bundle = Bundle::parse_json(file.trust_domain, file.bundle.as_bytes())
            .map_err(|why| broken(why.to_string()))?;
        let chain = Chain::from_pem(&file.chain).map_err(|why| broken(why.to_string()))?;
        let key = self.key(file.generation)?.ok_or_else(|| {
            broken(format!("the key of generation {} is missing", file.generation))
        })?;
        if key.public().spki() != chain.leaf().spki() {
            return Err(broken("the certificate is for another key".to_owned()));
        }
        Ok(Some(Node {
            id: file.id,
            generation: file.generation,
            key: Arc::new(key),
            chain,
            issued: file.issued,
            bundle,
        }))
    }

    /// Writes the node down, and then removes keys of other generations.
    ///
    /// # Errors
    /// When the system says no. The node before stays then.
    pub(crate) fn keep_node(&self, node: &Node) -> Result<(), DiskFault> {
        // The key first: node.json never names a key that is not there.
        self.write(&key_name(node.generation), node.key.pkcs8())?;
        let file = NodeFile {
            format: FORMAT,
            id: node.id,
            generation: node.generation,
            issued: node.issued,
            chain: node.chain.pem(),
            trust_domain: node.bundle.domain.clone(),
            bundle: node.bundle.to_json(),
        };
        self.write("node.json", &serde_json::to_vec(&file).expect("texts and numbers are JSON"))?;
        let others = [node.generation.checked_sub(1), node.generation.checked_add(1)];
        for generation in others.into_iter().flatten() {
            self.remove(&key_name(generation))?;
        }
        Ok(())
    }

    /// The key of this generation, if there is one: the registered one, or a successor on its way.
    ///
    /// # Errors
    /// When it is there and not a key.
    pub(crate) fn key(&self, generation: u64) -> Result<Option<PrivateKey>, DiskFault> {
        let name = key_name(generation);
        let Some(bytes) = self.read(&name)? else { return Ok(None) };
        PrivateKey::from_pkcs8(&bytes)
            .map(Some)
            .map_err(|why| DiskFault::Broken { path: self.path.join(name), why: why.to_string() })
    }

    /// The key of this generation, made and written down when it is not there yet.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub(crate) fn key_or_new(
        &self,
        generation: u64,
        kind: countersign_pki::KeyKind,
    ) -> Result<PrivateKey, DiskFault> {
        if let Some(key) = self.key(generation)? {
            return Ok(key);
        }
        let key = PrivateKey::generate(kind)?;
        self.write(&key_name(generation), key.pkcs8())?;
        Ok(key)
    }

    /// Removes the key of this generation.
    ///
    /// # Errors
    /// When the system says no.
    pub(crate) fn forget_key(&self, generation: u64) -> Result<(), DiskFault> {
        self.remove(&key_name(generation))
    }

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
    fn snapshot(&self) -> Option<Replica> {
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

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, DiskFault> {
        let path = self.path.join(name);
        let mut bytes = Zeroizing::new(Vec::new());
        let read =
            File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
        match read {
            Ok(_bytes) => Ok(Some(bytes)),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(DiskFault::Io { path, what: "read", why }),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DiskFault> {
        let path = self.path.join(name);
        let beside = self.path.join(format!("{name}.new"));
        let replace = || -> io::Result<()> {
            // A leftover of a crash may have another mode; it is removed, not reused.
            match fs::remove_file(&beside) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
                Ok(()) | Err(_) => {}
            }
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.path)?.sync_all()
        };
        replace().map_err(|why| DiskFault::Io { path, what: "written", why })
    }

    fn remove(&self, name: &str) -> Result<(), DiskFault> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(why) => Err(DiskFault::Io { path, what: "removed", why }),
        }
    }
}

fn key_name(generation: u64) -> String {
    format!("node-{generation}.key")
}

fn check_format(path: &Path, text: &[u8]) -> Result<(), DiskFault> {
    match serde_json::from_slice::<Format>(text) {
        Ok(Format { format: FORMAT }) => Ok(()),
        Ok(Format { format }) => Err(DiskFault::Newer { path: path.to_owned(), found: format }),
        Err(why) => Err(DiskFault::Broken { path: path.to_owned(), why: why.to_string() }),
    }
}

impl Node {
    /// Its SVID, without the key.
    pub(crate) fn credential(&self) -> Credential {
        let id = self.leaf().spiffe_id().unwrap_or_else(|_bad| self.bundle.domain.id());
        Credential::remembered(id, &self.chain, &self.bundle, self.issued)
    }

    /// The leaf of its SVID.
    pub(crate) fn leaf(&self) -> &Certificate {
        self.chain.leaf()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use countersign_pki::KeyKind;

    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap()
    }

    #[test]
    fn a_second_agent_on_one_directory_is_told_so() {
        let directory = directory();
        let path = directory.path().join("agent");
        let first = Disk::open(&path).unwrap();
        let refused = Disk::open(&path).unwrap_err();
        assert!(refused.to_string().starts_with("another agent runs on"), "{refused}");
        drop(first);
        Disk::open(&path).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_read_is_refused() {
        let directory = directory();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let refused = Disk::open(directory.path()).unwrap_err();
        assert!(matches!(refused, DiskFault::Open { mode: 0o755, .. }), "{refused}");
    }

    #[test]
    fn a_successor_survives_until_it_is_registered() {
        let directory = directory();
        let path = directory.path().join("agent");
        let disk = Disk::open(&path).unwrap();
        let first = disk.key_or_new(2, KeyKind::P256).unwrap();
        let again = disk.key_or_new(2, KeyKind::P256).unwrap();
        assert_eq!(first.public().id(), again.public().id(), "the same key is offered again");
        let mode = fs::metadata(path.join("node-2.key")).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert!(disk.key(3).unwrap().is_none());
    }

    #[test]
    fn a_crash_in_the_middle_of_writing_leaves_the_old_file() {
        let directory = directory();
        let disk = Disk::open(&directory.path().join("agent")).unwrap();
        let record = |value: &[u8]| Record::read("Workload", "web", value).unwrap();
        let replica =
            |number, value| Replica::of(Revision { incarnation: 1, number }, [record(value)]);
        disk.keep_snapshot(&replica(1, b"{}")).unwrap();
        // What a crash leaves: the new file is begun and not renamed.
        fs::write(disk.path.join("snapshot.json.new"), b"{\"format\":1,").unwrap();
        fs::set_permissions(disk.path.join("snapshot.json.new"), fs::Permissions::from_mode(0o666))
            .unwrap();
        assert_eq!(disk.snapshot().unwrap().revision().number, 1);
        disk.keep_snapshot(&replica(2, b"{}")).unwrap();
        assert_eq!(disk.snapshot().unwrap().revision().number, 2);
        let mode = fs::metadata(disk.path.join("snapshot.json")).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn a_newer_directory_is_told_by_its_number() {
        let directory = directory();
        let disk = Disk::open(&directory.path().join("agent")).unwrap();
        assert!(disk.node().unwrap().is_none());
        fs::write(disk.path.join("node.json"), br#"{"format":7,"other":1}"#).unwrap();
        let refused = disk.node().unwrap_err();
        assert!(matches!(refused, DiskFault::Newer { found: 7, .. }), "{refused}");
        fs::write(disk.path.join("node.json"), b"\0").unwrap();
        assert!(matches!(disk.node().unwrap_err(), DiskFault::Broken { .. }));
    }
}
