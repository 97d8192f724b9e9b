//! The small world of several tests.

use std::time::Duration;

use countersign_sim::Settings;

/// A world in which everything works, and only that befalls anybody which a test has befall them.
pub(crate) const CALM: Settings = Settings {
    seed: 0,
    servers: 1,
    machines: 4,
    workloads: 3,
    lifetime: "60s",
    agent_lifetime: "10m",
    delay_max: 20,
    lost: 0,
    doubled: 0,
    services: true,
    instances: 0,
    server_skew: Duration::ZERO,
    switched_on_within: Duration::ZERO,
    pause_max: 12_000,
};
