//! What is answered: yes, or why not, and the policies on which that rests.

use countersign_identity::{Code, Mode};

use crate::Limit;
use crate::operation::Operation;

/// What was decided about a request, and which operation it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    /// Yes, or why not.
    pub decision: Decision,
    /// The operation; `None` when none is declared that the request could be.
    pub operation: Option<Operation>,
    /// The limits of the policies that it rests on, in their order. Empty where none of them has one.
    pub limits: Vec<Option<Limit>>,
}

/// Yes, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A policy permits it, none forbids it, and all that bear on it could be evaluated.
    Allow,
    /// [`Code::PolicyDenied`] or [`Code::PolicyError`].
    Deny(Code),
}

/// A verdict, and the policies that it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Yes, or why not.
    pub verdict: Verdict,
    /// Whether that is done. A denial in [`Mode::Observe`] is told, and lets pass.
    pub mode: Mode,
    /// The policies that permit, or that forbid, or that could not be evaluated, sorted. Empty where the denial
    /// is for want of a policy.
    pub policies: Vec<String>,
}

impl Decision {
    pub(crate) fn by_list() -> Self {
        Self { verdict: Verdict::Allow, mode: Mode::Enforce, policies: vec![ALLOW_LIST.to_owned()] }
    }

    pub(crate) fn denied(code: Code, mode: Mode) -> Self {
        Self { verdict: Verdict::Deny(code), mode, policies: Vec::new() }
    }

    /// Whether it is let pass: it is a yes, or a no that is only observed.
    pub fn is_allowed(&self) -> bool {
        match (self.verdict, self.mode) {
            (Verdict::Allow, _) | (Verdict::Deny(_), Mode::Observe) => true,
            (Verdict::Deny(_), Mode::Enforce) => false,
        }
    }
}

/// The name under which an allow list stands in decisions.
const ALLOW_LIST: &str = "allow-list";
