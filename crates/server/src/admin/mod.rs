//! What operators ask: HTTP and JSON on a Unix socket that only root and the data directory's owner may use.

pub(crate) mod apply;
mod approval;
pub(crate) mod ask;
pub(crate) mod authority;
pub(crate) mod change;
mod console;
pub(crate) mod history;
pub(crate) mod list;
pub(crate) mod log;
mod openapi;
mod plan;
pub(crate) mod policy;
pub(crate) mod problem;
mod review;
pub(crate) mod revoke;
mod serve;
mod socket;

use std::sync::Arc;

use arc_swap::ArcSwap;
use countersign_identity::Code;
use countersign_store::Store;

use crate::authority::{Authorities, Rotation};
use crate::console::ConsoleAt;
use crate::control::Control;
use crate::refusal::Refused;
use crate::rotate::Walker;
use crate::watch::{About, LogTree};

pub(crate) use openapi::text as openapi_text;
pub(crate) use serve::serve;
pub(crate) use socket::{AdminSocket, Operators};

/// What the routes work on.
pub(crate) struct Admin {
    pub(crate) about: About,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) log: LogTree,
    pub(crate) operators: Operators,
    pub(crate) mode: Mode,
    /// The console, where it is open.
    pub(crate) console: Option<Arc<ConsoleAt>>,
}

/// Whether there are keys to work with.
pub(crate) enum Mode {
    /// No: health and status are all that there is.
    Sealed { why: String },
    /// Yes.
    Serving {
        control: Arc<Control>,
        authorities: Arc<ArcSwap<Authorities>>,
        rotation: Arc<Rotation>,
        walker: Arc<Walker>,
    },
}

impl Admin {
    /// The control plane, unless it is sealed.
    pub(crate) fn control(&self) -> Result<&Arc<Control>, Refused> {
        match &self.mode {
            Mode::Serving { control, .. } => Ok(control),
            Mode::Sealed { why } => {
                Err(Refused::new(Code::Sealed, format!("the server is sealed: {why}")))
            }
        }
    }

    /// What succeeds the issuer, unless the server is sealed.
    fn rotation(&self) -> Result<&Arc<Rotation>, Refused> {
        match &self.mode {
            Mode::Serving { rotation, .. } => Ok(rotation),
            Mode::Sealed { why } => {
                Err(Refused::new(Code::Sealed, format!("the server is sealed: {why}")))
            }
        }
    }

    /// Whether the manifest names this user as one who may approve.
    fn is_approver(&self, operator: change::Operator) -> bool {
        let named = |control: &Arc<Control>| {
            let spec = control.feed.current().authority();
            spec.approvers.contains(&countersign_api::resource::Approver(operator.0))
        };
        self.control().is_ok_and(named)
    }

    /// Whether the manifest names this user as one who may approve changes.
    fn approves_changes(&self, operator: change::Operator) -> bool {
        let named = |control: &Arc<Control>| {
            let state = control.feed.current();
            let approver = countersign_api::resource::Approver(operator.0);
            state.domain().changes.as_ref().is_some_and(|it| it.approvers.contains(&approver))
        };
        self.control().is_ok_and(named)
    }

    /// Who walks the authorities, unless the server is sealed.
    fn walker(&self) -> Result<&Arc<Walker>, Refused> {
        match &self.mode {
            Mode::Serving { walker, .. } => Ok(walker),
            Mode::Sealed { why } => {
                Err(Refused::new(Code::Sealed, format!("the server is sealed: {why}")))
            }
        }
    }

    /// The authorities, unless they are sealed.
    fn authorities(&self) -> Result<&Arc<ArcSwap<Authorities>>, Refused> {
        match &self.mode {
            Mode::Serving { authorities, .. } => Ok(authorities),
            Mode::Sealed { why } => {
                Err(Refused::new(Code::Sealed, format!("the server is sealed: {why}")))
            }
        }
    }
}
