//! Who asked whom for what, and what was decided: counted together, on its way to the agent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

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
    tallies: HashMap<Flow, Tally>, // INVARIANT: at most FLOWS_MAX
    dropped: u64,
}

impl Flows {
    /// Counts one.
    pub fn count(&self, flow: Flow, at: Timestamp) {
        let mut counted = self.lock();
        if let Some(tally) = counted.tallies.get_mut(&flow) {
            tally.last = tally.last.max(at);
            tally.count = tally.count.saturating_add(1);
        } else if counted.tallies.len() < FLOWS_MAX {
            counted.tallies.insert(flow, Tally { first: at, last: at, count: 1 });
        } else {
            counted.dropped = counted.dropped.saturating_add(1);
        }
    }

    /// What was counted and is not on its way yet.
    pub fn seen(&self) -> Vec<Flow> {
        self.lock().tallies.keys().cloned().collect()
    }

    /// Takes all that was counted, as it is told, and how many were not.
    pub fn drain(&self) -> (Vec<v1::Flow>, u64) {
        self.take(FLOWS_MAX)
    }

    /// Takes what was counted, at most so many, and how many were not; what is left comes the next time.
    pub(crate) fn take(&self, most: usize) -> (Vec<v1::Flow>, u64) {
        let mut counted = self.lock();
        let dropped = std::mem::take(&mut counted.dropped);
        if counted.tallies.len() <= most {
            let all = std::mem::take(&mut counted.tallies);
            drop(counted);
            return (all.into_iter().map(wire).collect(), dropped);
        }
        let some: Vec<Flow> = counted.tallies.keys().take(most).cloned().collect();
        let taken = some.into_iter().filter_map(|flow| counted.tallies.remove_entry(&flow));
        (taken.map(wire).collect(), dropped)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wire((flow, tally): (Flow, Tally)) -> v1::Flow {
    let (operation, method, path) = match flow.asked {
        Asked::Connection => (String::new(), String::new(), String::new()),
        Asked::Operation(name, method, path) => {
            (name.to_string(), method.to_owned(), path.to_string())
        }
        Asked::Undeclared(method) => (String::new(), method.to_owned(), String::new()),
    };
    v1::Flow {
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
    }
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
}
