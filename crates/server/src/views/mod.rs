//! What the rest of the world is told about revocations: lists and OCSP answers, from memory (design, section 11).
//!
//! Both are views of the one set of rules, expanded by the table of what was issued (`sets`). The `keeper` makes them anew
//! when that set changes and on a schedule; a `list` is one authority's lists, `ocsp` answers questions, `asked` bounds
//! what that costs, and `listen` is the plain-HTTP port on which both are reached. Enforcement points need none of it: they have the rules.

mod asked;
mod fetched;
mod http_date;
mod keeper;
mod list;
mod listen;
mod measured;
mod ocsp;
mod responder;
mod sets;

pub(crate) use fetched::{Which, fetch, lists_for_agents};
pub(crate) use keeper::{Keeper, Views};
pub(crate) use listen::ViewsDoor;
pub use measured::revocation_list;
