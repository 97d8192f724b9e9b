//! The node: attests workloads, keeps their SVIDs fresh, serves the Workload API and Enforcement.
//!
//! One agent runs on each machine. It proves the node to a server, holds one stream to it, asks for an SVID for every
//! workload that is open to the node before anybody calls, renews them, and hands each to the processes that match its
//! selectors, over one Unix socket. It refuses to know how certificates are issued, how policies are evaluated (their
//! text passes through), and what travels between services.
//!
//! [`run`] is the whole agent; [`core::State`] is what it decides, as a pure machine; [`launcher::Launcher`] is for those
//! who start processes and vouch for them.

pub mod attest;
pub mod authority_filter;
pub mod command;
mod config;
pub mod core;
mod disk;
mod driver;
pub mod enforcement;
mod envoy;
mod keepsakes;
pub mod launcher;
mod lists;
mod metrics;
mod places;
mod reception;
mod renewal;
mod reports;
mod run;
pub mod server_link;
mod socket;
mod status;
pub mod steps;
mod trial;
mod view;
mod vitals;
mod workload_api;

pub use config::{Config, MachineFiles, Ready, StartRefused, is_attested};
pub use disk::DiskFault;
pub use metrics::METRICS;
pub use run::{Ground, run, run_on};
pub use server_link::JoinToken;
pub use socket::SocketFault;
