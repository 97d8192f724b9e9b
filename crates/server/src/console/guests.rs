//! Connections that have not shown a session yet: few, short, and never in the way of those that have.
//!
//! Whoever connects is a guest until a request of a session comes over the connection. A guest has to come to the point
//! in half a minute. When there are too many, the one that goes is the oldest of the source that has the most, so that who
//! fills the room pushes out itself and nobody else.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use countersign_tls::Source;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Guests at once.
const GUESTS_MAX: usize = 64;
/// Connections of sessions at once. A browser opens one to six.
const WELCOME_MAX: usize = 256;

/// Everybody who is connected.
pub(super) struct Guests {
    room: Mutex<Room>,
    welcome: Arc<Semaphore>,
}

#[derive(Default)]
struct Room {
    waiting: BTreeMap<u64, (Source, CancellationToken)>, // INVARIANT: at most GUESTS_MAX, by the order of arrival
    arrived: u64,
}

/// One connection. Dropped, it has ended.
pub(super) struct Guest {
    guests: Arc<Guests>,
    number: u64,
    address: IpAddr,
    gives_way: CancellationToken,
    welcome: CancellationToken,
    place: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Default for Guests {
    fn default() -> Self {
        Self { room: Mutex::default(), welcome: Arc::new(Semaphore::new(WELCOME_MAX)) }
    }
}

impl Guests {
    /// Somebody comes in. When there is no room, somebody else has to go.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Arc<Guest> {
        let gives_way = CancellationToken::new();
        let mut room = self.room();
        if GUESTS_MAX <= room.waiting.len() {
            room.make_way();
        }
        room.arrived += 1;
        let number = room.arrived;
        room.waiting.insert(number, (Source::of(address), gives_way.clone()));
        Arc::new(Guest {
            guests: Arc::clone(self),
            number,
            address,
            gives_way,
            welcome: CancellationToken::new(),
            place: Mutex::new(None),
        })
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    fn make_way(&mut self) {
        let mut of: BTreeMap<Source, (usize, u64)> = BTreeMap::new();
        for (number, (source, _)) in &self.waiting {
            of.entry(*source).or_insert((0, *number)).0 += 1;
        }
        // The largest; of two that are as large, the one that came first.
        let largest =
            of.into_values().max_by_key(|(count, oldest)| (*count, std::cmp::Reverse(*oldest)));
        if let Some((_, oldest)) = largest
            && let Some((_, gives_way)) = self.waiting.remove(&oldest)
        {
            gives_way.cancel();
        }
    }
}

impl Guest {
    /// From where it comes.
    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// A request of a session came over it: it may stay. When too many may, it is a guest as before.
    pub(super) fn welcome(&self) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if place.is_none()
            && let Ok(taken) = Arc::clone(&self.guests.welcome).try_acquire_owned()
        {
            *place = Some(taken);
            self.guests.room().waiting.remove(&self.number);
            self.welcome.cancel();
        }
    }

    /// Once it may stay.
    pub(super) async fn is_welcome(&self) {
        self.welcome.cancelled().await;
    }

    /// Once it has to go for somebody else. Never, when it may stay.
    pub(super) async fn gives_way(&self) {
        self.gives_way.cancelled().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.guests.room().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn source_that_fills_the_room_pushes_out_itself() {
        let guests = Arc::new(Guests::default());
        let other = guests.enter(address(1));
        let many: Vec<_> = (0..10 * GUESTS_MAX).map(|_| guests.enter(address(2))).collect();
        assert!(!other.gives_way.is_cancelled());
        let stay = many.iter().filter(|guest| !guest.gives_way.is_cancelled()).count();
        assert_eq!(stay, GUESTS_MAX - 1);
        assert!(!many.last().unwrap().gives_way.is_cancelled(), "the oldest go first");
        assert_eq!(guests.room().waiting.len(), GUESTS_MAX);
        drop((many, other));
        assert!(guests.room().waiting.is_empty());
    }

    #[test]
    fn of_many_sources_the_oldest_goes_and_nobody_who_is_welcome() {
        let guests = Arc::new(Guests::default());
        let known = guests.enter(address(200));
        known.welcome();
        let all: Vec<_> = (0..100).map(|last| guests.enter(address(last))).collect();
        let gone = all.iter().filter(|guest| guest.gives_way.is_cancelled()).count();
        assert_eq!(gone, 100 - GUESTS_MAX);
        assert!(all[..gone].iter().all(|guest| guest.gives_way.is_cancelled()));
        assert!(!known.gives_way.is_cancelled());
    }

    #[test]
    fn those_who_may_stay_are_bounded_too_and_make_room_when_they_leave() {
        let guests = Arc::new(Guests::default());
        let enter = || {
            let guest = guests.enter(address(1));
            guest.welcome();
            guest
        };
        let mut all: Vec<_> = (0..WELCOME_MAX + 1).map(|_| enter()).collect();
        assert!(!all.pop().unwrap().welcome.is_cancelled());
        all.pop();
        assert!(enter().welcome.is_cancelled());
    }
}
