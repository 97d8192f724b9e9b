//! What a caller is told when its request could not be passed on: RFC 9457, with a stable code.

use bytes::Bytes;
use countersign_identity::Code;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};

use crate::body::Body;

/// The status that goes with a code, as seen by a caller of the proxy.
pub(crate) fn status(code: Code) -> StatusCode {
    use countersign_identity::Fault;
    match code {
        Code::NotUnderstood => StatusCode::BAD_REQUEST,
        Code::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Code::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        Code::PolicyDenied | Code::PolicyError | Code::Forbidden => StatusCode::FORBIDDEN,
        code => match code.fault() {
            Fault::Outage => StatusCode::SERVICE_UNAVAILABLE,
            Fault::Caller | Fault::Peer | Fault::Us => StatusCode::BAD_GATEWAY,
        },
    }
}

/// The whole response. `detail` is one sentence without secrets.
pub(crate) fn problem(code: Code, detail: &str) -> Response<Body> {
    let status = status(code);
    let body = serde_json::json!({
        "type": "about:blank",
        "title": code.meaning(),
        "status": status.as_u16(),
        "code": code.as_str(),
        "detail": detail,
    });
    let mut response = Response::new(Body::from(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_can_tell_its_own_fault_from_an_outage_and_from_a_refusal() {
        for (code, expected) in [
            (Code::NotUnderstood, 400),
            (Code::PolicyDenied, 403),
            (Code::RateLimited, 429),
            (Code::PeerUnreachable, 503),
            (Code::NoOwnIdentity, 503),
            (Code::TimedOut, 504),
            (Code::UnexpectedPeer, 502),
            (Code::Expired, 502),
            (Code::PeerRefused, 502),
        ] {
            assert_eq!(status(code).as_u16(), expected, "{code}");
        }
    }
}
