//! Who asked whom for what, and what was decided: counted together, on its way to the agent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use countersign_api::v1;
use countersign_identity::{Mode, Name, SpiffeId, Timestamp};
use countersign_policy::{Called, Decision, Operation, Verdict};

/// How many different flows are counted between two reports. What comes on top is a number.
const FLOWS_MAX: usize = 2048;

/// One kind of thing that happens: everything in it is declared or decided, never chosen by a peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who asked.
    pub source: SpiffeId,
    /// Whose door it was.
    pub service: Name,
    /// What was asked for.
    pub asked: Asked,
    /// Whether policies permit it.
    pub allowed: bool,
    /// Whether that was done, or only told.
    pub mode: Mode,
    /// The policies that it rests on.
    pub policies: Vec<String>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Asked {
    /// A connection.
    Connection,
    /// A request that is this operation: its name, its method, its path.
    Operation(Name, &'static str, Arc<str>),
    /// A request with this method on a path that no operation declares; all such paths are one.
    Undeclared(&'static str),
}

impl Flow {
    /// What was decided about a connection.
    pub fn connection(source: SpiffeId, service: Name, decision: &Decision) -> Self {
        Self::new(source, service, Asked::Connection, decision)
    }

    /// What was decided about a request. Methods that no operation could have are one, too.
    pub fn call(
        source: SpiffeId,
        service: Name,
        verb: Option<countersign_identity::Verb>,
        called: &Called,
    ) -> Self {
        let asked = match &called.operation {
            Some(Operation { name, verb, template }) => {
                Asked::Operation(name.clone(), verb.as_str(), template.text())
            }
            None => Asked::Undeclared(verb.map_or("*", countersign_identity::Verb::as_str)),
        };
        Self::new(source, service, asked, &called.decision)
    }

    fn new(source: SpiffeId, service: Name, asked: Asked, decision: &Decision) -> Self {
        let Decision { verdict, mode, policies } = decision;
        let (allowed, mode, policies) = (*verdict == Verdict::Allow, *mode, policies.clone());
        Self { source, service, asked, allowed, mode, policies }
    }
}

#[derive(Clone, Copy, Debug)]
struct Tally {
    first: Timestamp,
    last: Timestamp,
    count: u64,
}

/// Counts flows. Never waits for anybody but another count, and never grows beyond its bound.
#[derive(Clone, Debug, Default)]
pub struct Flows(Arc<Mutex<Counted>>);

#[derive(Debug, Default)]
struct Counted {
    counters: HashMap<Flow, Counter>, // INVARIANT: at most FLOWS_MAX; none of them was taken
    dropped: u64,
}

/// Where flows of one kind are counted, until they are told of.
#[derive(Clone, Debug)]
pub(crate) struct Counter(Arc<Mutex<Option<Tally>>>);

impl Counter {
    /// Counts one more. False when what was counted is on its way by now, and this one would be on none.
    pub(crate) fn count(&self, at: Timestamp) -> bool {
        let mut tally = self.tally();
        let Some(tally) = &mut *tally else { return false };
        tally.last = tally.last.max(at);
        tally.count = tally.count.saturating_add(1);
        true
    }

    fn take(&self) -> Option<Tally> {
        self.tally().take()
    }

    fn tally(&self) -> MutexGuard<'_, Option<Tally>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flows {
    /// Counts one.
    pub fn count(&self, flow: Flow, at: Timestamp) {
        let _counter = self.begin(flow, at);
    }

    /// Counts one, and says where more of its kind are counted; `None` where there are too many kinds.
    pub(crate) fn begin(&self, flow: Flow, at: Timestamp) -> Option<Counter> {
        let mut counted = self.lock();
        if let Some(counter) = counted.counters.get(&flow) {
            counter.count(at);
            return Some(counter.clone());
        }
        if FLOWS_MAX <= counted.counters.len() {
            counted.dropped = counted.dropped.saturating_add(1);
            return None;
        }
        let first = Tally { first: at, last: at, count: 1 };
        let counter = Counter(Arc::new(Mutex::new(Some(first))));
        counted.counters.insert(flow, counter.clone());
        Some(counter)
    }

    /// What was counted and is not on its way yet.
    pub fn seen(&self) -> Vec<Flow> {
        self.lock().counters.keys().cloned().collect()
    }

    /// Takes all that was counted, as it is told, and how many were not.
    pub fn drain(&self) -> (Vec<v1::Flow>, u64) {
        self.take(FLOWS_MAX)
    }

    /// Takes what was counted, at most so many, and how many were not; what is left comes the next time.
    pub(crate) fn take(&self, most: usize) -> (Vec<v1::Flow>, u64) {
        let mut counted = self.lock();
        let dropped = std::mem::take(&mut counted.dropped);
        if counted.counters.len() <= most {
            let all = std::mem::take(&mut counted.counters);
            drop(counted);
            return (all.into_iter().filter_map(wire).collect(), dropped);
        }
        let some: Vec<Flow> = counted.counters.keys().take(most).cloned().collect();
        let taken = some.into_iter().filter_map(|flow| counted.counters.remove_entry(&flow));
        (taken.filter_map(wire).collect(), dropped)
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wire((flow, counter): (Flow, Counter)) -> Option<v1::Flow> {
    let tally = counter.take()?;
    let (operation, method, path) = match flow.asked {
        Asked::Connection => (String::new(), String::new(), String::new()),
        Asked::Operation(name, method, path) => {
            (name.to_string(), method.to_owned(), path.to_string())
        }
        Asked::Undeclared(method) => (String::new(), method.to_owned(), String::new()),
    };
    Some(v1::Flow {
        point: String::new(),
        source: flow.source.to_string(),
        service: flow.service.to_string(),
        operation,
        method,
        path,
        allowed: flow.allowed,
        mode: flow.mode.as_str().to_owned(),
        policies: flow.policies,
        first_micros: tally.first.micros(),
        last_micros: tally.last.micros(),
        count: tally.count,
    })
}

#[cfg(test)]
mod tests {
    use countersign_identity::Code;

    use super::*;

    fn flow(number: usize) -> Flow {
        let source = format!("spiffe://shop.example/w{number}").parse().unwrap();
        let verdict = Verdict::Deny(Code::PolicyDenied);
        let decision = Decision { verdict, mode: Mode::Enforce, policies: Vec::new() };
        Flow::connection(source, "payments".parse().unwrap(), &decision)
    }

    #[test]
    fn flows_of_one_kind_are_one_with_a_count_and_too_many_kinds_are_a_number() {
        let flows = Flows::default();
        for second in 1..=3 {
            flows.count(flow(0), Timestamp::from_secs(second));
        }
        for number in 1..FLOWS_MAX + 5 {
            flows.count(flow(number), Timestamp::from_secs(9));
        }
        let (some, dropped) = flows.take(100);
        assert_eq!((some.len(), dropped), (100, 5));
        let (rest, dropped) = flows.take(usize::MAX);
        assert_eq!((rest.len(), dropped), (FLOWS_MAX - 100, 0));
        let all: Vec<_> = some.into_iter().chain(rest).collect();
        let first = all.iter().find(|flow| flow.source.ends_with("/w0")).unwrap();
        assert_eq!((first.count, first.first_micros, first.last_micros), (3, 1_000_000, 3_000_000));
        assert!(flows.take(1).0.is_empty());
    }

    #[test]
    fn each_is_told_of_once_also_by_whoever_knows_where_it_is_counted() {
        let (flows, at) = (Flows::default(), Timestamp::from_secs);
        let counter = flows.begin(flow(0), at(1)).unwrap();
        let same = flows.begin(flow(0), at(2)).unwrap();
        assert!(counter.count(at(5)) && same.count(at(4)));
        let (told, _) = flows.drain();
        assert_eq!(
            (told[0].count, told[0].first_micros, told[0].last_micros),
            (4, 1_000_000, 5_000_000)
        );
        assert!(!counter.count(at(6)), "what is told of takes nothing more");
        assert!(flows.begin(flow(0), at(7)).unwrap().count(at(8)));
        assert_eq!(flows.drain().0[0].count, 2);
    }
}
