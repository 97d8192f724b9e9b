//! What the agent decides: a state machine over (state, event, now), without I/O, keys or clocks.
//!
//! [`State::step`] takes what happened and gives what to do. It knows which records are in force, which SVIDs are held
//! and until when, whom to ask for new ones and when, and when to try a lost server again. Keys and sockets are the
//! driver's; the machine sees only the [`Term`] of a credential.

mod duty;
mod event;
mod matching;
mod record;
mod replica;
mod state;

pub use duty::{Standing, Term};
pub use event::{Action, Event, Knowledge, LinkView, Outcome, Settings, SyncMessage};
pub use matching::{Answer, Candidates, answer};
pub use record::{BadRecord, Record, RecordKey, RecordKind};
pub use replica::{Behind, PolicyEntry, Replica, Workload};
pub use state::State;
