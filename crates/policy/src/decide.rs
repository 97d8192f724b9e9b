//! Asking.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use cedar_policy::{
    Authorizer, Context as CedarContext, Effect, Entities, Entity, EntityUid, Request,
    RestrictedExpression,
};
use countersign_identity::{Attested, CanonicalPath, Code, Mode, Name, SpiffeId, Timestamp, Verb};

use crate::cases::Cases;
use crate::circumstance::Context;
use crate::compile::{Declared, PolicySource, Statement, compile};
use crate::found::{Found, decision, stricter};
use crate::holdings::{Inventory, Part, TopicAct, Touched};
use crate::index::{Bucket, Buckets, Index};
use crate::memory::{Memory, Question};
use crate::operation::{Operation, Operations};
use crate::reads::Reads;
use crate::schema::{CLASSIFICATIONS, LABELS, Words};
use crate::{Limit, Member, Members, Names, Problem};

/// Who asks: a workload that a manifest names, or a peer that none names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Principal {
    /// `Workload::"web"`.
    Named(Name),
    /// `Workload::"spiffe://other.example/web"`.
    Id(SpiffeId),
}

impl Principal {
    /// As policies write it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Named(name) => name.as_str(),
            Self::Id(id) => id.as_str(),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// May this peer open a connection to this service?
#[derive(Clone, Copy, Debug)]
pub struct ConnectRequest<'a> {
    /// Who asks.
    pub principal: &'a Principal,
    /// The name of the service.
    pub service: &'a str,
    /// What the handshake has shown.
    pub context: &'a Context,
    /// When it is decided.
    pub now: Timestamp,
}

/// May this peer ask for this, over a connection that it may have?
#[derive(Clone, Copy, Debug)]
pub struct CallRequest<'a> {
    /// Who asks.
    pub principal: &'a Principal,
    /// The name of the service.
    pub service: &'a str,
    /// The method of the request; `None` when it is none that an operation could have.
    pub verb: Option<Verb>,
    /// The path, in the form that is sent on.
    pub path: &'a CanonicalPath,
    /// What the handshake has shown.
    pub context: &'a Context,
    /// When it is decided.
    pub now: Timestamp,
}

/// May this peer do that with a topic, over a connection that it may have?
#[derive(Clone, Copy, Debug)]
pub struct TopicRequest<'a> {
    /// Who asks.
    pub principal: &'a Principal,
    /// The name of the service.
    pub service: &'a str,
    /// The name of its topic.
    pub topic: &'a Name,
    /// What is to be done with it.
    pub act: TopicAct,
    /// What the handshake has shown.
    pub context: &'a Context,
    /// When it is decided.
    pub now: Timestamp,
}

/// What was decided about a request, and which operation it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    /// Yes, or why not.
    pub decision: Decision,
    /// The operation; `None` when none is declared that the request could be.
    pub operation: Option<Operation>,
    /// The limits of the policies that it rests on, in their order. Empty where none of them has one.
    pub limits: Vec<Option<Limit>>,
}

/// Yes, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A policy permits it, none forbids it, and all that bear on it could be evaluated.
    Allow,
    /// [`Code::PolicyDenied`] or [`Code::PolicyError`].
    Deny(Code),
}

/// A verdict, and the policies that it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Yes, or why not.
    pub verdict: Verdict,
    /// Whether that is done. A denial in [`Mode::Observe`] is told, and lets pass.
    pub mode: Mode,
    /// The policies that permit, or that forbid, or that could not be evaluated, sorted. Empty where the denial
    /// is for want of a policy.
    pub policies: Vec<String>,
}

impl Decision {
    fn by_list() -> Self {
        Self { verdict: Verdict::Allow, mode: Mode::Enforce, policies: vec![ALLOW_LIST.to_owned()] }
    }

    pub(crate) fn denied(code: Code, mode: Mode) -> Self {
        Self { verdict: Verdict::Deny(code), mode, policies: Vec::new() }
    }

