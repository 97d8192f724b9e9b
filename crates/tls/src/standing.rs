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
    /// suspect of its source: who tries again by and by is let in as soon as there is a place, whatever comes from elsewhere. Who goes
    /// on without a pause uses up what its source has, which is that of all others who come from there: who it is, is known too late.
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
mod tests;
