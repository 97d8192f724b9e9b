//! The node: attest workloads, keep SVIDs fresh, serve the Workload API and Enforcement.
