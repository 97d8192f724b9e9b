//! What is printed.

use countersign_api::admin::{
    AuthoritiesResponse, CeremonyView, Goal, OrderView, RecoverResponse, RootKey, RootView,
    StepView, TrialSummary,
};
use countersign_identity::{KeyId, Timestamp};

use crate::commands::revoke::bar::share;
use crate::commands::when;
use crate::output::{Table, printable};

/// How much of a key is shown where the whole is shown elsewhere.
const SHORT: usize = 16;
/// Identities that are named.
const IDENTITIES_SHOWN_MAX: usize = 10;

/// Every authority.
pub(super) fn listing(response: &AuthoritiesResponse, now: Timestamp) -> String {
    let mut roots = Table::new(["ROOT", "STATE", "SINCE", "ENDS", "SVIDS"]);
    for root in &response.roots {
        roots.row([
            root.key.to_string(),
            state(root),
            when::relative(root.since, now),
            when::relative(root.expires, now),
            root.credentials.to_string(),
        ]);
    }
    let mut issuers = Table::new(["ISSUER", "STATE", "ROOT", "ENDS", "SVIDS"]);
    for issuer in &response.issuers {
        let state = match (issuer.revoked, issuer.active) {
            (true, _) => "revoked",
            (false, true) => "active",
            (false, false) => "succeeded",
        };
        issuers.row([
            issuer.key.to_string(),
            state.to_owned(),
            short(&issuer.root),
            when::relative(issuer.expires, now),
            issuer.credentials.to_string(),
        ]);
    }
    let mut text = format!("{}\n{}", roots.render(0), issuers.render(0));
    if let Some(ceremony) = &response.ceremony {
        text.push_str(&outside(ceremony, now));
    }
    if let Some(order) = &response.order {
        let is_root = response.roots.iter().any(|root| root.key == order.from);
        let kind = if is_root { "root" } else { "issuer" };
        text.push_str(&format!(
            "\n{} of {} {} is under way\n",
            order.goal,
            kind,
            short(&order.from)
        ));
        for one in &order.steps {
            text.push_str(&format!("  {}\n", progress(one)));
        }
        if let Some(approvals) = &order.approvals {
            let given: Vec<_> = approvals.given.iter().map(|one| one.actor.as_str()).collect();
            let given = if given.is_empty() { "nobody".to_owned() } else { given.join(", ") };
            let missing = match approvals.missing.as_slice() {
                [] => String::new(),
                missing => format!("; missing: {}", missing.join(", ")),
            };
            text.push_str(&format!(
                "  approved by {}; {} have to{}\n",
                printable(&given),
                approvals.needed,
                printable(&missing)
            ));
        }
        if let Some(until) = order.revocable_until {
            text.push_str(&format!("  `authority rollback` takes it back until `{until}`\n"));
        }
    }
    text
}

/// What somebody outside has to sign.
fn outside(ceremony: &CeremonyView, now: Timestamp) -> String {
    let mut text = String::new();
    if let (Some(_due), Some(ends)) = (ceremony.due, ceremony.ends) {
        text.push_str(&format!(
            "\na ceremony is due: the issuer ends {}, and its root is held outside; `countersign authority prepare --root-key \
             external` makes the request\n",
            when::relative(ends, now)
        ));
    }
    if let Some(request) = &ceremony.request {
        text.push_str(&format!(
            "\na request for key {} waits for its certificate, since {}; `countersign authority import` takes it\n",
            short(&request.key),
            when::relative(request.at, now)
        ));
    }
    text
}

fn state(root: &RootView) -> String {
    let held = match root.held {
        RootKey::Here => "",
        RootKey::External => ", held outside",
        RootKey::Token => ", in a token",
    };
    match root.tainted {
        Some(cause) => format!("{}{held}, tainted: {cause}", root.state),
        None => format!("{}{held}", root.state),
    }
}

fn short(key: &KeyId) -> String {
    key.to_string().chars().take(SHORT).collect()
}

