//! Whose try, at a handshake or at another proof, is worth an operation with a key, judged by where it comes from and what came from
//! there before.

mod known;

use countersign_identity::{Code, Fault, Timestamp};
use countersign_pki::Refused;

use crate::allowance::{Budget, Rate};
use crate::room::Rank;
use crate::shards::Shards;
use crate::source::Source;
use crate::standing::known::Known;
use crate::{Established, HandshakeFailure};

/// How many handshakes may fail before others are turned away unread. Those that succeed cost nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandingRates {
    /// Failures of one source from which nobody has come yet who could be let in.
    pub suspect: Rate,
    /// Failures of one source from which somebody came lately who was let in. It may be many machines behind one address.
    pub proven: Rate,
    /// All sources together that have failed and not been proven.
    pub suspects: Rate,
    /// All sources together of which nothing is known.
    pub strangers: Rate,
}

/// What is known of the sources of handshakes.
///
/// A source of which nothing is known may try, within what all such have together. One that fails is soon down to a
/// trickle of tries, and shares another allowance with its like, so that their number does not help them. One from which
/// somebody was let in needs nobody's allowance but its own, so that it notices nothing of a flood from elsewhere. Nor does one
/// from which somebody comes who has as many connections as one may have; but each such try is one of those that failed.
#[derive(Debug)]
pub struct Standings {
    rates: StandingRates,
    shards: Shards<Known>, // By source
    /// Asked by those from whose source nobody was let in lately.
    common: Common,
}

/// What sources have together.
#[derive(Debug)]
struct Common {
    suspects: Budget,
    strangers: Budget,
}

/// That a handshake may begin. How it ended is told to [`Standings::ended`], once; untold, what it took is not given back.
///
/// ```compile_fail,E0382
/// # use countersign_identity::Timestamp;
/// # use countersign_tls::{Leave, Outcome, Standings};
/// fn twice(standings: &Standings, leave: Leave, now: Timestamp) {
///     standings.ended(leave, Outcome::Proven, now);
///     standings.ended(leave, Outcome::Proven, now); // What was paid once would be given back twice.
/// }
/// ```
#[derive(Debug, PartialEq, Eq)]
pub struct Leave {
    source: Source,
    paid: Paid,
}

/// That somebody was let in who did not say who they are. Should they do so later, it is told to [`Standings::vouched`], once.
///
/// ```compile_fail,E0382
/// # use countersign_identity::Timestamp;
/// # use countersign_tls::{Standings, Unsaid};
/// fn twice(standings: &Standings, unsaid: Unsaid, now: Timestamp) {
///     standings.vouched(unsaid, now);
///     standings.vouched(unsaid, now);
/// }
/// ```
#[derive(Debug, PartialEq, Eq)]
pub struct Unsaid(Leave);

impl Leave {
    /// What is known of the source.
    pub const fn rank(&self) -> Rank {
        match self.paid {
            Paid::Nothing => Rank::Known,
            Paid::Strangers | Paid::Suspects => Rank::Stranger,
        }
    }
}

/// From which common allowance the leave was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Paid {
    Nothing,
    Strangers,
    Suspects,
}

/// How a handshake ended, as far as its source's standing is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Somebody proved who they are and was let in.
    Proven,
    /// Somebody was let in who did not say who they are, where that is allowed. It counts as one that failed, but makes no
    /// suspect of a source that is proven.
    Anonymous,
    /// Somebody proved who they are, and has as many connections as one may have. It counts as one that failed, and makes no
    /// suspect of its source: who tries again by and by is let in as soon as there is a place, whatever comes from elsewhere.
    OverShare,
    /// Nothing is to be held against the source: it did not begin, or what failed is on our side.
    Nothing,
    /// It cost something and came to nothing.
    Failed,
}

