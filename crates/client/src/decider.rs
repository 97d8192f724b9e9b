//! Decides about requests that somebody else has taken, such as Envoy, which has made the handshake and asks.
//!
//! The slice is the one that every enforcement point gets, read by the same code; the path is brought into its one form by the
//! same code; and the policies are asked by the same code. So what a proxy of ours would decide about the same request is what is decided here.

use std::sync::Arc;

use countersign_api::v1;
use countersign_identity::{
    Attested, CanonicalPath, Code, KeyId, Name, Presented, SpiffeId, Timestamp, Verb,
};
use countersign_pki::Certificate;
use countersign_policy::{CallRequest, ConnectRequest, Context, Decision, Principal, Verdict};
use countersign_tls::Slice;

use crate::fields::is_overriding;
use crate::slice::{Compiled, Decoded, decode};
use crate::{Flow, Services};

/// TLS versions that a handshake may have agreed on, where nobody tells which.
const VERSIONS: [&str; 2] = ["1.3", "1.2"];
/// Key exchanges that a handshake may have agreed on, where nobody tells which.
const GROUPS: [&str; 5] = ["X25519MLKEM768", "X25519", "secp256r1", "secp384r1", ""];

/// Decides about requests to the services of one caller, at one revision.
#[derive(Debug)]
pub struct Decider {
    slice: Slice,
    services: Services,
    compiled: Arc<Compiled>,
}

/// A request, as the one tells of it who has taken it and verified its peer.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The service that is asked for; none when the caller has only one.
    pub service: Option<&'a Name>,
    /// Who the peer is, as the one says who has verified it.
    pub peer: &'a SpiffeId,
    /// The certificate that the peer has shown.
    pub certificate: &'a Certificate,
    /// The method, as it came.
    pub method: &'a str,
    /// The target, as it came, with its query.
    pub target: &'a str,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The target in the form that was decided on, if the request may go on; else why not.
    pub passes: Result<String, Denied>,
    /// What is to be counted; nothing where no policy was asked.
    pub flow: Option<Flow>,
}

/// Why a request may not go on. The sentence is for the peer, and names no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Denied {
    /// The stable word.
    pub code: Code,
    /// A sentence.
    pub detail: String,
}

/// Why what the agent holds cannot be decided by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undecidable(String);

fn denied(code: Code, detail: impl Into<String>) -> Denied {
    Denied { code, detail: detail.into() }
}

impl Decider {
    /// Reads a slice. What did not change since the one before is not compiled again.
    ///
    /// # Errors
    /// When it is not one that an enforcement point would enforce.
    pub fn of(slice: v1::Slice, before: Option<&Self>) -> Result<Self, Undecidable> {
        let nothing = || Arc::new(Compiled::nothing());
        let before = before.map_or_else(nothing, |before| Arc::clone(&before.compiled));
        let decoded = decode(slice, &before).map_err(|bad| Undecidable(bad.to_string()))?;
        let Decoded { slice, services, compiled } = decoded;
        Ok(Self { slice, services, compiled })
    }

    /// The names of the caller's own services.
    pub fn services(&self) -> impl Iterator<Item = &Name> {
        self.services.own().map(|(name, _)| name)
    }

