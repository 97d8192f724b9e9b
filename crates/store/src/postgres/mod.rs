//! The store on PostgreSQL: many replicas on one database.

mod draft;
mod feed;
mod flush;
mod follow;
mod hosts;
mod passfile;
mod readers;
mod rows;
mod schema;
mod seen;
mod serve;
mod session;
mod store;
mod target;
mod text;
mod tls;
mod transfer;
#[cfg(test)]
mod upgrade;
mod writer;

pub use self::hosts::{Primary, Reached};
pub use self::store::PostgresStore;
pub use self::target::{BadUrl, Password, PostgresUrl};
pub(crate) use self::transfer::{Presence, Reading, Writing};
