//! Policies that speak of data sets and topics: what touches data is decided on by it, whichever way a policy says so, and what
//! nobody declares may touch any.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod forbidden;
mod random;
mod shop;
mod untold;
