//! Code made by `build.rs` from `proto/`. Nothing is written here by hand.

/// The SPIFFE Workload API, as the standard has it.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes,
    clippy::wildcard_imports,
    clippy::needless_pass_by_value,
    reason = "generated"
)]
pub mod workload {
    include!(concat!(env!("OUT_DIR"), "/_.rs"));

    /// The descriptors, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/workload.bin"));
}

/// What agents ask of servers, and enforcement points of agents.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes,
    clippy::wildcard_imports,
    clippy::needless_pass_by_value,
    reason = "generated"
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/countersign.v1.rs"));

    /// The descriptors, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/countersign.v1.bin"));
}

/// What Envoy asks before it lets a request go on.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes,
    clippy::wildcard_imports,
    clippy::needless_pass_by_value,
    reason = "generated"
)]
pub mod envoy {
    include!(concat!(env!("OUT_DIR"), "/envoy.service.auth.v3.rs"));

    /// The descriptors, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy.bin"));
}
