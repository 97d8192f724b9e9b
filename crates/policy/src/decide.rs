//! Asking.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use cedar_policy::{
    AuthorizationError, Authorizer, Context as CedarContext, Decision as CedarDecision, Entities,
    EntityUid, PolicySet, Request, RestrictedExpression,
};
use countersign_identity::{Code, Name, SpiffeId};

use crate::compile::{Declared, PolicySource, Statement, compile};
use crate::schema::Words;
use crate::{Names, Problem};

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

/// What the handshake has shown, for the conditions of policies. Everything is always present.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Context {
    /// `1.3`.
    pub tls_version: String,
    /// The key exchange, `X25519MLKEM768`.
    pub group: String,
    /// How long ago the peer's certificate became valid.
    pub peer_age_seconds: u64,
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
    /// The policies that permit, or that forbid, or that could not be evaluated, sorted. Empty where the denial
    /// is for want of a policy.
    pub policies: Vec<String>,
}

impl Decision {
    fn by_list() -> Self {
        Self { verdict: Verdict::Allow, policies: vec![ALLOW_LIST.to_owned()] }
    }

    /// Whether it is a yes.
    pub fn is_allowed(&self) -> bool {
        match self.verdict {
            Verdict::Allow => true,
            Verdict::Deny(_) => false,
        }
    }
}

/// A compiled set of policies.
///
/// Policies are kept by the principal and the service that their scopes name, so that a question
/// meets only those that could bear on it.
pub struct Policies {
    words: Words,
    authorizer: Authorizer,
    entities: Entities,
    index: Index,
    allowed: Option<BTreeSet<SpiffeId>>,
    count: usize,
}

/// Every policy is in exactly one of the sets.
#[derive(Default)]
struct Index {
    for_any: PolicySet,
    by_principal: HashMap<String, PolicySet>,
    by_service: HashMap<String, PolicySet>,
    by_service_and_principal: HashMap<String, HashMap<String, PolicySet>>,
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
        policies.index = Index::of(statements);
        Ok(policies)
    }

    /// No policy: everything is denied.
    pub fn none() -> Self {
        Self {
            words: Words::new(),
            authorizer: Authorizer::new(),
            entities: Entities::empty(),
            index: Index::default(),
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

    /// Decides. Whatever cannot be evaluated denies.
    pub fn decide(&self, request: &ConnectRequest<'_>) -> Decision {
        let listed = |allowed: &BTreeSet<SpiffeId>| match request.principal {
            Principal::Id(id) => allowed.contains(id),
            Principal::Named(_) => false,
        };
        if self.allowed.as_ref().is_some_and(listed) {
            return Decision::by_list();
        }
        let mut sets = self.index.sets(request.principal.as_str(), request.service).peekable();
        if sets.peek().is_none() {
            return Decision { verdict: Verdict::Deny(Code::PolicyDenied), policies: Vec::new() };
        }
        let Some(request) = self.cedar_request(request) else {
            return Decision { verdict: Verdict::Deny(Code::PolicyError), policies: Vec::new() };
        };
        let mut found = Found::default();
        for set in sets {
            found.add(&self.authorizer.is_authorized(&request, set, &self.entities));
        }
        found.decision()
    }

    fn cedar_request(&self, request: &ConnectRequest<'_>) -> Option<Request> {
        let text = |value: &str| RestrictedExpression::new_string(value.to_owned());
        let age = i64::try_from(request.context.peer_age_seconds).ok()?;
        let context = CedarContext::from_pairs([
            ("tls_version".to_owned(), text(&request.context.tls_version)),
            ("group".to_owned(), text(&request.context.group)),
            ("peer_age_seconds".to_owned(), RestrictedExpression::new_long(age)),
        ]);
        let principal: EntityUid = self.words.workload(request.principal.as_str());
        let service = self.words.service(request.service);
        // Types and context are right by construction; validating them again would cost more than the decision.
        Request::new(principal, self.words.connect(), service, context.ok()?, None).ok()
    }
}

/// The name under which an allow list stands in decisions.
const ALLOW_LIST: &str = "allow-list";

impl Index {
    fn of(statements: Vec<Statement>) -> Self {
        let mut index = Self::default();
        for Statement { policy, scope, .. } in statements {
            let services = match scope.resources {
                Names::Any => vec![None],
                Names::Only(names) => names.into_iter().map(Some).collect(),
            };
            let principals = match scope.principals {
                Names::Any => vec![None],
                Names::Only(names) => names.into_iter().map(Some).collect(),
            };
            for service in &services {
                for principal in &principals {
                    index
                        .set_for(service.clone(), principal.clone())
                        .add(policy.clone())
                        .expect("ids are unique, which compile checks");
                }
            }
        }
        index
    }

    fn set_for(&mut self, service: Option<String>, principal: Option<String>) -> &mut PolicySet {
        match (service, principal) {
            (None, None) => &mut self.for_any,
            (None, Some(principal)) => self.by_principal.entry(principal).or_default(),
            (Some(service), None) => self.by_service.entry(service).or_default(),
            (Some(service), Some(principal)) => self
                .by_service_and_principal
                .entry(service)
                .or_default()
                .entry(principal)
                .or_default(),
        }
    }

    /// The sets that could bear on the question.
    fn sets(&self, principal: &str, service: &str) -> impl Iterator<Item = &PolicySet> {
        let both = self.by_service_and_principal.get(service);
        (!self.for_any.is_empty())
            .then_some(&self.for_any)
            .into_iter()
            .chain(self.by_principal.get(principal))
            .chain(self.by_service.get(service))
            .chain(both.and_then(|by_principal| by_principal.get(principal)))
    }
}

/// What the sets have said so far.
#[derive(Default)]
struct Found {
    permits: BTreeSet<String>,
    forbids: BTreeSet<String>,
    errors: BTreeSet<String>,
}

impl Found {
    fn add(&mut self, response: &cedar_policy::Response) {
        // Cedar skips a policy that errs, also a forbid. Here it denies.
        for error in response.diagnostics().errors() {
            let AuthorizationError::PolicyEvaluationError(error) = error;
            self.errors.insert(error.policy_id().to_string());
        }
        let reasons = response.diagnostics().reason().map(ToString::to_string);
        // The reasons of a denial are the forbids; of a denial for want of a permit there are none.
        match response.decision() {
            CedarDecision::Allow => self.permits.extend(reasons),
            CedarDecision::Deny => self.forbids.extend(reasons),
        }
    }

    fn decision(self) -> Decision {
        let (verdict, policies) = if !self.errors.is_empty() {
            (Verdict::Deny(Code::PolicyError), self.errors)
        } else if !self.forbids.is_empty() || self.permits.is_empty() {
            (Verdict::Deny(Code::PolicyDenied), self.forbids)
        } else {
            (Verdict::Allow, self.permits)
        };
        Decision { verdict, policies: policies.into_iter().collect() }
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