impl Outcome {
    /// The outcome of a handshake that ended with this code; none when the peer was let in.
    pub const fn of(code: Option<Code>) -> Self {
        match code {
            None => Self::Proven,
            // A canary was asked to come, and full is what we are.
            Some(Code::Canary | Code::TooManyConnections) => Self::Nothing,
            Some(code) => match code.fault() {
                Fault::Peer | Fault::Caller => Self::Failed,
                Fault::Outage | Fault::Us => Self::Nothing,
            },
        }
    }

    /// The outcome of a handshake as a whole.
    pub fn of_handshake(shaken: &Result<Established, HandshakeFailure>) -> Self {
        match shaken {
            Ok(established) if established.stream.admitted().peer().is_some() => Self::Proven,
            Ok(_) => Self::Anonymous,
            Err(failure) => failure.outcome,
        }
    }
}

impl Standings {
    /// Nothing is known of anybody.
    pub fn new(rates: StandingRates, now: Timestamp) -> Self {
        Self {
            rates,
            shards: Shards::new(|| Known::nothing(now)),
            common: Common {
                suspects: Budget::whole(rates.suspects, now),
                strangers: Budget::whole(rates.strangers, now),
            },
        }
    }

    /// Whether a handshake of this source may begin: asked before anything of it is read.
    ///
    /// # Errors
    /// `rate-limited`, with the limit that is reached.
    pub fn begin(&self, source: Source, now: Timestamp) -> Result<Leave, Refused> {
        self.leave(source, Paid::Strangers, now)
    }

    /// The same for somebody who is known to have failed before, also where there was no room to remember its source.
    ///
    /// # Errors
    /// `rate-limited`, with the limit that is reached.
    pub fn begin_again(&self, source: Source, now: Timestamp) -> Result<Leave, Refused> {
        self.leave(source, Paid::Suspects, now)
    }

    /// Who is not on record pays with `unknown`.
    fn leave(&self, source: Source, unknown: Paid, now: Timestamp) -> Result<Leave, Refused> {
        let rates = self.rates;
        let known = self.shards.of_key(&source).sources.get_mut(&source).map(|record| {
            let proven = record.is_proven(now);
            let left = record.failures.left(rates.of(proven), now);
            (left, proven, record.is_suspect(now))
        });
        let paid = match known {
            Some((0, _, _)) => return Err(limited("too many tries from this source failed")),
            Some((_, true, _)) => Paid::Nothing,
            Some((_, false, true)) => Paid::Suspects,
            Some((_, false, false)) | None => unknown,
        };
        match paid {
            Paid::Nothing => {}
            Paid::Suspects if self.common.suspects.take(now) => {}
            Paid::Suspects => {
                return Err(limited("too many tries from sources that failed before"));
            }
            Paid::Strangers if self.common.strangers.take(now) => {}
            Paid::Strangers => return Err(limited("too many tries from unknown sources")),
        }
        Ok(Leave { source, paid })
    }

    /// Somebody from there has proved who they are, in another way than by a handshake.
    pub fn proven(&self, source: Source, now: Timestamp) {
        self.shards.of_key(&source).proven(source, self.rates, now);
    }

    /// A handshake that had leave to begin is over. One that ended as [`Outcome::Anonymous`] leaves behind that something is unsaid.
    pub fn ended(&self, leave: Leave, outcome: Outcome, now: Timestamp) -> Option<Unsaid> {
        let source = leave.source;
        let mut known = self.shards.of_key(&source);
        let proven = known.sources.get(&source).is_some_and(|record| record.is_proven(now));
        match outcome {
            Outcome::Proven => known.proven(source, self.rates, now),
            Outcome::Nothing => {}
            Outcome::OverShare => known.over_share(source, self.rates, now),
            Outcome::Anonymous if proven => known.in_vain(source, self.rates, now),
            Outcome::Anonymous | Outcome::Failed => known.failed(source, self.rates, now),
        }
        drop(known);
        match outcome {
            Outcome::Proven | Outcome::Nothing => self.give_back(leave.paid),
            Outcome::Anonymous | Outcome::OverShare | Outcome::Failed => {}
        }
        (outcome == Outcome::Anonymous).then_some(Unsaid(leave))
    }

