//! How many callers may be here at once, before and after they have said who they are.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use countersign_identity::Code;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::refusal::Refused;

/// Connections in all.
const CONNECTIONS_MAX: usize = 32_768;
/// Connections of one address that have shown no identity. Agents that have are not counted, since a whole
/// site may come from one address.
const STRANGERS_PER_ADDRESS_MAX: usize = 128;
/// Connections without an identity in all: handshakes under way, joining and renewing agents.
const STRANGERS_MAX: usize = 1024;

/// Counts callers, so that no address and no crowd of strangers takes the room of the known ones.
#[derive(Clone, Debug)]
pub(crate) struct Crowd {
    connections: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>, // INVARIANT: at most STRANGERS_MAX entries, none 0
}

/// A caller's place. Dropped, it is free again.
#[derive(Debug)]
pub(crate) struct Place {
    _connection: OwnedSemaphorePermit,
    stranger: Option<Stranger>,
}

#[derive(Debug)]
struct Stranger {
    _permit: OwnedSemaphorePermit,
    address: IpAddr,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Crowd {
    /// Nobody is here.
    pub(crate) fn new() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            by_address: Arc::default(),
        }
    }

    /// Lets a new caller in, as a stranger.
    ///
    /// # Errors
    /// `too-many-connections` when there is no place; the connection is then closed unread.
    pub(crate) fn enter(&self, address: IpAddr) -> Result<Place, Refused> {
        let full = |what: &str| Refused::new(Code::TooManyConnections, what);
        let connection = Arc::clone(&self.connections)
            .try_acquire_owned()
            .map_err(|_full| full("the server's limit of connections is reached"))?;
        let permit = Arc::clone(&self.strangers)
            .try_acquire_owned()
            .map_err(|_full| full("the limit of connections without an identity is reached"))?;
        let address = address.to_canonical();
        let mut counts = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_insert(0);
        if STRANGERS_PER_ADDRESS_MAX <= *count {
            return Err(full("the address's limit of connections without an identity is reached"));
        }
        *count += 1;
        drop(counts);
        let by_address = Arc::clone(&self.by_address);
        let stranger = Some(Stranger { _permit: permit, address, by_address });
        Ok(Place { _connection: connection, stranger })
    }
}

impl Place {
    /// The caller has proven an identity, and no longer counts as a stranger.
    pub(crate) fn known(&mut self) {
        self.stranger = None;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut counts = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn one_address_cannot_take_the_place_of_others() {
        let crowd = Crowd::new();
        let mut places: Vec<_> =
            (0..STRANGERS_PER_ADDRESS_MAX).map(|_| crowd.enter(ADDRESS).unwrap()).collect();
        assert_eq!(crowd.enter(ADDRESS).unwrap_err().code, Code::TooManyConnections);
        assert!(crowd.enter("192.0.2.1".parse().unwrap()).is_ok());
        places[0].known();
        assert!(crowd.enter(ADDRESS).is_ok(), "who is known is no stranger");
        drop(places);
        assert!(crowd.by_address.lock().unwrap().is_empty());
    }

    #[test]
    fn strangers_are_bounded_over_all_addresses() {
        let crowd = Crowd::new();
        let enter = |number: usize| crowd.enter(IpAddr::V4(u32::try_from(number).unwrap().into()));
        let places: Vec<_> = (0..STRANGERS_MAX).map(|number| enter(number).unwrap()).collect();
        assert!(enter(STRANGERS_MAX).is_err());
        drop(places);
        assert!(enter(0).is_ok());
    }
}
