//! What the policies of a set of resources come to: asked by operators, about the state in force or one that might be.

mod accepted;
mod declared;
mod question;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use countersign_api::admin::{Answer, ExplainRequest, ExplainResponse, FlowView, UnusedGrant};
use countersign_api::resource::{Resource, ServiceSpec, Spec};
use countersign_identity::{
    Attested, CanonicalPath, Code, Mode, Name, SpiffeId, Timestamp, TrustDomain, Verb,
};
use countersign_policy::{
    CallRequest, Called, ConnectRequest, Context, Decision, Grant, Members, Names, Operation,
    Policies, Principal, Problem, Reads, TopicAct, TopicRequest, Verdict,
};

use accepted::Accepted;
use declared::{inventory, members, operations};
use told::note;

/// The compiled policies of a set of resources, with the names that they speak of.
#[derive(Debug)]
pub struct Judge {
    policies: Policies,
    /// Until when each policy is in force and why it is there, as far as its manifest says.
    notes: BTreeMap<Name, String>,
    ids: BTreeMap<Name, SpiffeId>,
    names: BTreeMap<SpiffeId, Name>,
    services: BTreeMap<Name, ServiceSpec>,
    /// By which kinds of facts a process must be attested to be this workload, which its certificates then say.
    attested: BTreeMap<Name, Attested>,
    accepted: Accepted,
    now: Timestamp,
}

/// A question that names nothing that is declared, or that no proxy would let through to be decided on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unclear(String);

/// What is asked: a connection, or a request over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) source: Principal,
    pub(crate) service: Name,
    pub(crate) call: Option<(String, CanonicalPath)>,
    /// What is done with one of its topics, over that connection.
    pub(crate) topic: Option<(TopicAct, Name)>,
    /// When.
    pub(crate) at: Timestamp,
    /// From where, if that is known.
    pub(crate) address: Option<IpAddr>,
}

/// What was decided about a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) decision: Decision,
    pub(crate) operation: Option<Operation>,
    /// Whether it was the connection that decided, also about a request.
    pub(crate) by_connection: bool,
}

impl Judge {
    /// Compiles the policies of these resources, which are all that are declared, as they are in force at this moment.
    ///
    /// # Errors
    /// When the policies have problems.
    pub fn of(
        resources: &[Resource],
        domain: &TrustDomain,
        now: Timestamp,
    ) -> Result<Self, Vec<Problem>> {
        let (mut ids, mut services) = (BTreeMap::new(), BTreeMap::new());
        let mut attested = BTreeMap::new();
        let mut notes = BTreeMap::new();
        for resource in resources {
            let name = resource.name.clone();
            match &resource.spec {
                Spec::Workload(spec) => {
                    attested.insert(name.clone(), Attested::by(&spec.selectors));
                    drop(ids.insert(name.clone(), spec.spiffe_id_in(&name, domain)));
                }
                Spec::Service(spec) => drop(services.insert(name, spec.clone())),
                Spec::Policy(spec) => drop(notes.insert(name, note(spec))),
                Spec::TrustDomain(_) | Spec::Authority(_) | Spec::Role(_) | Spec::TlsProfile(_) => {
                }
            }
        }
        let names = ids.iter().map(|(name, id)| (id.clone(), name.clone())).collect();
        // Each question is another one.
        let policies = Self::compile(resources)?;
        let policies = policies.with_members(members(resources, domain)).forgetful();
        policies.lapse(now);
        let accepted = Accepted::of(resources);
        Ok(Self { policies, notes, ids, names, services, attested, accepted, now })
    }

    /// The policies alone.
    pub(crate) fn compile(resources: &[Resource]) -> Result<Policies, Vec<Problem>> {
        let policies =
            Policies::compile(&Self::sources(resources), Some(&Self::declared(resources)))?;
        Ok(policies.with_operations(operations(resources)).with_inventory(inventory(resources)))
    }

    /// Answers an operator's question.
    ///
    /// # Errors
    /// When it names nothing that is declared, or what no proxy would decide on.
    pub fn explain(&self, request: &ExplainRequest) -> Result<ExplainResponse, Unclear> {
        let question = self.question(request)?;
        let judged = self.judge(&question);
        let path = question.call.as_ref().map(|(_, path)| path.to_string());
        let (decision, remedy) = match judged.decision.verdict {
            Verdict::Allow => (Answer::Allow, None),
            Verdict::Deny(_) => (Answer::Deny, Some(self.remedy(&question, &judged))),
        };
        Ok(ExplainResponse {
            decision,
            mode: judged.decision.mode,
            why: self.why(&question, &judged),
            operation: judged.operation.map(|operation| operation.name),
            policies: judged.decision.policies,
            revision: None,
            source: question.source.to_string(),
            assumed: self.assumed(&question),
            service: question.service,
            path,
            remedy,
        })
    }

