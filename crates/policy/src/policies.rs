//! A compiled set of policies, and which of them are in force.

mod decide;
mod wording;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use cedar_policy::{Authorizer, Effect};
use countersign_identity::{Mode, SpiffeId, Timestamp};

use crate::compile::{Declared, PolicySource, Statement, compile};
use crate::holdings::Inventory;
use crate::index::Index;
use crate::memory::Memory;
use crate::operation::Operations;
use crate::reads::Reads;
use crate::request::Principal;
use crate::schema::Words;
use crate::{Limit, Members, Names, Problem};

/// A compiled set of policies.
///
/// Policies are kept by the principal and the service that their scopes name, so that a question
/// meets only those that could bear on it. What was decided before is remembered, within a bound, unless a policy that bears
/// on it reads the time or the age of the peer's certificate, or could not be evaluated.
pub struct Policies {
    words: Words,
    authorizer: Authorizer,
    in_force: ArcSwap<InForce>,
    /// All of them, where some end; else nothing, since nothing is left out later.
    statements: Vec<Statement>,
    operations: Operations,
    inventory: Inventory,
    members: Members,
    grants: Vec<Grant>,
    limits: HashMap<String, Limit>,
    allowed: Option<BTreeSet<SpiffeId>>,
    count: usize,
}

/// The very policies by which something was decided, with all that they were told of services, workloads and data. No two that differ in
/// anything have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Basis(u64);

impl Basis {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Those that have not ended, and what was decided by them.
struct InForce {
    basis: Basis,
    enforced: Index,
    observed: Index,
    /// None where nothing is to be remembered.
    memory: Option<Memory>,
    /// When the first of them ends.
    ends: Option<Timestamp>,
    /// What one of them reads of the context.
    reads: Reads,
}

impl InForce {
    fn of(statements: Vec<Statement>, memory: Option<Memory>) -> Self {
        let ends = statements.iter().filter_map(|statement| statement.until).min();
        let reads = statements.iter().fold(Reads::default(), |all, one| all | one.reads);
        let (enforced, observed): (Vec<_>, Vec<_>) =
            statements.into_iter().partition(|statement| statement.mode == Mode::Enforce);
        let (enforced, observed) = (Index::of(&enforced), Index::of(&observed));
        Self { basis: Basis::next(), enforced, observed, memory, ends, reads }
    }

    /// The same with another memory.
    fn remembering(this: Arc<Self>, memory: Option<Memory>) -> ArcSwap<Self> {
        let this = Arc::into_inner(this).expect("whoever builds policies has them alone");
        ArcSwap::from_pointee(Self { basis: Basis::next(), memory, ..this })
    }
}

/// A policy that permits something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Under which name decisions tell of it.
    pub policy: String,
    /// How far it goes.
    pub mode: Mode,
    /// Whom its scope names.
    pub principals: Names,
    /// On what.
    pub resources: Names,
    /// Whether it is seen when it is used: what is done with topics, nobody counts.
    pub counted: bool,
}

impl Statement {
    fn grant(&self) -> Option<Grant> {
        match self.policy.effect() {
            Effect::Permit => Some(Grant {
                policy: self.policy.id().to_string(),
                mode: self.mode,
                principals: self.scope.principals.clone(),
                resources: self.scope.resources.clone(),
                counted: self.counted,
            }),
            Effect::Forbid => None,
        }
    }
}

impl Policies {
    /// Compiles and checks.
    ///
    /// Beyond syntax and types: names must be those that manifests declare, where `declared` tells them, and
    /// possible ones otherwise; a permit for any principal or any service needs `@unscoped("why")`; and a
    /// policy that can never apply is a mistake.
    ///
    /// # Errors
    /// Every problem of every text, by manifest and position.
    pub fn compile(
        sources: &[PolicySource],
        declared: Option<&Declared>,
    ) -> Result<Self, Vec<Problem>> {
        let statements = compile(sources, declared)?;
        let mut policies = Self::none();
        policies.count = statements.len();
        policies.grants = statements.iter().filter_map(Statement::grant).collect();
        let limited =
            statements.iter().filter_map(|it| Some((it.policy.id().to_string(), it.limit?)));
        policies.limits = limited.collect();
        if statements.iter().any(|statement| statement.until.is_some()) {
            policies.statements.clone_from(&statements);
        }
        policies.in_force = ArcSwap::from_pointee(InForce::of(statements, Some(Memory::default())));
        Ok(policies)
    }

