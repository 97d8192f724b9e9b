//! How the parts stand that a process cannot do without: its own credential, that one's issuer, its bundle and its policies.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use countersign_identity::{Failed, Timestamp, Told, Vital, Vitals};
use countersign_tls::Trust;

use crate::{Enforcement, Link, Status, Topic};

/// How they stand, as the source has seen it: what was last had, what was last wanted and not had, and what ends when.
///
/// [`vitals`](Self::vitals) is for programs that have metrics of their own, [`page`](Self::page) for those that have none.
#[derive(Clone, Debug)]
pub struct Parts {
    trust: Arc<Trust>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    vitals: Vitals,
    /// The agent says now who may connect.
    subscribed: bool,
    /// Why what gives the identity is away now.
    link_lost: Option<Arc<str>>,
    /// Why what gives bundles and policies is away now.
    agent_lost: Option<Arc<str>>,
}

const FROM_LINK: [Vital; 2] = [Vital::Leaf, Vital::Issuer];
const FROM_AGENT: [Vital; 2] = [Vital::Bundle, Vital::Policy];

/// Name, kind, labels and meaning of every metric of a [page](Parts::page).
pub const METRICS: [(&str, &str, &[&str], &str); 4] = [
    (
        "countersign_library_last_good_seconds",
        "gauge",
        &["part"],
        "When leaf, issuer, bundle, policy or doors were last had or confirmed, in seconds since 1970.",
    ),
    (
        "countersign_library_last_failure_seconds",
        "gauge",
        &["part"],
        "When they were last wanted and not had, in seconds since 1970; absent when never.",
    ),
    (
        "countersign_library_ends_seconds",
        "gauge",
        &["part"],
        "When the own leaf, its issuer, the first authority of the bundle or the first policy ends, in seconds since 1970.",
    ),
    (
        "countersign_library_subscribed",
        "gauge",
        &[],
        "1 while the agent says who may connect; 0 by local rules, and while it is away.",
    ),
];

impl Parts {
    /// Of a process of which nothing was seen yet.
    pub fn new(trust: Arc<Trust>) -> Self {
        Self { trust, seen: Arc::default() }
    }

    /// How all stands now, with the ends of what is in use.
    pub fn vitals(&self) -> Vitals {
        let (own, slice, now) =
            (self.trust.identity(), self.trust.slice(), self.trust.clock().now());
        let seen = self.seen();
        let mut vitals = seen.vitals.clone();
        let domain = own.as_ref().map(|own| own.id().trust_domain());
        let bundle = domain.and_then(|domain| slice.bundles.get(domain));
        for (part, ends) in [
            (Vital::Leaf, own.as_ref().map(|own| own.leaf().validity().not_after)),
            (Vital::Issuer, own.as_ref().and_then(|own| own.chain().issuers_end())),
            (Vital::Bundle, bundle.and_then(|bundle| bundle.ends(now))),
            (Vital::Policy, slice.policies.ends()),
        ] {
            vitals.ends(part, ends);
        }
        // The agent says at once what is new, so what it has not taken back stands.
        if seen.subscribed {
            for part in FROM_AGENT {
                let ends = vitals.of(part).ends;
                vitals.good(part, now, ends);
            }
        }
        // What is away is wanted all the time.
        for (lost, parts) in [(&seen.link_lost, FROM_LINK), (&seen.agent_lost, FROM_AGENT)] {
            if let Some(why) = lost {
                let failed = Failed { at: now, why: Arc::clone(why) };
                parts.iter().for_each(|part| vitals.failed(*part, &failed));
            }
        }
        vitals
    }

    /// Whether the agent says now who may connect. By local rules it never does.
    pub fn is_subscribed(&self) -> bool {
        self.seen().subscribed
    }

    /// All of it as text for Prometheus, version 0.0.4.
    pub fn page(&self) -> String {
        let (vitals, mut page) = (self.vitals(), String::new());
        let [good, failed, ends, subscribed] = METRICS;
        let told = [(good, Told::Good), (failed, Told::Failed), (ends, Told::Ends)];
        let told = told.map(|(row, told)| {
            let of = |(part, at): (Vital, i64)| (format!("{{part=\"{}\"}}", part.as_str()), at);
            (row, vitals.told(told).map(of).collect())
        });
        let subscribed = (subscribed, vec![(String::new(), i64::from(self.is_subscribed()))]);
        for ((name, kind, _labels, meaning), samples) in told.into_iter().chain([subscribed]) {
            // Writing to a string cannot fail.
            let _ = writeln!(page, "# HELP {name} {meaning}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(page, "{name}{labels} {value}");
            }
        }
        page
    }

    /// An identity came, and is shown.
    pub(crate) fn identified(&self, now: Timestamp) {
        self.seen().good(&FROM_LINK, now);
    }

    /// All doors are open that there are to be, or not.
    pub(crate) fn doors(&self, open: Result<(), &str>, now: Timestamp) {
        let mut seen = self.seen();
        match open {
            Ok(()) => seen.good(&[Vital::Door], now),
            Err(why) => seen.failed(&[Vital::Door], now, why),
        }
    }

