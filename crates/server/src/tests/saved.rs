//! A trust domain that is saved, lost and put back, in directories beside its own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_api::v1;
use countersign_identity::{
    Clock as _, KeyId, Reason, Revocation, Revoked, SystemEntropy, Timestamp,
};
use countersign_store::{Kind, SqliteStore};

use super::{Realm, Running};
use crate::backup::{BackupConfig, RestoreConfig, RestoreReport, backup_at, restore_at};
use crate::config::{Config, StartError, StoreAt};
use crate::incarnation::LogKey;

/// A revocation of some key.
pub(super) fn rule(number: u32, at: Timestamp) -> v1::Record {
    let mut digest = [7; 32];
    digest[..4].copy_from_slice(&number.to_be_bytes());
    let target = Revoked::Key(KeyId::from_bytes(digest));
    let (reason, until) = (Reason::Superseded, at + Duration::from_secs(86_400));
    let rule = Revocation { target, about: None, reason, at, until };
    v1::Record {
        kind: Kind::Revocation.as_str().to_owned(),
        name: format!("1.900.{number}"),
        value: serde_json::to_vec(&rule).unwrap().into(),
    }
}

impl Realm {
    pub(super) fn place(&self, name: &str) -> PathBuf {
        self.data().with_file_name(name)
    }

    pub(super) async fn save(&self) -> PathBuf {
        let file = self.place("backup");
        let config = BackupConfig {
            data: self.data(),
            store: StoreAt::Directory,
            kek: None,
            file: file.clone(),
            unlock: None,
        };
        let report = backup_at(&config, self.clock.now(), &mut |_, _| {}).await.unwrap();
        assert!(0 < report.log_size);
        file
    }

    pub(super) fn restoring(&self, name: &str) -> RestoreConfig {
        RestoreConfig {
            file: self.place("backup"),
            data: self.place(name),
            store: StoreAt::Directory,
            kek: self.data().join("kek"),
            hold_off: Duration::from_secs(60),
            journal: None,
            unlock: None,
            clock_is_right: false,
        }
    }

    pub(super) async fn restore(
        &self,
        config: &RestoreConfig,
    ) -> Result<RestoreReport, StartError> {
        restore_at(config, self.clock.now(), &mut |_, _| {}).await
    }

    /// A journal of so many rules that this trust domain made, and that no state knows. No server may run.
    pub(super) async fn write_journal(&self, folder: &Path, server: &str, count: u32) {
        let kek = countersign_seal::KekFile::open(&self.data().join("kek")).unwrap();
        let store = SqliteStore::open(&self.data(), Arc::new(SystemEntropy)).unwrap();
        let key = LogKey::open(&store, &kek).await.unwrap().unwrap();
        let records: Vec<_> = (0..count).map(|number| rule(number, self.clock.now())).collect();
        let mut text = String::new();
        for v1::SignedRecord { kind, name, value, signature } in key.sign(&records) {
            let value = std::str::from_utf8(&value).unwrap();
            let signature = signature.iter().fold(String::new(), |mut hex, byte| {
                write!(hex, "{byte:02x}").unwrap();
                hex
            });
            let line = serde_json::json!({
                "kind": kind, "name": name, "value": value, "signature": signature,
            });
            writeln!(text, "{line}").unwrap();
        }
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(format!("rules-{server}.jsonl")), text).unwrap();
    }

    pub(super) async fn serve_at(&self, name: &str) -> Running {
        let data = self.place(name);
        let fresh = Config::new(data, ([127, 0, 0, 1], 0).into());
        self.start(Config { drain: Duration::from_secs(2), ..fresh }).await.unwrap()
    }

    /// The state of the backup under its old incarnation, as a copy of the file would be.
    pub(super) async fn put_old_store(&self, at: &std::path::Path) {
        let kek = countersign_seal::KekFile::open(&self.data().join("kek")).unwrap();
        let folder = at.parent().unwrap();
        for ending in ["", "-wal", "-shm"] {
            let mut path = at.as_os_str().to_owned();
            path.push(ending);
            let _absent = std::fs::remove_file(path);
        }
        crate::backup::put_old(&self.place("backup"), &kek, folder).await.unwrap();
    }
}
