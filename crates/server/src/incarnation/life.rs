//! What the state says of its own incarnation.

use std::time::Duration;

use countersign_identity::{Code, Incarnation, Revision, Sha256, Timestamp};
use countersign_store::{Change, Kind, Record};
use serde::{Deserialize, Serialize};

use crate::refusal::Refused;

/// The name of the one record of its kind.
pub(crate) const CURRENT: &str = "current";

/// Why an incarnation began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cause {
    /// A backup was restored.
    Restored,
    /// The store was found behind what had been seen of it.
    Behind,
}

impl Cause {
    /// As people read it.
    pub(crate) const fn sentence(self) -> &'static str {
        match self {
            Self::Restored => "a backup was restored",
            Self::Behind => "the store was behind what had been seen of it",
        }
    }
}

/// Whether a server has served an incarnation that a restore began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Served {
    /// A version that did not note it has begun it: the log tells.
    #[default]
    Unsaid,
    /// Not yet.
    Never,
    /// First at this moment.
    Since(Timestamp),
}

impl Served {
    fn is_unsaid(&self) -> bool {
        *self == Self::Unsaid
    }
}

/// What is known of the life before: the end of it that the store has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Before {
    pub(crate) incarnation: Incarnation,
    pub(crate) revision: Revision,
    pub(crate) log_size: u64,
    pub(crate) log_root: Sha256,
    /// When its last event was written.
    pub(crate) at: Timestamp,
}

/// An incarnation that followed another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Life {
    pub(crate) cause: Cause,
    pub(crate) began: Timestamp,
    pub(crate) from: Before,
    /// Until when something may have happened that is lost, where that is later than the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lost_until: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Served::is_unsaid")]
    pub(crate) served: Served,
    /// Nothing is issued before.
    pub(crate) hold_until: Timestamp,
    /// When an operator ended the hold-off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resumed: Option<Timestamp>,
    /// The server that still takes in rules of its journal; nothing is issued before it has them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) taking_in: Option<String>,
    /// When what is of an earlier incarnation is covered.
    pub(crate) cover_at: Timestamp,
    /// The last moment at which anything of it could be valid.
    pub(crate) until: Timestamp,
    /// Whether it is covered.
    pub(crate) covered: bool,
}

impl Life {
    /// Until when nothing is issued, if that is so now; while rules are taken in, at the earliest.
    pub(crate) fn holds(&self, now: Timestamp) -> Option<Timestamp> {
        if self.resumed.is_none() && self.taking_in.is_some() {
            return Some(self.hold_until.max(now));
        }
        (self.resumed.is_none() && now < self.hold_until).then_some(self.hold_until)
    }

    /// Goes on only when issuing is not held off.
    ///
    /// # Errors
    /// `not-ready`, with the moment from which it is.
    pub(crate) fn issues(&self, now: Timestamp) -> Result<(), Refused> {
        let Some(until) = self.holds(now) else { return Ok(()) };
        let (began, cause) = (self.began, self.cause.sentence());
        if let Some(server) = &self.taking_in {
            let why = format!(
                "a new incarnation began at {began} ({cause}), and server `{server}` has not taken in all rules of its \
                 journal yet: nothing is issued before; if it was cut off, start it again with `--journal`, and if it \
                 does not come back, `countersign resume-issuing` issues without them"
            );
            return Err(Refused::new(Code::NotReady, why));
        }
        let why = format!(
            "a new incarnation began at {began} ({cause}): nothing is issued until {until}, so that agents can hand \
             back the revocations that they remember; `countersign resume-issuing` ends the wait"
        );
        Err(Refused::new(Code::NotReady, why))
    }

    /// Whether a suspension made at this moment may have been lost with the tail.
    pub(crate) fn may_have_lost(&self, at: Timestamp) -> bool {
        let skew = countersign_identity::SKEW_ALLOWED;
        let lost_until = self.lost_until.unwrap_or(self.began);
        // Before, nobody could suspend or lift anything in it.
        let lost_until = match self.served {
            Served::Since(first) => lost_until.max(first),
            Served::Unsaid | Served::Never => lost_until,
        };
        self.from.at <= at + skew && at <= lost_until + skew && !self.covered
    }