    /// Decides. `fields` are the names of the request's header fields: of their values, nothing is read.
    pub fn decide<'a>(
        &self,
        told: &Told<'_>,
        fields: impl Iterator<Item = &'a str>,
        now: Timestamp,
    ) -> Ruling {
        let silent = |denied| Ruling { passes: Err(denied), flow: None };
        let service = match self.service(told.service) {
            Ok(service) => service,
            Err(denied) => return silent(denied),
        };
        if let Err(denied) = self.accepted(told.peer, service).and_then(|()| self.stands(told, now))
        {
            return silent(denied);
        }
        // As at a door of ours: where nobody decides on requests, they pass as they came.
        let decides = self.slice.policies.operations().of(service.as_str()).is_some();
        // Which of several services is meant was chosen by the path as it came, so there it has to be in its one form.
        let chosen = self.services.own().nth(1).is_some();
        let path = match (decides || chosen).then(|| target(told.target, fields)).transpose() {
            Ok(path) => path,
            Err(denied) => return silent(denied),
        };
        if let Some((path, query)) = path.as_ref().filter(|_| chosen)
            && written(path, *query) != told.target
        {
            let why =
                format!("`{}` is not in its one form, and a service was chosen by it", told.target);
            return silent(denied(Code::NotUnderstood, why));
        }
        let path = path.filter(|_| decides);
        self.slice.policies.lapse(now);
        let principal = self.principal(told.peer);
        if self.slice.policies.reads_on(&principal, service.as_str()).source {
            let why = "policies ask from where the caller comes, which is not told here";
            return silent(denied(Code::PolicyError, why));
        }
        let verb: Option<Verb> = told.method.parse().ok();
        let age = now.since(told.certificate.validity().not_before).as_secs();
        // What whoever asks cannot tell of the handshake is asked for everything that it could have been: a policy that reads it
        // permits only what it would permit in any case.
        let contexts = VERSIONS.iter().flat_map(|version| {
            GROUPS.iter().map(|group| Context {
                tls_version: (*version).to_owned(),
                group: (*group).to_owned(),
                peer_age_seconds: age,
                source: None,
                attested: self.attested(told),
            })
        });
        let mut first = None;
        for context in contexts {
            let asked = Question {
                told,
                service,
                principal: &principal,
                verb,
                path: path.as_ref().map(|(path, _)| path),
            };
            let (allowed, flow) = self.ask(&asked, &context, now);
            if let Err(denied) = allowed {
                return Ruling { passes: Err(denied), flow: Some(flow) };
            }
            first.get_or_insert(flow);
        }
        let target = match path {
            Some((path, query)) => written(&path, query),
            None => told.target.to_owned(),
        };
        Ruling { passes: Ok(target), flow: first }
    }

    fn service<'a>(&'a self, named: Option<&Name>) -> Result<&'a Name, Denied> {
        let mut own = self.services.own().map(|(name, _)| name);
        match named {
            Some(named) => own.find(|name| *name == named).ok_or_else(|| {
                denied(Code::NotFound, format!("`{named}` is no service of whoever asks"))
            }),
            None => match (own.next(), own.next()) {
                (Some(only), None) => Ok(only),
                (Some(_), Some(_)) => Err(denied(
                    Code::NotUnderstood,
                    "whoever asks has several services: name one in `context_extensions`, as `service`",
                )),
                (None, _) => Err(denied(Code::NotFound, "whoever asks has no service")),
            },
        }
    }

    /// Whether the TLS profile of the service takes the peer. Which root vouches for it nobody tells, so where that matters, none does.
    fn accepted(&self, peer: &SpiffeId, service: &Name) -> Result<(), Denied> {
        let Some(profile) = self.slice.profiles.get(service) else { return Ok(()) };
        let taken = profile.accepted.takes_domain(peer.trust_domain(), service);
        taken.map_err(|refused| denied(refused.code, refused.why))?;
        if profile.accepted.roots.is_some() {
            let why = format!(
                "the TLS profile of `{service}` takes some roots only, and which of them vouches for `{peer}` is not told"
            );
            return Err(denied(Code::UnknownIssuer, why));
        }
        Ok(())
    }

    /// Whether the peer is who it is said to be, and nothing takes that out of service.
    fn stands(&self, told: &Told<'_>, now: Timestamp) -> Result<(), Denied> {
        let Told { peer, certificate, .. } = told;
        let named = certificate.spiffe_id().map_err(|refused| denied(refused.code, refused.why))?;
        if named != **peer {
            let why = format!("the certificate is of `{named}`, and not of `{peer}`");
            return Err(denied(Code::BadIdentity, why));
        }
        if peer.is_canary() || certificate.is_authority() {
            return Err(denied(Code::PolicyDenied, format!("`{peer}` is let in nowhere")));
        }
        let validity = certificate.validity();
        if validity.not_after < now {
            let why = format!("the certificate of `{peer}` ended at {}", validity.not_after);
            return Err(denied(Code::Expired, why));
        }
        if self.slice.bundles.get(peer.trust_domain()).is_none() {
            let domain = peer.trust_domain();
            let why = format!("there is no bundle for trust domain `{domain}`");
            return Err(denied(Code::UnknownTrustDomain, why));
        }
        let provenance = certificate.provenance().map(|it| (it.revision, it.node));
        let presented = Presented {
            id: peer,
            serial: certificate.serial(),
            key: certificate.key_id(),
            authorities: &[],
            provenance,
        };
        let revocations = &self.slice.revocations;
        if revocations.covering(&presented).is_some() {
            return Err(denied(Code::Revoked, format!("the certificate of `{peer}` is revoked")));
        }
        // The leaf alone is shown. Which key signed it, it says itself, and whoever verified it has found that true; of one that
        // does not say, it could be any.
        let signer = certificate.authority_key_id().filter(|signer| !signer.is_empty());
        let is_of = |key: KeyId| signer.is_none_or(|signer| key.as_bytes().starts_with(signer));
        if revocations.authorities().any(is_of) {
            let why = format!("the authority that signed the certificate of `{peer}` is revoked");
            return Err(denied(Code::Revoked, why));
        }
        Ok(())
    }

    /// What the certificate says of attestation, where it is of our own trust domain.
    fn attested(&self, told: &Told<'_>) -> Attested {
        let ours = self.services.id.trust_domain() == told.peer.trust_domain();
        let said = told.certificate.provenance().filter(|_| ours);
        said.map(|said| said.attested).unwrap_or_default()
    }

    fn principal(&self, peer: &SpiffeId) -> Principal {
        let named = self.slice.names.get(peer).cloned();
        named.map_or_else(|| Principal::Id(peer.clone()), Principal::Named)
    }

    /// The connection first, then the request, as at a door of ours.
    fn ask(
        &self,
        asked: &Question<'_>,
        context: &Context,
        now: Timestamp,
    ) -> (Result<(), Denied>, Flow) {
        let Question { told, service, principal, verb, path } = *asked;
        let policies = &self.slice.policies;
        let peer = told.peer.clone();
        let connect = ConnectRequest { principal, service: service.as_str(), context, now };
        let connect = policies.decide(&connect);
        let connection = Flow::connection(peer.clone(), service.clone(), &connect);
        if let Err(code) = passes(&connect) {
            let why = format!("`{peer}` may not connect to `{service}`");
            return (Err(denied(code, why)), connection);
        }
        let Some(path) = path else { return (Ok(()), connection) };
        let call = CallRequest { principal, service: service.as_str(), verb, path, context, now };
        let Some(called) = policies.decide_call(&call) else { return (Ok(()), connection) };
        let flow = Flow::call(peer.clone(), service.clone(), verb, &called);
        if let Err(code) = passes(&called.decision) {
            let what = match &called.operation {
                Some(operation) => format!("`{operation}`"),
                None => "a path that no operation declares".to_owned(),
            };
            let why = format!("`{peer}` may not ask `{service}` for {what}");
            return (Err(denied(code, why)), flow);
        }
        // Nobody counts here how often, so what is permitted only so often is not.
        if !called.limits.is_empty() && called.limits.iter().all(Option::is_some) {
            let why = format!("`{service}` permits this only so often, which is not counted here");
            return (Err(denied(Code::PolicyError, why)), flow);
        }
        (Ok(()), flow)
    }
}

