//! From what was granted and what was used to the narrower text: permits nobody used go, and wide ones name those who did.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{
    ActionConstraint, Effect, EntityUid, Policy, PrincipalConstraint, ResourceConstraint,
};
use countersign_identity::{Name, Verb};

use crate::compile::{annotation, parse_named};
use crate::schema::{CONNECT, DATASET, ROLE, SERVICE, TOPIC, Words, service_of};
use crate::text::{Span, spans};
use crate::{Members, Principal, Problem, TopicAct};

/// How many policies may stand in the place of one. What is used more widely than that is meant to be wide.
const WRITTEN_OUT_MAX: usize = 16;
/// The annotation that names a policy.
const ID: &str = "id";
/// The annotation that excuses a wide scope, which a narrow one does not need.
const UNSCOPED: &str = "unscoped";

/// Something that was asked for, and let pass.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// Who asked.
    pub principal: Principal,
    /// Whose door it was.
    pub service: Name,
    /// The method; `None` for a connection.
    pub verb: Option<Verb>,
    /// The operation; `None` for a connection, and for a path that none declares.
    pub operation: Option<Name>,
}

impl Use {
    fn action(&self) -> &str {
        self.verb.map_or(CONNECT, Verb::as_str)
    }

    fn resource(&self, words: &Words) -> EntityUid {
        match &self.operation {
            Some(operation) => words.operation(self.service.as_str(), operation.as_str()),
            None => words.service(self.service.as_str()),
        }
    }
}

/// What one permit of a text grants, as its scope says; a list without names stands for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Under which name decisions tell of it.
    pub policy: String,
    /// Whom; of a role, all who are in it.
    pub principals: Vec<String>,
    /// The role, where it is one that is named.
    pub role: Option<String>,
    /// What they may do.
    pub actions: Vec<String>,
    /// To what: services, operations as `payments/charge`, data sets as `Dataset::"charges"`.
    pub resources: Vec<String>,
    /// What of that was used, without what its scope does not admit: it was seen under an earlier text.
    pub used: BTreeSet<Use>,
    /// What is to become of it.
    pub outcome: Outcome,
}

/// What is to become of a permit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It grants nothing that was not used.
    Exact,
    /// Nobody used it: it goes.
    Unused,
    /// Narrower ones stand in its place.
    Narrower,
    /// It stays wide, because so much of it was used.
    Wide,
}

/// On what a text is narrowed.
pub struct Grounds<'a> {
    /// What was used of each permit, named as decisions name them.
    pub used: &'a BTreeMap<String, BTreeSet<Use>>,
    /// Who is in which role.
    pub members: &'a Members,
    /// Whether permits of these actions on these resources are to be looked at.
    pub about: &'a dyn Fn(&[String], &[String]) -> bool,
    /// Whether they may be permits to publish or subscribe as well.
    pub of_topics: &'a dyn Fn(&[String], &[String]) -> bool,
}

/// A text, narrowed to what was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Narrowed {
    /// Each permit of the text before, in its order.
    pub permits: Vec<Permit>,
    /// Those of them that stay as they are, because nobody counts what is done with topics.
    pub uncounted: Vec<String>,
    /// The narrower text; `None` when nothing is left of it.
    pub text: Option<String>,
}

