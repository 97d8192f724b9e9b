//! Countersign for Rust applications: an identity from the Workload API, ready-made rustls configurations out.