    /// Takes what the source says of itself.
    pub(crate) fn saw(&self, status: &Status, now: Timestamp) {
        self.seen().saw(status, now);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn saw(&mut self, status: &Status, now: Timestamp) {
        // What was away so far was so until now.
        for (lost, parts) in
            [(self.link_lost.take(), FROM_LINK), (self.agent_lost.take(), FROM_AGENT)]
        {
            lost.iter().for_each(|why| self.failed(&parts, now, why));
        }
        if let Some(why) = status.troubles.get(&Topic::Identity) {
            self.failed(&FROM_LINK, now, why);
        }
        if let Link::Lost { since, why } = &status.link {
            self.failed(&FROM_LINK, *since, why);
            self.link_lost = Some(why.as_str().into());
        }
        self.subscribed = status.enforcement == Enforcement::Subscribed;
        match &status.enforcement {
            Enforcement::Lost { since, why } => {
                self.failed(&FROM_AGENT, *since, why);
                self.agent_lost = Some(why.as_str().into());
            }
            Enforcement::Waiting => {}
            Enforcement::Subscribed | Enforcement::Local | Enforcement::NotOffered => {
                match status.troubles.get(&Topic::Slice) {
                    Some(why) => {
                        self.subscribed = false;
                        self.failed(&FROM_AGENT, now, why);
                    }
                    None => self.good(&FROM_AGENT, now),
                }
            }
        }
        for (topic, part) in [(Topic::Policy, Vital::Policy), (Topic::Bundle, Vital::Bundle)] {
            if let Some(why) = status.troubles.get(&topic) {
                self.failed(&[part], now, why);
            }
        }
    }

    fn good(&mut self, parts: &[Vital], at: Timestamp) {
        parts.iter().for_each(|part| self.vitals.good(*part, at, None));
    }

    fn failed(&mut self, parts: &[Vital], at: Timestamp, why: &str) {
        let failed = Failed { at, why: why.into() };
        parts.iter().for_each(|part| self.vitals.failed(*part, &failed));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use countersign_identity::SimClock;
    use countersign_tls::Slice;

    use super::*;

    fn fine() -> Status {
        Status {
            identity: None,
            link: Link::Connected,
            enforcement: Enforcement::Subscribed,
            revision: None,
            troubles: BTreeMap::new(),
        }
    }

    #[test]
    fn what_is_in_trouble_has_failed_and_what_was_good_stays_known() {
        let at = Timestamp::from_secs;
        let mut seen = Seen::default();
        seen.saw(&fine(), at(10));
        assert_eq!(seen.vitals.of(Vital::Policy).good, Some(at(10)));
        assert_eq!(seen.vitals.of(Vital::Leaf).good, None, "none was had yet");
        let trouble = |topic| BTreeMap::from([(topic, "bad".to_owned())]);
        seen.saw(&Status { troubles: trouble(Topic::Identity), ..fine() }, at(20));
        let failed = seen.vitals.of(Vital::Leaf).failed.clone();
        assert_eq!(failed, Some(Failed { at: at(20), why: "bad".into() }));
        let lost = Enforcement::Lost { since: at(25), why: "away".to_owned() };
        seen.saw(&Status { enforcement: lost, ..fine() }, at(30));
        let policy = seen.vitals.of(Vital::Policy);
        let away = Failed { at: at(25), why: "away".into() };
        assert_eq!((policy.good, policy.failed.clone()), (Some(at(20)), Some(away)));
        assert!(!seen.subscribed);
        // All is well again, and that it was not stays known.
        seen.saw(&fine(), at(40));
        let policy = seen.vitals.of(Vital::Policy);
        assert_eq!(policy.good, Some(at(40)));
        assert_eq!(policy.failed.as_ref().map(|failed| failed.at), Some(at(40)));
    }

    #[test]
    fn page_has_each_metric_of_the_table_and_says_what_is_known() {
        let clock = Arc::new(SimClock::new(Timestamp::from_secs(100)));
        let parts = Parts::new(Trust::new(clock, Slice::nothing()));
        let lost = Link::Lost { since: Timestamp::from_secs(50), why: "away".to_owned() };
        parts.saw(&Status { link: lost, ..fine() }, Timestamp::from_secs(60));
        let page = parts.page();
        for (name, kind, ..) in METRICS {
            assert_eq!(page.matches(&format!("# TYPE {name} {kind}\n")).count(), 1, "{page}");
        }
        // The agent stands by what it said, so that is confirmed now; and what is away is wanted now.
        for line in [
            "countersign_library_last_good_seconds{part=\"policy\"} 100\n",
            "countersign_library_last_failure_seconds{part=\"leaf\"} 100\n",
            "countersign_library_subscribed 1\n",
        ] {
            assert!(page.contains(line), "{page}");
        }
        assert!(!page.contains("good_seconds{part=\"leaf\"}"), "{page}");
    }
}
