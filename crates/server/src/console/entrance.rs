//! Who may look: links that work once, and the sessions that they begin.
//!
//! A secret is kept by its digest only, so a look at this memory lets nobody in, and finding one takes no comparison whose
//! time tells anything. All of it is in memory: a server that starts anew knows no link and no session. What becomes of
//! them is told to `record`, which writes it to the log.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_identity::{Clock, Code, Entropy, EntropyLost, Sha256, Timestamp};
use countersign_tls::{Allowance, Rate, Source};

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
/// What those of one source who have no session may ask for: it is little, and costs next to nothing.
const PER_SOURCE: Rate = Rate { burst: 100, every: Duration::from_millis(100) };
/// Sources that are remembered. Those beyond share one allowance.
const SOURCES_MAX: usize = 1024;
/// Ends of sessions that wait to be written. More than there are sessions at once, so only who begins and ends them by the
/// hundred loses one.
const ENDED_MAX: usize = 256;
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
    strangers: HashMap<Option<Source>, Allowance>, // INVARIANT: at most SOURCES_MAX and the one that others share
    ended: Vec<Ended>,                             // INVARIANT: at most ENDED_MAX
    refused: u64,
}

/// A session that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Which.
    pub(crate) session: Sha256,
    /// Whose.
    pub(crate) operator: u32,
    /// How.
    pub(crate) how: End,
}

/// How a session came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Somebody signed out.
    SignedOut,
    /// Nobody did anything for half an hour.
    Idle,
    /// It was eight hours old.
    Old,
    /// A newer one took its place.
    Displaced,
    /// Its beginning could not be written to the log, or its operator may not administer.
    Refused,
    /// The server was stopped.
    Stopped,
}

impl End {
    /// The word in the log.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::SignedOut => "signed-out",
            Self::Idle => "idle",
            Self::Old => "old",
            Self::Displaced => "displaced",
            Self::Refused => "refused",
            Self::Stopped => "stopped",
        }
    }
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

/// A session that begins.
#[derive(Debug)]
pub(crate) struct Begun {
    /// Its secret.
    pub(crate) secret: Secret,
    /// The uid that asked for the link.
    pub(crate) operator: u32,
    /// The name of the link.
    pub(crate) link: Sha256,
    /// The name of the session.
    pub(crate) session: Sha256,
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

/// What the log calls a link or a session: it follows from the secret, and tells neither it nor under what it is kept.
pub(crate) fn name_of(secret: &Secret) -> Sha256 {
    named(&digest(secret.reveal()))
}

fn named(kept: &Sha256) -> Sha256 {
    sha256(format!("countersign console name\n{kept}").as_bytes())
}

impl Entrance {
    pub(crate) fn new(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        let book = Book {
            links: HashMap::new(),
            sessions: HashMap::new(),
            strangers: HashMap::new(),
            ended: Vec::new(),
            refused: 0,
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
    pub(crate) fn enter(&self, link: &str) -> Result<Begun, Refused> {
        let now = self.clock.now();
        let secret = Secret::draw(&*self.entropy).map_err(crate::authority::internal)?;
        let mut book = self.book();
        book.forget_what_is_over(now);
        let kept = digest(link);
        let Some(used) = book.links.remove(&kept) else {
            book.refused = book.refused.saturating_add(1);
            let why = "this link was used, or its five minutes are over: `countersign console` makes another";
            return Err(Refused::new(Code::SpentToken, why));
        };
        if SESSIONS_MAX <= book.sessions.len() {
            let oldest = book.sessions.iter().min_by_key(|(_, session)| session.used);
            let oldest = oldest.map(|(digest, _)| *digest);
            oldest.iter().for_each(|oldest| book.end(oldest, End::Displaced));
        }
        let session = Session {
            operator: used.operator,
            began: now,
            used: now,
            allowance: Allowance::whole(PER_SESSION, now),
        };
        book.sessions.insert(digest(secret.reveal()), session);
        let session = name_of(&secret);
        Ok(Begun { secret, operator: used.operator, link: named(&kept), session })
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
    pub(crate) fn leave(&self, secret: &str, how: End) {
        self.book().end(&digest(secret), how);
    }

    /// Ends all sessions, because the server stops. Links let nobody in any more either.
    pub(crate) fn close(&self) {
        let mut book = self.book();
        book.links.clear();
        let kept: Vec<Sha256> = book.sessions.keys().copied().collect();
        kept.iter().for_each(|kept| book.end(kept, End::Stopped));
    }

    /// The sessions that have ended since this was asked last.
    pub(crate) fn ended(&self) -> Vec<Ended> {
        let mut book = self.book();
        book.forget_what_is_over(self.clock.now());
        std::mem::take(&mut book.ended)
    }

    /// How many links were none, since this was asked last.
    pub(crate) fn refused(&self) -> u64 {
        std::mem::take(&mut self.book().refused)
    }

    /// What time it is here.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Whether somebody without a session, from there, may ask for something now.
    pub(crate) fn has_room_for_stranger(&self, from: IpAddr) -> bool {
        self.book().allows(Source::of(from), self.clock.now())
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
        let over = |session: &Session| match (session.began, session.used) {
            (began, _) if began + SESSION_LIFETIME <= now => Some(End::Old),
            (_, used) if used + SESSION_IDLE_MAX <= now => Some(End::Idle),
            _ => None,
        };
        let over = self.sessions.iter().filter_map(|(kept, session)| Some((*kept, over(session)?)));
        for (kept, how) in over.collect::<Vec<_>>() {
            self.end(&kept, how);
        }
    }

    fn end(&mut self, kept: &Sha256, how: End) {
        let Some(session) = self.sessions.remove(kept) else { return };
        if self.ended.len() < ENDED_MAX {
            self.ended.push(Ended { session: named(kept), operator: session.operator, how });
        }
    }

    fn allows(&mut self, source: Source, now: Timestamp) -> bool {
        let whole = Allowance::whole(PER_SOURCE, now);
        if SOURCES_MAX <= self.strangers.len() && !self.strangers.contains_key(&Some(source)) {
            // A source that has its whole allowance again is as good as unknown.
            self.strangers.retain(|_, left| left.left(PER_SOURCE, now) < PER_SOURCE.burst);
        }
        let known = self.strangers.contains_key(&Some(source));
        let key = (known || self.strangers.len() < SOURCES_MAX).then_some(source);
        self.strangers.entry(key).or_insert(whole).take(PER_SOURCE, now)
    }
}

/// What the forms of a session carry: it follows from the session's secret and does not tell it.
fn form_of(secret: &str) -> String {
    sha256(format!("countersign console form\n{secret}").as_bytes()).to_string()
}

#[cfg(test)]
mod tests;