    /// Who had not said who they are in a handshake has proved it since: it was worth what it cost.
    #[expect(clippy::needless_pass_by_value, reason = "it is told once")]
    pub fn vouched(&self, unsaid: Unsaid, now: Timestamp) {
        let Leave { source, paid } = unsaid.0;
        let mut known = self.shards.of_key(&source);
        known.proven(source, self.rates, now);
        if let Some(record) = known.sources.get_mut(&source) {
            record.failures.give_back(self.rates.proven);
        }
        drop(known);
        self.give_back(paid);
    }

    fn give_back(&self, paid: Paid) {
        match paid {
            Paid::Nothing => {}
            Paid::Strangers => self.common.strangers.give_back(),
            Paid::Suspects => self.common.suspects.give_back(),
        }
    }
}

impl StandingRates {
    const fn of(&self, proven: bool) -> Rate {
        if proven { self.proven } else { self.suspect }
    }
}

fn limited(why: &str) -> Refused {
    Refused { code: Code::RateLimited, why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::known::{SOURCES_PER_SHARD_MAX, SUSPECT_FOR};
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1000);
    const RATES: StandingRates = StandingRates {
        suspect: Rate { burst: 8, every: Duration::from_millis(500) },
        proven: Rate { burst: 100, every: Duration::from_millis(10) },
        suspects: Rate { burst: 20, every: Duration::from_millis(50) },
        strangers: Rate { burst: 50, every: Duration::from_millis(20) },
    };

    fn source(number: u32) -> Source {
        Source::of(IpAddr::from(number.to_be_bytes()))
    }

    fn standings() -> Standings {
        Standings::new(RATES, NOW)
    }

    fn held(standings: &Standings) -> usize {
        standings.shards.each().map(|known| known.sources.len()).sum()
    }

    fn knows(standings: &Standings, number: u32) -> bool {
        standings.shards.of_key(&source(number)).sources.contains_key(&source(number))
    }

    /// Tries, and fails where it may try. Says whether it might.
    fn fails(standings: &Standings, from: u32, now: Timestamp) -> bool {
        let leave = standings.begin(source(from), now);
        leave.map(|leave| standings.ended(leave, Outcome::Failed, now)).is_ok()
    }

    fn succeeds(standings: &Standings, from: u32, now: Timestamp) -> bool {
        let leave = standings.begin(source(from), now);
        leave.map(|leave| standings.ended(leave, Outcome::Proven, now)).is_ok()
    }

    #[test]
    fn a_source_that_fails_is_down_to_a_trickle_soon() {
        let standings = standings();
        let tries = (0..1000).filter(|_| fails(&standings, 1, NOW)).count();
        assert_eq!(tries, RATES.suspect.burst as usize);
        let refused = standings.begin(source(1), NOW).unwrap_err();
        assert_eq!(refused.code, Code::RateLimited);
        let mut tries = 0;
        for tenth in 1..=100 {
            let now = NOW + Duration::from_millis(100 * tenth);
            tries += usize::from(fails(&standings, 1, now));
        }
        assert_eq!(tries, 20, "two a second");
    }

    #[test]
    fn many_sources_that_fail_have_one_allowance_together() {
        let standings = standings();
        let mut tries = 0;
        for number in 0..10_000 {
            let now = NOW + Duration::from_micros(100 * u64::from(number));
            tries += usize::from(fails(&standings, number % 200, now));
        }
        // In one second: each is a stranger once, as far as those have leave, and then one of the suspects.
        assert!(tries <= 50 + 50 + 20 + 20, "{tries}");
    }

    #[test]
    fn a_source_that_failed_is_a_suspect_for_a_minute_and_a_stranger_after() {
        let standings = standings();
        assert!(fails(&standings, 1, NOW));
        let soon = NOW + SUSPECT_FOR;
        let paid = |standings: &Standings, now| standings.begin(source(1), now).unwrap().paid;
        assert_eq!(paid(&standings, soon), Paid::Suspects);
        assert_eq!(paid(&standings, soon + Duration::from_micros(1)), Paid::Strangers);
    }

    #[test]
    fn who_was_let_in_before_notices_nothing_of_a_flood() {
        let standings = standings();
        assert!(succeeds(&standings, 7, NOW));
        for number in 0..10_000 {
            let now = NOW + Duration::from_micros(100 * u64::from(number));
            fails(&standings, 1000 + number % 200, now);
            assert!(succeeds(&standings, 7, now));
        }
    }

    #[test]
    fn strangers_that_succeed_use_nothing_up() {
        let standings = standings();
        for number in 0..10_000 {
            assert!(succeeds(&standings, number, NOW), "{number}");
        }
    }

    #[test]
    fn a_proven_source_has_its_own_limit_and_gets_no_second_burst_by_succeeding() {
        let standings = standings();
        assert!(succeeds(&standings, 7, NOW));
        let tries = (0..1000).filter(|_| fails(&standings, 7, NOW)).count();
        assert_eq!(tries, RATES.proven.burst as usize);
        let later = NOW + RATES.proven.every;
        assert!(succeeds(&standings, 7, later));
        let tries = (0..1000).filter(|_| fails(&standings, 7, later)).count();
        assert_eq!(tries, 1);
    }

    #[test]
    fn who_is_over_its_share_is_limited_as_the_proven_are_and_is_no_suspect() {
        let standings = standings();
        let comes = |standings: &Standings, now| {
            let leave = standings.begin(source(1), now);
            leave.map(|leave| standings.ended(leave, Outcome::OverShare, now)).is_ok()
        };
        let tries = (0..1000).filter(|_| comes(&standings, NOW)).count();
        assert_eq!(tries, RATES.proven.burst as usize);
        // Strangers and suspects have nothing left, and it needs none of theirs.
        for number in 1000..20_000 {
            fails(&standings, number, NOW);
        }
        let later = NOW + RATES.proven.every;
        assert_eq!(standings.begin(source(1), later).unwrap().paid, Paid::Nothing);
        assert!(succeeds(&standings, 1, later), "it is let in when there is a place");
    }

    #[test]
    fn who_is_over_its_share_at_ever_new_places_uses_up_what_strangers_have() {
        let standings = standings();
        let comes = |number: &u32| {
            let leave = standings.begin(source(*number), NOW);
            leave.map(|leave| standings.ended(leave, Outcome::OverShare, NOW)).is_ok()
        };
        assert_eq!((0..1000).filter(comes).count(), RATES.strangers.burst as usize);
    }

    #[test]
    fn what_is_our_own_fault_is_held_against_nobody() {
        for code in [Code::NoOwnIdentity, Code::Internal, Code::TooManyConnections, Code::Canary] {
            assert_eq!(Outcome::of(Some(code)), Outcome::Nothing, "{code}");
        }
        for code in [Code::BadSignature, Code::PolicyDenied, Code::HandshakeTimeout] {
            assert_eq!(Outcome::of(Some(code)), Outcome::Failed, "{code}");
        }
        assert_eq!(Outcome::of(None), Outcome::Proven);
        let standings = standings();
        for _ in 0..1000 {
            let leave = standings.begin(source(1), NOW).unwrap();
            standings.ended(leave, Outcome::Nothing, NOW);
        }
        assert_eq!(held(&standings), 0);
    }

    #[test]
    fn who_failed_is_no_stranger_again_for_want_of_room_to_remember_it() {
        let rates = StandingRates { strangers: Rate { burst: 20_000, ..RATES.strangers }, ..RATES };
        let standings = Standings::new(rates, NOW);
        for number in 1000..20_000 {
            fails(&standings, number, NOW);
        }
        let forgotten = (1000..20_000).find(|number| !knows(&standings, *number)).unwrap();
        let tries = (0..1000).filter(|_| {
            let leave = standings.begin_again(source(forgotten), NOW);
            leave.map(|leave| standings.ended(leave, Outcome::Failed, NOW)).is_ok()
        });
        assert_eq!(tries.count(), RATES.suspects.burst as usize);
        assert!(standings.begin(source(7), NOW).is_ok(), "a stranger finds what strangers have");
    }

    #[test]
    fn who_proved_itself_elsewhere_needs_nobodys_allowance_but_its_own() {
        let standings = standings();
        while fails(&standings, 7, NOW) {}
        standings.proven(source(7), NOW);
        for number in 1000..10_000 {
            fails(&standings, number, NOW);
        }
        assert_eq!(standings.begin(source(8), NOW).unwrap_err().code, Code::RateLimited);
        assert_eq!(standings.begin(source(7), NOW).unwrap().paid, Paid::Nothing);
    }

    #[test]
    fn who_says_nothing_of_itself_is_limited_until_somebody_from_there_does() {
        let standings = standings();
        let comes = |standings: &Standings| {
            let leave = standings.begin(source(1), NOW);
            leave.map(|leave| standings.ended(leave, Outcome::Anonymous, NOW)).is_ok()
        };
        assert!((0..7).all(|_| comes(&standings)));
        assert!(succeeds(&standings, 1, NOW));
        let let_in = (0..1000).filter(|_| comes(&standings)).count();
        assert_eq!(let_in, RATES.proven.burst as usize, "one address is no free way in");
        assert_eq!(
            standings.begin(source(1), NOW + RATES.proven.every).unwrap().paid,
            Paid::Nothing
        );
        let (others, mut count) = (Standings::new(RATES, NOW), 0);
        while comes(&others) {
            count += 1;
        }
        assert_eq!(count, RATES.suspect.burst);
    }

    #[test]
    fn who_proves_itself_after_the_handshake_has_used_nothing_up() {
        let standings = standings();
        assert!(succeeds(&standings, 1, NOW));
        for number in [1, 2] {
            for _ in 0..1000 {
                let leave = standings.begin(source(number), NOW).unwrap();
                let unsaid = standings.ended(leave, Outcome::Anonymous, NOW);
                standings.vouched(unsaid.unwrap(), NOW);
            }
        }
    }

    #[test]
    fn of_too_many_that_were_let_in_who_was_longest_ago_is_forgotten() {
        let standings = standings();
        assert!(succeeds(&standings, 7, NOW));
        let later = NOW + Duration::from_secs(1);
        (1000..20_000).for_each(|number| assert!(succeeds(&standings, number, later)));
        assert!(!knows(&standings, 7));
        assert!(succeeds(&standings, 99, later) && knows(&standings, 99));
    }

    #[test]
    fn a_clock_that_goes_back_locks_nobody_out() {
        let standings = standings();
        while fails(&standings, 1, NOW) {}
        let back = Timestamp::from_secs(500);
        assert!(!fails(&standings, 1, back));
        assert!(fails(&standings, 1, back + RATES.suspect.every));
    }

    #[test]
    fn sources_without_end_take_no_memory_without_end_and_displace_nobody_proven() {
        let rates = StandingRates {
            strangers: Rate { burst: u32::MAX, every: Duration::from_micros(1) },
            ..RATES
        };
        let standings = Standings::new(rates, NOW);
        assert!(succeeds(&standings, 7, NOW));
        for number in 1000..20_000 {
            fails(&standings, number, NOW);
        }
        let full = |it: std::sync::MutexGuard<'_, Known>| it.sources.len() == SOURCES_PER_SHARD_MAX;
        assert!(standings.shards.each().all(full));
        assert!(knows(&standings, 7));
        assert!(succeeds(&standings, 99, NOW));
        assert!(knows(&standings, 99), "who was let in finds room");
        let later = NOW + SUSPECT_FOR + Duration::from_secs(1);
        for number in 20_000..21_000 {
            fails(&standings, number, later);
        }
        assert!(held(&standings) <= 1002, "room is made of those that behaved since");
    }
}