/// All that is asked, beside what the handshake may have been.
#[derive(Clone, Copy)]
struct Question<'a> {
    told: &'a Told<'a>,
    service: &'a Name,
    principal: &'a Principal,
    verb: Option<Verb>,
    /// In its one form; nothing where the service declares no operations.
    path: Option<&'a CanonicalPath>,
}

fn passes(decision: &Decision) -> Result<(), Code> {
    match decision.verdict {
        Verdict::Deny(code) if !decision.is_allowed() => Err(code),
        Verdict::Allow | Verdict::Deny(_) => Ok(()),
    }
}

fn written(path: &CanonicalPath, query: Option<&str>) -> String {
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_string(),
    }
}

/// The path in its one form, and the query as it came.
fn target<'a, 'b>(
    target: &'b str,
    mut fields: impl Iterator<Item = &'a str>,
) -> Result<(CanonicalPath, Option<&'b str>), Denied> {
    if let Some(field) = fields.find(|field| is_overriding(field)) {
        let shown: String = field.chars().take(80).collect();
        let why = format!(
            "the field `{shown}` asks some programs for another request than the one that is decided on"
        );
        return Err(denied(Code::NotUnderstood, why));
    }
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    if path.contains('#') || query.is_some_and(|query| query.contains('#')) {
        return Err(denied(
            Code::NotUnderstood,
            "the target has a fragment, which no request sends",
        ));
    }
    let path = CanonicalPath::of(path);
    Ok((path.map_err(|why| denied(Code::NotUnderstood, why.to_string()))?, query))
}
