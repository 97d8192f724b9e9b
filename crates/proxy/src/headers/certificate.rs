//! What a program is told of the certificate by which its caller came in, as Envoy writes it.

use std::fmt::Write;

use countersign_tls::Admitted;
use http::header::{HeaderName, HeaderValue};

/// Set for a program whose service asks for it; whatever arrives under this name is taken out first.
pub(crate) const CERTIFICATE_HEADER: HeaderName =
    HeaderName::from_static("x-forwarded-client-cert");

/// What a program is told of its callers' certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Nothing.
    Nothing,
    /// Who the two ends are, and the digest of the caller's certificate.
    Identity,
    /// The same, and the certificate.
    Certificate,
    /// The same, and those of the issuers on the path that was verified.
    Chain,
}

/// The longest chain that a program is told of, as it stands in the field. A longer one is left out, whole.
const CHAIN_BYTES_MAX: usize = 16 * 1024;

/// What the program is told of the certificate by which its caller came in: one element, as Envoy writes it, in the order in
/// which Envoy writes it.
pub(crate) fn client_certificate(
    told: Told,
    admitted: &Admitted,
    chain: &str,
) -> Option<HeaderValue> {
    let (peer, local) = (admitted.peer()?, admitted.local()?);
    let by = || element("By", local.as_str());
    let hash = || element("Hash", &peer.leaf.digest().to_string());
    let uri = || element("URI", peer.id.as_str());
    let certificate = || element("Cert", &percent(&peer.leaf.to_pem()));
    let text = match told {
        Told::Nothing => return None,
        Told::Identity => [by(), hash(), uri()].join(";"),
        Told::Certificate => [by(), hash(), certificate(), uri()].join(";"),
        Told::Chain => {
            let chain = Some(element("Chain", &percent(chain)));
            let chain = chain.filter(|element| element.len() <= CHAIN_BYTES_MAX);
            let known = [by(), hash(), certificate()].into_iter();
            known.chain(chain).chain([uri()]).collect::<Vec<_>>().join(";")
        }
    };
    HeaderValue::try_from(text).ok()
}

/// `key=value`. What would end a value too early stands in quotes, and a quote in it is escaped.
pub(crate) fn element(key: &str, value: &str) -> String {
    if value.contains([',', ';', '=', '"', '%', '\\']) {
        let escaped = value.replace('\\', r"\\").replace('"', r#"\""#);
        return format!("{key}=\"{escaped}\"");
    }
    format!("{key}={value}")
}

/// The PEM of a certificate in one line: what is neither letter nor digit nor `-` is written as `%` and two digits.
pub(super) fn percent(pem: &str) -> String {
    let mut text = String::with_capacity(pem.len() * 9 / 8);
    for byte in pem.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            text.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}
