//! What is printed.

use countersign_api::admin::{
    CanaryView, Convergence, MissingPoint, RevocationsResponse, RevokeResponse, RuleView,
    SuspensionView, TrialView, UnverifiedPoint, VerifiedPoint,
};
use countersign_identity::{NodeId, Reason, Revision, SpiffeId, Suspended, Timestamp};
use serde::Serialize;

use super::lacking;
use crate::commands::when;
use crate::output::{Table, printable};

/// Missing points that are named.
const MISSING_SHOWN_MAX: usize = 10;

/// How far a revision has come, for scripts.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    revision: Revision,
    live: u64,
    enforcing: u64,
    slowest_ms: Option<u64>,
    connections_cut: Option<u64>,
    reissued_ms: Option<u64>,
    reissue_pending: bool,
    exposure_ends: Option<Timestamp>,
    missing: Vec<Missing>,
    unaware: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unheard: Vec<NodeId>,
    draining: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<Vec<Tried>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unverified: Option<Vec<Untried>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked: Option<Revocation>,
    /// Why the journal does not have what is in force, when it should.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_in_journal: Option<String>,
}

/// What was revoked.
#[derive(Debug, Serialize)]
struct Revocation {
    leaked: &'static str,
    not_ruled_out: String,
    covered: u64,
    identities: Vec<SpiffeId>,
    rules: Vec<RuleView>,
    suspended: Vec<SuspensionView>,
}