    /// Decides as a proxy would: on the connection first, then on the request.
    pub(crate) fn judge(&self, question: &Question) -> Judged {
        if !self.takes(question) {
            let (verdict, policies) = (Verdict::Deny(Code::UnknownTrustDomain), Vec::new());
            let decision = Decision { verdict, mode: Mode::Enforce, policies };
            return Judged { decision, operation: None, by_connection: true };
        }
        let (context, now) = (self.context(question), question.at);
        let service = question.service.as_str();
        let principal = &question.source;
        let connect =
            self.policies.decide(&ConnectRequest { principal, service, context: &context, now });
        let called = question.call.as_ref().and_then(|(method, path)| {
            let verb = method.parse::<Verb>().ok();
            self.policies.decide_call(&CallRequest {
                principal,
                service,
                verb,
                path,
                context: &context,
                now,
            })
        });
        let called = called.map(|Called { decision, operation, .. }| (decision, operation));
        let topic = question.topic.as_ref().map(|(act, topic)| {
            let (context, act) = (&context, *act);
            let request = TopicRequest { principal, service, topic, act, context, now };
            (self.policies.decide_topic(&request), None)
        });
        match called.or(topic) {
            Some((decision, operation)) if connect.is_allowed() => {
                // A connection that is only let pass makes of all that goes over it no more than that.
                let observed =
                    matches!(connect.verdict, Verdict::Deny(_)) || connect.mode == Mode::Observe;
                match observed && decision.verdict == Verdict::Allow {
                    true => Judged { decision: connect, operation, by_connection: true },
                    false => Judged { decision, operation, by_connection: false },
                }
            }
            Some((_, operation)) => Judged { decision: connect, operation, by_connection: true },
            None => Judged { decision: connect, operation: None, by_connection: true },
        }
    }

    /// Whether the TLS profile of the service takes the one who asks, before any policy is asked.
    fn takes(&self, question: &Question) -> bool {
        let id = match &question.source {
            Principal::Named(name) => self.ids.get(name),
            Principal::Id(id) => Some(id),
        };
        id.is_none_or(|id| self.accepted.takes(id, &question.service))
    }

    /// Who this is, as policies name it.
    pub(crate) fn principal(&self, id: &SpiffeId) -> Principal {
        self.names.get(id).cloned().map_or_else(|| Principal::Id(id.clone()), Principal::Named)
    }

    /// Every workload, by name.
    pub(crate) fn workloads(&self) -> impl Iterator<Item = &Name> {
        self.ids.keys()
    }

    /// Who is in roles or has labels.
    pub(crate) fn members(&self) -> &Members {
        self.policies.members()
    }

    /// The services that declare a data set.
    pub(crate) fn holders(&self, data_set: &str) -> impl Iterator<Item = &Name> {
        let has = move |spec: &ServiceSpec| {
            spec.data_sets.iter().any(|one| one.name.as_str() == data_set)
        };
        self.services.iter().filter(move |(_, spec)| has(spec)).map(|(name, _)| name)
    }

    /// The operations that touch a data set, as policies name them.
    pub(crate) fn touching(&self, data_set: &str) -> Vec<String> {
        let mut all = Vec::new();
        for (service, spec) in &self.services {
            let touches = |data: &Name| data.as_str() == data_set;
            let touching = spec.operations.iter().filter(|one| one.data_sets.iter().any(touches));
            all.extend(touching.map(|one| format!("{service}/{}", one.name)));
        }
        all
    }

    /// Whether a service declares topics; any service, when none is named.
    pub(crate) fn has_topics(&self, service: Option<&str>) -> bool {
        let meant = |name: &Name| service.is_none_or(|service| service == name.as_str());
        self.services.iter().any(|(name, spec)| meant(name) && !spec.topics.is_empty())
    }

    /// The operations of a service, as policies name them.
    pub(crate) fn operations(&self, service: &str) -> Vec<String> {
        let of = self.policies.operations().of(service).unwrap_or_default();
        of.iter().map(|operation| format!("{service}/{}", operation.name)).collect()
    }

