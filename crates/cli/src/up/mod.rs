//! `countersign up`: a whole trust domain on one machine, from a folder of manifests.
//!
//! Server, agent, a proxy beside each service and the services themselves are processes of their own, which
//! this one starts, vouches for, keeps alive and stops in order. It serves nothing itself.

mod address;
mod layout;
mod plan;
mod ports;
mod probe;
mod process;
mod story;
mod supervise;
mod surroundings;
mod view;

use std::path::PathBuf;
use std::time::Duration;

use countersign_identity::DurationText;

pub(crate) use address::{AddressArguments, address};
pub(crate) use layout::{Taken, last_up};
pub(crate) use story::{Late, Unready, run};

/// Where the README's first command finds its manifests.
const SHOP: &str = "examples/shop";

/// Bring up a trust domain on this machine: server, agent, proxies and services, from a folder of manifests
///
/// It is complete in itself: of the environment's `COUNTERSIGN_…` its parts get those of the log and of traces (`COUNTERSIGN_LOG`,
/// `COUNTERSIGN_LOG_LEVEL`, `COUNTERSIGN_OTLP`, `COUNTERSIGN_TRACE_SHARE`) and no other, of `PG…` none. The services' programs get
/// none of ours, and neither `PGPASSWORD` nor `PGPASSFILE`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The folder of manifests [default: examples/shop]
    #[arg(value_name = "DIR", default_value = SHOP, hide_default_value = true)]
    manifests: PathBuf,

    /// Where state lives [default: .countersign beside the manifests]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// End by itself after this long, such as `30s`
    #[arg(long = "for", value_name = "SPAN", value_parser = span)]
    span: Option<Duration>,

    /// A variable of the environment that its own parts get all the same, such as COUNTERSIGN_STORE (repeatable)
    #[arg(long, value_name = "NAME")]
    pass: Vec<surroundings::Variable>,
}

fn span(text: &str) -> Result<Duration, countersign_identity::BadLifetime> {
    text.parse().map(|DurationText(span)| span)
}

impl Arguments {
    fn data(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| self.manifests.join(".countersign"))
    }
}
