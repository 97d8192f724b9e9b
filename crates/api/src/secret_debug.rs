//! `Debug` of the messages that hold a key or a token: it never shows the secret.

use std::fmt;

use crate::{v1, workload};

impl fmt::Debug for workload::X509svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509svid")
            .field("spiffe_id", &self.spiffe_id)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for workload::Jwtsvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwtsvid")
            .field("spiffe_id", &self.spiffe_id)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for workload::ValidateJwtsvidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateJwtsvidRequest")
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::AttestRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttestRequest")
            .field("evidence", &self.evidence)
            .field("version", &self.version)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::attest_request::Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JoinToken(_) => f.write_str("JoinToken"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_tokens_do_not_print() {
        let svid = workload::X509svid {
            spiffe_id: "spiffe://shop.example/web".to_owned(),
            x509_svid_key: b"secret".to_vec(),
            ..Default::default()
        };
        let response = workload::X509svidResponse { svids: vec![svid], ..Default::default() };
        let shown = format!("{response:?}");
        assert!(shown.contains("shop.example/web") && !shown.contains("115"), "{shown}");

        let attest = v1::AttestRequest {
            evidence: Some(v1::attest_request::Evidence::JoinToken("s3cr3t".to_owned())),
            ..Default::default()
        };
        assert!(!format!("{attest:?}").contains("s3cr3t"));
    }
}
