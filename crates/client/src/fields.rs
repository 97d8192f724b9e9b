//! Names of header fields by which a program could be deceived about what it is asked, or by whom.

/// From these, frameworks take another method or path. Without what stands between the words of their names.
const OVERRIDES: [&str; 6] = [
    "xhttpmethodoverride",
    "xhttpmethod",
    "xmethodoverride",
    "xoriginalurl",
    "xoriginaluri",
    "xrewriteurl",
];
/// Names that begin so belong to whoever decides: our own, and those under which Apache, nginx, HAProxy, Traefik, the load
/// balancers of Amazon and Linkerd tell of who has called, and of the certificate that it has shown. A program that was behind
/// one of them believes it.
const RESERVED_PREFIXES: [&str; 7] = [
    "x-countersign-",
    "x-client-cert",
    "x-ssl-client",
    "ssl-client-",
    "x-forwarded-tls-client-cert",
    "x-amzn-mtls-",
    "l5d-client-",
];
/// How Envoy tells the same, Azure, some set-ups of nginx, and RFC 9440. Its section 4 asks whoever ends TLS to let none through
/// that others have written.
const RESERVED_NAMES: [&str; 5] = [
    "x-forwarded-client-cert",
    "x-arr-clientcert",
    "x-ssl-cert",
    "client-cert",
    "client-cert-chain",
];

/// Whether a program could take another method or path from the field of this name.
pub fn is_overriding(field: &str) -> bool {
    let letters = field.bytes().filter(u8::is_ascii_alphanumeric);
    let plain = letters.map(|letter| letter.to_ascii_lowercase());
    OVERRIDES.iter().any(|word| plain.clone().eq(word.bytes()))
}

/// Whether a program could take from the field of this name who its caller is. The name is in lower case.
///
/// CGI, WSGI and their like read `_` and `-` as one, some of them every other mark as well, so all of these spellings count.
pub fn is_reserved(field: &str) -> bool {
    // Most fields are let off here.
    if !matches!(field.as_bytes(), [b'x' | b'l', ..] | [b'c', b'l', ..] | [b's', b's', ..]) {
        return false;
    }
    let same = |(ours, theirs): (u8, u8)| {
        ours == theirs || (ours == b'-' && !theirs.is_ascii_alphanumeric())
    };
    let begins =
        |with: &str| with.len() <= field.len() && with.bytes().zip(field.bytes()).all(same);
    RESERVED_PREFIXES.iter().any(|prefix| begins(prefix))
        || RESERVED_NAMES.iter().any(|name| field.len() == name.len() && begins(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_that_some_read_as_a_dash_do_not_hide_a_reserved_name() {
        for name in ["x!countersign!peer", "x.forwarded.client.cert", "x-countersign~peer"] {
            assert!(is_reserved(name), "{name}");
        }
        for name in ["client-cert", "client_cert", "client.cert-chain", "x-client-certificate"] {
            assert!(is_reserved(name), "{name}");
        }
        for name in
            ["x-ssl-client-verify", "x_ssl_client_s_dn", "ssl-client-cert", "ssl_client_verify"]
        {
            assert!(is_reserved(name), "{name}");
        }
        for name in [
            "x-forwarded-tls-client-cert",
            "x-forwarded_tls.client-cert-info",
            "x-amzn-mtls-clientcert-subject",
            "x-arr-clientcert",
            "x_ssl_cert",
            "l5d-client-id",
        ] {
            assert!(is_reserved(name), "{name}");
        }
        for name in ["x-amzn-trace-id", "x-forwarded-for", "x-arr-log-id", "l5d-ctx-trace", "link"]
        {
            assert!(!is_reserved(name), "{name}");
        }
        for name in ["x-forwarded-client-certs", "xxforwarded", "x-counter", ""] {
            assert!(!is_reserved(name), "{name}");
        }
        for name in ["client-certs", "client-ip", "client", "ssl-client", "x-ssl", "content-length"]
        {
            assert!(!is_reserved(name), "{name}");
        }
    }

    #[test]
    fn no_spelling_hides_a_field_that_changes_the_request() {
        for name in ["X-HTTP-Method-Override", "x_http_method", "x-original.url", "XRewriteURL"] {
            assert!(is_overriding(name), "{name}");
        }
        for name in ["x-method", "original-url", "x-http-methods", ""] {
            assert!(!is_overriding(name), "{name}");
        }
    }
}
