//! A trust domain that is saved, lost and put back, in directories beside its own.

use std::path::PathBuf;
use std::time::Duration;

use countersign_identity::Clock as _;

use super::{Realm, Running};
use crate::backup::{BackupConfig, RestoreConfig, RestoreReport, backup_at, restore_at};
use crate::config::{Config, StartError, StoreAt};

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
