//! Between our codes and what TLS can say: which alert a refusal sends, and what an error of rustls means.

use std::io;

use countersign_identity::Code;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

use crate::stream::Ended;

/// The error that makes rustls send the alert that fits best. Several codes share an alert, so the exact one is
/// kept beside it ([`Slot`](crate::verifier::Slot)).
pub(crate) fn alerting(code: Code) -> Error {
    match code {
        // handshake_failure: nothing is wrong with the certificate.
        Code::NoSharedProtocol => Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon),
        code => Error::InvalidCertificate(certificate_error(code)),
    }
}

fn certificate_error(code: Code) -> CertificateError {
    use CertificateError as E;
    match code {
        // bad_certificate
        Code::Malformed
        | Code::TooManyCertificates
        | Code::NoIdentity
        | Code::SeveralIdentities
        | Code::BadIdentity
        | Code::BadExtension
        | Code::IssuerNotAuthority
        | Code::PathLength
        | Code::NameConstraint
        | Code::NoCertificate => E::BadEncoding,
        // bad_certificate as well, but told apart from the others here.
        Code::UnexpectedPeer => E::NotValidForName,
        // unsupported_certificate
        Code::LeafIsAuthority
        | Code::BadKeyUsage
        | Code::BadExtendedKeyUsage
        | Code::WeakAlgorithm
        | Code::WeakKey => E::InvalidPurpose,
        // unknown_ca
        Code::UnknownTrustDomain | Code::UnknownIssuer => E::UnknownIssuer,
        // decrypt_error
        Code::BadSignature => E::BadSignature,
        // certificate_expired
        Code::Expired => E::Expired,
        Code::NotYetValid => E::NotValidYet,
        // certificate_revoked
        Code::Revoked => E::Revoked,
        // access_denied
        Code::PolicyDenied
        | Code::PolicyError
        | Code::Forbidden
        | Code::Suspended
        | Code::RevokedKey
        | Code::Unauthenticated
        | Code::ForeignDomain
        | Code::ReservedPath
        | Code::Canary
        | Code::TooManyConnections => E::ApplicationVerificationFailure,
        // No verifier of ours says these of a peer. Should one do so, the peer is refused without a reason.
        Code::NotUnderstood
        | Code::NotFound
        | Code::AlreadyExists
        | Code::StaleBase
        | Code::NotConverged
        | Code::InvalidManifest
        | Code::InvalidPolicy
        | Code::TooLarge
        | Code::RateLimited
        | Code::UnknownToken
        | Code::SpentToken
        | Code::ExpiredToken
        | Code::UnknownNode
        | Code::StaleGeneration
        | Code::SilentTooLong
        | Code::BadPossession
        | Code::UnknownWorkload
        | Code::NoMatch
        | Code::LongLifetime
        | Code::NoSharedProtocol
        | Code::BadHandshake
        | Code::HandshakeTimeout
        | Code::PeerClosed
        | Code::BadAnswer
        | Code::PeerRefused
        | Code::PeerUnreachable
        | Code::NoOwnIdentity
        | Code::Unavailable
        | Code::NotReady
        | Code::Sealed
        | Code::Fenced
        | Code::TimedOut
        | Code::AttestationFailed
        | Code::Internal => E::ApplicationVerificationFailure,
    }
}

/// What an error of rustls means, at either end of a connection.
///
/// After [`accept`](crate::accept) or [`connect`](crate::connect) failed, the failure's own code is more exact
/// for what our verifier refused.
pub fn code_of(error: &Error) -> Code {
    match error {
        Error::AlertReceived(alert) => code_of_alert(*alert),
        Error::InvalidCertificate(refused) => code_of_certificate(refused),
        Error::NoCertificatesPresented => Code::NoCertificate,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Code::NoSharedProtocol,
        Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::InvalidMessage(_)
        | Error::PeerMisbehaved(_)
        | Error::PeerSentOversizedRecord
        | Error::DecryptError
        | Error::InvalidEncryptedClientHello(_)
        | Error::UnsupportedNameType
        | Error::InvalidCertRevocationList(_) => Code::BadHandshake,
        Error::InconsistentKeys(_) => Code::NoOwnIdentity,
        Error::EncryptError
        | Error::HandshakeNotComplete
        | Error::BadMaxFragmentSize
        | Error::FailedToGetCurrentTime
        | Error::FailedToGetRandomBytes
        | Error::General(_) => Code::Internal,
        // rustls may add variants. Whatever they will be, they end the handshake, and nothing is allowed by them.
        _ => Code::BadHandshake,
    }
}

fn code_of_alert(alert: AlertDescription) -> Code {
    match alert {
        AlertDescription::CloseNotify | AlertDescription::UserCanceled => Code::PeerClosed,
        AlertDescription::HandshakeFailure
        | AlertDescription::ProtocolVersion
        | AlertDescription::InsufficientSecurity
        | AlertDescription::NoApplicationProtocol => Code::NoSharedProtocol,
        // Every other alert, known or not yet, is the peer's refusal.
        _ => Code::PeerRefused,
    }
}