    /// Leaves out for good what has ended by now. True when something has, so that what was let in has to be looked at again.
    ///
    /// Whoever decides must have asked this before, as often as time may have passed.
    pub fn lapse(&self, now: Timestamp) -> bool {
        if self.ends().is_none_or(|end| now < end) {
            return false;
        }
        let lasts = |statement: &&Statement| statement.until.is_none_or(|until| now < until);
        let left = self.statements.iter().filter(lasts).cloned().collect();
        let memory = self.in_force.load().memory.as_ref().map(|_of_before| Memory::default());
        self.in_force.store(InForce::of(left, memory).into());
        true
    }

    /// When the next of them ends.
    pub fn ends(&self) -> Option<Timestamp> {
        self.in_force.load().ends
    }

    /// What they read of the context. Where that is the time, what was let in has to be looked at again as it passes.
    pub fn reads(&self) -> Reads {
        self.in_force.load().reads
    }

    /// What those of them read of the context that could bear on what this one asks of a service.
    pub fn reads_on(&self, principal: &Principal, service: &str) -> Reads {
        let in_force = self.in_force.load();
        let (principal, member) = (principal.as_str(), self.members.of(principal.as_str()));
        let of = |index: &Index| {
            let data_sets = self.inventory.of(service).into_iter();
            let data_sets = data_sets.flat_map(|holdings| holdings.data_sets.keys());
            index.buckets(principal, member, (service, data_sets)).reads()
        };
        of(&in_force.enforced) | of(&in_force.observed)
    }

    /// How much the policy of this name permits, where it says so.
    pub fn limit(&self, policy: &str) -> Option<&Limit> {
        self.limits.get(policy)
    }

    /// The same, for services with these operations.
    #[must_use]
    pub fn with_operations(self, operations: Operations) -> Self {
        Self { operations, ..self.remembering_anew() }
    }

    /// The same, for services with these data sets and topics.
    #[must_use]
    pub fn with_inventory(self, inventory: Inventory) -> Self {
        Self { inventory, ..self.remembering_anew() }
    }

    /// What was decided so far was decided on something else.
    fn remembering_anew(self) -> Self {
        let remembers = self.in_force.load().memory.is_some();
        let in_force = self.in_force.into_inner();
        let in_force = InForce::remembering(in_force, remembers.then(Memory::default));
        Self { in_force, ..self }
    }

    /// The same, where these are in roles or have labels.
    #[must_use]
    pub fn with_members(self, members: Members) -> Self {
        Self { members, ..self.remembering_anew() }
    }

    /// The same, for somebody who asks each question once: every decision is made anew.
    #[must_use]
    pub fn forgetful(self) -> Self {
        let in_force = InForce::remembering(self.in_force.into_inner(), None);
        Self { in_force, ..self }
    }

    /// Every policy that permits something, in the order of the texts.
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }

    /// Who is in roles or has labels.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The operations that services declare.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// The data sets and topics that services declare.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// No policy: everything is denied.
    pub fn none() -> Self {
        Self {
            words: Words::new(),
            authorizer: Authorizer::new(),
            in_force: ArcSwap::from_pointee(InForce::of(Vec::new(), Some(Memory::default()))),
            statements: Vec::new(),
            operations: Operations::default(),
            inventory: Inventory::default(),
            members: Members::default(),
            grants: Vec::new(),
            limits: HashMap::new(),
            allowed: None,
            count: 0,
        }
    }

    /// These peers may connect to every service here, nobody else to any.
    ///
    /// Peers must be asked about as [`Principal::Id`]: the list knows no names. It speaks of those who
    /// connect here, so whom this process dials is left to the one who dials, and to the rules over there.
    pub fn allow_ids(ids: Vec<SpiffeId>) -> Self {
        Self { allowed: Some(ids.into_iter().collect()), ..Self::none() }
    }

    /// How many policies there are.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies")
            .field("count", &self.count)
            .field("allowed", &self.allowed)
            .finish_non_exhaustive()
    }
}
