//! Links and sessions: how they begin, how they end, and that their secrets are nowhere.

use countersign_identity::{SimClock, SystemEntropy};

use super::*;

fn entrance() -> (Entrance, Arc<SimClock>) {
    let clock = Arc::new(SimClock::new(Timestamp::from_secs(1_000_000)));
    (Entrance::new(Arc::clone(&clock) as Arc<dyn Clock>, Arc::new(SystemEntropy)), clock)
}

fn code<T: std::fmt::Debug>(answer: Result<T, Refused>) -> Code {
    answer.unwrap_err().code
}

#[test]
fn link_works_once_and_for_five_minutes() {
    let (entrance, clock) = entrance();
    let (link, _) = entrance.invite(7).unwrap();
    let Begun { secret: session, operator, .. } = entrance.enter(link.reveal()).unwrap();
    assert_eq!(operator, 7);
    assert_eq!(code(entrance.enter(link.reveal())), Code::SpentToken);
    assert_eq!(entrance.visitor(session.reveal(), By::Hand).unwrap().operator, 7);
    let (late, ends) = entrance.invite(7).unwrap();
    clock.advance(LINK_LIFETIME);
    assert_eq!(ends, clock.now());
    assert_eq!(code(entrance.enter(late.reveal())), Code::SpentToken);
    assert_eq!(code(entrance.enter("")), Code::SpentToken);
}

#[test]
fn link_is_no_session_and_session_no_link() {
    let (entrance, _clock) = entrance();
    let (link, _) = entrance.invite(7).unwrap();
    assert_eq!(code(entrance.visitor(link.reveal(), By::Hand)), Code::Unauthenticated);
    let session = entrance.enter(link.reveal()).unwrap().secret;
    assert_ne!(session.reveal(), link.reveal());
    assert_eq!(code(entrance.enter(session.reveal())), Code::SpentToken);
}

#[test]
fn session_ends_by_logout_by_idleness_and_by_age() {
    let (entrance, clock) = entrance();
    let session = || {
        let (link, _) = entrance.invite(7).unwrap();
        entrance.enter(link.reveal()).unwrap().secret
    };
    let first = session();
    entrance.leave(first.reveal(), End::SignedOut);
    assert_eq!(code(entrance.visitor(first.reveal(), By::Hand)), Code::Unauthenticated);
    let idle = session();
    clock.advance(SESSION_IDLE_MAX - Duration::from_secs(1));
    entrance.visitor(idle.reveal(), By::Itself).unwrap();
    clock.advance(Duration::from_secs(1));
    assert_eq!(code(entrance.visitor(idle.reveal(), By::Itself)), Code::Unauthenticated);
    let used = session();
    let mut asked = 0;
    while entrance.visitor(used.reveal(), By::Hand).is_ok() {
        clock.advance(Duration::from_secs(600));
        asked += 1;
    }
    assert_eq!(asked, SESSION_LIFETIME.as_secs() / 600);
    assert!(!entrance.lasts(used.reveal()));
}

#[test]
fn every_end_of_a_session_is_told_once_and_how_it_came() {
    let (entrance, clock) = entrance();
    let begin = || {
        let (link, _) = entrance.invite(7).unwrap();
        let begun = entrance.enter(link.reveal()).unwrap();
        assert_eq!(begun.link, name_of(&link));
        assert_eq!(begun.session, name_of(&begun.secret));
        assert_ne!(begun.session, digest(begun.secret.reveal()), "the log does not tell the key");
        begun
    };
    let (left, idle) = (begin(), begin());
    entrance.leave(left.secret.reveal(), End::SignedOut);
    entrance.leave(left.secret.reveal(), End::SignedOut);
    clock.advance(SESSION_IDLE_MAX);
    let told = |begun: Begun, how| Ended { session: begun.session, operator: 7, how };
    assert_eq!(entrance.ended(), [told(left, End::SignedOut), told(idle, End::Idle)]);
    assert_eq!(entrance.ended(), []);
    let first = begin();
    clock.advance(Duration::from_millis(1));
    for _ in 0..SESSIONS_MAX {
        begin();
    }
    assert_eq!(entrance.ended(), [told(first, End::Displaced)]);
    let (late, _) = entrance.invite(7).unwrap();
    entrance.close();
    let ended = entrance.ended();
    assert_eq!(ended.len(), SESSIONS_MAX);
    assert!(ended.iter().all(|ended| ended.how == End::Stopped));
    assert_eq!(code(entrance.enter(late.reveal())), Code::SpentToken);
}

#[test]
fn one_source_uses_up_its_own_allowance_and_many_share_what_is_left() {
    let (entrance, clock) = entrance();
    let from = |number: u32| IpAddr::from(number.to_be_bytes());
    let asked = (0..1000).filter(|_| entrance.has_room_for_stranger(from(1))).count();
    assert_eq!(asked, PER_SOURCE.burst as usize);
    assert!(entrance.has_room_for_stranger(from(2)));
    let asked = (3..100_000).filter(|number| entrance.has_room_for_stranger(from(*number)));
    assert!(asked.count() < SOURCES_MAX + PER_SOURCE.burst as usize);
    assert!(entrance.book().strangers.len() <= SOURCES_MAX + 1);
    clock.advance(Duration::from_secs(60));
    assert!(entrance.has_room_for_stranger(from(1)), "it is earned again");
    assert!(entrance.has_room_for_stranger(from(100_001)), "those that rest are forgotten");
}

#[test]
fn links_and_sessions_are_bounded_and_the_newest_live() {
    let (entrance, clock) = entrance();
    let mut links = Vec::new();
    for _ in 0..LINKS_MAX + 1 {
        links.push(entrance.invite(7).unwrap().0);
        clock.advance(Duration::from_millis(1));
    }
    assert_eq!(code(entrance.enter(links[0].reveal())), Code::SpentToken);
    for _ in 0..SESSIONS_MAX {
        let (link, _) = entrance.invite(7).unwrap();
        entrance.enter(link.reveal()).unwrap();
    }
    let last = entrance.enter(links[LINKS_MAX].reveal()).unwrap().secret;
    assert!(entrance.lasts(last.reveal()));
    assert_eq!(entrance.book().sessions.len(), SESSIONS_MAX);
}

#[test]
fn session_that_asks_too_often_is_told_so_and_ends_not() {
    let (entrance, clock) = entrance();
    let (link, _) = entrance.invite(7).unwrap();
    let session = entrance.enter(link.reveal()).unwrap().secret;
    let mut asked = 0;
    while entrance.visitor(session.reveal(), By::Hand).is_ok() {
        asked += 1;
    }
    assert_eq!(asked, PER_SESSION.burst);
    assert_eq!(code(entrance.visitor(session.reveal(), By::Hand)), Code::RateLimited);
    clock.advance(PER_SESSION.every);
    entrance.visitor(session.reveal(), By::Hand).unwrap();
}

#[test]
fn secrets_do_not_print_and_are_not_kept() {
    let (entrance, _clock) = entrance();
    let (link, _) = entrance.invite(7).unwrap();
    assert_eq!(format!("{link:?}"), "Secret");
    let kept = format!("{:?}", entrance.book());
    assert!(!kept.contains(link.reveal()));
    let session = entrance.enter(link.reveal()).unwrap().secret;
    let visitor = entrance.visitor(session.reveal(), By::Hand).unwrap();
    assert!(!format!("{:?}{visitor:?}", entrance.book()).contains(session.reveal()));
}