    /// What a handshake of ours shows, and what the certificate of the one who asks would say.
    fn context(&self, question: &Question) -> Context {
        let attested = match &question.source {
            Principal::Named(name) => self.attested.get(name).copied().unwrap_or_default(),
            Principal::Id(_) => Attested::default(),
        };
        Context {
            tls_version: "1.3".to_owned(),
            group: "X25519MLKEM768".to_owned(),
            peer_age_seconds: 60,
            source: question.address,
            attested,
        }
    }

    /// What was taken for so of that which policies read and the question does not say.
    fn assumed(&self, question: &Question) -> Vec<String> {
        let context = self.context(question);
        let reads = self.policies.reads_on(&question.source, question.service.as_str());
        let Context { tls_version, group, peer_age_seconds: age, source, attested } = &context;
        let from = source.map_or_else(
            || "it is not known from where the caller comes".to_owned(),
            |source| format!("the caller comes from {source}"),
        );
        let kinds: Vec<_> = attested.kinds().collect();
        let by = match kinds.as_slice() {
            [] => "the caller's certificate says of no attestation".to_owned(),
            kinds => format!("the caller's certificate says `{}`", kinds.join("`, `")),
        };
        let sentences = [
            (reads.handshake, format!("the handshake agrees on TLS {tls_version} and {group}")),
            (reads.age, format!("the peer's certificate has been valid for {age} s")),
            (reads.time, format!("it is decided at {}", question.at.floor_secs())),
            (reads.source, from),
            (reads.attestation, by),
        ];
        sentences.into_iter().filter_map(|(read, sentence)| read.then_some(sentence)).collect()
    }

    /// What policies read of the context.
    pub(crate) fn reads(&self) -> Reads {
        self.policies.reads()
    }

    /// Whether something like this flow would be let pass, when it was seen last.
    pub(crate) fn lets_pass(&self, flow: &FlowView) -> bool {
        let call = flow
            .method
            .as_ref()
            .map(|method| (method.clone(), sample(flow.path.as_deref().unwrap_or(UNDECLARED))));
        let source = self.principal(&flow.source_id);
        let (service, at) = (flow.service.clone(), flow.last_seen);
        let question = Question { source, service, call, topic: None, at, address: None };
        self.judge(&question).decision.is_allowed()
    }

    /// The policies that permit something and are not among these, with whom they name.
    pub(crate) fn grants_beside(&self, used: &BTreeSet<&str>) -> Vec<UnusedGrant> {
        let names = |names: &Names| match names {
            Names::Any => Vec::new(),
            Names::Only(names) => names.clone(),
            Names::Dataset(name) => self.holders(name).map(ToString::to_string).collect(),
            Names::Role(role) => {
                let members = self.policies.members().in_role(role);
                members.into_iter().map(str::to_owned).collect()
            }
        };
        let unseen = |grant: &&Grant| grant.counted && !used.contains(grant.policy.as_str());
        let unused = self.policies.grants().iter().filter(unseen);
        let shown = |grant: &Grant| UnusedGrant {
            policy: grant.policy.clone(),
            sources: names(&grant.principals),
            services: names(&grant.resources),
        };
        unused.map(shown).collect()
    }
}

/// What is assumed of flows: what policies read of the context, and nobody has kept of them.
pub(crate) fn of_flows(reads: Reads) -> Vec<String> {
    let sentences = [
        (reads.handshake, "each came over TLS 1.3 and X25519MLKEM768"),
        (reads.age, "each peer's certificate had been valid for 60 s"),
        (
            reads.time,
            "each came at the moment at which it was seen last, however often it came before",
        ),
        (reads.source, "it is not known from where any of them came"),
        (reads.attestation, "each caller's certificate says what its manifest asks for"),
    ];
    sentences.into_iter().filter(|(read, _)| *read).map(|(_, said)| said.to_owned()).collect()
}

/// Stands for the paths that no operation declares.
const UNDECLARED: &str = "/_/undeclared";

/// A path for which a template stands.
fn sample(template: &str) -> CanonicalPath {
    let segments = template.split('/').map(|part| if part.starts_with('{') { "_" } else { part });
    let path = segments.collect::<Vec<_>>().join("/");
    let undeclared = || CanonicalPath::of(UNDECLARED).expect("a path in its one form");
    CanonicalPath::of(&path).unwrap_or_else(|_not_a_template| undeclared())
}

#[cfg(test)]
mod tests;