/// Narrows a text to what was used of each of its permits.
///
/// What forbids stays as it is, and so do conditions, limits and comments, permits of what is done with topics, which nobody counts,
/// and those that it is not `about`. The result grants nothing that the text did not. That it grants all that was used is for the
/// caller to try, with the very decision that was made.
///
/// # Errors
/// When the text does not compile.
pub fn narrow(name: &Name, text: &str, grounds: &Grounds<'_>) -> Result<Narrowed, Vec<Problem>> {
    let statements = parse_named(name, text)?;
    let spans = spans(text);
    let words = Words::new();
    let mut names: BTreeSet<String> = statements
        .iter()
        .filter_map(|one| annotation(&one.policy, ID).map(str::to_owned))
        .collect();
    let (mut permits, mut uncounted) = (Vec::new(), Vec::new());
    let (mut rest, mut left) = (String::new(), 0);
    let mut end = 0;
    for (statement, span) in statements.iter().zip(&spans) {
        rest.push_str(&text[end..span.start]);
        end = span.end;
        let policy = &statement.policy;
        let written = &text[span.start..span.end];
        let (actions, resources) = (actions(policy), resources(policy));
        let concerned = policy.effect() == Effect::Permit && (grounds.about)(&actions, &resources);
        let of_topics = is_of_topics(policy) || (grounds.of_topics)(&actions, &resources);
        if !concerned || of_topics {
            uncounted.extend(concerned.then(|| policy.id().to_string()));
            rest.push_str(written);
            left += 1;
            continue;
        }
        let permit = permit(policy, grounds, &words);
        match permit.outcome {
            Outcome::Exact | Outcome::Wide => {
                rest.push_str(written);
                left += 1;
            }
            Outcome::Unused => {}
            Outcome::Narrower => {
                let groups = groups(&permit, &words);
                left += groups.len();
                rest.push_str(&written_out(policy, &groups, text, span, &mut names));
            }
        }
        permits.push(permit);
    }
    rest.push_str(&text[end..]);
    let text = (0 < left).then(|| tidy(&rest));
    Ok(Narrowed { permits, uncounted, text })
}

fn permit(policy: &Policy, grounds: &Grounds<'_>, words: &Words) -> Permit {
    let Grounds { used, members, .. } = grounds;
    let id = policy.id().to_string();
    let role = role(policy);
    let principals = match &role {
        Some(role) => members.in_role(role).into_iter().map(str::to_owned).collect(),
        None => principals(policy),
    };
    let in_role =
        |one: &Use| role.is_none() || principals.iter().any(|it| it == one.principal.as_str());
    let admitted = |one: &&Use| in_role(one) && admits(policy, one, words);
    let used: BTreeSet<Use> =
        used.get(&id).into_iter().flatten().filter(admitted).cloned().collect();
    let outcome = Outcome::Unused;
    let (actions, resources) = (actions(policy), resources(policy));
    let permit = Permit { policy: id, principals, role, actions, resources, used, outcome };
    let outcome = if permit.used.is_empty() {
        Outcome::Unused
    } else if is_exact(policy, &permit) {
        Outcome::Exact
    } else if WRITTEN_OUT_MAX < groups(&permit, words).len() {
        Outcome::Wide
    } else {
        Outcome::Narrower
    };
    Permit { outcome, ..permit }
}

/// The role that the scope names.
fn role(policy: &Policy) -> Option<String> {
    match policy.principal_constraint() {
        PrincipalConstraint::In(uid) | PrincipalConstraint::IsIn(_, uid)
            if uid.type_name().to_string() == ROLE =>
        {
            Some(uid.id().unescaped().to_owned())
        }
        PrincipalConstraint::Any
        | PrincipalConstraint::Is(_)
        | PrincipalConstraint::Eq(_)
        | PrincipalConstraint::In(_)
        | PrincipalConstraint::IsIn(..) => None,
    }
}

impl Permit {
    /// Whether it names a role, and each of its members used it: then the role says whom it is for.
    fn fills_its_role(&self) -> bool {
        let did = |name: &String| self.used.iter().any(|one| one.principal.as_str() == name);
        self.role.is_some() && self.principals.iter().all(did)
    }
}

fn principals(policy: &Policy) -> Vec<String> {
    match policy.principal_constraint() {
        PrincipalConstraint::Any | PrincipalConstraint::Is(_) => Vec::new(),
        PrincipalConstraint::Eq(uid)
        | PrincipalConstraint::In(uid)
        | PrincipalConstraint::IsIn(_, uid) => vec![uid.id().unescaped().to_owned()],
    }
}

fn actions(policy: &Policy) -> Vec<String> {
    match policy.action_constraint() {
        ActionConstraint::Any => Vec::new(),
        ActionConstraint::Eq(uid) => vec![uid.id().unescaped().to_owned()],
        ActionConstraint::In(uids) => {
            uids.iter().map(|uid| uid.id().unescaped().to_owned()).collect()
        }
    }
}

