//! What was decided, in a sentence.

use countersign_api::resource::PolicySpec;
use countersign_identity::{Code, Mode};
use countersign_policy::{Decision, Limit, Rate, Verdict};

use super::{Judged, Question};

/// The decision in a sentence.
pub(super) fn why(question: &Question, judged: &Judged) -> String {
    let (source, service) = (&question.source, &question.service);
    let Decision { verdict, mode, policies } = &judged.decision;
    let may = if *verdict == Verdict::Allow { "may" } else { "may not" };
    let what = match (&question.call, &question.topic) {
        (None, Some((act, topic))) => {
            format!("`{source}` {may} {act} topic `{topic}` of `{service}`")
        }
        (Some((method, path)), _) => {
            let operation = judged.operation.as_ref();
            let named = operation.map(|one| format!(", its operation `{}`", one.name));
            format!(
                "`{source}` {may} ask `{service}` for `{method} {path}`{}",
                named.unwrap_or_default()
            )
        }
        (None, None) => format!("`{source}` {may} connect to `{service}`"),
    };
    let by = policies.join("`, `");
    let over = question.call.is_some() || question.topic.is_some();
    let connection = over && judged.by_connection;
    let because = match (verdict, policies.is_empty(), connection) {
        (Verdict::Allow, _, true) => {
            format!("it may connect, by `{by}`, and no operation is asked about")
        }
        (Verdict::Allow, _, false) => format!("by `{by}`"),
        (Verdict::Deny(Code::UnknownTrustDomain), true, _) => {
            format!("the TLS profile of `{service}` takes no identities of its trust domain")
        }
        (Verdict::Deny(_), true, true) => "no policy lets it connect".to_owned(),
        (Verdict::Deny(_), true, false) => "no policy permits it".to_owned(),
        (Verdict::Deny(_), false, true) => format!("`{by}` keeps it from connecting"),
        (Verdict::Deny(_), false, false) => format!("`{by}` forbids it"),
    };
    let observed = match (verdict, mode) {
        (Verdict::Deny(_), Mode::Observe) => "; it is let pass, since policies only observe here",
        (Verdict::Allow, Mode::Observe) => ", which only observes so far",
        (_, Mode::Enforce) => "",
    };
    format!("{what}: {because}{observed}")
}

/// What a manifest says of its policies, beside what they permit.
pub(super) fn note(spec: &PolicySpec) -> String {
    let until = spec.until.map(|until| format!("until {until}"));
    let reason = spec.reason.as_ref().map(ToString::to_string);
    until.into_iter().chain(reason).collect::<Vec<_>>().join(", ")
}

pub(super) fn limit(limit: &Limit) -> String {
    let rate =
        limit.rate.map(|Rate { count, span }| format!("at most {count} in {}s", span.as_secs()));
    let concurrent = limit.concurrent.map(|count| format!("at most {count} at once"));
    rate.into_iter().chain(concurrent).collect::<Vec<_>>().join(", ")
}
