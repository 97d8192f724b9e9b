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
    assert_eq!(standings.begin(source(1), NOW + RATES.proven.every).unwrap().paid, Paid::Nothing);
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
