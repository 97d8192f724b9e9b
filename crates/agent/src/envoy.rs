//! Envoy asks whether a request may go on: `envoy.service.auth.v3.Authorization`, on the agent's socket.
//!
//! Here is the wire, and who asks: an attested process, about the services of its own workload and no other. What is decided is
//! decided by [`countersign::Decider`], on the slice that every enforcement point of that workload gets. Who the peer is says
//! the certificate that Envoy has verified, never a header field.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use countersign::{Decider, Denied, Flow, Flows, Ruling, Told, is_reserved};
use countersign_api::envoy::authorization_server::{Authorization, AuthorizationServer};
use countersign_api::envoy::header_value_option::AppendAction;
use countersign_api::envoy::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue,
    HeaderValueOption, HttpStatus, OkHttpResponse, attribute_context, check_response,
};
use countersign_api::wire::refusal_status;
use countersign_api::{envoy, v1};
use countersign_identity::{Code, Name, Revision, SpiffeId, Timestamp};
use countersign_pki::Certificate;
use tonic::{Request, Response, Status};

use crate::core::Workload;
use crate::enforcement::cut;
use crate::reception::{Reception, visitor};
use crate::reports::{Facts, Ours};
use crate::view::{Own, View};

/// A request's head, and a certificate.
const REQUEST_BYTES_MAX: usize = 256 * 1024;
/// Callers whose slices are kept compiled.
const DECIDERS_MAX: usize = 64;
/// Which of the caller's services is asked for, in the configuration of whoever asks.
const SERVICE: &str = "service";
/// Who the peer is, for the program behind; what the peer says of it is overwritten.
const PEER_FIELD: &str = "x-countersign-peer";
/// Under this name it reports.
const POINT: &str = "envoy";

/// The service.
pub(crate) struct EnvoyAuthorization {
    reception: Reception,
    facts: Facts,
    flows: Flows,
    deciders: Mutex<HashMap<Vec<Name>, Arc<Kept>>>, // INVARIANT: at most DECIDERS_MAX
}

/// What one caller's questions are decided by.
struct Kept {
    revision: Revision,
    decider: Decider,
}

impl EnvoyAuthorization {
    pub(crate) fn server(reception: Reception, facts: Facts) -> AuthorizationServer<Self> {
        let (flows, deciders) = (Flows::default(), Mutex::default());
        AuthorizationServer::new(Self { reception, facts, flows, deciders })
            .max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    /// The workloads of the caller on this node. Asked anew each time: it may be another program by now.
    async fn who(
        &self,
        request: &Request<CheckRequest>,
        view: &View,
    ) -> Result<Vec<Arc<Workload>>, Status> {
        let visitor = visitor(request)?;
        let workloads = self.reception.who(&visitor, view).await;
        let workloads = workloads.map_err(|unknown| unknown.status(visitor.caller.peer()))?;
        let now = self.reception.clock.now();
        let own = match owner(view, request.get_ref()) {
            None => view.own(&workloads, now),
            Some(owner) => view.own_about(&workloads, owner, now),
        };
        match own {
            Own::These(own) => Ok(own),
            Own::Pending => {
                let why = "no server has said yet what this caller is";
                Err(refusal_status(tonic::Code::Unavailable, Code::NotReady, why))
            }
            Own::Refused(code, why) => {
                Err(refusal_status(tonic::Code::PermissionDenied, code, &why))
            }
        }
    }

    /// What decides for these workloads, as of the state that is in force here.
    async fn decider(&self, view: &View, workloads: &[Arc<Workload>]) -> Result<Arc<Kept>, Status> {
        let key: Vec<Name> = workloads.iter().map(|workload| workload.name.clone()).collect();
        let revision = view.replica.revision();
        let before = self.kept().get(&key).cloned();
        if let Some(kept) = before.as_ref().filter(|kept| kept.revision == revision) {
            return Ok(Arc::clone(kept));
        }
        let slice: v1::Slice = cut(&view.replica, workloads);
        let decider = tokio::task::spawn_blocking(move || {
            Decider::of(slice, before.as_ref().map(|kept| &kept.decider))
        });
        let internal = |why: String| refusal_status(tonic::Code::Internal, Code::Internal, &why);
        let decider = decider.await.map_err(|error| internal(error.to_string()))?;
        let decider = decider.map_err(|bad| internal(bad.to_string()))?;
        let kept = Arc::new(Kept { revision, decider });
        let mut deciders = self.kept();
        if DECIDERS_MAX <= deciders.len() && !deciders.contains_key(&key) {
            deciders.clear();
        }
        deciders.insert(key, Arc::clone(&kept));
        Ok(kept)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<Name>, Arc<Kept>>> {
        self.deciders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts what was decided on its way to the server. Of a service of another, nothing comes here.
    fn count(&self, flow: Flow, workloads: &[Arc<Workload>]) {
        self.flows.count(flow, self.reception.clock.now());
        let (flows, flows_dropped) = self.flows.drain();
        let facts = v1::Facts { flows, flows_dropped, ..v1::Facts::default() };
        let ids: Vec<_> = workloads.iter().map(|workload| workload.id.clone()).collect();
        self.facts.take(POINT, facts, &Ours { ids: &ids, owns: &|_service| true });
    }
}

#[tonic::async_trait]
impl Authorization for EnvoyAuthorization {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        // Whatever is not a decision is a status, and Envoy denies by it.
        let view = self.reception.views.borrow().clone().ok_or_else(|| {
            let why = "this agent has not reached a server yet";
            refusal_status(tonic::Code::Unavailable, Code::NotReady, why)
        })?;
        let workloads = self.who(&request, &view).await?;
        let kept = self.decider(&view, &workloads).await?;
        let attributes = request.into_inner().attributes.unwrap_or_default();
        let (answer, flow) = answer(&attributes, &kept.decider, self.reception.clock.now());
        if let Some(flow) = flow {
            self.count(flow, &workloads);
        }
        Ok(Response::new(answer))
    }
}

/// The workload of the service that a question names, if it names one.
fn owner<'a>(view: &'a View, question: &CheckRequest) -> Option<&'a Name> {
    let named = question.attributes.as_ref()?.context_extensions.get(SERVICE)?;
    let service: Name = named.parse().ok()?;
    view.replica.services().get(&service).map(|spec| &spec.workload)
}

