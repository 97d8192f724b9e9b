//! Who may begin a handshake at the doors of a source, so that no crowd keeps the others out.

use std::net::IpAddr;
use std::time::Duration;

use countersign_identity::{Code, Timestamp};
use countersign_pki::Refused;
use countersign_tls::{
    Leave, Outcome, Rate, Room, RoomBounds, Source, StandingRates, Standings, Stay,
};

/// Handshakes under way at all doors together, and from one source: what a proxy has, since doors of a program are no other ones.
const HANDSHAKES: RoomBounds =
    RoomBounds { all: 512, each: 256, yields_after: Duration::from_secs(1) };
/// Handshakes that failed, likewise.
const STANDING: StandingRates = StandingRates {
    suspect: Rate { burst: 32, every: Duration::from_millis(500) },
    proven: Rate { burst: 512, every: Duration::from_millis(16) },
    suspects: Rate { burst: 128, every: Duration::from_millis(8) },
    strangers: Rate { burst: 512, every: Duration::from_millis(2) },
};

/// What is known of those who come, by all doors of a source.
#[derive(Debug)]
pub(crate) struct Gate {
    standings: Standings,
    under_way: Room<Source>,
}

/// That a handshake may go on, until somebody else needs its place.
#[derive(Debug)]
pub(crate) struct Pass {
    leave: Leave,
    stay: Stay<Source>,
}

impl Gate {
    pub(crate) fn new(now: Timestamp) -> Self {
        Self { standings: Standings::new(STANDING, now), under_way: Room::new(HANDSHAKES) }
    }

    /// Lets a handshake begin. Nothing of the caller is read before.
    pub(crate) fn begin(&self, from: IpAddr, now: Timestamp) -> Result<Pass, Refused> {
        let source = Source::of(from);
        let leave = self.standings.begin(source, now)?;
        match self.under_way.enter(source, leave.rank(), now) {
            Some(stay) => Ok(Pass { leave, stay }),
            None => {
                self.standings.ended(leave, Outcome::Nothing, now);
                Err(crowded("too many handshakes are under way"))
            }
        }
    }

    /// How it ended.
    pub(crate) fn ended(&self, pass: Pass, outcome: Outcome, now: Timestamp) {
        self.standings.ended(pass.leave, outcome, now);
    }

    /// It gave way to another.
    pub(crate) fn gave_way(&self, pass: Pass, now: Timestamp) -> Refused {
        if pass.stay.is_slow(now) {
            self.standings.ended(pass.leave, Outcome::Failed, now);
            return crowded("it gave way to another handshake, being slow");
        }
        // Untold: nothing is held against it, and a crowd that gives way to itself gets nothing back.
        crowded("it gave way to another handshake, of which there are too many")
    }
}

impl Pass {
    /// Waits until the place is another's.
    pub(crate) async fn gives_way(&self) {
        self.stay.give_way().cancelled().await;
    }
}

fn crowded(why: &str) -> Refused {
    Refused { code: Code::TooManyConnections, why: why.to_owned() }
}