    /// Whether it is let pass: it is a yes, or a no that is only observed.
    pub fn is_allowed(&self) -> bool {
        match (self.verdict, self.mode) {
            (Verdict::Allow, _) | (Verdict::Deny(_), Mode::Observe) => true,
            (Verdict::Deny(_), Mode::Enforce) => false,
        }
    }
}

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

    /// Decides about a connection that this process opens; the principal is its own.
    ///
    /// The same policies are asked at both ends. Only an [allow list](Self::allow_ids) says nothing of it.
    pub fn decide_outbound(&self, request: &ConnectRequest<'_>) -> Decision {
        if self.allowed.is_some() { Decision::by_list() } else { self.decide(request) }
    }

    /// Decides about a connection. Whatever cannot be evaluated denies.
    pub fn decide(&self, request: &ConnectRequest<'_>) -> Decision {
        let ConnectRequest { principal, service, context, now } = *request;
        // Over a connection to a service without operations anything may be asked for.
        let part = self.operations.of(service).map_or(Part::Undeclared, |_asked_about| Part::Door);
        self.ask(&Asked { principal, service, act: Act::Connect, part, context, now }).0
    }

    /// Decides about something that is done with a topic. What the service does not declare is denied.
    pub fn decide_topic(&self, request: &TopicRequest<'_>) -> Decision {
        let TopicRequest { principal, service, topic, act, context, now } = *request;
        if !self.inventory.has_topic(service, topic) {
            return Decision::denied(Code::PolicyDenied, Mode::Enforce);
        }
        let (act, part) = (Act::Topic(act), Part::Topic(topic));
        self.ask(&Asked { principal, service, act, part, context, now }).0
    }

    /// Decides about a request to a service that declares operations; `None` for one that declares none, where the
    /// decision about the connection is all there is.
    ///
    /// A request that no operation stands for is asked of the service itself, and one whose method no operation
    /// could have is denied.
    pub fn decide_call(&self, request: &CallRequest<'_>) -> Option<Called> {
        self.decide_call_on(request).map(|(called, _basis)| called)
    }

    /// The same, with what that rests on: as long as [`basis`](Self::basis) is this one, the same request of the same principal over the same
    /// connection is decided in the same way. `None` of what may be decided otherwise at any time.
    pub fn decide_call_on(&self, request: &CallRequest<'_>) -> Option<(Called, Option<Basis>)> {
        let CallRequest { principal, service, context, now, .. } = *request;
        self.operations.of(service)?;
        let Some(verb) = request.verb else {
            let decision = Decision::denied(Code::PolicyDenied, Mode::Enforce);
            return Some((Called { decision, operation: None, limits: Vec::new() }, None));
        };
        let operation = self.operations.find(service, verb, request.path).cloned();
        let name = operation.as_ref().map(|operation| &operation.name);
        let part = name.map_or(Part::Undeclared, Part::Operation);
        let act = Act::Call(verb);
        let (decision, basis) = self.ask(&Asked { principal, service, act, part, context, now });
        let limit = |policy: &String| self.limits.get(policy).copied();
        let limited =
            !self.limits.is_empty() && decision.policies.iter().any(|it| limit(it).is_some());
        let limits =
            if limited { decision.policies.iter().map(limit).collect() } else { Vec::new() };
        Some((Called { decision, operation, limits }, basis))
    }

    /// What is decided by now. To be asked after [`lapse`](Self::lapse).
    pub fn basis(&self) -> Basis {
        self.in_force.load().basis
    }

    /// Answers, and says on what that rests if it depends on nothing that passes by itself.
    fn ask(&self, asked: &Asked<'_>) -> (Decision, Option<Basis>) {
        let listed = |allowed: &BTreeSet<SpiffeId>| match asked.principal {
            Principal::Id(id) => allowed.contains(id),
            Principal::Named(_) => false,
        };
        if self.allowed.as_ref().is_some_and(listed) {
            return (Decision::by_list(), None);
        }
        let (principal, service) = (asked.principal.as_str(), asked.service);
        let in_force = self.in_force.load();
        let member = self.members.of(principal);
        let data_sets = || asked.touched(&self.inventory).names();
        let enforced = in_force.enforced.buckets(principal, member, (service, data_sets()));
        let observed = in_force.observed.buckets(principal, member, (service, data_sets()));
        // What no policy bears on is not remembered: to find that out takes no longer than to remember it, and
        // strangers take up no room so.
        if enforced.is_empty() && observed.is_empty() {
            return (Decision::denied(Code::PolicyDenied, Mode::Enforce), None);
        }
        let reads = enforced.reads() | observed.reads();
        let passing = reads.passing() || asked.context.age().is_none();
        let memory = in_force.memory.as_ref().filter(|_| !passing);
        let Some((memory, question)) = memory.zip(asked.question(reads)) else {
            return (self.weigh(asked, (&enforced, &observed), reads), None);
        };
        if let Some(known) = memory.recall(&question) {
            return (known, Some(in_force.basis));
        }
        let decision = self.weigh(asked, (&enforced, &observed), reads);
        // A failure is looked at again each time.
        if decision.verdict == Verdict::Deny(Code::PolicyError) {
            return (decision, None);
        }
        memory.remember(&question, &decision);
        (decision, Some(in_force.basis))
    }

    /// Decides on what is touched, if that is known.
    fn weigh(
        &self,
        asked: &Asked<'_>,
        (enforced, observed): (&Buckets<'_>, &Buckets<'_>),
        reads: Reads,
    ) -> Decision {
        let touched = asked.touched(&self.inventory);
        let speaks_of_data = enforced.iter().chain(observed.iter()).any(|it| it.reads_data);
        match touched {
            Touched::Untold(held) if speaks_of_data => {
                self.weigh_untold(asked, held, (enforced, observed), reads)
            }
            Touched::Untold(_) | Touched::Told(..) | Touched::Nothing => {
                self.evaluate(asked, touched, (enforced, observed), reads)
            }
        }
    }

    /// Decides where nobody says what is touched: in each case in which the policies could come to something else, and says no where one
    /// of them does. Where there are too many cases, it is a no as well.
    fn weigh_untold(
        &self,
        asked: &Asked<'_>,
        held: &BTreeMap<Name, String>,
        (enforced, observed): (&Buckets<'_>, &Buckets<'_>),
        reads: Reads,
    ) -> Decision {
        let mut cases = Cases::default();
        let beyond = |policies: BTreeSet<String>, mode| {
            let policies = policies.into_iter().collect();
            Decision { policies, ..Decision::denied(Code::PolicyDenied, mode) }
        };
        let unweighed = cases.add(enforced.weighing(), held);
        if !unweighed.is_empty() {
            return beyond(unweighed, Mode::Enforce);
        }
        let unweighed = cases.add(observed.weighing(), held);
        let (least, others) = (enforced.without_data(), observed.without_data());
        let in_each_case = |observed: &Buckets<'_>| {
            let all = self.evaluate(asked, Touched::Untold(held), (enforced, observed), reads);
            let nothing = self.evaluate(asked, Touched::Nothing, (&least, &others), reads);
            cases.iter().fold(stricter(all, nothing), |before, some| {
                let touched = Touched::Told(some, held);
                stricter(before, self.evaluate(asked, touched, (enforced, observed), reads))
            })
        };
        // What those that are enforced deny, none lets pass that only observes, and that of data which may not be touched.
        let told = in_each_case(&others);
        if !told.is_allowed() || !observed.has_data() && unweighed.is_empty() {
            return told;
        }
        let told = stricter(told, in_each_case(observed));
        match unweighed.is_empty() {
            true => told,
            false => stricter(told, beyond(unweighed, Mode::Observe)),
        }
    }

    fn evaluate(
        &self,
        asked: &Asked<'_>,
        touched: Touched<'_>,
        (enforced, observed): (&Buckets<'_>, &Buckets<'_>),
        reads: Reads,
    ) -> Decision {
        let all = || enforced.iter().chain(observed.iter());
        let members: Vec<&Bucket> = all().filter(|it| it.reads_members).collect();
        let touched = all().any(|it| it.reads_data).then_some(touched);
        let readers = Readers { members: &members, touched };
        let Some((request, entities)) = self.cedar_request(asked, reads, &readers) else {
            return Decision::denied(Code::PolicyError, Mode::Enforce);
        };
        let found = |buckets: &Buckets<'_>| {
            let mut found = Found::default();
            for policies in buckets.iter().flat_map(|it| it.bearing_on(asked.part.operation())) {
                found.add(&self.authorizer.is_authorized(&request, policies, &entities));
            }
            found
        };
        // What an observed policy's scope admits is let pass, whatever that policy says.
        let lenient = if !observed.is_empty() { Mode::Observe } else { Mode::Enforce };
        decision(found(enforced), found(observed), lenient)
    }

    /// The question in Cedar's words, with all that is read of the context, and that these buckets may read of workloads.
    fn cedar_request(
        &self,
        asked: &Asked<'_>,
        reads: Reads,
        readers: &Readers<'_>,
    ) -> Option<(Request, Entities)> {
        let context = CedarContext::from_pairs(asked.context.attributes(asked.now, reads)?);
        let principal: EntityUid = self.words.workload(asked.principal.as_str());
        let action = match asked.act {
            Act::Connect => self.words.connect(),
            Act::Call(verb) => self.words.verb(verb),
            Act::Topic(act) => self.words.topic_act(act),
        };
        let mut entities = self.member_entities(asked.principal, readers.members)?;
        let resource = self.resource(asked, readers.touched, &mut entities)?;
        let entities = match entities.is_empty() {
            true => Entities::empty(),
            false => Entities::from_entities(entities, None).ok()?,
        };
        // Types and context are right by construction; validating them again would cost more than the decision.
        let request = Request::new(principal, action, resource, context.ok()?, None);
        Some((request.ok()?, entities))
    }

    /// What is asked for, and of it as an entity what policies can read: of which service it is, and, where that is asked, which data
    /// sets it touches and how those are classified.
    fn resource(
        &self,
        asked: &Asked<'_>,
        touched: Option<Touched<'_>>,
        entities: &mut Vec<Entity>,
    ) -> Option<EntityUid> {
        let service = self.words.service(asked.service);
        let (resource, mut parents) = match asked.part {
            Part::Door | Part::Undeclared => (service, HashSet::new()),
            Part::Operation(name) => {
                (self.words.operation(asked.service, name.as_str()), HashSet::from([service]))
            }
            Part::Topic(name) => {
                (self.words.topic(asked.service, name.as_str()), HashSet::from([service]))
            }
        };
        if let Some(touched) = touched {
            parents.extend(touched.names().map(|name| self.words.dataset(name.as_str())));
            let classified = touched.classifications().into_iter().map(str::to_owned);
            let classified =
                RestrictedExpression::new_set(classified.map(RestrictedExpression::new_string));
            let attributes = HashMap::from([(CLASSIFICATIONS.to_owned(), classified)]);
            entities.push(Entity::new(resource.clone(), attributes, parents).ok()?);
        } else if !parents.is_empty() {
            entities.push(Entity::new_no_attrs(resource.clone(), parents));
        }
        Some(resource)
    }

    /// The principal, and the workloads of whom these buckets ask as well. Nobody where none of them asks.
    fn member_entities(&self, principal: &Principal, readers: &[&Bucket]) -> Option<Vec<Entity>> {
        if readers.is_empty() {
            return Some(Vec::new());
        }
        let mentioned = readers.iter().flat_map(|bucket| bucket.members.iter().map(String::as_str));
        let asked_for: BTreeSet<&str> =
            std::iter::once(principal.as_str()).chain(mentioned).collect();
        asked_for.into_iter().map(|name| self.member_entity(name)).collect()
    }

    fn member_entity(&self, name: &str) -> Option<Entity> {
        let nothing = Member::default();
        let Member { roles, labels } = self.members.of(name).unwrap_or(&nothing);
        let label = |label: &Name| RestrictedExpression::new_string(label.to_string());
        let labels = RestrictedExpression::new_set(labels.iter().map(label));
        let attributes = HashMap::from([(LABELS.to_owned(), labels)]);
        let roles = roles.iter().map(|role| self.words.role(role.as_str())).collect();
        Entity::new(self.words.workload(name), attributes, roles).ok()
    }
}

