//! The plan of one request's tries, or of one byte stream's: what may be sent again, and where to. Pure, on the time that it is told.
//!
//! A request is sent again only when it provably was not read, and [`TRIES_MOST`] times in all at most. Of a byte stream nothing is read
//! before it stands.

use countersign_identity::{Code, Entropy, Timestamp};

use crate::bounds::TRIES_MAX;
use crate::health::{Health, Tried};

/// How often one request or byte stream is tried at most, over all addresses.
pub const TRIES_MOST: usize = TRIES_MAX;

/// How far one request or byte stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries {
    tried: Tried,
    begun: usize,
    address: usize,
}

/// What is known of a request that got no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nobody has read it, and all of it is here.
    Unread,
    /// Nobody has read it, but too much of it has passed to be sent again.
    Spent,
    /// Somebody may have read it.
    Perhaps,
    /// It may not be sent any more, or not at all.
    Over,
}

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A connection that had carried requests, which says nothing of the address.
    Connection,
    /// The address, by a new connection or by none.
    Address(Code),
}

/// What to do with a request that got no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send it to this address, which may be the same again.
    Try(usize),
    /// Say why there is no answer.
    GiveUp,
}

/// Whether a failure is the address's, so that another may do better. What we lack ourselves we lack for all of them.
pub const fn blames_address(code: Code) -> bool {
    !matches!(code, Code::NoOwnIdentity | Code::PolicyDenied | Code::PolicyError)
}

impl Tries {
    /// The first try; `None` where there is no address.
    pub fn begin(health: &Health) -> Option<Self> {
        let mut tried = Tried::default();
        let address = health.pick(tried)?;
        tried.add(address);
        Some(Self { tried, begun: 1, address })
    }

    /// Where the present try goes.
    pub const fn address(&self) -> usize {
        self.address
    }

    /// The how manieth it is.
    pub const fn count(&self) -> usize {
        self.begun
    }

    /// What comes after a try without a response. Lets the address rest where it is at fault.
    pub fn after(
        &mut self,
        (fate, fault): (Fate, Fault),
        health: &mut Health,
        now: Timestamp,
        entropy: &dyn Entropy,
    ) -> Next {
        match fate {
            Fate::Unread => {}
            Fate::Spent | Fate::Perhaps | Fate::Over => return Next::GiveUp,
        }
        if let Fault::Address(code) = fault {
            if !blames_address(code) {
                return Next::GiveUp;
            }
            health.failed(self.address, now, entropy);
        }
        if self.begun == TRIES_MOST {
            return Next::GiveUp;
        }
        if let Fault::Address(_) = fault {
            let Some(address) = health.pick(self.tried) else { return Next::GiveUp };
            self.tried.add(address);
            self.address = address;
        }
        self.begun += 1;
        Next::Try(self.address)
    }
}

#[cfg(test)]
mod tests {
    use countersign_identity::SeededEntropy;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);
    const REFUSED: Fault = Fault::Address(Code::PeerRefused);

    /// Where a request goes that meets these one after the other.
    #[track_caller]
    fn goes(met: &[(Fate, Fault)], to: &[usize]) {
        let (mut health, entropy) = (Health::new(3), SeededEntropy::new(1));
        let mut tries = Tries::begin(&health).unwrap();
        let mut went = vec![tries.address()];
        for one in met {
            match tries.after(*one, &mut health, NOW, &entropy) {
                Next::Try(address) => went.push(address),
                Next::GiveUp => break,
            }
        }
        assert_eq!(went, to, "{met:?}");
    }

    #[test]
    fn request_goes_on_only_when_nobody_has_read_it() {
        goes(&[(Fate::Unread, REFUSED)], &[0, 1]);
        for fate in [Fate::Spent, Fate::Perhaps, Fate::Over] {
            goes(&[(fate, REFUSED)], &[0]);
            goes(&[(fate, Fault::Connection)], &[0]);
        }
    }

    #[test]
    fn connection_at_fault_costs_the_address_nothing_and_an_address_is_tried_once() {
        goes(&[(Fate::Unread, Fault::Connection), (Fate::Unread, REFUSED)], &[0, 0, 1]);
        goes(&[(Fate::Unread, REFUSED); 3], &[0, 1, 2]);
    }

    #[test]
    fn no_request_is_tried_more_often_than_is_said() {
        goes(&[(Fate::Unread, Fault::Connection); 100], &[0; TRIES_MOST]);
    }

    #[test]
    fn what_we_lack_ourselves_is_not_looked_for_elsewhere() {
        for code in [Code::NoOwnIdentity, Code::PolicyDenied, Code::PolicyError] {
            goes(&[(Fate::Unread, Fault::Address(code))], &[0]);
        }
    }
}
