//! What may be touched where nobody says it: every choice of data that policies could tell apart.

use std::collections::{BTreeMap, BTreeSet};

use countersign_identity::Name;

use crate::Scope;

/// How many data sets of one service one policy may weigh against each other, so that all choices of them are looked at.
const WEIGHED_MAX: usize = 5;
/// How many choices are looked at, beside that of nothing and that of all there is.
const CASES_MAX: usize = 64;

/// A policy that may say of a part of the data something else than of all of it and of none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Weighing {
    /// Its name.
    policy: String,
    /// What it names.
    data_sets: BTreeSet<String>,
    /// Whether it reads how data is classified.
    classifications: bool,
}

/// Choices of a service's data.
#[derive(Debug, Default)]
pub(crate) struct Cases(BTreeSet<BTreeSet<Name>>);

impl Weighing {
    pub(crate) fn of(policy: &str, scope: &Scope) -> Self {
        Self {
            policy: policy.to_owned(),
            data_sets: scope.data_sets.clone(),
            classifications: scope.classifications,
        }
    }

    /// Those of the data sets that it can tell apart: what it names, and of the others one of each classification, if it reads that.
    fn told_apart<'a>(&self, held: &'a BTreeMap<Name, String>) -> Vec<&'a Name> {
        let (named, others): (Vec<_>, Vec<_>) =
            held.iter().partition(|(name, _)| self.data_sets.contains(name.as_str()));
        let mut classified: BTreeMap<&str, &Name> = BTreeMap::new();
        if self.classifications {
            classified.extend(others.into_iter().map(|(name, word)| (word.as_str(), name)));
        }
        named.into_iter().map(|(name, _)| name).chain(classified.into_values()).collect()
    }
}

impl Cases {
    /// Those in which one of these policies could say something else than of nothing and of all that the service has. Returns
    /// the policies for which there would be too many.
    pub(crate) fn add<'a>(
        &mut self,
        policies: impl Iterator<Item = &'a Weighing>,
        held: &BTreeMap<Name, String>,
    ) -> BTreeSet<String> {
        let mut beyond = BTreeSet::new();
        for weighing in policies {
            let apart = weighing.told_apart(held);
            if WEIGHED_MAX < apart.len() {
                beyond.insert(weighing.policy.clone());
                continue;
            }
            let all = (1_usize << apart.len()) - 1;
            let chosen = |choice: usize| -> BTreeSet<Name> {
                let is_in = |place: usize| choice >> place & 1 == 1;
                let chosen = apart.iter().enumerate().filter(|(place, _)| is_in(*place));
                chosen.map(|(_, name)| (*name).clone()).collect()
            };
            // All that it can tell apart is to it all that there is.
            self.0.extend((1..all).map(chosen));
            if CASES_MAX < self.0.len() {
                beyond.insert(weighing.policy.clone());
                break;
            }
        }
        beyond
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &BTreeSet<Name>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(count: usize) -> BTreeMap<Name, String> {
        let words = ["public", "restricted"];
        let one = |number: usize| {
            (format!("d{number}").parse().unwrap(), words[number % words.len()].to_owned())
        };
        (0..count).map(one).collect()
    }

    fn weighing(policy: &str, data_sets: &[&str], classifications: bool) -> Weighing {
        let data_sets = data_sets.iter().map(|&name| name.to_owned()).collect();
        Weighing { policy: policy.to_owned(), data_sets, classifications }
    }

    /// The choices, each as one text.
    fn texts(cases: &Cases) -> Vec<String> {
        let text =
            |case: &BTreeSet<Name>| case.iter().map(Name::as_str).collect::<Vec<_>>().join(" ");
        cases.iter().map(text).collect()
    }

    #[track_caller]
    fn chosen(data_sets: &[&str], classifications: bool, expected: &[&str]) {
        let mut cases = Cases::default();
        let beyond = cases.add([weighing("p", data_sets, classifications)].iter(), &held(4));
        assert!(beyond.is_empty());
        assert_eq!(texts(&cases), expected, "{data_sets:?}");
    }

    #[test]
    fn only_what_a_policy_can_tell_apart_is_chosen_from() {
        chosen(&["d0"], false, &[]);
        chosen(&["d0", "elsewhere"], false, &[]);
        chosen(&["d0", "d2"], false, &["d0", "d2"]);
        // One of each classification.
        chosen(&[], true, &["d2", "d3"]);
        chosen(&["d0"], true, &["d0", "d0 d2", "d0 d3", "d2", "d2 d3", "d3"]);
    }

    #[test]
    fn too_many_choices_are_told_and_bounded() {
        let all = ["d0", "d1", "d2", "d3", "d4", "d5"];
        let mut cases = Cases::default();
        let wide = [weighing("wide", &all, false), weighing("narrow", &all[..2], false)];
        assert_eq!(cases.add(wide.iter(), &held(9)), ["wide".to_owned()].into());
        assert_eq!(texts(&cases), ["d0", "d1"]);
        let names: Vec<String> = (0..64).map(|number| format!("d{number}")).collect();
        let many = names.chunks(4).enumerate().map(|(number, names)| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            weighing(&format!("p{number}"), &names, false)
        });
        let many: Vec<Weighing> = many.collect();
        let mut cases = Cases::default();
        assert!(!cases.add(many.iter(), &held(64)).is_empty());
        assert!(texts(&cases).len() <= CASES_MAX + (1 << WEIGHED_MAX));
        assert!(cases.add(std::iter::empty(), &held(64)).is_empty());
    }
}
