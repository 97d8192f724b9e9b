//! What the server answers when it does not do what was asked, on both of its interfaces.

use countersign_api::wire;
use countersign_identity::Code;
use countersign_store::StoreError;
use http::StatusCode;

/// Why something was not done: one of the closed list, and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    /// The stable word.
    pub code: Code,
    /// What was expected and what was found.
    pub why: String,
}

impl Refused {
    /// A refusal with this code and sentence.
    pub fn new(code: Code, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<countersign_pki::Refused> for Refused {
    fn from(refused: countersign_pki::Refused) -> Self {
        Self::new(refused.code, refused.why)
    }
}

impl From<countersign_pki::SignFault> for Refused {
    fn from(fault: countersign_pki::SignFault) -> Self {
        Self::new(fault.code(), fault.to_string())
    }
}

impl From<Refused> for tonic::Status {
    fn from(refused: Refused) -> Self {
        wire::refusal_status(grpc_code(refused.code), refused.code, &refused.why)
    }
}

/// Which gRPC status and which HTTP status a code is answered with. Every code is named, so that a new one
/// cannot slip into a class of statuses which clients take for something to retry.
fn answers(code: Code) -> (tonic::Code, StatusCode) {
    use tonic::Code as Grpc;
    match code {
        Code::NotUnderstood | Code::InvalidManifest | Code::InvalidPolicy => {
            (Grpc::InvalidArgument, StatusCode::BAD_REQUEST)
        }
        Code::ForeignDomain
        | Code::ReservedPath
        | Code::LongLifetime
        | Code::WeakKey
        | Code::RevokedKey => (Grpc::InvalidArgument, StatusCode::BAD_REQUEST),
        Code::Unauthenticated | Code::NoCertificate | Code::Expired => {
            (Grpc::Unauthenticated, StatusCode::UNAUTHORIZED)
        }
        Code::UnknownToken | Code::SpentToken | Code::ExpiredToken | Code::BadPossession => {
            (Grpc::Unauthenticated, StatusCode::UNAUTHORIZED)
        }
        Code::Forbidden | Code::UnknownNode | Code::StaleGeneration | Code::SilentTooLong => {
            (Grpc::PermissionDenied, StatusCode::FORBIDDEN)
        }
        Code::UnknownWorkload | Code::NoMatch | Code::Suspended | Code::PolicyDenied => {
            (Grpc::PermissionDenied, StatusCode::FORBIDDEN)
        }
        Code::Revoked
        | Code::Canary
        | Code::UnexpectedPeer
        | Code::PolicyError
        | Code::PeerRefused => (Grpc::PermissionDenied, StatusCode::FORBIDDEN),
        Code::NotFound => (Grpc::NotFound, StatusCode::NOT_FOUND),
        Code::AlreadyExists => (Grpc::AlreadyExists, StatusCode::CONFLICT),
        Code::StaleBase => (Grpc::Aborted, StatusCode::CONFLICT),
        Code::NotConverged => (Grpc::FailedPrecondition, StatusCode::CONFLICT),
        Code::TooLarge => (Grpc::InvalidArgument, StatusCode::PAYLOAD_TOO_LARGE),
        Code::RateLimited | Code::TooManyConnections => {
            (Grpc::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS)
        }
        // What our verifier says of a certificate; on this side it is always the caller's.
        Code::Malformed
        | Code::TooManyCertificates
        | Code::NoIdentity
        | Code::SeveralIdentities
        | Code::BadIdentity
        | Code::LeafIsAuthority
        | Code::BadKeyUsage
        | Code::BadExtendedKeyUsage
        | Code::BadExtension
        | Code::UnknownTrustDomain
        | Code::UnknownIssuer
        | Code::IssuerNotAuthority
        | Code::PathLength
        | Code::NameConstraint
        | Code::BadSignature
        | Code::WeakAlgorithm
        | Code::NotYetValid
        | Code::NoSharedProtocol
        | Code::BadHandshake
        | Code::HandshakeTimeout
        | Code::PeerClosed
        | Code::BadAnswer => (Grpc::Unauthenticated, StatusCode::UNAUTHORIZED),
        Code::Unavailable
        | Code::NotReady
        | Code::Sealed
        | Code::Fenced
        | Code::AttestationFailed
        | Code::PeerUnreachable
        | Code::NoOwnIdentity => (Grpc::Unavailable, StatusCode::SERVICE_UNAVAILABLE),
        Code::TimedOut => (Grpc::DeadlineExceeded, StatusCode::GATEWAY_TIMEOUT),
        Code::Internal => (Grpc::Internal, StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn grpc_code(code: Code) -> tonic::Code {
    answers(code).0
}

/// The HTTP status that a code is answered with.
pub(crate) fn http_status(code: Code) -> StatusCode {
    answers(code).1
}

#[cfg(test)]
mod tests {
    use countersign_identity::Fault;

    use super::*;

    #[test]
    fn what_may_be_tried_again_is_unavailable_and_nothing_else_is() {
        for code in Code::ALL.iter().copied() {
            let again =
                matches!(grpc_code(code), tonic::Code::Unavailable | tonic::Code::DeadlineExceeded);
            assert_eq!(again, code.fault() == Fault::Outage, "{code}");
        }
    }

    #[test]
    fn code_travels_with_the_status() {
        let status = tonic::Status::from(Refused::new(Code::SpentToken, "spent"));
        assert_eq!(wire::refusal_of(&status).unwrap().code, Code::SpentToken);
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
    }
}