fn progress(step: &StepView) -> String {
    let name = step.step.as_str();
    let forced = step.forced.as_ref().map(|words| format!(" (forced: {})", printable(words)));
    let forced = forced.unwrap_or_default();
    match (&step.revision, &step.gate) {
        (Some(revision), _) => format!("{name:<10} done at revision {revision}{forced}"),
        (None, Some(gate)) => format!("{name:<10} waits: {}{forced}", printable(&gate.why)),
        (None, None) => format!("{name:<10} –{forced}"),
    }
}

/// A step that was taken.
pub(super) fn step(step: &StepView, order: &OrderView) -> String {
    let took = step.at.map(|at| at.since(order.begun).as_millis()).unwrap_or_default();
    format!("{}, {took} ms after the order", progress(step))
}

/// The gate that is waited for, in one line.
pub(super) fn gate(order: &OrderView) -> String {
    let waiting = order.steps.iter().find_map(|step| Some((step.step, step.gate.as_ref()?)));
    let Some((step, gate)) = waiting else { return format!("{} goes on", order.goal) };
    let until = gate.until.map(|at| format!("; opens by itself at {at}")).unwrap_or_default();
    let bar = share(gate.done, gate.of);
    format!("{bar} {step} waits: {}{until}", printable(&gate.why))
}

/// The end of a walk.
pub(super) fn ended(order: &OrderView, response: &AuthoritiesResponse) -> String {
    let took = order.ended.map(|at| at.since(order.begun)).unwrap_or_default();
    let active = response.roots.iter().find(|root| root.state.as_str() == "active");
    let active = active.map(|root| short(&root.key)).unwrap_or_default();
    let what = match order.goal {
        Goal::Rotate => "rotated: nothing under the old root is accepted any more",
        Goal::Retire => "retired: nothing under the old root is accepted any more",
        Goal::Recover => "recovered: nothing under the compromised authority is accepted any more",
    };
    let proof = order.proof.as_ref().map(|proof| {
        let trial = proof.trial.as_ref().map(tried).unwrap_or_default();
        format!(
            "revision {} · {} of {} enforcing · {} unaware\n{trial}",
            proof.revision, proof.enforcing, proof.live, proof.unaware
        )
    });
    let proof = proof.unwrap_or_default();
    format!("{what}; root {active} signs; {} after the order\n{proof}", when::span(took))
}

/// What was tried at the doors of enforcement points.
fn tried(trial: &TrialSummary) -> String {
    let mut text = format!(
        "tried at trial {}: {} did as they say; {} of them refused what the old authority has signed just now\n",
        trial.revision, trial.as_said, trial.former_refused
    );
    for point in &trial.contradicted {
        text.push_str(&format!("  contradicted: {}\n", printable(point)));
    }
    for point in &trial.only_said {
        text.push_str(&format!("  only said: {}\n", printable(point)));
    }
    text
}

/// What a recovery comes to.
pub(super) fn plan(response: &RecoverResponse) -> String {
    let kind = if response.is_root { "root" } else { "issuer" };
    let mut text = format!("recovery from the leaked key of {kind} {}\n", response.compromised);
    for (number, one) in (1..).zip(&response.plan) {
        let revocable = if one.revocable { "" } else { " (final)" };
        let at_most = one.at_most_millis.map(|millis| format!(", at most {millis} ms"));
        let at_most = at_most.unwrap_or_default();
        text.push_str(&format!("  {number}. {}{revocable}: {}{at_most}\n", one.step, one.what));
    }
    let identities: Vec<_> = response
        .identities
        .iter()
        .take(IDENTITIES_SHOWN_MAX)
        .map(|identity| printable(identity))
        .collect();
    text.push_str(&format!(
        "affected: {} SVIDs of {} identities; {} enforcement points are told; {} verifiers cannot acknowledge\n",
        response.credentials,
        response.identities.len(),
        response.points,
        response.unaware
    ));
    if !identities.is_empty() {
        let more = response.identities.len().saturating_sub(identities.len());
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        text.push_str(&format!("  {}{more}\n", identities.join(", ")));
    }
    text
}
