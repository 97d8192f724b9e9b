//! Connections that have not shown a session yet: few, short, and never in the way of those that have.
//!
//! Whoever connects is a guest until a request of a session comes over the connection. A guest has to come to the point
//! in half a minute. When there are too many, the one that goes is the oldest of the source that has the most, so that who
//! fills the room pushes out itself and nobody else.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_tls::{Rank, Room, RoomBounds, Source, Stay};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Guests at once.
const GUESTS: RoomBounds = RoomBounds { all: 64, each: 64, yields_after: Duration::ZERO };
/// Connections of sessions at once. A browser opens one to six.
const WELCOME_MAX: usize = 256;

/// Everybody who is connected.
pub(crate) struct Guests {
    room: Room<Source>,
    welcome: Arc<Semaphore>,
}

/// One connection. Dropped, it has ended.
pub(crate) struct Guest {
    address: IpAddr,
    gives_way: CancellationToken,
    welcome: CancellationToken,
    stays: Mutex<As>,
    places: Arc<Semaphore>,
}

/// As what somebody is here. What is held is a place, free again when it is dropped.
enum As {
    Guest { _stay: Stay<Source> },
    Welcome { _place: OwnedSemaphorePermit },
}

impl Default for Guests {
    fn default() -> Self {
        Self { room: Room::new(GUESTS), welcome: Arc::new(Semaphore::new(WELCOME_MAX)) }
    }
}

impl Guests {
    /// Somebody comes in. When there is no room, somebody else has to go. None when so many come and go at this moment that
    /// there is no telling who.
    pub(crate) fn enter(&self, address: IpAddr, now: Timestamp) -> Option<Arc<Guest>> {
        let stay = self.room.enter(Source::of(address), Rank::Stranger, now)?;
        Some(Arc::new(Guest {
            address,
            gives_way: stay.give_way().clone(),
            welcome: CancellationToken::new(),
            stays: Mutex::new(As::Guest { _stay: stay }),
            places: Arc::clone(&self.welcome),
        }))
    }
}

impl Guest {
    /// From where it comes.
    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// A request of a session came over it: it may stay. When too many may, it is a guest as before.
    pub(super) fn welcome(&self) {
        let mut stays = self.stays.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*stays, As::Guest { .. })
            && let Ok(_place) = Arc::clone(&self.places).try_acquire_owned()
        {
            *stays = As::Welcome { _place };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody comes in from an address that ends so.
    fn enter(guests: &Guests, last: u8) -> Arc<Guest> {
        let now = Timestamp::from_secs(1);
        guests.enter(IpAddr::from([192, 0, 2, last]), now).expect("somebody makes room")
    }

    #[test]
    fn source_that_fills_the_room_pushes_out_itself() {
        let guests = Guests::default();
        let other = enter(&guests, 1);
        let many: Vec<_> = (0..10 * GUESTS.all).map(|_| enter(&guests, 2)).collect();
        assert!(!other.gives_way.is_cancelled());
        let stay = many.iter().filter(|guest| !guest.gives_way.is_cancelled()).count();
        assert_eq!(stay, GUESTS.all - 1);
        assert!(!many.last().unwrap().gives_way.is_cancelled(), "the oldest go first");
        assert_eq!(guests.room.len(), GUESTS.all);
        drop((many, other));
        assert!(guests.room.is_empty());
    }

    #[test]
    fn of_many_sources_the_oldest_goes_and_nobody_who_is_welcome() {
        let guests = Guests::default();
        let known = enter(&guests, 200);
        known.welcome();
        let all: Vec<_> = (0..100).map(|last| enter(&guests, last)).collect();
        let gone = all.iter().filter(|guest| guest.gives_way.is_cancelled()).count();
        assert_eq!(gone, 100 - GUESTS.all);
        assert!(all[..gone].iter().all(|guest| guest.gives_way.is_cancelled()));
        assert!(!known.gives_way.is_cancelled());
    }

    #[test]
    fn those_who_may_stay_are_bounded_too_and_make_room_when_they_leave() {
        let guests = Guests::default();
        let welcomed = || {
            let guest = enter(&guests, 1);
            guest.welcome();
            guest
        };
        let mut all: Vec<_> = (0..WELCOME_MAX + 1).map(|_| welcomed()).collect();
        assert!(!all.pop().unwrap().welcome.is_cancelled());
        all.pop();
        assert!(welcomed().welcome.is_cancelled());
    }
}