/// Which of the policies that bear on a question ask for more than it says.
struct Readers<'a> {
    /// For roles or labels.
    members: &'a [&'a Bucket],
    /// For data; that is what they are told then.
    touched: Option<Touched<'a>>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Connect,
    Call(Verb),
    Topic(TopicAct),
}

/// A question, before it is put into Cedar's words.
struct Asked<'a> {
    principal: &'a Principal,
    service: &'a str,
    act: Act,
    part: Part<'a>,
    context: &'a Context,
    now: Timestamp,
}

impl<'a> Asked<'a> {
    fn touched<'b>(&self, inventory: &'b Inventory) -> Touched<'b> {
        inventory.touched(self.service, self.part)
    }

    /// The same, without what is never remembered, and without what nobody reads. None of a topic, of which nothing is remembered.
    fn question(&self, reads: Reads) -> Option<Question<'a>> {
        let verb = match self.act {
            Act::Connect => None,
            Act::Call(verb) => Some(verb),
            Act::Topic(_) => return None,
        };
        let operation = match self.part {
            Part::Door | Part::Undeclared => None,
            Part::Operation(name) => Some(name),
            Part::Topic(_) => return None,
        };
        let attested = if reads.attestation { self.context.attested } else { Attested::default() };
        Some(Question {
            principal: self.principal,
            service: self.service,
            operation,
            verb,
            tls_version: &self.context.tls_version,
            group: &self.context.group,
            source: self.context.source.filter(|_| reads.source),
            attested,
        })
    }
}

/// The name under which an allow list stands in decisions.
const ALLOW_LIST: &str = "allow-list";

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies")
            .field("count", &self.count)
            .field("allowed", &self.allowed)
            .finish_non_exhaustive()
    }
}