/// The answer to a question about a service of whoever asks, and what is to be counted.
pub(crate) fn answer(
    attributes: &AttributeContext,
    decider: &Decider,
    now: Timestamp,
) -> (CheckResponse, Option<Flow>) {
    let asked = match Asked::read(attributes) {
        Ok(asked) => asked,
        Err(denied) => return (refused(&denied), None),
    };
    let Ruling { passes, flow } = decider.decide(&asked.told(), asked.fields.iter().copied(), now);
    let answer = match passes {
        Ok(target) => allowed(&asked, &target),
        Err(denied) => refused(&denied),
    };
    (answer, flow)
}

/// A question, read.
struct Asked<'a> {
    service: Option<Name>,
    peer: SpiffeId,
    certificate: Certificate,
    method: &'a str,
    target: &'a str,
    /// The names of the header fields.
    fields: Vec<&'a str>,
}

impl<'a> Asked<'a> {
    fn read(attributes: &'a AttributeContext) -> Result<Self, Denied> {
        let bad = |detail: String| Denied { code: Code::NotUnderstood, detail };
        let no_identity = |detail: String| Denied { code: Code::Unauthenticated, detail };
        let none = attribute_context::Peer::default();
        let source = attributes.source.as_ref().unwrap_or(&none);
        if source.principal.is_empty() {
            let why = "the connection shows no certificate that was verified".to_owned();
            return Err(no_identity(why));
        }
        let peer: SpiffeId = source.principal.parse().map_err(|_not_an_id| {
            no_identity("the certificate's name is no SPIFFE ID".to_owned())
        })?;
        if source.certificate.is_empty() {
            let why = "the certificate is not passed on: set `include_peer_certificate: true`";
            return Err(no_identity(why.to_owned()));
        }
        let pem = unescaped(&source.certificate)
            .ok_or_else(|| bad("the certificate is not URL-encoded text".to_owned()))?;
        let certificate = Certificate::from_pem(&pem)
            .map_err(|error| bad(format!("the certificate: {error}")))?;
        let http = attributes.request.as_ref().and_then(|request| request.http.as_ref());
        let http = http.ok_or_else(|| bad("only HTTP requests are decided on".to_owned()))?;
        let service = attributes.context_extensions.get(SERVICE).map(|name| name.parse());
        let service = service
            .transpose()
            .map_err(|error| bad(format!("`service` in `context_extensions`: {error}")))?;
        let raw = http.header_map.iter().flat_map(|map| &map.headers);
        let fields = http.headers.keys().chain(raw.map(|field| &field.key));
        let fields = fields.map(String::as_str).collect();
        let (method, target) = (http.method.as_str(), http.path.as_str());
        Ok(Self { service, peer, certificate, method, target, fields })
    }

    fn told(&self) -> Told<'_> {
        Told {
            service: self.service.as_ref(),
            peer: &self.peer,
            certificate: &self.certificate,
            method: self.method,
            target: self.target,
        }
    }
}

/// Percent-escapes, undone. A plus sign is one.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

fn set(name: &str, value: &str) -> HeaderValueOption {
    let header =
        HeaderValue { key: name.to_owned(), value: value.to_owned(), ..HeaderValue::default() };
    HeaderValueOption {
        header: Some(header),
        append_action: AppendAction::OverwriteIfExistsOrAdd.into(),
    }
}

/// It may go on, in the form that was decided on, and the program is told by whom it is asked, by us alone.
fn allowed(asked: &Asked<'_>, target: &str) -> CheckResponse {
    let mut headers = vec![set(PEER_FIELD, asked.peer.as_str())];
    if target != asked.target {
        headers.push(set(":path", target));
    }
    let reserved = asked.fields.iter().filter(|name| is_reserved(name) && **name != PEER_FIELD);
    let headers_to_remove = reserved.map(|name| (*name).to_owned()).collect();
    let ok = OkHttpResponse { headers, headers_to_remove };
    CheckResponse {
        status: Some(envoy::Status::default()),
        http_response: Some(check_response::HttpResponse::OkResponse(ok)),
    }
}

