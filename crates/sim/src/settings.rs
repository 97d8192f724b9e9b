//! What a world is made of, and what it tells of renewals.

use std::time::Duration;

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// All chance of the run.
    pub seed: u64,
    /// How many servers there are, on one store.
    pub servers: usize,
    /// How many nodes there are.
    pub machines: usize,
    /// How many workloads each has.
    pub workloads: usize,
    /// How long their SVIDs live, as manifests say it.
    pub lifetime: &'static str,
    /// How long the agents' own SVIDs live.
    pub agent_lifetime: &'static str,
    /// The longest way of a message, in milliseconds.
    pub delay_max: u64,
    /// How many messages of a thousand are lost.
    pub lost: u64,
    /// How many requests of a thousand arrive twice.
    pub doubled: u64,
    /// Whether the first workload of each node has a service, which the one before it calls.
    pub services: bool,
    /// On how many machines the service runs that every machine calls, by requests and by a stream; where that is none, there is
    /// no such service.
    pub instances: usize,
    /// How far servers' clocks are off at most. Further than certificates are backdated, only while the world is plagued.
    pub server_skew: Duration,
    /// Within which time all machines are switched on, each at a moment of its own; at once where that is nothing.
    pub switched_on_within: Duration,
    /// The longest pause between two things that befall it, in milliseconds.
    pub pause_max: u64,
}

/// One renewal, as its agent asked for it.
#[derive(Clone, Copy, Debug)]
pub struct Renewal {
    /// When, since the beginning.
    pub at: Duration,
    /// How much of the lifetime had passed, in hundredths of a percent.
    pub share: u64,
}