fn resources(policy: &Policy) -> Vec<String> {
    match policy.resource_constraint() {
        ResourceConstraint::Any | ResourceConstraint::Is(_) => Vec::new(),
        ResourceConstraint::Eq(uid)
        | ResourceConstraint::In(uid)
        | ResourceConstraint::IsIn(_, uid)
            if uid.type_name().to_string() == DATASET =>
        {
            vec![uid.to_string()]
        }
        ResourceConstraint::Eq(uid)
        | ResourceConstraint::In(uid)
        | ResourceConstraint::IsIn(_, uid) => vec![uid.id().unescaped().to_owned()],
    }
}

/// Whether a policy speaks of what is done with topics, and of nothing else.
pub(crate) fn is_of_topics(policy: &Policy) -> bool {
    let actions = actions(policy);
    let acts = actions.iter().all(|action| action.parse::<TopicAct>().is_ok());
    let topic = match policy.resource_constraint() {
        ResourceConstraint::Any => false,
        ResourceConstraint::Is(kind) => kind.to_string() == TOPIC,
        ResourceConstraint::IsIn(kind, _) => kind.to_string() == TOPIC,
        ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) => {
            uid.type_name().to_string() == TOPIC
        }
    };
    topic || (!actions.is_empty() && acts)
}

/// Whether a policy can apply to nothing but to services themselves, though it names something else that they could be in.
pub(crate) fn speaks_of_doors_alone(policy: &Policy) -> bool {
    let actions = actions(policy);
    let connects = !actions.is_empty() && actions.iter().all(|action| action == CONNECT);
    let service = match policy.resource_constraint() {
        ResourceConstraint::IsIn(kind, _) => kind.to_string() == SERVICE,
        ResourceConstraint::Any
        | ResourceConstraint::Is(_)
        | ResourceConstraint::Eq(_)
        | ResourceConstraint::In(_) => false,
    };
    connects || service
}

/// Whether the scope admits what was used, as far as it does not name a role.
fn admits(policy: &Policy, one: &Use, words: &Words) -> bool {
    let principal = match policy.principal_constraint() {
        PrincipalConstraint::Eq(uid) => uid == words.workload(one.principal.as_str()),
        PrincipalConstraint::Any
        | PrincipalConstraint::Is(_)
        | PrincipalConstraint::In(_)
        | PrincipalConstraint::IsIn(..) => true,
    };
    let actions = actions(policy);
    let action = actions.is_empty() || actions.iter().any(|action| action == one.action());
    let asked = one.resource(words);
    let resource = match policy.resource_constraint() {
        ResourceConstraint::Eq(uid) => uid == asked,
        ResourceConstraint::In(uid) | ResourceConstraint::IsIn(_, uid) => {
            // A data set is taken to hold it, as a role is: what it held when it was used, nobody knows.
            uid.type_name().to_string() == DATASET
                || uid == asked
                || uid == words.service(service_of(asked.id().unescaped()))
        }
        ResourceConstraint::Any | ResourceConstraint::Is(_) => true,
    };
    principal && action && resource
}

/// Whether all that the scope names was used: one principal or each of a role, one resource, and each of the actions.
fn is_exact(policy: &Policy, permit: &Permit) -> bool {
    let named = matches!(policy.principal_constraint(), PrincipalConstraint::Eq(_));
    let one = (named || permit.fills_its_role())
        && matches!(policy.resource_constraint(), ResourceConstraint::Eq(_));
    let done: BTreeSet<&str> = permit.used.iter().map(Use::action).collect();
    let actions = &permit.actions;
    one && !actions.is_empty() && actions.iter().all(|action| done.contains(action.as_str()))
}

/// Who did what to which resource, as one policy would say it.
type Groups = BTreeMap<(EntityUid, EntityUid), BTreeSet<String>>;

fn groups(permit: &Permit, words: &Words) -> Groups {
    let mut groups = Groups::new();
    let whole = permit.role.as_ref().filter(|_| permit.fills_its_role());
    for one in &permit.used {
        let who = || words.workload(one.principal.as_str());
        let who = whole.map_or_else(who, |role| words.role(role));
        let key = (who, one.resource(words));
        groups.entry(key).or_default().insert(one.action().to_owned());
    }
    groups
}

