//! Every order of events of a small system, tried: breadth first, so that what is found is the shortest way to it.
//!
//! It is exhaustive or it fails: when there are more states than its caller has said, nothing is left out silently.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fmt::{Debug, Write as _};
use std::hash::Hash;

/// A system that is small enough.
pub(crate) trait Model {
    /// All that there is at one moment.
    type State: Clone;
    /// What may happen next.
    type Event: Copy + Debug;
    /// What tells states apart. Of those with one key the future is one, and only the first that was found is followed.
    type Key: Eq + Hash;

    /// Where everything begins.
    fn begin(&self) -> Self::State;

    /// What could happen.
    fn events(&self, state: &Self::State) -> Vec<Self::Event>;

    /// What comes of it; nothing when it cannot happen here.
    fn step(&self, state: &Self::State, event: Self::Event) -> Option<Self::State>;

    /// What tells this state apart.
    fn key(&self, state: &Self::State) -> Self::Key;

    /// What must hold in every state.
    fn claims(&self) -> Vec<Claim<Self>>;

    /// What must be possible: that it is in this state. A model in which nothing comes about claims nothing.
    fn possible(&self) -> Vec<Claim<Self>>;
}

/// Words, and whether they are true of a state.
pub(crate) struct Claim<M: Model + ?Sized> {
    words: &'static str,
    holds: fn(&M, &M::State) -> bool,
}

/// That these words are true of a state.
pub(crate) fn claim<M: Model>(words: &'static str, holds: fn(&M, &M::State) -> bool) -> Claim<M> {
    Claim { words, holds }
}

/// What came of all orders of events.
#[derive(Debug)]
pub(crate) struct Explored {
    /// So many states were found.
    pub(crate) states: usize,
    /// So many events are between the beginning and the last that was found.
    pub(crate) depth: usize,
    /// What should be possible, and is not.
    pub(crate) impossible: BTreeSet<&'static str>,
    /// A claim that does not hold, and the events that lead to it.
    pub(crate) broken: Option<(&'static str, String)>,
}

struct Found<M: Model> {
    state: M::State,
    place: usize,
    depth: usize,
}

/// Explores at most so many states, until the first that breaks one of the claims, or only this one.
///
/// # Panics
/// When there are more states.
pub(crate) fn explore<M: Model>(model: &M, states_max: usize, only: Option<&str>) -> Explored {
    let mut claims = model.claims();
    claims.retain(|claim| only.is_none_or(|only| claim.words == only));
    assert!(!claims.is_empty(), "nothing is claimed by {only:?}");
    let mut possible = model.possible();
    let begin = model.begin();
    let mut known = HashSet::from([model.key(&begin)]);
    // From where each state was found first, and by what.
    let mut ways: Vec<Option<(usize, M::Event)>> = vec![None];
    let mut next = VecDeque::from([Found::<M> { state: begin, place: 0, depth: 0 }]);
    let mut deepest = 0;
    let mut broken = None;
    while let Some(Found { state, place, depth }) = next.pop_front() {
        deepest = depth;
        possible.retain(|claim| !(claim.holds)(model, &state));
        if let Some(claim) = claims.iter().find(|claim| !(claim.holds)(model, &state)) {
            broken = Some((claim.words, told(&ways, place)));
            break;
        }
        for event in model.events(&state) {
            let Some(state) = model.step(&state, event) else { continue };
            if known.insert(model.key(&state)) {
                assert!(known.len() <= states_max, "there are more than {states_max} states");
                ways.push(Some((place, event)));
                next.push_back(Found { state, place: ways.len() - 1, depth: depth + 1 });
            }
        }
    }
    let impossible = possible.into_iter().map(|claim| claim.words).collect();
    Explored { states: known.len(), depth: deepest, impossible, broken }
}

/// The events that lead to a state, one a line.
fn told<E: Copy + Debug>(ways: &[Option<(usize, E)>], mut place: usize) -> String {
    let mut events = Vec::new();
    while let Some((before, event)) = ways[place] {
        events.push(event);
        place = before;
    }
    events.into_iter().rev().fold(String::new(), |mut text, event| {
        writeln!(text, "  {event:?}").expect("a string takes all that is written");
        text
    })
}

/// Every claim holds in every state, there are at least so many of those, and all that should be possible is.
#[track_caller]
pub(crate) fn holds<M: Model>(model: &M, states_min: usize, states_max: usize) {
    let explored = explore(model, states_max, None);
    println!("{} states, at most {} events deep", explored.states, explored.depth);
    if let Some((claim, way)) = explored.broken {
        panic!("not so: {claim}\n{way}");
    }
    assert!(explored.impossible.is_empty(), "never: {:?}", explored.impossible);
    assert!(states_min <= explored.states, "{} states, of {states_min}", explored.states);
}

/// This claim is broken, as it must be by whatever is wrong with this model: what cannot fail says nothing.
#[track_caller]
pub(crate) fn breaks<M: Model>(model: &M, states_max: usize, claim: &'static str) {
    let broken = explore(model, states_max, Some(claim)).broken;
    let (_, way) = broken.unwrap_or_else(|| panic!("it is not noticed that not so: {claim}"));
    println!("not so: {claim}\n{way}");
}

/// Two hands that count to three, in turns of their own.
struct Hands;

impl Model for Hands {
    type State = (u8, u8);
    type Event = bool;
    type Key = (u8, u8);

    fn begin(&self) -> (u8, u8) {
        (0, 0)
    }

    fn events(&self, _state: &(u8, u8)) -> Vec<bool> {
        vec![false, true]
    }

    fn step(&self, &(left, right): &(u8, u8), event: bool) -> Option<(u8, u8)> {
        let next = if event { (left + 1, right) } else { (left, right + 1) };
        (next.0 <= 3 && next.1 <= 3).then_some(next)
    }

    fn key(&self, state: &(u8, u8)) -> (u8, u8) {
        *state
    }

    fn claims(&self) -> Vec<Claim<Self>> {
        vec![claim::<Self>("never both at two", |_, state| *state != (2, 2))]
    }

    fn possible(&self) -> Vec<Claim<Self>> {
        vec![
            claim::<Self>("one is at three", |_, state| state.0 == 3),
            claim::<Self>("one is at four", |_, state| state.0 == 4),
        ]
    }
}

#[test]
fn shortest_way_to_what_must_not_be_is_found_and_told() {
    let explored = explore(&Hands, 16, None);
    let (claim, way) = explored.broken.unwrap();
    assert_eq!((claim, way.lines().count()), ("never both at two", 4));
    assert_eq!(explored.impossible, BTreeSet::from(["one is at four"]));
}

#[test]
#[should_panic(expected = "there are more than 5 states")]
fn more_states_than_were_said_are_no_proof() {
    explore(&Hands, 5, None);
}
