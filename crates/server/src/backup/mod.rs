//! A trust domain in one sealed file, and back.

mod building;
mod file;
mod make;
mod restore;
mod steps;

#[cfg(test)]
pub(crate) use make::backup_at;
pub use make::{BackupConfig, BackupReport, backup};
pub use restore::{RestoreConfig, RestoreReport, restore};
#[cfg(test)]
pub(crate) use restore::{put_old, restore_at};
pub(crate) use steps::{read_backup, write_backup};

/// Says how far it is: the table, and how many of its rows are done.
pub type Progress<'a> = &'a mut (dyn FnMut(&str, u64) + Send);