fn code_of_certificate(error: &CertificateError) -> Code {
    use CertificateError as E;
    match error {
        E::BadEncoding => Code::Malformed,
        E::Expired | E::ExpiredContext { .. } => Code::Expired,
        E::NotValidYet | E::NotValidYetContext { .. } => Code::NotYetValid,
        E::Revoked => Code::Revoked,
        E::UnhandledCriticalExtension => Code::BadExtension,
        E::UnknownIssuer => Code::UnknownIssuer,
        E::BadSignature => Code::BadSignature,
        E::UnsupportedSignatureAlgorithmContext { .. }
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => Code::WeakAlgorithm,
        E::NotValidForName | E::NotValidForNameContext { .. } => Code::UnexpectedPeer,
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => Code::BadKeyUsage,
        E::ApplicationVerificationFailure => Code::PolicyDenied,
        // Lists and stapled answers, which we never ask for; and what rustls may add.
        _ => Code::BadHandshake,
    }
}

/// What an I/O error on a connection means; it may carry an error of rustls.
///
/// In TLS 1.3 whoever dials learns only by its first read that the other end refused it.
pub fn code_of_io(error: &io::Error) -> Code {
    if let Some(inner) = error.get_ref() {
        if let Some(ended) = inner.downcast_ref::<Ended>() {
            return ended.0;
        }
        if let Some(tls) = inner.downcast_ref::<Error>() {
            return code_of(tls);
        }
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable => Code::PeerUnreachable,
        io::ErrorKind::TimedOut => Code::TimedOut,
        // Reset, aborted, broken pipe, end of file: from here they all look like the peer going away.
        _ => Code::PeerClosed,
    }
}

/// The sentence for an error of the handshake.
pub(crate) fn sentence(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let Some(tls) = tls else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                "the peer closed the connection before the handshake ended".to_owned()
            }
            _ => format!("the connection broke during the handshake: {error}"),
        };
    };
    match tls {
        Error::AlertReceived(alert) => {
            format!("the peer ended the handshake with the alert `{}`", alert_name(*alert))
        }
        Error::NoCertificatesPresented => "the peer showed no certificate".to_owned(),
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            "the peer does not hold the private key of the certificate that it showed".to_owned()
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "what the peer sent is not TLS".to_owned()
        }
        Error::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::ServerDoesNotSupportTls12Or13,
        ) => "the peer does not speak TLS 1.3, and we speak nothing else".to_owned(),
        // For the rest, what TLS says is for somebody who knows TLS; the code says who has to act.
        other => format!("{}: {other}", first_lower(code_of(other).meaning())),
    }
}

fn first_lower(text: &str) -> String {
    let mut letters = text.trim_end_matches('.').chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

/// As RFC 8446, 6 writes it: `certificate_expired`.
fn alert_name(alert: AlertDescription) -> String {
    let Some(name) = alert.as_str() else {
        return format!("{}", u8::from(alert));
    };
    let mut text = String::with_capacity(name.len() + 4);
    let mut after_small = false;
    for letter in name.chars() {
        if after_small && letter.is_ascii_uppercase() {
            text.push('_');
        }
        after_small = letter.is_ascii_lowercase();
        text.push(letter.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn alert(code: Code, expected: AlertDescription) {
        assert_eq!(AlertDescription::from(certificate_error(code)), expected, "{code}");
    }

    #[test]
    fn refusals_differ_in_their_alerts() {
        alert(Code::Expired, AlertDescription::CertificateExpired);
        alert(Code::NotYetValid, AlertDescription::CertificateExpired);
        alert(Code::Revoked, AlertDescription::CertificateRevoked);
        alert(Code::UnknownIssuer, AlertDescription::UnknownCA);
        alert(Code::UnknownTrustDomain, AlertDescription::UnknownCA);
        alert(Code::Malformed, AlertDescription::BadCertificate);
        alert(Code::BadExtendedKeyUsage, AlertDescription::UnsupportedCertificate);
        alert(Code::BadSignature, AlertDescription::DecryptError);
        alert(Code::PolicyDenied, AlertDescription::AccessDenied);
    }

    #[test]
    fn every_alert_but_those_about_protocols_and_closing_is_a_refusal() {
        for number in 0..=255 {
            let expected = match number {
                0 | 90 => Code::PeerClosed,
                40 | 70 | 71 | 120 => Code::NoSharedProtocol,
                _ => Code::PeerRefused,
            };
            let error = Error::AlertReceived(AlertDescription::from(number));
            assert_eq!(code_of(&error), expected, "alert {number}");
        }
    }

    #[test]
    fn alerts_are_named_as_the_standard_names_them() {
        assert_eq!(alert_name(AlertDescription::CertificateExpired), "certificate_expired");
        assert_eq!(alert_name(AlertDescription::UnknownCA), "unknown_ca");
        assert_eq!(alert_name(AlertDescription::from(200)), "200");
    }

    #[test]
    fn an_error_without_a_reason_is_never_a_success_code() {
        for kind in [io::ErrorKind::BrokenPipe, io::ErrorKind::UnexpectedEof] {
            assert_eq!(code_of_io(&io::Error::from(kind)), Code::PeerClosed);
        }
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(code_of_io(&refused), Code::PeerUnreachable);
    }
}