/// The policies that stand in the place of one, with its annotations and its conditions.
fn written_out(
    policy: &Policy,
    groups: &Groups,
    text: &str,
    span: &Span,
    names: &mut BTreeSet<String>,
) -> String {
    let conditions = &text[span.scope_end..span.end];
    let mut written = Vec::new();
    for (number, ((principal, resource), actions)) in groups.iter().enumerate() {
        let mut annotations = String::new();
        for (key, value) in policy.annotations().filter(|(key, _)| *key != UNSCOPED) {
            let value = match key {
                ID if 0 < number => another(value, names),
                _ => value.to_owned(),
            };
            annotations.push_str(&format!("@{key}(\"{}\")\n", value.escape_debug()));
        }
        let quoted: Vec<_> = actions.iter().map(|action| format!("Action::\"{action}\"")).collect();
        let action = match quoted.as_slice() {
            [only] => format!("action == {only}"),
            several => format!("action in [{}]", several.join(", ")),
        };
        let is = if principal.type_name().to_string() == ROLE { "in" } else { "==" };
        written.push(format!(
            "{annotations}permit (principal {is} {principal}, {action}, resource == {resource}){conditions}"
        ));
    }
    written.join("\n")
}

/// A name like this one that no other policy of the text has.
fn another(name: &str, names: &mut BTreeSet<String>) -> String {
    let free = (2_u32..).map(|number| format!("{name}-{number}")).find(|it| !names.contains(it));
    let free = free.expect("there are more numbers than names");
    names.insert(free.clone());
    free
}

