//! The programs that stay: `init`, `server`, `agent`, `proxy`, and the example services.

mod again;
mod example;
mod server;
mod store;
mod unlock;

use std::error::Error;

pub(crate) use countersign_agent::command::{AgentProgram, agent};
use countersign_identity::Code;
pub(crate) use countersign_proxy::command::{ProxyProgram, proxy};

pub(crate) use self::again::Again;
pub(crate) use self::example::example;
pub(crate) use self::server::{InitProgram, ServerProgram, init, server};
pub(crate) use self::store::password;
pub(crate) use self::unlock::{Openers, Seal, check_token_uri, unlock, unlock_unasked};

/// Keeps keys out of core dumps and away from other processes of this user.
pub(crate) fn harden_process() -> anyhow::Result<()> {
    countersign_program::run::harden(countersign_program::run::Dump::Never)
}

/// The code of an error that the programs know.
pub(crate) fn code_of(cause: &(dyn Error + 'static)) -> Option<Code> {
    if cause.is::<crate::up::Taken>() {
        return Some(Code::AlreadyExists);
    }
    if cause.is::<crate::up::Late>() || cause.is::<crate::up::Unready>() {
        return Some(Code::NotReady);
    }
    server::code_of(cause)
        .or_else(|| countersign_agent::command::code_of(cause))
        .or_else(|| countersign_proxy::command::code_of(cause))
}
