//! Nodes: how a machine proves itself once, and how it stays known.

mod attempt;
mod caller;
mod guess;
mod join;
pub(crate) mod renew;
mod returned;
pub(crate) mod token;
pub(crate) mod x509;

pub(crate) use attempt::Attempt;
pub(crate) use caller::{Caller, agent_id, caller, node_of};
pub(crate) use join::{chain, join};
pub(crate) use renew::renew;
pub(crate) use returned::Returned;
pub(crate) use token::JoinToken;
pub use x509::NodeAuthorities;
pub(crate) use x509::attest_x509;
