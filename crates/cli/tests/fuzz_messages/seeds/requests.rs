//! What browsers, and others, say to the console. The target puts secrets in for `{link}`, `{session}` and `{form}`.

use super::Seed;

const HOST: &str = "host: console.example:9443\r\n";
const ORIGIN: &str = "origin: https://console.example:9443\r\nsec-fetch-site: same-origin\r\n";
const COOKIE: &str = "cookie: __Host-countersign-9443={session}\r\n";

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\n{HOST}{fields}\r\n")
}

fn post(path: &str, fields: &str, body: &str, length: usize) -> String {
    format!("POST {path} HTTP/1.1\r\n{HOST}{fields}content-length: {length}\r\n\r\n{body}")
}

pub(super) fn requests() -> Vec<Seed> {
    // Secrets are 43 characters long, and what a form carries 64.
    let link = post("/login", ORIGIN, "link={link}", 5 + 43);
    let whole = "link=https%3A%2F%2Fconsole.example%3A9443%2Flogin%23{link}";
    let whole = post("/login", ORIGIN, whole, whole.len() - 6 + 43);
    let logout = format!("{ORIGIN}{COOKIE}");
    let logout = post("/logout", &logout, "form={form}", 5 + 64);
    let other = "origin: https://console.example:9444\r\nsec-fetch-site: same-site\r\n";
    let forged = post("/logout", &format!("{other}{COOKIE}"), "form={form}", 5 + 64);
    let planted = "cookie: a=b; __Host-countersign-9443=planted\r\n";
    let pages = ["/", "/map", "/workloads", "/nodes", "/authorities", "/policies"];
    let pages = pages.map(|path| get(path, COOKIE)).concat();
    let queries = [
        get("/log?kind=%3Cx9%3E&subject=%22%3Cx9%3E&from=%3Cx9", COOKIE),
        get("/workloads/%3Cx9%3E", COOKIE),
        get("/handshakes?peer=%3Cx9&code=%00%ff&from=1&until=99999999999999999999", COOKIE),
        get("/revocations?text=a%26b%3D%22'&revoke=%3Cx9", COOKIE),
        get("/log/0", COOKIE),
        get("/log/0/proof", COOKIE),
        get("/log/18446744073709551615", COOKIE),
    ]
    .concat();
    [
        ("door", get("/login", "") + &get("/assets/console.css", "") + &get("/", "")),
        ("link", link.clone()),
        ("link_as_a_whole", whole),
        ("link_twice", format!("{link}{link}")),
        ("link_of_nobody", post("/login", ORIGIN, "link=%23%3Cx9%3E", 16)),
        ("pages", pages),
        ("queries", queries),
        ("logout", logout + &get("/", COOKIE)),
        ("logout_that_is_forged", forged),
        ("two_cookies", get("/", &format!("{COOKIE}{planted}"))),
        ("another_host", "GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned()),
        ("live", get("/live", COOKIE)),
        ("too_long_a_form", post("/login", ORIGIN, &"link=".repeat(820), 4100)),
    ]
    .map(|(name, text)| ("console", name, text.into_bytes()))
    .into()
}
