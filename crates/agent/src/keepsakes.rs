//! Rules with the signatures of those who made them, kept until their end: a server whose store lost its tail takes them
//! back from here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use countersign_api::v1;
use countersign_identity::{Incarnation, Revocation, Suspension, Timestamp};

use crate::core::{RecordKey, RecordKind, Replica, SignedRecord};

/// How long a suspension is kept that a server of a newer incarnation does not speak of.
const SUSPENSION_KEPT: Duration = Duration::from_secs(30 * 86_400);

/// What is kept of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keepsake {
    pub(crate) value: Arc<[u8]>,
    pub(crate) signature: Arc<[u8]>,
    /// In which life of the store a server spoke of it last.
    pub(crate) incarnation: Incarnation,
}

/// All that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Keepsakes(BTreeMap<RecordKey, Keepsake>);

impl Keepsakes {
    /// What an earlier life wrote down.
    pub(crate) fn of(kept: impl IntoIterator<Item = (RecordKey, Keepsake)>) -> Self {
        Self(kept.into_iter().collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&RecordKey, &Keepsake)> {
        self.0.iter()
    }

    /// Takes rules that a server has just signed.
    pub(crate) fn learn(&mut self, signed: Vec<SignedRecord>, incarnation: Incarnation) {
        for SignedRecord { record, signature } in signed {
            let keepsake = Keepsake { value: record.value, signature, incarnation };
            self.0.insert(record.key, keepsake);
        }
    }

    /// Lets go of what is moot or was lifted, in the light of the records that are in force now.
    #[must_use]
    pub(crate) fn settled(&self, replica: &Replica, seen: Timestamp) -> Self {
        let rules: HashMap<&str, &Revocation> =
            replica.rules().iter().map(|(name, rule)| (&**name, &**rule)).collect();
        // One that a record of the same name has displaced goes on under another name.
        let all: HashSet<&Revocation> = rules.values().copied().collect();
        let current = replica.revision().incarnation;
        let stays = |(key, keepsake): (&RecordKey, &Keepsake)| {
            if replica.value(key.kind, &key.name) == Some(&keepsake.value) {
                return Some((key.clone(), Keepsake { incarnation: current, ..keepsake.clone() }));
            }
            let stays = match key.kind {
                RecordKind::Revocation => {
                    let rule = serde_json::from_slice::<Revocation>(&keepsake.value).ok();
                    rule.is_some_and(|rule| all.contains(&rule))
                }
                RecordKind::Suspension => {
                    let made = serde_json::from_slice::<Suspension>(&keepsake.value).ok();
                    keepsake.incarnation < current
                        && made.is_some_and(|made| seen < made.at + SUSPENSION_KEPT)
                }
                RecordKind::TrustDomain
                | RecordKind::Bundle
                | RecordKind::Workload
                | RecordKind::Service
                | RecordKind::Policy
                | RecordKind::Role => false,
            };
            stays.then(|| (key.clone(), keepsake.clone()))
        };
        Self(self.0.iter().filter_map(stays).collect())
    }

    /// What the server's records lack, to be handed back.
    pub(crate) fn missing(&self, replica: &Replica) -> Vec<v1::SignedRecord> {
        let lacks = |(key, keepsake): &(&RecordKey, &Keepsake)| {
            replica.value(key.kind, &key.name) != Some(&keepsake.value)
        };
        let wire = |(key, keepsake): (&RecordKey, &Keepsake)| v1::SignedRecord {
            kind: key.kind.to_string(),
            name: key.name.to_string(),
            value: Bytes::copy_from_slice(&keepsake.value),
            signature: Bytes::copy_from_slice(&keepsake.signature),
        };
        self.0.iter().filter(lacks).map(wire).collect()
    }
}

#[cfg(test)]
mod tests {
    use countersign_identity::{KeyId, Reason, Revision, Revoked, Suspended};

    use super::*;
    use crate::core::Record;

    const NOON: Timestamp = Timestamp::from_secs(1_795_262_400);

    fn rule(name: &str, until: Timestamp) -> Record {
        let target = Revoked::Key(KeyId::from_bytes([7; 32]));
        let reason = Reason::KeyCompromise;
        let rule = Revocation { target, about: None, reason, at: NOON, until };
        Record::read("Revocation", name, &serde_json::to_vec(&rule).unwrap()).unwrap()
    }

    fn suspension(name: &str) -> Record {
        let target = Suspended::Identity("spiffe://shop.example/web".parse().unwrap());
        let suspension = Suspension { target, reason: Reason::ProcessCompromise, at: NOON };
        Record::read("Suspension", name, &serde_json::to_vec(&suspension).unwrap()).unwrap()
    }

    fn replica(incarnation: u64, records: &[&Record]) -> Replica {
        let revision = Revision { incarnation, number: 5 };
        Replica::of(revision, records.iter().copied().cloned())
    }

    fn names(kept: &[v1::SignedRecord]) -> Vec<&str> {
        kept.iter().map(|record| record.name.as_str()).collect()
    }

    #[test]
    fn what_a_newer_incarnation_lacks_is_handed_back_until_it_is_moot() {
        let (one, two) = (rule("1.2.0", NOON + Duration::from_secs(600)), suspension("s"));
        let mut kept = Keepsakes::default();
        let signed =
            |record: &Record| SignedRecord { record: record.clone(), signature: [1].into() };
        kept.learn(vec![signed(&one), signed(&two)], 1);
        let full = replica(1, &[&one, &two]);
        let kept = kept.settled(&full, NOON);
        assert!(kept.missing(&full).is_empty());
        // A restored store knows neither; the replica goes on with the rule.
        let restored = replica(2, &[]).keeping(full.rules(), NOON);
        let kept = kept.settled(&restored, NOON);
        assert_eq!(names(&kept.missing(&restored)), ["1.2.0", "s"]);
        // What it has taken back is not handed back again.
        let again = replica(2, &[&one, &two]);
        assert!(kept.settled(&again, NOON).missing(&again).is_empty());
        let late = NOON + Duration::from_secs(7200);
        let moot = replica(2, &[]).keeping(full.rules(), late);
        assert_eq!(names(&kept.settled(&moot, late).missing(&moot)), ["s"]);
    }

    #[test]
    fn a_suspension_that_is_lifted_in_the_same_incarnation_is_let_go_of() {
        let held = suspension("s");
        let mut kept = Keepsakes::default();
        kept.learn(vec![SignedRecord { record: held.clone(), signature: [1].into() }], 1);
        let kept = kept.settled(&replica(1, &[&held]), NOON);
        assert_eq!(kept.settled(&replica(1, &[]), NOON), Keepsakes::default());
        assert_ne!(kept.settled(&replica(2, &[]), NOON), Keepsakes::default());
    }
}
