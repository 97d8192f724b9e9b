//! What a node decides by its slice is what would be decided by all that is declared.

#[path = "../../../../policy/tests/support/random.rs"]
mod random;

use countersign_api::resource::Kind as Declared;
use countersign_store::{Change, Kind, Record};
use proptest::prelude::*;
use random::{
    Known, NAMES, Stored, callers, id, policy, stored_policy, stored_roles, stored_workload,
};

use super::tests::{labels, state};
use super::*;

fn record((kind, name, value): Stored) -> Record {
    Record { kind: crate::admin::apply::record_kind(kind), name, value }
}

fn declared(kind: Kind) -> Option<Declared> {
    match kind {
        Kind::Workload => Some(Declared::Workload),
        Kind::Service => Some(Declared::Service),
        Kind::Policy => Some(Declared::Policy),
        Kind::Role => Some(Declared::Role),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_slice_of_a_node_decides_as_the_whole(
        policies in proptest::collection::vec(policy(), 1..8),
        here in proptest::collection::vec(any::<bool>(), NAMES.len()),
        upstreams in proptest::collection::vec(proptest::option::of(proptest::sample::select(&NAMES[..])), NAMES.len()),
    ) {
        let mut stored: Vec<Stored> = Vec::new();
        for (number, policy) in policies.iter().enumerate() {
            stored.push(stored_policy(&format!("p{number}"), policy));
        }
        stored.extend(stored_roles());
        for ((name, here), upstream) in NAMES.iter().zip(&here).zip(&upstreams) {
            stored.extend(stored_workload(name, if *here { "x" } else { "y" }, *upstream));
        }
        let Some(whole) = Known::of(stored.clone(), NAMES.map(id)) else { return Ok(()) };
        // It was otherwise before: what is remembered of that must not be believed any more.
        let (x, gone) = (labels(&["x"]), "gone");
        let mut before: Vec<Stored> = vec![stored_policy(gone, &policies[0])];
        for (name, here) in NAMES.iter().zip(&here) {
            before.extend(stored_workload(name, if *here { "y" } else { "x" }, None));
        }
        let before = state(before.into_iter().map(record).collect());
        let earlier = Slice::cut(&before, &x, None);
        let puts = stored.into_iter().map(|stored| Change::Put(record(stored)));
        let removal = Change::Remove { kind: Kind::Policy, name: gone.to_owned() };
        let revision = Revision { number: before.revision.number + 1, ..before.revision };
        let after = before.changed(revision, puts.chain([removal]).collect()).expect("it parses");
        let slice = Slice::cut(&after, &x, Some(&earlier));
        let part = slice.records.iter().filter_map(|(key, entry)| {
            Some((declared(key.kind)?, key.name.to_string(), entry.wire.value.to_vec()))
        });
        let named = slice.records.keys().filter(|key| key.kind == Kind::Workload).map(|key| id(&key.name));
        let part = Known::of(part, named).expect("what compiles as a whole does so in part");
        for (name, _) in NAMES.iter().zip(&here).filter(|(_, here)| **here) {
            for from in callers() {
                prop_assert_eq!(part.connect(&from, name), whole.connect(&from, name), "{} to {}", from, name);
                prop_assert_eq!(part.calls(&from, name), whole.calls(&from, name), "{} to {}", from, name);
                prop_assert_eq!(part.topics(&from, name), whole.topics(&from, name), "{} to {}", from, name);
            }
            for to in whole.called_by(name) {
                prop_assert_eq!(part.connect(&id(name), &to), whole.connect(&id(name), &to), "{} to {}", name, to);
            }
        }
    }
}
