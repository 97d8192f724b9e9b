//! A second reading, written by itself, of the fields by which a program could be deceived: of who its caller is, every mark read as
//! every other; of another request, without any marks.

pub(crate) fn names_the_caller(field: &str) -> bool {
    let dashed = |byte: u8| if byte.is_ascii_alphanumeric() { byte } else { b'-' };
    let dashed: Vec<u8> = field.bytes().map(dashed).collect();
    let dashed = String::from_utf8(dashed).unwrap_or_default();
    match dashed.as_str() {
        "x-forwarded-client-cert" | "client-cert" | "client-cert-chain" => true,
        name => ["x-countersign-", "x-client-cert", "x-ssl-client", "ssl-client-"]
            .into_iter()
            .any(|ours| name.starts_with(ours)),
    }
}

pub(crate) fn asks_for_another(field: &str) -> bool {
    let letters: String = field.chars().filter(char::is_ascii_alphanumeric).collect();
    let known = [
        "xhttpmethodoverride",
        "xhttpmethod",
        "xmethodoverride",
        "xoriginalurl",
        "xoriginaluri",
        "xrewriteurl",
    ];
    known.contains(&letters.as_str())
}
