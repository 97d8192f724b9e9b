//! Who may do what to whom: Cedar policies compiled, checked and asked.
//!
//! Principals are workloads, by name, by role or by label, resources are services, their operations and their topics, which are in the data sets that they touch, actions are `connect`, the
//! methods of HTTP, `publish` and `subscribe`. Nothing is allowed without a policy; what cannot be evaluated is denied, also where Cedar itself would go on without the policy that
//! failed. A set of policies is compiled once, with every problem told at once, and then asked at a
//! cost that does not grow with the number of policies for other workloads and services. What was asked before is
//! remembered as long as the set lives, unless it depends on time.
//!
//! Addresses narrow what somebody may, and never say who somebody is: a permit for anybody that reads one is refused.
//!
//! No Cedar type appears outside of this crate. It knows no sockets, no certificates and no store.
//!
//! ```
//! use countersign_identity::Timestamp;
//! use countersign_policy::{ConnectRequest, Context, Policies, PolicySource, Principal};
//!
//! let text = r#"
//!     permit (
//!         principal == Workload::"web",
//!         action == Action::"connect",
//!         resource == Service::"orders"
//!     );
//! "#;
//! let source = PolicySource::enforced("web-to-orders".parse()?, text);
//! let policies = Policies::compile(&[source], None).map_err(|problems| problems[0].to_string())?;
//!
//! let context = Context {
//!     tls_version: "1.3".to_owned(),
//!     group: "X25519MLKEM768".to_owned(),
//!     peer_age_seconds: 12,
//!     ..Context::default()
//! };
//! let web = Principal::Named("web".parse()?);
//! let now = Timestamp::from_secs(1_790_000_000);
//! let request = ConnectRequest { principal: &web, service: "orders", context: &context, now };
//! assert!(policies.decide(&request).is_allowed());
//! assert!(!policies.decide(&ConnectRequest { service: "payments", ..request }).is_allowed());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cases;
mod circumstance;
mod compile;
mod decision;
mod direction;
mod found;
mod holdings;
mod index;
mod known;
mod limit;
mod literal;
mod member;
mod memory;
mod named;
mod narrow;
mod operation;
mod policies;
mod problem;
mod reads;
mod request;
mod schema;
mod scope;
mod text;

pub use circumstance::Context;
pub use compile::{Declared, PolicySource, TEXT_BYTES_MAX, nearest};
pub use decision::{Called, Decision, Verdict};
pub use holdings::{Holdings, Inventory, TopicAct, UnknownTopicAct};
pub use limit::{Limit, Rate};
pub use member::{Member, Members};
pub use narrow::{Grounds, Narrowed, Outcome, Permit, Use, narrow};
pub use operation::{Operation, Operations};
pub use policies::{Basis, Grant, Policies};
pub use problem::Problem;
pub use reads::Reads;
pub use request::{CallRequest, ConnectRequest, Principal, TopicRequest};
pub use schema::SCHEMA;
pub use scope::{Names, Scope, scope};