/// Without the empty lines that what is gone has left.
fn tidy(text: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines() {
        let after_nothing = lines.last().is_none_or(|last| last.trim().is_empty());
        if !(line.trim().is_empty() && after_nothing) {
            lines.push(line);
        }
    }
    lines.join("\n").trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Declared, Member, Policies, PolicySource};

    fn used(of: &[(&str, &str, &str, &str, Option<&str>)]) -> BTreeMap<String, BTreeSet<Use>> {
        let mut all: BTreeMap<String, BTreeSet<Use>> = BTreeMap::new();
        for (policy, principal, service, action, operation) in of {
            let principal = principal
                .parse()
                .map_or_else(|_| Principal::Id(principal.parse().unwrap()), Principal::Named);
            all.entry((*policy).to_owned()).or_default().insert(Use {
                principal,
                service: service.parse().unwrap(),
                verb: action.parse().ok(),
                operation: operation.map(|name| name.parse().unwrap()),
            });
        }
        all
    }

    #[track_caller]
    fn narrowed(text: &str, of: &[(&str, &str, &str, &str, Option<&str>)]) -> Narrowed {
        let name = "p".parse().unwrap();
        let about = |_: &[String], _: &[String]| true;
        let of_topics = |actions: &[String], _: &[String]| actions.is_empty() && text == ANYTHING;
        let (used, members) = (&used(of), &buyers());
        let grounds = Grounds { used, members, about: &about, of_topics: &of_topics };
        let narrowed = narrow(&name, text, &grounds).unwrap();
        if let Some(text) = &narrowed.text {
            let source = PolicySource::enforced("p".parse().unwrap(), text.clone());
            Policies::compile(&[source], None::<&Declared>).unwrap();
        }
        narrowed
    }

    /// `web` and `orders` are buyers, and somebody from elsewhere; `nobody` has no members.
    fn buyers() -> Members {
        let member = || Member { roles: ["buyers".parse().unwrap()].into(), ..Member::default() };
        let named = ["web", "orders"].map(|name| Principal::Named(name.parse().unwrap()));
        let guest = Principal::Id("spiffe://other.example/x".parse().unwrap());
        Members::new(named.into_iter().chain([guest]).map(|one| (one, member())))
    }

    const BUYERS: &str = r#"permit (principal in Role::"buyers", action == Action::"GET", resource == Operation::"payments/see");"#;

    #[test]
    fn a_role_of_which_some_did_not_use_a_grant_makes_room_for_those_who_did() {
        let see = |who| ("p", who, "payments", "GET", Some("see"));
        let some = [see("web"), see("spiffe://other.example/x"), see("cron")];
        let result = narrowed(BUYERS, &some);
        let [permit] = result.permits.as_slice() else { panic!("{result:?}") };
        assert_eq!(permit.role.as_deref(), Some("buyers"));
        assert_eq!(permit.principals, ["orders", "spiffe://other.example/x", "web"]);
        assert_eq!(permit.outcome, Outcome::Narrower);
        assert_eq!(permit.used.len(), 2, "cron is in it no more");
        let text = result.text.unwrap();
        assert!(!text.contains("Role::") && !text.contains("orders\""), "{text}");
        for who in ["web", "spiffe://other.example/x"] {
            assert!(text.contains(&format!("principal == Workload::\"{who}\"")), "{text}");
        }
        assert_eq!(narrowed(BUYERS, &[]).permits[0].outcome, Outcome::Unused);
        assert_eq!(narrowed(BUYERS, &[see("cron")]).permits[0].outcome, Outcome::Unused);
    }

    #[test]
    fn a_role_of_which_everybody_used_a_grant_stays_and_what_nobody_did_goes() {
        let all = |action: &'static str, operation| {
            ["web", "orders", "spiffe://other.example/x"]
                .map(|who| ("p", who, "payments", action, operation))
        };
        let result = narrowed(BUYERS, &all("GET", Some("see")));
        assert_eq!(result.permits[0].outcome, Outcome::Exact);
        let wide =
            r#"permit (principal in Role::"buyers", action, resource in Service::"payments");"#;
        let mut used = all("connect", None).to_vec();
        used.push(("p", "web", "payments", "GET", Some("see")));
        let result = narrowed(wide, &used);
        assert_eq!(result.permits[0].outcome, Outcome::Narrower);
        let text = result.text.unwrap();
        assert_eq!(text.matches("principal in Role::\"buyers\"").count(), 2, "{text}");
        assert!(!text.contains("Workload::"), "{text}");
        let empty = BUYERS.replace("buyers", "nobody");
        let result = narrowed(&empty, &all("GET", Some("see")));
        assert_eq!((&result.permits[0].outcome, result.text), (&Outcome::Unused, None));
    }

    const ANYTHING: &str =
        r#"permit (principal == Workload::"web", action, resource in Service::"broker");"#;

    #[test]
    fn what_may_be_done_with_topics_stays_and_is_told_of() {
        let publish = r#"@id("tell") permit (principal == Workload::"web", action == Action::"publish", resource in Service::"broker");
permit (principal == Workload::"web", action, resource == Topic::"broker/paid");
permit (principal == Workload::"web", action == Action::"connect", resource == Service::"broker");
"#;
        let result = narrowed(publish, &[]);
        assert_eq!(result.uncounted, ["p#tell", "p#2"]);
        assert_eq!(result.permits.len(), 1);
        assert_eq!(result.text.unwrap().matches("permit").count(), 2);
        let result = narrowed(ANYTHING, &[("p", "web", "broker", "connect", None)]);
        assert_eq!((result.uncounted, result.permits), (vec!["p".to_owned()], Vec::new()));
        assert_eq!(result.text.unwrap().trim(), ANYTHING);
    }

    #[test]
    fn a_permit_on_a_data_set_becomes_what_was_used_of_it() {
        let text = r#"permit (principal in Role::"buyers", action, resource in Dataset::"cards");"#;
        let result = narrowed(text, &[("p", "web", "payments", "POST", Some("charge"))]);
        assert_eq!(result.permits[0].resources, [r#"Dataset::"cards""#]);
        assert_eq!(result.permits[0].outcome, Outcome::Narrower);
        let one = r#"permit (principal == Workload::"web", action == Action::"POST", resource == Operation::"payments/charge");"#;
        assert_eq!(result.text.unwrap().trim(), one);
    }

    const WIDE: &str = r#"// Who asks payments.
@id("all")
@rate("5/s")
permit (principal, action, resource in Service::"payments")
  when { context.tls_version == "1.3" }; // all
@id("never") forbid (principal == Workload::"web", action, resource);
"#;

    fn wide() -> String {
        WIDE.replace("@id(\"all\")", "@id(\"all\")\n@unscoped(\"adoption\")")
    }

    #[test]
    fn wide_permit_becomes_one_for_each_who_used_it_with_its_conditions() {
        let text = wide().replace("@rate(\"5/s\")\n", "");
        let result = narrowed(
            &text,
            &[
                ("p#all", "orders", "payments", "connect", None),
                ("p#all", "orders", "payments", "POST", Some("charge")),
                ("p#all", "spiffe://other.example/x", "payments", "GET", None),
                ("p#all", "orders", "ledger", "connect", None),
            ],
        );
        let text = result.text.unwrap();
        let when = "\n  when { context.tls_version == \"1.3\" };";
        for line in [
            "permit (principal == Workload::\"orders\", action == Action::\"connect\", resource == Service::\"payments\")",
            "permit (principal == Workload::\"orders\", action == Action::\"POST\", resource == Operation::\"payments/charge\")",
            "permit (principal == Workload::\"spiffe://other.example/x\", action == Action::\"GET\", resource == Service::\"payments\")",
        ] {
            assert!(text.contains(&format!("{line}{when}")), "{line}\n{text}");
        }
        assert_eq!(text.matches("permit").count(), 3, "{text}");
        assert!(text.starts_with("// Who asks payments.\n@id(\"all\")\n"), "{text}");
        assert!(text.contains("@id(\"all-2\")") && text.contains("@id(\"all-3\")"), "{text}");
        assert!(!text.contains("unscoped"), "a narrow scope needs no excuse: {text}");
        assert!(text.contains("@id(\"never\") forbid"), "what forbids stays: {text}");
        assert_eq!(result.permits[0].used.len(), 3, "another service is not what it admits");
        assert_eq!(result.permits[0].outcome, Outcome::Narrower);
    }

    #[test]
    fn what_nobody_used_goes_and_what_is_exact_stays_as_it_is_written() {
        let text = r#"
@id("a") permit (principal == Workload::"web", action == Action::"connect", resource == Service::"orders");
@id("b")
permit (principal == Workload::"web", action in [Action::"GET", Action::"POST"], resource == Operation::"orders/make");
"#;
        let both = [
            ("p#a", "web", "orders", "connect", None),
            ("p#b", "web", "orders", "GET", Some("make")),
        ];
        let result = narrowed(text, &both[..1]);
        assert_eq!(result.permits[1].outcome, Outcome::Unused);
        assert_eq!(result.permits[0].outcome, Outcome::Exact);
        assert_eq!(result.text.unwrap().trim(), text.lines().nth(1).unwrap());
        let result = narrowed(text, &both);
        assert_eq!(result.permits[1].outcome, Outcome::Narrower, "only one of its actions");
        assert!(!result.text.unwrap().contains("POST"));
        assert_eq!(narrowed(text, &[]).text, None, "nothing is left of it");
    }

    #[test]
    fn what_many_use_stays_wide() {
        let text = "@unscoped(\"all\") permit (principal, action == Action::\"connect\", resource == Service::\"orders\");";
        let names: Vec<String> = (0..17).map(|number| format!("w{number}")).collect();
        let of: Vec<_> =
            names.iter().map(|name| ("p", name.as_str(), "orders", "connect", None)).collect();
        assert_eq!(narrowed(text, &of).permits[0].outcome, Outcome::Wide);
        assert_eq!(narrowed(text, &of[..16]).permits[0].outcome, Outcome::Narrower);
    }

    #[test]
    fn names_in_annotations_and_comments_cannot_write_policies() {
        let text = "@unscoped(\"x\") @note(\"\\\") permit (principal\") permit (principal, action, resource == Service::\"a\");";
        let result = narrowed(text, &[("p", "web", "a", "connect", None)]);
        assert_eq!(result.text.unwrap().matches("principal ==").count(), 1);
    }
}
