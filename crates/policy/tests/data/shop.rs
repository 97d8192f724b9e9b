//! A shop with data, and all that can be asked of it.

use std::collections::{BTreeMap, BTreeSet};

use countersign_identity::{CanonicalPath, Mode, Name, Timestamp, Verb};
use countersign_policy::{
    CallRequest, ConnectRequest, Context, Decision, Holdings, Inventory, Member, Members,
    Operation, Operations, Policies, PolicySource, Principal, TopicAct, TopicRequest,
};

const NOW: Timestamp = Timestamp::from_secs(1_795_687_200);
/// How all data sets are classified.
pub(crate) const DATA: [(&str, &str); 4] =
    [("cards", "restricted"), ("menu", "public"), ("notes", "restricted"), ("plans", "internal")];
/// What `payments` does, and which data that touches.
pub(crate) const OPERATIONS: [(&str, Verb, &str, &[&str]); 4] = [
    ("charge", Verb::Post, "/charges", &["cards"]),
    ("see", Verb::Get, "/charges/{id}", &["menu"]),
    ("both", Verb::Get, "/both", &["cards", "menu"]),
    ("ping", Verb::Get, "/ping", &[]),
];
/// Its topics, likewise.
pub(crate) const TOPICS: [(&str, &[&str]); 2] = [("made", &["cards"]), ("alive", &[])];
/// What `payments` has.
pub(crate) const HELD: [&str; 3] = ["cards", "menu", "notes"];

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn names(texts: &[&str]) -> BTreeSet<Name> {
    texts.iter().map(|text| name(text)).collect()
}

pub(crate) fn classified(held: &[&str]) -> BTreeMap<Name, String> {
    let held = DATA.iter().filter(|(data, _)| held.contains(data));
    held.map(|(data, word)| (name(data), (*word).to_owned())).collect()
}

/// `payments` says what it does; `ledger`, which has cards, and `kiosk`, which has nothing, do not.
pub(crate) fn shop(policies: Policies) -> Policies {
    let operation = |(named, verb, path, _): &(&str, Verb, &str, &[&str])| Operation {
        name: name(named),
        verb: *verb,
        template: path.parse().unwrap(),
    };
    let operations = OPERATIONS.iter().map(operation).collect();
    let payments = Holdings {
        data_sets: classified(&HELD),
        operations: OPERATIONS.iter().map(|(it, _, _, data)| (name(it), names(data))).collect(),
        topics: TOPICS.iter().map(|(it, data)| (name(it), names(data))).collect(),
    };
    let ledger = Holdings { data_sets: classified(&["cards"]), ..Holdings::default() };
    let inventory = Inventory::new([(name("payments"), payments), (name("ledger"), ledger)]);
    let member = Member { roles: names(&["buyers"]), labels: names(&["pci"]) };
    policies
        .with_operations(Operations::new([(name("payments"), operations)]))
        .with_inventory(inventory)
        .with_members(Members::new([(Principal::Named(name("web")), member)]))
}

pub(crate) fn policies_of(texts: &[(Mode, &str)]) -> Policies {
    let source = |(number, (mode, text)): (usize, &(Mode, &str))| PolicySource {
        name: name(&format!("p{number}")),
        text: (*text).to_owned(),
        mode: *mode,
        until: None,
    };
    let sources: Vec<_> = texts.iter().enumerate().map(source).collect();
    shop(Policies::compile(&sources, None).unwrap())
}

pub(crate) fn enforced(texts: &[&str]) -> Policies {
    let all: Vec<_> = texts.iter().map(|text| (Mode::Enforce, *text)).collect();
    policies_of(&all)
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Connect(&'static str),
    Call(Verb, &'static str),
    Topic(TopicAct, &'static str),
}

pub(crate) const ASKS: [Ask; 12] = [
    Ask::Connect("payments"),
    Ask::Connect("ledger"),
    Ask::Connect("kiosk"),
    Ask::Call(Verb::Post, "/charges"),
    Ask::Call(Verb::Get, "/charges/7"),
    Ask::Call(Verb::Get, "/both"),
    Ask::Call(Verb::Get, "/ping"),
    Ask::Call(Verb::Post, "/charges/"),
    Ask::Call(Verb::Get, "/elsewhere"),
    Ask::Topic(TopicAct::Publish, "made"),
    Ask::Topic(TopicAct::Subscribe, "made"),
    Ask::Topic(TopicAct::Publish, "alive"),
];

pub(crate) fn ask(policies: &Policies, from: &str, what: Ask) -> Decision {
    let (principal, now) = (&Principal::Named(name(from)), NOW);
    let context = &Context {
        tls_version: "1.3".to_owned(),
        group: "X25519".to_owned(),
        peer_age_seconds: 60,
        ..Context::default()
    };
    match what {
        Ask::Connect(service) => {
            policies.decide(&ConnectRequest { principal, service, context, now })
        }
        Ask::Call(verb, path) => {
            let (service, verb, path) = ("payments", Some(verb), &CanonicalPath::of(path).unwrap());
            let request = CallRequest { principal, service, verb, path, context, now };
            policies.decide_call(&request).unwrap().decision
        }
        Ask::Topic(act, topic) => {
            let (service, topic) = ("payments", &name(topic));
            policies.decide_topic(&TopicRequest { principal, service, topic, act, context, now })
        }
    }
}

/// Holds what is let pass of all that can be asked for against these, however often and in which order it is asked for.
#[track_caller]
pub(crate) fn lets_pass(policies: &Policies, from: &str, expected: &[Ask]) {
    for what in ASKS.iter().chain(ASKS.iter().rev()) {
        let decision = ask(policies, from, *what);
        assert_eq!(decision.is_allowed(), expected.contains(what), "{what:?}: {decision:?}");
    }
}

pub(crate) const ALL: &str =
    r#"@unscoped("test") permit (principal == Workload::"web", action, resource);"#;