    /// Whether a revision was given out in the life before, and is not in the store: what it said is not known here.
    pub(crate) fn has_lost(&self, revision: Revision) -> bool {
        self.from.revision < revision && revision.incarnation <= self.from.incarnation
    }

    /// The record that says all this.
    pub(crate) fn change(&self) -> Change {
        let value = serde_json::to_vec(self).expect("a life always has a JSON form");
        Change::Put(Record { kind: Kind::Incarnation, name: CURRENT.to_owned(), value })
    }
}

/// When what is of an earlier incarnation is covered: one SVID lifetime after issuing may begin.
pub(super) fn cover_at(now: Timestamp, hold_off: Duration, lifetime: Duration) -> Timestamp {
    now + hold_off + lifetime
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_secs(1_795_262_400 + secs)
    }

    fn life() -> Life {
        let log_root = Sha256::from_bytes([1; 32]);
        let revision = Revision { incarnation: 1, number: 9 };
        let from = Before { incarnation: 1, revision, log_size: 20, log_root, at: at(0) };
        Life {
            cause: Cause::Behind,
            began: at(1000),
            from,
            lost_until: None,
            served: Served::Unsaid,
            hold_until: at(1060),
            resumed: None,
            taking_in: None,
            cover_at: at(4660),
            until: at(90_000),
            covered: false,
        }
    }

    #[test]
    fn a_suspension_comes_back_only_from_the_lost_span_and_only_until_what_came_before_is_covered()
    {
        let skew = i64::try_from(countersign_identity::SKEW_ALLOWED.as_secs()).unwrap();
        let life = life();
        for inside in [-skew, 0, 500, 1000, 1000 + skew] {
            assert!(life.may_have_lost(at(inside)), "{inside}");
        }
        // The state has those of before, unless they were lifted; and those of after were made in it.
        for outside in [-skew - 1, -100_000, 1001 + skew, 100_000] {
            assert!(!life.may_have_lost(at(outside)), "{outside}");
        }
        let further = Life { lost_until: Some(at(2000)), ..life.clone() };
        assert!(further.may_have_lost(at(2000 + skew)) && !further.may_have_lost(at(2001 + skew)));
        let served = Life { served: Served::Since(at(2000)), ..life.clone() };
        assert!(served.may_have_lost(at(2000 + skew)) && !served.may_have_lost(at(2001 + skew)));
        let covered = Life { covered: true, ..life };
        assert!(!covered.may_have_lost(at(500)));
    }

    #[test]
    fn nothing_is_issued_before_the_hold_off_ends_or_an_operator_says_so() {
        let life = life();
        assert!(life.issues(at(1059)).is_err());
        assert!(life.issues(at(1060)).is_ok());
        let taking_in = Life { taking_in: Some("one".to_owned()), ..life.clone() };
        let refused = taking_in.issues(at(9000)).unwrap_err();
        assert!(refused.why.contains("server `one`"), "{}", refused.why);
        assert_eq!(taking_in.holds(at(9000)), Some(at(9000)));
        assert!(Life { resumed: Some(at(1001)), ..taking_in }.issues(at(1002)).is_ok());
        let resumed = Life { resumed: Some(at(1001)), ..life };
        assert!(resumed.issues(at(1002)).is_ok());
    }

    #[test]
    fn what_an_earlier_version_wrote_is_read_and_written_the_same() {
        let text = r#"{"cause":"restored","began":"2026-11-22T12:00:00Z","from":{"incarnation":1,
            "revision":"1.9","logSize":20,
            "logRoot":"0101010101010101010101010101010101010101010101010101010101010101",
            "at":"2026-11-21T12:00:00Z"},"holdUntil":"2026-11-22T12:01:00Z",
            "coverAt":"2026-11-22T13:01:00Z","until":"2026-11-23T12:00:00Z","covered":false}"#;
        let life: Life = serde_json::from_str(text).unwrap();
        assert_eq!((life.served, life.lost_until), (Served::Unsaid, None));
        let before: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_value(&life).unwrap(), before);
        let life = Life { served: Served::Since(at(0)), lost_until: Some(at(1)), ..life };
        let written = serde_json::to_vec(&life).unwrap();
        assert_eq!(serde_json::from_slice::<Life>(&written).unwrap(), life);
    }
}
