//! The control plane: attest, issue, publish, administer and watch.
//!
//! [`init`] begins a trust domain in a data directory; [`run`] serves it: gRPC over TLS for agents, HTTP and JSON on
//! a Unix socket for operators. A folder for each capability: `attest` (nodes prove themselves), `issue` (who gets which
//! certificate), `publish` (what each agent is told), `views` (lists and OCSP for the rest of the world), `admin` (what
//! operators ask), `watch` (what is seen), `state` (the snapshot that all decide on), `authority` (the keys that sign), `edge` (the agents' port),
//! `console` (the operators' web pages), `log` (what is signed of the audit log, and proofs).
//!
//! One path leads from a write to an agent: store → feed → snapshot → push. It refuses to know SQL, Cedar's evaluation and
//! processes on nodes.

mod admin;
mod attest;
mod authority;
mod backup;
mod config;
mod console;
mod control;
mod digest;
mod directory;
mod edge;
mod incarnation;
mod init;
mod inventory;
mod issue;
mod judge;
mod log;
mod papers;
mod publish;
mod refusal;
mod review;
mod revoke;
mod rotate;
mod run;
mod state;
pub mod steps;
mod storage;
#[cfg(test)]
mod tests;
mod upstream;
mod views;
mod watch;

pub use attest::NodeAuthorities;
pub use backup::{
    BackupConfig, BackupReport, Progress, RestoreConfig, RestoreReport, backup, restore,
};
pub use config::{
    Config, ConsoleConfig, DRAIN, HOLD_OFF, ISSUER_LIFETIME_SECS, InitConfig, InitReport, LISTEN,
    ROOT_LIFETIME_SECS, Ready, StartError, StoreAt, admin_path,
};
pub use countersign_pki::{KeyVault, NoVault};
pub use countersign_seal::{
    Kek, KekFile, KekFileRefused, KeyWrap, Passphrase, WrapMethod, WrapRefused,
};
pub use countersign_store::{BadUrl, Copied, Password, Place, PostgresUrl, Verification};
pub use init::init;
pub use judge::{Judge, Unclear};
pub use log::OfflineLog;
pub use refusal::Refused;
pub use run::run;
pub use storage::{KeyAt, Verified, copy_store, verify_store};
pub use upstream::{RequestReport, init_import, init_request};

/// The OpenAPI description of the operators' interface, for the reference.
pub fn openapi() -> String {
    admin::openapi_text()
}

/// Every metric: its name, its kind, its labels and what it means, for the reference.
pub fn metrics() -> impl Iterator<Item = watch::Row> {
    watch::metric_table()
}
