//! What policies have said of one request, and what that comes to.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use cedar_policy::{AuthorizationError, Decision as CedarDecision};
use countersign_identity::{Code, Mode};

use crate::decision::{Decision, Verdict};

/// What the buckets have said so far.
#[derive(Default)]
pub(crate) struct Found {
    permits: BTreeSet<String>,
    forbids: BTreeSet<String>,
    errors: BTreeSet<String>,
}

impl Found {
    pub(crate) fn add(&mut self, response: &cedar_policy::Response) {
        // Cedar skips a policy that errs, also a forbid. Here it denies.
        for error in response.diagnostics().errors() {
            let AuthorizationError::PolicyEvaluationError(error) = error;
            self.errors.insert(error.policy_id().to_string());
        }
        let reasons = response.diagnostics().reason().map(ToString::to_string);
        // The reasons of a denial are the forbids; of a denial for want of a permit there are none.
        match response.decision() {
            CedarDecision::Allow => self.permits.extend(reasons),
            CedarDecision::Deny => self.forbids.extend(reasons),
        }
    }

    /// Why it is a no, if what was found says so.
    fn denial(&mut self) -> Option<(Code, BTreeSet<String>)> {
        if !self.errors.is_empty() {
            return Some((Code::PolicyError, std::mem::take(&mut self.errors)));
        }
        let forbids = std::mem::take(&mut self.forbids);
        (!forbids.is_empty()).then_some((Code::PolicyDenied, forbids))
    }
}

/// What enforced and observed policies come to together: what would be decided if all were enforced, and whether it is.
pub(crate) fn decision(mut enforced: Found, mut observed: Found, lenient: Mode) -> Decision {
    let (verdict, mode, policies) = if let Some((code, policies)) = enforced.denial() {
        (Verdict::Deny(code), Mode::Enforce, policies)
    } else if let Some((code, policies)) = observed.denial() {
        (Verdict::Deny(code), Mode::Observe, policies)
    } else if !enforced.permits.is_empty() {
        (Verdict::Allow, Mode::Enforce, enforced.permits)
    } else if !observed.permits.is_empty() {
        (Verdict::Allow, Mode::Observe, observed.permits)
    } else {
        (Verdict::Deny(Code::PolicyDenied), lenient, BTreeSet::new())
    };
    Decision { verdict, mode, policies: policies.into_iter().collect() }
}

/// Of two decisions on one question the one that lets pass less, or says so of more. Both let pass only by what permits in both.
pub(crate) fn stricter(one: Decision, other: Decision) -> Decision {
    if (one.verdict, other.verdict) == (Verdict::Allow, Verdict::Allow) {
        return both_ways(one, &other);
    }
    let strictness = |decision: &Decision| match (decision.verdict, decision.mode) {
        (Verdict::Allow, _) => 0,
        (Verdict::Deny(_), Mode::Observe) => 1,
        (Verdict::Deny(Code::PolicyError), Mode::Enforce) => 3,
        (Verdict::Deny(_), Mode::Enforce) => 2,
    };
    match strictness(&one).cmp(&strictness(&other)) {
        Ordering::Less => other,
        Ordering::Greater => one,
        // A denial that says by what says more.
        Ordering::Equal if one.policies.is_empty() => other,
        Ordering::Equal => one,
    }
}

/// What two permissions come to together: permitted by what permits in both. Where nothing does, it is a denial, which is done only
/// if both are: as long as one of them observes, what passes now goes on passing.
fn both_ways(one: Decision, other: &Decision) -> Decision {
    let mode = if one.mode == other.mode { one.mode } else { Mode::Observe };
    let both: Vec<String> =
        one.policies.into_iter().filter(|policy| other.policies.contains(policy)).collect();
    match both.is_empty() {
        true => Decision::denied(Code::PolicyDenied, mode),
        false => Decision { policies: both, mode, ..one },
    }
}
