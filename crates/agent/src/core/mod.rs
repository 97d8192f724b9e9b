//! What the agent decides: a state machine over (state, event, now), without I/O, keys or clocks.
//!
//! [`State::step`] takes what happened and gives what to do. It knows which records are in force, which SVIDs are held
//! and until when, whom to ask for new ones and when, and when to try a lost server again. Keys and sockets are the
//! driver's; the machine sees only a [`Credential`]: its term, and what revocations speak of.

mod credential;
mod duty;
mod event;
mod matching;
mod record;
mod replica;
mod shut_out;
mod state;
mod suspensions;
mod times;

pub use credential::{Credential, Shown, Term};
pub use duty::Standing;
pub use event::{Action, Event, Knowledge, LinkView, Outcome, Remembered, Settings, SyncMessage};
pub use matching::{Answer, Candidates, answer};
pub use record::{BadRecord, Record, RecordKey, RecordKind, SignedRecord};
pub use replica::{Behind, PolicyEntry, Replica, Workload};
pub use state::State;
pub use times::Times;
