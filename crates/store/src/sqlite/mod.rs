//! The store on SQLite: one file in the data directory, one thread that writes, a few connections that read.

mod directory;
mod feed;
mod files;
mod patience;
mod readers;
mod rows;
mod schema;
mod store;
mod tables;
mod transfer;
mod writer;

pub use self::directory::{Observed, SqliteStore};
pub(crate) use self::transfer::{Reading, Writing};
