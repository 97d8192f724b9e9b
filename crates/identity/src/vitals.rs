//! What a component cannot do without, and how it stands: what went well last, what failed last, and when it ends.

use std::sync::Arc;

use crate::Timestamp;

/// Something whose end is the end of what a component does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Vital {
    /// The certificate that is shown.
    Leaf,
    /// What signed it.
    Issuer,
    /// What peers are verified by.
    Bundle,
    /// What peers may do.
    Policy,
    /// Where peers are let in. Only who has doors can tell of them.
    Door,
}

/// A try that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// When.
    pub at: Timestamp,
    /// Why, for people.
    pub why: Arc<str>,
}

/// How one of them stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// When it was last had, or confirmed.
    pub good: Option<Timestamp>,
    /// When it last was not, though it was wanted, and why. It stays known when all is well again.
    pub failed: Option<Failed>,
    /// When what is in use ends; nothing where it has no end.
    pub ends: Option<Timestamp>,
}

/// How all of them stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vitals([Condition; 5]);

/// What is told of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// When it was last good.
    Good,
    /// When it last failed.
    Failed,
    /// When it ends.
    Ends,
}

impl Vital {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Leaf, Self::Issuer, Self::Bundle, Self::Policy, Self::Door];

    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leaf => "leaf",
            Self::Issuer => "issuer",
            Self::Bundle => "bundle",
            Self::Policy => "policy",
            Self::Door => "door",
        }
    }
}

impl Vitals {
    /// It was had, and is good until then. A time that lies before what is known changes nothing but the end.
    pub fn good(&mut self, vital: Vital, at: Timestamp, ends: Option<Timestamp>) {
        let condition = &mut self.0[vital as usize];
        condition.good = condition.good.max(Some(at));
        condition.ends = ends;
    }

    /// It was wanted and not had. What lies before what is known changes nothing.
    pub fn failed(&mut self, vital: Vital, failed: &Failed) {
        let known = &mut self.0[vital as usize].failed;
        if known.as_ref().is_none_or(|known| known.at <= failed.at) {
            *known = Some(failed.clone());
        }
    }

    /// What is in use ends then; of what was had or not, nothing new is known.
    pub fn ends(&mut self, vital: Vital, ends: Option<Timestamp>) {
        self.0[vital as usize].ends = ends;
    }

    /// How one of them stands.
    pub fn of(&self, vital: Vital) -> &Condition {
        &self.0[vital as usize]
    }

    /// Each of them, and how it stands.
    pub fn all(&self) -> impl Iterator<Item = (Vital, &Condition)> {
        Vital::ALL.into_iter().map(|vital| (vital, self.of(vital)))
    }

    /// What is known of one kind, in seconds since 1970. What is not known, or has no end, is left out.
    pub fn told(&self, told: Told) -> impl Iterator<Item = (Vital, i64)> {
        let moment = move |condition: &Condition| match told {
            Told::Good => condition.good,
            Told::Failed => condition.failed.as_ref().map(|failed| failed.at),
            Told::Ends => condition.ends,
        };
        self.all().filter_map(move |(vital, condition)| Some((vital, moment(condition)?.secs())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_told_and_never_takes_a_step_back() {
        let at = Timestamp::from_secs;
        let mut vitals = Vitals::default();
        assert_eq!(vitals.told(Told::Good).count(), 0);
        vitals.good(Vital::Leaf, at(20), Some(at(100)));
        vitals.good(Vital::Leaf, at(10), Some(at(90)));
        let failed = |secs, why: &str| Failed { at: at(secs), why: why.into() };
        vitals.failed(Vital::Policy, &failed(30, "away"));
        vitals.failed(Vital::Policy, &failed(20, "earlier"));
        assert_eq!(vitals.of(Vital::Policy).failed, Some(failed(30, "away")));
        assert_eq!(vitals.told(Told::Good).collect::<Vec<_>>(), [(Vital::Leaf, 20)]);
        assert_eq!(vitals.told(Told::Ends).collect::<Vec<_>>(), [(Vital::Leaf, 90)]);
        assert_eq!(vitals.told(Told::Failed).collect::<Vec<_>>(), [(Vital::Policy, 30)]);
    }
}
