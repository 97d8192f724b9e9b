//! What services keep, hand out and carry: their data sets and topics, for policies that speak of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use countersign_identity::Name;

/// The data of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Its data sets, with how each is classified: `restricted`.
    pub data_sets: BTreeMap<Name, String>,
    /// Which of them its operations touch.
    pub operations: BTreeMap<Name, BTreeSet<Name>>,
    /// Its topics, and which of them each carries.
    pub topics: BTreeMap<Name, BTreeSet<Name>>,
}

/// The data of all services that are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory(BTreeMap<String, Holdings>); // INVARIANT: none is empty

/// What is done with a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TopicAct {
    /// Something is put on it.
    Publish,
    /// What is on it is taken.
    Subscribe,
}

/// A text that is neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is nothing that is done with a topic: expected `publish` or `subscribe`")]
pub struct UnknownTopicAct(String);

/// Of what a question is, within a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// The door of a service that declares operations: what comes in by it is asked about by itself.
    Door,
    /// The service itself, where nobody says what is done: a request that no operation stands for, or a connection over which
    /// nothing more is asked about.
    Undeclared,
    /// One of its operations.
    Operation(&'a Name),
    /// One of its topics.
    Topic(&'a Name),
}

/// Which data sets of a service something touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touched<'a> {
    /// None.
    Nothing,
    /// These of all that the service has.
    Told(&'a BTreeSet<Name>, &'a BTreeMap<Name, String>),
    /// Any of these, or none.
    Untold(&'a BTreeMap<Name, String>),
}

impl<'a> Part<'a> {
    /// The operation, if it is one.
    pub(crate) fn operation(self) -> Option<&'a Name> {
        match self {
            Self::Operation(name) => Some(name),
            Self::Door | Self::Undeclared | Self::Topic(_) => None,
        }
    }
}

impl TopicAct {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Publish, Self::Subscribe];

    /// The action, as policies write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
        }
    }
}

impl fmt::Display for TopicAct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TopicAct {
    type Err = UnknownTopicAct;

    fn from_str(text: &str) -> Result<Self, UnknownTopicAct> {
        let known = Self::ALL.into_iter().find(|act| act.as_str() == text);
        known.ok_or_else(|| UnknownTopicAct(text.chars().take(80).collect()))
    }
}

impl Inventory {
    /// That of these services.
    pub fn new(of: impl IntoIterator<Item = (Name, Holdings)>) -> Self {
        let some = of.into_iter().filter(|(_, holdings)| *holdings != Holdings::default());
        Self(some.map(|(service, holdings)| (service.to_string(), holdings)).collect())
    }

    /// What a service has; `None` when it declares nothing.
    pub fn of(&self, service: &str) -> Option<&Holdings> {
        self.0.get(service)
    }

    /// Every service that declares something, with what.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Holdings)> {
        self.0.iter().map(|(service, holdings)| (service.as_str(), holdings))
    }

    /// Whether a service declares this topic.
    pub fn has_topic(&self, service: &str, topic: &Name) -> bool {
        self.of(service).is_some_and(|holdings| holdings.topics.contains_key(topic))
    }

    /// What a part of a service touches: what is declared of it, and otherwise nobody knows which of the service's data.
    pub(crate) fn touched<'a>(&'a self, service: &str, part: Part<'_>) -> Touched<'a> {
        let Some(holdings) = self.of(service) else { return Touched::Nothing };
        let told = match part {
            Part::Door => None,
            Part::Undeclared if holdings.data_sets.is_empty() => None,
            Part::Undeclared => return Touched::Untold(&holdings.data_sets),
            Part::Operation(name) => holdings.operations.get(name),
            Part::Topic(name) => holdings.topics.get(name),
        };
        told.map_or(Touched::Nothing, |names| Touched::Told(names, &holdings.data_sets))
    }
}

impl<'a> Touched<'a> {
    /// The data sets that it is or may be.
    pub(crate) fn names(self) -> impl Iterator<Item = &'a Name> {
        let (told, untold) = match self {
            Self::Nothing => (None, None),
            Self::Told(names, _) => (Some(names), None),
            Self::Untold(all) => (None, Some(all)),
        };
        told.into_iter().flatten().chain(untold.into_iter().flat_map(BTreeMap::keys))
    }

    /// How they are classified.
    pub(crate) fn classifications(self) -> BTreeSet<&'a str> {
        let all = match self {
            Self::Nothing => return BTreeSet::new(),
            Self::Told(_, all) | Self::Untold(all) => all,
        };
        self.names().filter_map(|name| all.get(name)).map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_touches_what_it_declares_and_what_nobody_declares_may_touch_anything() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let holdings = Holdings {
            data_sets: [
                (name("cards"), "restricted".to_owned()),
                (name("menu"), "public".to_owned()),
            ]
            .into(),
            operations: [(name("pay"), [name("cards")].into())].into(),
            topics: [
                (name("paid"), [name("cards"), name("menu")].into()),
                (name("ping"), BTreeSet::new()),
            ]
            .into(),
        };
        let inventory =
            Inventory::new([(name("shop"), holdings), (name("bare"), Holdings::default())]);
        let classified = |part| {
            inventory.touched("shop", part).classifications().into_iter().collect::<Vec<_>>()
        };
        let (pay, paid, ping, other) = (name("pay"), name("paid"), name("ping"), name("other"));
        assert_eq!(classified(Part::Door), [""; 0]);
        assert_eq!(classified(Part::Undeclared), ["public", "restricted"]);
        assert_eq!(classified(Part::Operation(&pay)), ["restricted"]);
        assert_eq!(classified(Part::Operation(&other)), [""; 0]);
        assert_eq!(classified(Part::Topic(&paid)), ["public", "restricted"]);
        assert_eq!(classified(Part::Topic(&ping)), [""; 0]);
        let named = |part| inventory.touched("shop", part).names().collect::<Vec<_>>();
        assert_eq!(named(Part::Undeclared), [&name("cards"), &name("menu")]);
        assert_eq!(named(Part::Operation(&pay)), [&name("cards")]);
        assert!(matches!(inventory.touched("shop", Part::Undeclared), Touched::Untold(_)));
        assert_eq!(inventory.touched("bare", Part::Undeclared), Touched::Nothing);
        assert!(inventory.has_topic("shop", &ping) && !inventory.has_topic("shop", &pay));
        assert!(inventory.of("bare").is_none() && inventory.of("nobody").is_none());
        assert_eq!("publish".parse(), Ok(TopicAct::Publish));
        assert!("PUBLISH".parse::<TopicAct>().is_err());
    }
}