/// It may not: a problem document, which Envoy makes a status of gRPC for callers that speak it.
fn refused(denied: &Denied) -> CheckResponse {
    let Denied { code, detail } = denied;
    let (http, grpc) = match code {
        Code::NotUnderstood => (400, tonic::Code::InvalidArgument),
        _ => (403, tonic::Code::PermissionDenied),
    };
    let body = serde_json::json!({
        "type": "about:blank", "title": code.meaning(), "status": http, "code": code.as_str(),
        "detail": detail,
    });
    let response = DeniedHttpResponse {
        status: Some(HttpStatus { code: http }),
        headers: vec![set("content-type", "application/problem+json")],
        body: body.to_string(),
    };
    CheckResponse {
        status: Some(envoy::Status { code: grpc as i32, message: detail.clone() }),
        http_response: Some(check_response::HttpResponse::DeniedResponse(response)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(attributes: &AttributeContext) -> String {
        let refused = Asked::read(attributes).err();
        refused.map(|denied| denied.detail).unwrap_or_default()
    }

    #[test]
    fn peer_is_who_the_verified_certificate_names_and_nobody_whom_a_field_names() {
        let mut headers = HashMap::new();
        for field in ["x-forwarded-client-cert", PEER_FIELD, "authorization"] {
            headers.insert(field.to_owned(), "URI=spiffe://shop.example/orders".to_owned());
        }
        let http = attribute_context::HttpRequest {
            method: "POST".to_owned(),
            path: "/charges".to_owned(),
            headers,
            header_map: None,
        };
        let request = Some(attribute_context::Request { http: Some(http) });
        let mut asked = AttributeContext { request, ..AttributeContext::default() };
        assert!(why(&asked).contains("no certificate that was verified"));
        let source = attribute_context::Peer {
            principal: "spiffe://shop.example/orders".to_owned(),
            certificate: String::new(),
        };
        asked.source = Some(source.clone());
        assert!(why(&asked).contains("include_peer_certificate"));
        for (principal, said) in
            [("CN=orders", "no SPIFFE ID"), ("orders.shop.example", "no SPIFFE ID")]
        {
            asked.source =
                Some(attribute_context::Peer { principal: principal.to_owned(), ..source.clone() });
            assert!(why(&asked).contains(said), "{principal}");
        }
        asked.source = Some(attribute_context::Peer { certificate: "%2".to_owned(), ..source });
        assert!(why(&asked).contains("not URL-encoded"));
    }

    /// One field more than once, told joined in one way and each alone in the other; nothing of either is a value.
    #[test]
    fn every_field_counts_by_its_name_in_whichever_form_it_is_told() {
        let pem = include_str!("../../pki/testdata/verify/leaf_issuer_root_as_client.pem");
        let end = "-----END CERTIFICATE-----\n";
        let pem = &pem[..pem.find(end).unwrap() + end.len()];
        let source = attribute_context::Peer {
            principal: "spiffe://shop.example/orders".to_owned(),
            certificate: pem.replace('+', "%2B").replace('\n', "%0A"),
        };
        let raw = |key: &str| HeaderValue { key: key.to_owned(), ..HeaderValue::default() };
        let joined = ("x-http-method".to_owned(), "GET,DELETE".to_owned());
        let twice = vec![raw("x_countersign_peer"), raw("x-b"), raw("x_countersign_peer")];
        let http = attribute_context::HttpRequest {
            method: "GET".to_owned(),
            path: "/%62ooks".to_owned(),
            headers: HashMap::from([joined]),
            header_map: Some(envoy::HeaderMap { headers: twice }),
        };
        let request = Some(attribute_context::Request { http: Some(http) });
        let attributes =
            AttributeContext { source: Some(source), request, ..AttributeContext::default() };
        let asked = Asked::read(&attributes).unwrap();
        let names = ["x-http-method", "x_countersign_peer", "x-b", "x_countersign_peer"];
        assert_eq!(asked.fields, names);
        let answer = allowed(&asked, "/books").http_response;
        let Some(check_response::HttpResponse::OkResponse(ok)) = answer else {
            panic!("it is allowed")
        };
        assert_eq!(ok.headers_to_remove, ["x_countersign_peer", "x_countersign_peer"]);
        let set: Vec<_> = ok.headers.into_iter().filter_map(|it| it.header).collect();
        let set: Vec<_> = set.iter().map(|it| (it.key.as_str(), it.value.as_str())).collect();
        let peer = "spiffe://shop.example/orders";
        assert_eq!(set, [("x-countersign-peer", peer), (":path", "/books")]);
    }

    #[test]
    fn escapes_are_undone_and_half_ones_are_none() {
        assert_eq!(unescaped("a%2Bb+c%0a").as_deref(), Some("a+b+c\n"));
        for bad in ["%", "%2", "%zz", "%ff"] {
            assert_eq!(unescaped(bad), None, "{bad}");
        }
    }
}
