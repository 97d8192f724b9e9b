//! What was decided, in a sentence, and what would allow it.

use countersign_api::resource::PolicySpec;
use countersign_identity::{Code, Mode, Name, Verb};
use countersign_policy::{Decision, Limit, Names, Principal, Rate, Verdict};

use super::{Judge, Judged, Question};

impl Judge {
    /// The decision in a sentence, with what is said of the policies that it rests on.
    pub(super) fn why(&self, question: &Question, judged: &Judged) -> String {
        let mut text = why(question, judged);
        for policy in &judged.decision.policies {
            let manifest = policy.split('#').next().unwrap_or_default();
            let note = manifest.parse::<Name>().ok().and_then(|name| self.notes.get(&name));
            let limit = self.policies.limit(policy).map(limit).unwrap_or_default();
            let notes = [note.cloned().unwrap_or_default(), limit];
            let notes: Vec<_> = notes.into_iter().filter(|note| !note.is_empty()).collect();
            if !notes.is_empty() {
                text.push_str(&format!("; `{policy}`: {}", notes.join(", ")));
            }
        }
        text.push_str(&self.roles_told(&question.source, &judged.decision.policies));
        text
    }

    /// In which of the roles the one who asks is that these policies are for.
    fn roles_told(&self, source: &Principal, policies: &[String]) -> String {
        let Some(member) = self.policies.members().of(source.as_str()) else {
            return String::new();
        };
        let asked_for = |role: &&Name| {
            self.policies.grants().iter().any(|grant| {
                grant.principals == Names::Role(role.to_string())
                    && policies.contains(&grant.policy)
            })
        };
        let told = member.roles.iter().filter(asked_for);
        told.map(|role| format!("; `{source}` is in role `{role}`")).collect()
    }

    /// What would allow it.
    pub(super) fn remedy(&self, question: &Question, judged: &Judged) -> String {
        let (source, service) = (&question.source, &question.service);
        if !self.takes(question) {
            return format!(
                "its trust domain must be among the `trustDomains` of the TLS profile of `{service}`, and a policy must permit it"
            );
        }
        if !judged.decision.policies.is_empty() {
            let policies = judged.decision.policies.join("`, `");
            return format!(
                "policy `{policies}` must change: what it forbids, no other policy can permit"
            );
        }
        if question.call.as_ref().is_some_and(|(method, _)| method.parse::<Verb>().is_err())
            && !judged.by_connection
        {
            return "nothing: no operation can have this method".to_owned();
        }
        let permit = |action: &str, resource: String| {
            format!(
                "permit (principal == Workload::\"{source}\", action == Action::\"{action}\", resource == {resource});"
            )
        };
        let connect = || permit("connect", format!("Service::\"{service}\""));
        let mut lines = Vec::new();
        if judged.by_connection {
            lines.push(connect());
        }
        let decided = self.policies.operations().of(service.as_str()).is_some();
        if let Some((act, topic)) = &question.topic {
            lines.push(permit(act.as_str(), format!("Topic::\"{service}/{topic}\"")));
        }
        match (&question.call, &judged.operation) {
            (Some(_), Some(operation)) => {
                // Over a connection that is permitted anew, this may be permitted already.
                let verb = operation.verb.as_str();
                lines.push(permit(verb, format!("Operation::\"{service}/{}\"", operation.name)));
            }
            (Some((method, path)), None) if decided => {
                lines.push(format!(
                    "// and, once Service `{service}` declares `{method} {path}` as an operation, here named `it`:"
                ));
                lines.push(permit(method, format!("Operation::\"{service}/it\"")));
            }
            (Some(_) | None, _) => {}
        }
        lines.join("\n")
    }
}

/// The decision in a sentence.
fn why(question: &Question, judged: &Judged) -> String {
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

fn limit(limit: &Limit) -> String {
    let rate =
        limit.rate.map(|Rate { count, span }| format!("at most {count} in {}s", span.as_secs()));
    let concurrent = limit.concurrent.map(|count| format!("at most {count} at once"));
    rate.into_iter().chain(concurrent).collect::<Vec<_>>().join(", ")
}
