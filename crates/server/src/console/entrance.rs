//! Who may look: links that work once, and the sessions that they begin.
//!
//! A secret is kept by its digest only, so a look at this memory lets nobody in, and finding one takes no comparison whose
//! time tells anything. All of it is in memory: a server that starts anew knows no link and no session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_identity::{Clock, Code, Entropy, EntropyLost, Sha256, Timestamp};
use countersign_tls::{Allowance, Rate};

use crate::digest::sha256;
use crate::refusal::Refused;

/// How long a link may be used, once.
pub(crate) const LINK_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// How long a session lasts that is in use.
const SESSION_LIFETIME: Duration = Duration::from_secs(8 * 3600);
/// How long a session lasts in which nobody does anything.
const SESSION_IDLE_MAX: Duration = Duration::from_secs(30 * 60);
/// Links that wait to be used. The oldest gives way.
const LINKS_MAX: usize = 32;
/// Sessions at once. The oldest gives way.
const SESSIONS_MAX: usize = 64;
/// What one session may ask for.
const PER_SESSION: Rate = Rate { burst: 200, every: Duration::from_millis(25) };
/// What all those who have no session may ask for, together: it is little, and costs next to nothing.
const OF_STRANGERS: Rate = Rate { burst: 400, every: Duration::from_millis(5) };
/// Bytes of chance in each secret.
const SECRET_BYTES: usize = 32;

/// Who is in, and who may come in.
pub(crate) struct Entrance {
    book: Mutex<Book>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

#[derive(Debug)]
struct Book {
    links: HashMap<Sha256, Link>, // INVARIANT: at most LINKS_MAX, by the digests of their secrets
    sessions: HashMap<Sha256, Session>, // INVARIANT: at most SESSIONS_MAX, by the digests of their secrets
    strangers: Allowance,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    operator: u32,
    made: Timestamp,
}

#[derive(Clone, Debug)]
struct Session {
    operator: u32,
    began: Timestamp,
    used: Timestamp,
    allowance: Allowance,
}

/// Who looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Visitor {
    /// The uid that asked for the link.
    pub(crate) operator: u32,
    /// What a form of this session must carry.
    pub(crate) form: String,
    /// When the session ends, however much it is used.
    pub(crate) ends: Timestamp,
}

/// A secret that was just drawn. It is handed out once and kept nowhere.
pub(crate) struct Secret(String);

