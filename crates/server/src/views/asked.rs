//! How much of what is not in memory each source may have looked up and signed, so that no source takes what others need.
//!
//! Anybody may ask, and nobody says who they are. What is held against a source is what it had done for it, whether it came
//! to something or not. One that has asked about a certificate that exists is likely to go on with that, and needs nobody's
//! allowance but its own then. Whoever never did shares what it has with its like, and those of whom nothing is known
//! have an allowance beside theirs: so a first question is answered whatever others do.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_tls::{Outcome, Rank, Rate, Room, RoomBounds, Source, StandingRates, Standings};
use tokio::sync::Semaphore;

/// A look-up takes a millisecond or less, a signature a tenth of that.
const RATES: StandingRates = StandingRates {
    suspect: Rate { burst: 64, every: Duration::from_millis(100) },
    proven: Rate { burst: 512, every: Duration::from_millis(10) },
    suspects: Rate { burst: 512, every: Duration::from_millis(5) },
    strangers: Rate { burst: 1024, every: Duration::from_millis(1) },
};
/// Look-ups that are under way or wait for their turn. Whoever has more of them than a newcomer makes room for it.
const TURNS: RoomBounds = RoomBounds { all: 128, each: 16, yields_after: TURN_TIMEOUT };
/// How long a turn may be waited for, and the look-up may take.
const TURN_TIMEOUT: Duration = Duration::from_secs(3);
/// Questions to the store at once.
const LOOKUPS_MAX: usize = 4;

/// What those who ask have left.
#[derive(Debug)]
pub(crate) struct Askers {
    standings: Standings,
    room: Room<Source>,
    turns: Semaphore,
}

/// Somebody who asks.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    askers: Arc<Askers>,
    source: Source,
}

/// What one request may have done for it: a signature, and one look-up. More look-ups are paid for one by one.
#[derive(Debug)]
pub(crate) struct Paid<'a> {
    asker: &'a Asker,
    lookup: bool,
}

/// The allowance is used up, or the store has too much to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limited;

impl Askers {
    /// Nobody has asked yet.
    pub(crate) fn new(now: Timestamp) -> Arc<Self> {
        let standings = Standings::new(RATES, now);
        let (room, turns) = (Room::new(TURNS), Semaphore::new(LOOKUPS_MAX));
        Arc::new(Self { standings, room, turns })
    }

    /// Somebody from there.
    pub(crate) fn asker(self: &Arc<Self>, source: Source) -> Asker {
        Asker { askers: Arc::clone(self), source }
    }
}

impl Asker {
    /// Takes what a request costs that is not answered from memory.
    ///
    /// # Errors
    /// When the source has to wait.
    pub(crate) fn pays(&self, now: Timestamp) -> Result<Paid<'_>, Limited> {
        self.takes(now)?;
        Ok(Paid { asker: self, lookup: true })
    }

    /// It was asked about a certificate that exists.
    pub(crate) fn knew(&self, now: Timestamp) {
        self.askers.standings.proven(self.source, now);
    }

    fn takes(&self, now: Timestamp) -> Result<(), Limited> {
        let standings = &self.askers.standings;
        let leave = standings.begin(self.source, now).map_err(|_refused| Limited)?;
        // At once, so that whoever goes away before the answer has paid as well.
        standings.ended(leave, Outcome::Failed, now);
        Ok(())
    }
}

impl Paid<'_> {
    /// Looks something up, in turn with others.
    ///
    /// # Errors
    /// When the source has to wait, or the turn did not come in time.
    pub(crate) async fn look_up<T>(
        &mut self,
        now: Timestamp,
        lookup: impl Future<Output = T>,
    ) -> Result<T, Limited> {
        if !std::mem::take(&mut self.lookup) {
            self.asker.takes(now)?;
        }
        let Asker { askers, source } = self.asker;
        let stay = askers.room.enter(*source, Rank::Stranger, now).ok_or(Limited)?;
        let in_turn = async {
            let _turn = askers.turns.acquire().await.map_err(|_closed| Limited)?;
            Ok(lookup.await)
        };
        let in_time = tokio::time::timeout(TURN_TIMEOUT, in_turn);
        tokio::select! {
            () = stay.give_way().cancelled() => Err(Limited),
            looked_up = in_time => looked_up.map_err(|_late| Limited)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1000);

    fn source(last: u8) -> Source {
        Source::of([10, 0, 0, last].into())
    }

    /// How many of these requests of one source may cost something.
    fn paid(asker: &Asker, requests: usize, now: Timestamp) -> usize {
        (0..requests).filter(|_| asker.pays(now).is_ok()).count()
    }

    #[test]
    fn a_source_that_asks_without_end_has_its_own_allowance_and_nobody_elses() {
        let askers = Askers::new(NOW);
        let flood = askers.asker(source(1));
        // Who goes away before the answer has paid as well: nothing is told of how it ended.
        assert_eq!(paid(&flood, 10_000, NOW), RATES.suspect.burst as usize);
        assert_eq!(paid(&flood, 10_000, NOW + Duration::from_secs(1)), 10, "ten a second");
        for last in 2..=255 {
            assert_eq!(paid(&askers.asker(source(last)), 1, NOW), 1, "the first of {last}");
        }
    }

    #[test]
    fn who_asks_about_what_exists_needs_nobodys_allowance_but_its_own() {
        let askers = Askers::new(NOW);
        let known = askers.asker(source(1));
        known.pays(NOW).unwrap();
        known.knew(NOW);
        // All that those who know nothing have together.
        for last in 2..=255 {
            paid(&askers.asker(source(last)), 100, NOW);
        }
        assert_eq!(paid(&askers.asker(source(2)), 1, NOW), 0);
        assert_eq!(paid(&known, 10_000, NOW), RATES.proven.burst as usize);
        known.knew(NOW);
        assert_eq!(paid(&known, 10_000, NOW), 0, "to know more buys nothing");
    }

    #[tokio::test]
    async fn one_look_up_is_paid_for_with_its_request_and_more_of_them_one_by_one() {
        let askers = Askers::new(NOW);
        let asker = askers.asker(source(1));
        let mut lookups = 0;
        for _ in 0..1000 {
            let Ok(mut paid) = asker.pays(NOW) else { break };
            for _ in 0..2 {
                lookups += usize::from(paid.look_up(NOW, async {}).await.is_ok());
            }
        }
        assert_eq!(lookups, RATES.suspect.burst as usize);
    }

    #[tokio::test]
    async fn who_waits_for_many_look_ups_waits_for_no_more_and_others_have_their_turn() {
        let askers = Askers::new(NOW);
        let (flood, other) = (askers.asker(source(1)), askers.asker(source(2)));
        let mut context = Context::from_waker(Waker::noop());
        let mut hanging = Vec::new();
        for _ in 0..TURNS.each {
            let mut paid = flood.pays(NOW).unwrap();
            hanging.push(Box::pin(async move { paid.look_up(NOW, pending::<()>()).await }));
        }
        for lookup in &mut hanging {
            assert!(lookup.as_mut().poll(&mut context).is_pending());
        }
        let mut paid = flood.pays(NOW).unwrap();
        let mut more = Box::pin(paid.look_up(NOW, async {}));
        assert_eq!(more.as_mut().poll(&mut context), Poll::Ready(Err(Limited)));
        let mut paid = other.pays(NOW).unwrap();
        let mut next = Box::pin(paid.look_up(NOW, async {}));
        assert!(next.as_mut().poll(&mut context).is_pending(), "it waits, and is not refused");
        hanging.clear();
        assert_eq!(next.as_mut().poll(&mut context), Poll::Ready(Ok(())));
    }
}