#[derive(Debug, Serialize)]
struct Missing {
    point: String,
    spiffe_id: SpiffeId,
    node: NodeId,
    revision: Option<Revision>,
    since: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
struct Tried {
    point: String,
    spiffe_id: SpiffeId,
    node: NodeId,
    door: String,
    covered: CanaryView,
    uncovered: CanaryView,
    #[serde(skip_serializing_if = "Option::is_none")]
    former: Option<CanaryView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

#[derive(Debug, Serialize)]
struct Untried {
    point: String,
    spiffe_id: SpiffeId,
    node: NodeId,
    why: String,
}

impl From<&VerifiedPoint> for Tried {
    fn from(tried: &VerifiedPoint) -> Self {
        let tried = tried.clone();
        let VerifiedPoint { point, spiffe_id, node, door, covered, uncovered, former, why } = tried;
        Self { point, spiffe_id, node, door, covered, uncovered, former, why }
    }
}

impl From<&UnverifiedPoint> for Untried {
    fn from(untried: &UnverifiedPoint) -> Self {
        let UnverifiedPoint { point, spiffe_id, node, why, .. } = untried.clone();
        Self { point, spiffe_id, node, why }
    }
}

impl From<&MissingPoint> for Missing {
    fn from(missing: &MissingPoint) -> Self {
        let MissingPoint { point, spiffe_id, node, revision, since } = missing.clone();
        Self { point, spiffe_id, node, revision, since }
    }
}

impl Outcome {
    pub(super) fn of(convergence: &Convergence, revoked: Option<&RevokeResponse>) -> Self {
        Self {
            revision: convergence.revision,
            live: convergence.live,
            enforcing: convergence.enforcing,
            slowest_ms: convergence.slowest_millis,
            connections_cut: convergence.connections_cut,
            reissued_ms: convergence.reissued_millis,
            reissue_pending: convergence.reissue_pending,
            exposure_ends: convergence.exposure_ends,
            missing: convergence.missing.iter().map(Missing::from).collect(),
            unaware: convergence.unaware,
            unheard: convergence.unheard.clone(),
            draining: convergence.draining,
            verified: convergence
                .trial
                .as_ref()
                .map(|trial| trial.verified.iter().map(Tried::from).collect()),
            unverified: convergence
                .trial
                .as_ref()
                .map(|trial| trial.unverified.iter().map(Untried::from).collect()),
            not_in_journal: revoked.and_then(|response| response.not_in_journal.clone()),
            revoked: revoked.map(|response| Revocation {
                leaked: response.leaked.as_str(),
                not_ruled_out: response.not_ruled_out.clone(),
                covered: response.covered,
                identities: response.identities.clone(),
                rules: response.rules.clone(),
                suspended: response.suspended.clone(),
            }),
        }
    }
}

/// What is out of service, for scripts.
#[derive(Debug, Serialize)]
pub(super) struct Listing<'a> {
    revision: Revision,
    rules: &'a [RuleView],
    suspensions: &'a [SuspensionView],
    convergence: Outcome,
}

impl<'a> Listing<'a> {
    pub(super) fn of(response: &'a RevocationsResponse, convergence: &Convergence) -> Self {
        Self {
            revision: response.revision,
            rules: &response.rules,
            suspensions: &response.suspensions,
            convergence: Outcome::of(convergence, None),
        }
    }
}

/// What a revocation would do.
pub(super) fn dry_run(response: &RevokeResponse) -> String {
    let mut text = format!(
        "would be taken out of service: {} that could still be used, of {}\n",
        count(response.covered, "certificate"),
        identities(&response.identities)
    );
    for rule in &response.rules {
        text.push_str(&format!("  {}\n", rule.target));
    }
    text.push_str(&said(response));
    text.push_str("nothing was changed\n");
    text
}

/// What was done, before anybody is waited for.
pub(super) fn revoked(response: &RevokeResponse, reason: Reason) -> String {
    let of = identities(&response.identities);
    let certificates = count(response.covered, "certificate");
    let head = format!("revoked {certificates} of {of} ({reason})\n");
    head + &said(response) + &lacking(response.not_in_journal.as_deref(), "it is in force")
}

fn said(response: &RevokeResponse) -> String {
    let mut text = format!("taken to have leaked: {}\n", response.leaked.as_str());
    if response.covered == 0 && response.identities.is_empty() {
        text.push_str(
            "nothing that could still be used was issued under this name: `countersign status` shows what is held; \
             if another was meant, it is still in service\n",
        );
    }
    text.push_str(&format!("not ruled out: {}\n", response.not_ruled_out));
    for suspension in &response.suspended {
        let subject = subject(&suspension.target);
        text.push_str(&format!("suspended: {subject} gets nothing new until it is resumed\n"));
    }
    text
}

/// How far it has come, in one line; and below it what is still open, until when it matters.
pub(super) fn outcome(convergence: &Convergence, revoked: Option<&RevokeResponse>) -> String {
    let mut parts = vec![
        format!("revision {}", convergence.revision),
        format!("{} of {} enforcing", convergence.enforcing, convergence.live),
    ];
    parts.extend(convergence.slowest_millis.map(|millis| format!("slowest {millis} ms")));
    parts.extend(
        convergence.connections_cut.map(|cut| format!("{} cut", count(cut, "live connection"))),
    );
    if convergence.draining != 0 {
        parts.push(format!("{} draining", count(convergence.draining, "connection")));
    }
    if let (Some(millis), Some(response)) = (convergence.reissued_millis, revoked) {
        parts.push(format!("{} re-issued in {millis} ms", identities(&response.identities)));
    }
    if convergence.reissue_pending {
        parts.push("a new credential is still to come".to_owned());
    }
    let mut text = parts.join(" · ") + "\n";
    for missing in convergence.missing.iter().take(MISSING_SHOWN_MAX) {
        text.push_str(&missing_line(missing));
    }
    if MISSING_SHOWN_MAX < convergence.missing.len() {
        let more = convergence.missing.len() - MISSING_SHOWN_MAX;
        text.push_str(&format!("  and {more} more\n"));
    }
    text.push_str(&convergence.trial.as_ref().map(tried).unwrap_or_default());
    if convergence.unaware != 0 {
        let unaware = convergence.unaware;
        text.push_str(&format!("  {unaware} unaware: they hold an SVID and cannot acknowledge\n"));
    }
    text.push_str(&unheard(&convergence.unheard));
    if let Some(ends) = convergence.exposure_ends {
        text.push_str(&format!("  exposure ends at {ends}: after that it cannot matter\n"));
    }
    text
}

/// Which nodes are among the unaware whose processes nobody has counted.
fn unheard(nodes: &[NodeId]) -> String {
    let mut text = String::new();
    for node in nodes.iter().take(MISSING_SHOWN_MAX) {
        text.push_str(&format!(
            "  unheard: node {node} holds SVIDs of workloads, and who was given them is not known since its server or its agent started; it counts as one unaware\n"
        ));
    }
    if MISSING_SHOWN_MAX < nodes.len() {
        let more = nodes.len() - MISSING_SHOWN_MAX;
        text.push_str(&format!("  and {more} more such nodes\n"));
    }
    text
}

/// What was tried, what does not do as it says, and what was not tried.
fn tried(trial: &TrialView) -> String {
    let (as_said, otherwise): (Vec<_>, Vec<_>) =
        trial.verified.iter().partition(|point| point.holds());
    let mut text = format!(
        "  tried: {} of {} refused the canary that is covered and let the other through\n",
        as_said.len(),
        count((trial.verified.len() + trial.unverified.len()) as u64, "point"),
    );
    let former = trial.verified.iter().filter(|point| point.former.is_some()).count();
    if former != 0 {
        let refused = as_said.iter().filter(|point| point.former.is_some()).count();
        text.push_str(&format!(
            "  tried: {refused} of {} refused what an authority out of service has signed\n",
            count(former as u64, "point"),
        ));
    }
    for point in otherwise {
        let VerifiedPoint { point, spiffe_id, node, door, covered, uncovered, former, .. } = point;
        let former = former.map(|former| {
            format!(", what an authority out of service has signed {}", word(former))
        });
        text.push_str(&format!(
            "  contradicted: {} for {spiffe_id} on node {node} at {}: the covered canary was {}, the other {}{}\n",
            printable(point),
            printable(door),
            word(*covered),
            word(*uncovered),
            former.unwrap_or_default(),
        ));
    }
    for untried in trial.unverified.iter().take(MISSING_SHOWN_MAX) {
        let UnverifiedPoint { point, spiffe_id, node, why, .. } = untried;
        text.push_str(&format!(
            "  only said: {} for {spiffe_id} on node {node}: {}\n",
            printable(point),
            printable(why)
        ));
    }
    if MISSING_SHOWN_MAX < trial.unverified.len() {
        let more = trial.unverified.len() - MISSING_SHOWN_MAX;
        text.push_str(&format!("  and {more} more that only said so\n"));
    }
    text
}

fn word(outcome: CanaryView) -> &'static str {
    match outcome {
        CanaryView::Refused => "refused as revoked",
        CanaryView::Untrusted => "refused as untrusted",
        CanaryView::Accepted => "let through",
        CanaryView::Unclear => "neither let through nor refused as revoked",
    }
}

