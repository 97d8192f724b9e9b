//! Nodes: how a machine proves itself once, and how it stays known.

mod caller;
mod join;
pub(crate) mod renew;
mod throttle;
mod token;
mod x509;

pub(crate) use caller::{Caller, agent_id, caller, node_of};
pub(crate) use join::{chain, join};
pub(crate) use renew::renew;
pub(crate) use throttle::Throttle;
pub(crate) use token::JoinToken;
pub use x509::NodeAuthorities;
pub(crate) use x509::attest_x509;
