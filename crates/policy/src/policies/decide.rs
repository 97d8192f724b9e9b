//! Asking: what bears on a question, what was answered to it before, and what it comes to.

use std::collections::{BTreeMap, BTreeSet};

use countersign_identity::{Attested, Code, Mode, Name, SpiffeId, Timestamp, Verb};

use super::wording::Readers;
use super::{Basis, Policies};
use crate::cases::Cases;
use crate::circumstance::Context;
use crate::decision::{Called, Decision, Verdict};
use crate::found::{Found, decision, stricter};
use crate::holdings::{Inventory, Part, TopicAct, Touched};
use crate::index::{Bucket, Buckets};
use crate::memory::Question;
use crate::reads::Reads;
use crate::request::{CallRequest, ConnectRequest, Principal, TopicRequest};

impl Policies {
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
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Connect,
    Call(Verb),
    Topic(TopicAct),
}

/// A question, before it is put into Cedar's words.
pub(super) struct Asked<'a> {
    pub(super) principal: &'a Principal,
    pub(super) service: &'a str,
    pub(super) act: Act,
    pub(super) part: Part<'a>,
    pub(super) context: &'a Context,
    pub(super) now: Timestamp,
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