fn missing_line(missing: &MissingPoint) -> String {
    let MissingPoint { point, spiffe_id, node, revision, since } = missing;
    let has = revision.map_or_else(|| "nothing".to_owned(), |revision| revision.to_string());
    let heard = since.map_or_else(String::new, |since| format!(", last heard of at {since}"));
    format!(
        "  missing: {} for {spiffe_id} on node {node}, enforces {has}{heard}\n",
        printable(point)
    )
}

/// What is out of service.
pub(super) fn listing(
    response: &RevocationsResponse,
    convergence: &Convergence,
    now: Timestamp,
) -> String {
    let mut rules = Table::new(["rule", "covers", "reason", "made", "kept until"]);
    for rule in &response.rules {
        rules.row([
            rule.name.clone(),
            rule.target.to_string(),
            rule.reason.to_string(),
            when::relative(rule.at, now),
            rule.until.to_string(),
        ]);
    }
    let mut text = if rules.is_empty() { String::new() } else { rules.render(0) + "\n" };
    let mut suspensions = Table::new(["suspended", "reason", "since"]);
    for suspension in &response.suspensions {
        suspensions.row([
            subject(&suspension.target),
            suspension.reason.to_string(),
            when::relative(suspension.at, now),
        ]);
    }
    if !suspensions.is_empty() {
        text.push_str(&(suspensions.render(0) + "\n"));
    }
    if text.is_empty() {
        text.push_str("nothing is out of service\n");
    }
    text + &outcome(convergence, None)
}

fn subject(target: &Suspended) -> String {
    match target {
        Suspended::Identity(id) => id.to_string(),
        Suspended::Node(node) => format!("node {node}"),
    }
}

/// One identity by the end of its path, several by their count.
fn identities(ids: &[SpiffeId]) -> String {
    match ids {
        [] => "nobody".to_owned(),
        [id] => id.path().rsplit('/').next().unwrap_or_default().to_owned(),
        several => format!("{} identities", several.len()),
    }
}

fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convergence(json: serde_json::Value) -> Convergence {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn revocation_of_what_nobody_holds_says_that_something_else_may_be_meant() {
        let mut response = serde_json::json!({
            "revision": "1.412", "leaked": "key", "notRuledOut": "", "rules": [], "suspended": [],
            "covered": 0, "identities": [],
        });
        let text = |response: &serde_json::Value| {
            revoked(&serde_json::from_value(response.clone()).unwrap(), Reason::KeyCompromise)
        };
        assert!(text(&response).contains("if another was meant, it is still in service"));
        response["covered"] = 1.into();
        response["identities"] = serde_json::json!(["spiffe://shop.example/orders"]);
        assert!(!text(&response).contains("another"));
    }

    #[test]
    fn report_ends_in_certainty() {
        let all = convergence(serde_json::json!({
            "revision": "1.412", "live": 3, "enforcing": 3, "missing": [], "unaware": 0, "draining": 0,
            "connectionsCut": 2, "slowestMillis": 41, "reissuedMillis": 118, "reissuePending": false,
        }));
        let response: RevokeResponse = serde_json::from_value(serde_json::json!({
            "revision": "1.412", "leaked": "key", "notRuledOut": "", "rules": [], "suspended": [],
            "covered": 2, "identities": ["spiffe://shop.example/orders"],
        }))
        .unwrap();
        assert_eq!(
            outcome(&all, Some(&response)),
            "revision 1.412 · 3 of 3 enforcing · slowest 41 ms · 2 live connections cut · orders re-issued in 118 ms\n"
        );
        let some = convergence(serde_json::json!({
            "revision": "1.412", "live": 2, "enforcing": 1, "unaware": 1, "draining": 0, "reissuePending": false,
            "missing": [{"point": "web", "spiffeId": "spiffe://shop.example/web", "node": "0a".repeat(16)}],
            "exposureEnds": "2026-11-25T14:32:07Z", "unheard": ["0b".repeat(16)],
        }));
        let text = outcome(&some, None);
        let node = format!("unheard: node {} holds SVIDs", "0b".repeat(16));
        assert!(text.contains(&node) && !outcome(&all, None).contains("unheard"), "{text}");
        assert!(text.contains("missing: web for spiffe://shop.example/web"), "{text}");
        assert!(text.contains("1 unaware: they hold an SVID and cannot acknowledge"), "{text}");
        assert!(
            text.ends_with("exposure ends at 2026-11-25T14:32:07Z: after that it cannot matter\n"),
            "{text}"
        );
    }
}