impl Secret {
    fn draw(entropy: &dyn Entropy) -> Result<Self, EntropyLost> {
        let mut bytes = [0; SECRET_BYTES];
        entropy.fill(&mut bytes)?;
        Ok(Self(URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The text, for who is meant to have it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

fn digest(secret: &str) -> Sha256 {
    sha256(secret.as_bytes())
}

impl Entrance {
    pub(crate) fn new(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        let book = Book {
            links: HashMap::new(),
            sessions: HashMap::new(),
            strangers: Allowance::whole(OF_STRANGERS, clock.now()),
        };
        Self { book: Mutex::new(book), clock, entropy }
    }

    /// A link for this operator, which lets one browser in, and until when it does.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub(crate) fn invite(&self, operator: u32) -> Result<(Secret, Timestamp), EntropyLost> {
        let secret = Secret::draw(&*self.entropy)?;
        let made = self.clock.now();
        let mut book = self.book();
        book.forget_what_is_over(made);
        if LINKS_MAX <= book.links.len() {
            let oldest = book.links.iter().min_by_key(|(_, link)| link.made);
            let oldest = oldest.map(|(digest, _)| *digest);
            oldest.and_then(|oldest| book.links.remove(&oldest));
        }
        book.links.insert(digest(secret.reveal()), Link { operator, made });
        Ok((secret, made + LINK_LIFETIME))
    }

    /// Uses a link up, and begins a session under a secret that nobody had before.
    ///
    /// # Errors
    /// `spent-token` when there is no such link, it was used, or its time is over: in the same words.
    pub(crate) fn enter(&self, link: &str) -> Result<(Secret, u32), Refused> {
        let now = self.clock.now();
        let secret = Secret::draw(&*self.entropy).map_err(crate::authority::internal)?;
        let mut book = self.book();
        book.forget_what_is_over(now);
        let used = book.links.remove(&digest(link)).ok_or_else(|| {
            let why = "this link was used, or its five minutes are over: `countersign console` makes another";
            Refused::new(Code::SpentToken, why)
        })?;
        if SESSIONS_MAX <= book.sessions.len() {
            let oldest = book.sessions.iter().min_by_key(|(_, session)| session.used);
            let oldest = oldest.map(|(digest, _)| *digest);
            oldest.and_then(|oldest| book.sessions.remove(&oldest));
        }
        let session = Session {
            operator: used.operator,
            began: now,
            used: now,
            allowance: Allowance::whole(PER_SESSION, now),
        };
        book.sessions.insert(digest(secret.reveal()), session);
        Ok((secret, used.operator))
    }

    /// Whose session this is. A page that refreshes itself does not make it last.
    ///
    /// # Errors
    /// `unauthenticated` when it is nobody's or over; `rate-limited` when it asks too often.
    pub(crate) fn visitor(&self, secret: &str, by: By) -> Result<Visitor, Refused> {
        let now = self.clock.now();
        let mut book = self.book();
        book.forget_what_is_over(now);
        let session = book.sessions.get_mut(&digest(secret)).ok_or_else(|| {
            Refused::new(Code::Unauthenticated, "there is no such session, or it is over")
        })?;
        if !session.allowance.take(PER_SESSION, now) {
            return Err(Refused::new(Code::RateLimited, "this session asks too often"));
        }
        match by {
            By::Hand => session.used = now,
            By::Itself => {}
        }
        Ok(Visitor {
            operator: session.operator,
            form: form_of(secret),
            ends: session.began + SESSION_LIFETIME,
        })
    }

    /// Whether a session still lasts; asking makes it last no longer.
    pub(crate) fn lasts(&self, secret: &str) -> bool {
        let mut book = self.book();
        book.forget_what_is_over(self.clock.now());
        book.sessions.contains_key(&digest(secret))
    }

    /// Ends a session.
    pub(crate) fn leave(&self, secret: &str) {
        self.book().sessions.remove(&digest(secret));
    }

    /// Whether somebody without a session may ask for something now.
    pub(crate) fn has_room_for_strangers(&self) -> bool {
        self.book().strangers.take(OF_STRANGERS, self.clock.now())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What makes a browser ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// Somebody at it.
    Hand,
    /// The page, to stay true.
    Itself,
}

impl Book {
    fn forget_what_is_over(&mut self, now: Timestamp) {
        self.links.retain(|_, link| now < link.made + LINK_LIFETIME);
        self.sessions.retain(|_, session| {
            now < session.began + SESSION_LIFETIME && now < session.used + SESSION_IDLE_MAX
        });
    }
}

/// What the forms of a session carry: it follows from the session's secret and does not tell it.
fn form_of(secret: &str) -> String {
    sha256(format!("countersign console form\n{secret}").as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
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
        let (session, operator) = entrance.enter(link.reveal()).unwrap();
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
        let (session, _) = entrance.enter(link.reveal()).unwrap();
        assert_ne!(session.reveal(), link.reveal());
        assert_eq!(code(entrance.enter(session.reveal())), Code::SpentToken);
    }

    #[test]
    fn session_ends_by_logout_by_idleness_and_by_age() {
        let (entrance, clock) = entrance();
        let session = || {
            let (link, _) = entrance.invite(7).unwrap();
            entrance.enter(link.reveal()).unwrap().0
        };
        let first = session();
        entrance.leave(first.reveal());
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
        let (last, _) = entrance.enter(links[LINKS_MAX].reveal()).unwrap();
        assert!(entrance.lasts(last.reveal()));
        assert_eq!(entrance.book().sessions.len(), SESSIONS_MAX);
    }

    #[test]
    fn session_that_asks_too_often_is_told_so_and_ends_not() {
        let (entrance, clock) = entrance();
        let (link, _) = entrance.invite(7).unwrap();
        let (session, _) = entrance.enter(link.reveal()).unwrap();
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
        let (session, _) = entrance.enter(link.reveal()).unwrap();
        let visitor = entrance.visitor(session.reveal(), By::Hand).unwrap();
        assert!(!format!("{:?}{visitor:?}", entrance.book()).contains(session.reveal()));
    }
}
