//! The node: attests workloads, keeps their SVIDs fresh, serves the Workload API and Enforcement.
//!
//! One agent runs on each machine. It proves the node to a server, holds one stream to it, asks for an SVID for every
//! workload that is open to the node before anybody calls, renews them, and hands each to the processes that match its
//! selectors, over one Unix socket. It refuses to know how certificates are issued, how policies are evaluated (their
//! text passes through), and what travels between services.

pub mod attest;
pub mod authority_filter;
pub mod launcher;
