//! The console: who gets in, what a forged request meets, and what hostile names come to.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, Method, Request, StatusCode};
use countersign_api::admin::{EventFilter, ProofResponse};
use countersign_api::v1;
use countersign_audit::{Bundle, NoteKey};
use countersign_identity::{Clock as _, Code};
use countersign_pki::{Bundles, KeyKind, PrivateKey};
use countersign_tls::{Expected, Outbound, Present, Slice, Trust};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;

use super::sign::{item, sign};
use super::sync::open;
use super::{Agent, DOMAIN, Realm, Running, policy, service, soon, workload};
use crate::config::{Config, ConsoleConfig};

/// A text that would be a script, would turn a line around, and would end what it stands in.
const HOSTILE: &str = "\"'><script>alert(1)</script>\u{202e}\u{200b}&lt;";

/// What stands on a page instead of it.
const HARMLESS: &str =
    "&quot;&#39;&gt;&lt;script&gt;alert(1)&lt;/script&gt;⟨U+202E⟩⟨U+200B⟩&amp;lt;";

/// Every page, as somebody who is in may ask for it.
const PAGES: [&str; 9] = [
    "/",
    "/map",
    "/workloads",
    "/nodes",
    "/authorities",
    "/policies",
    "/revocations",
    "/log",
    "/handshakes",
];

async fn serve(realm: &Realm) -> Running {
    let console = ConsoleConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        names: vec!["localhost".parse().unwrap()],
    };
    realm.start(Config { console: Some(console), ..realm.config() }).await.unwrap()
}

/// A program that speaks to the console as browsers do, and as they never would.
struct Browser<'a> {
    realm: &'a Realm,
    running: &'a Running,
    bundles: Arc<Bundles>,
    authority: String,
    cookie: String,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl<'a> Browser<'a> {
    async fn new(realm: &'a Realm, running: &'a Running) -> Self {
        let agent = Agent::join(realm, running, &[]).await;
        let bundles = Arc::new(Bundles::new(vec![agent.bundle]).unwrap());
        let port = running.ready.console.unwrap().port();
        Self {
            realm,
            running,
            bundles,
            authority: format!("localhost:{port}"),
            cookie: String::new(),
        }
    }

    /// One that has used a link.
    async fn signed_in(realm: &'a Realm, running: &'a Running) -> Self {
        let mut browser = Self::new(realm, running).await;
        let link = browser.link().await;
        let answer = browser.enter(&link).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.body);
        browser.keep(&answer);
        browser
    }

    fn keep(&mut self, answer: &Answer) {
        let cookie = answer.header("set-cookie").split(';').next().unwrap();
        cookie.clone_into(&mut self.cookie);
    }

    /// What stands behind the `#` of a link.
    async fn link(&self) -> String {
        let link = self.running.admin.console_link().await.unwrap();
        let (place, secret) = link.url.split_once('#').unwrap();
        assert_eq!(place, format!("https://{}/login", self.authority));
        secret.to_owned()
    }

    async fn enter(&self, secret: &str) -> Answer {
        let origin = format!("https://{}", self.authority);
        self.ask(Method::POST, "/login", &[("origin", &origin)], &format!("link={secret}")).await
    }

    /// What the forms of its session carry.
    async fn form(&self) -> String {
        let page = self.get("/").await.body;
        let (_, after) = page.split_once("name=\"form\" value=\"").unwrap();
        after.split('"').next().unwrap().to_owned()
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[], "").await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let answer = self.send(method, path, headers, body).await;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> hyper::Response<hyper::body::Incoming> {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", &self.authority);
        }
        if !self.cookie.is_empty() && !headers.iter().any(|(name, _)| *name == "cookie") {
            request = request.header("cookie", &self.cookie);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(bytes::Bytes::from(body.to_owned()))).unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.dial().await)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }

    /// A connection; the console's first certificate may still be on its way.
    async fn dial(&self) -> countersign_tls::Stream {
        let status = self.running.admin.status().await.unwrap();
        let slice = Slice {
            bundles: Arc::clone(&self.bundles),
            revision: status.revision,
            ..Slice::nothing()
        };
        let trust = Trust::new(self.realm.time(), slice);
        let expected = Expected::Id(self.id());
        let outbound = Outbound {
            present: Present::Nothing,
            alpn: vec![b"http/1.1".to_vec()],
            ..Outbound::control(expected)
        };
        let at = self.running.ready.console.unwrap();
        soon(async {
            loop {
                match countersign_tls::dial(&trust, at, &outbound).await {
                    Ok(established) => return established.stream,
                    Err(_not_yet) => tokio::task::yield_now().await,
                }
            }
        })
        .await
    }

    fn id(&self) -> countersign_identity::SpiffeId {
        let name = std::fs::read_to_string(self.realm.data().join("domain.json")).unwrap();
        let name: serde_json::Value = serde_json::from_str(&name).unwrap();
        let name = name["server"].as_str().unwrap();
        format!("spiffe://{DOMAIN}/countersign/console/{name}").parse().unwrap()
    }
}

#[tokio::test]
async fn strangers_see_the_door_and_nothing_else() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let browser = Browser::new(&realm, &running).await;
    let more = ["/workloads/web", "/nodes/00", "/policies/x", "/log/0", "/no-such-page"];
    for path in PAGES.into_iter().chain(more) {
        let answer = browser.get(path).await;
        assert_eq!(
            (answer.status, answer.header("location")),
            (StatusCode::SEE_OTHER, "/login"),
            "{path}"
        );
        assert_eq!(answer.body, "", "{path}");
    }
    for (method, path) in [(Method::GET, "/live"), (Method::POST, "/logout"), (Method::POST, "/")] {
        let origin = format!("https://{}", browser.authority);
        let answer = browser.ask(method, path, &[("origin", &origin)], "").await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    assert_eq!(browser.get("/login").await.status, StatusCode::OK);
    assert_eq!(browser.get("/assets/console.css").await.status, StatusCode::OK);
    assert_eq!(browser.get("/assets/nothing").await.status, StatusCode::NOT_FOUND);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn link_lets_one_browser_in_once_and_every_page_answers() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let mut browser = Browser::new(&realm, &running).await;
    let link = browser.link().await;
    // Looking at the door uses nothing up, so whatever fetches links ahead harms nobody.
    browser.get("/login").await;
    let answer = browser.enter(&link).await;
    let cookie = answer.header("set-cookie").to_owned();
    for attribute in
        ["__Host-countersign-", "; Secure", "; HttpOnly", "; SameSite=Strict", "; Path=/"]
    {
        assert!(cookie.contains(attribute), "{attribute} in {cookie}");
    }
    assert!(!cookie.contains("Domain") && !cookie.contains(&link), "{cookie}");
    assert_eq!(browser.enter(&link).await.status, StatusCode::FORBIDDEN);
    browser.keep(&answer);
    for path in PAGES {
        let answer = browser.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.body);
        assert!(answer.body.contains("<h1>") && answer.body.ends_with("</html>"), "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
    }
    let answer = browser.get("/no-such-page").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn every_answer_tells_browsers_to_run_nothing_of_others() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let browser = Browser::signed_in(&realm, &running).await;
    for path in ["/", "/login", "/assets/live.js", "/no-such-page", "/log/0/proof"] {
        let answer = browser.get(path).await;
        let policy = answer.header("content-security-policy");
        for part in [
            "default-src 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "require-trusted-types-for",
        ] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("x-frame-options"), "DENY", "{path}");
        assert_eq!(answer.header("cross-origin-opener-policy"), "same-origin", "{path}");
        for inline in [" style=", " onclick=", "<style", "javascript:"] {
            assert!(
                !answer.body.contains(inline) || path.starts_with("/assets"),
                "{path}: {inline}"
            );
        }
    }
    let foreign = browser.ask(Method::GET, "/", &[("host", "evil.example")], "").await;
    assert!(foreign.header("content-security-policy").contains("default-src 'none'"));
    running.stop().await;
}

#[tokio::test]
async fn names_that_were_bent_to_lead_here_are_turned_away() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let browser = Browser::signed_in(&realm, &running).await;
    let port = browser.authority.split_once(':').unwrap().1;
    for host in [
        "evil.example",
        &format!("evil.example:{port}"),
        "localhost",
        "localhost:1",
        &format!("127.0.0.1:{port}"),
    ] {
        for path in ["/", "/login", "/assets/live.js"] {
            let answer = browser.ask(Method::GET, path, &[("host", host)], "").await;
            assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST, "{host} {path}");
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn requests_of_other_pages_are_refused() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let browser = Browser::signed_in(&realm, &running).await;
    let own = format!("https://{}", browser.authority);
    let link = format!("link={}", browser.link().await);
    let forged: [&[(&str, &str)]; 6] = [
        &[],
        &[("origin", "null")],
        &[("origin", "https://evil.example")],
        &[("origin", "https://localhost:1")],
        &[("origin", &own), ("sec-fetch-site", "same-site")],
        &[
            ("origin", &own),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ],
    ];
    for headers in forged {
        for path in ["/login", "/logout"] {
            let answer = browser.ask(Method::POST, path, headers, &link).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path} {headers:?}");
        }
    }
    // Other ports of this machine are the same site, and their pages may not read ours either.
    let embedded = [
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-mode", "no-cors"),
        ("sec-fetch-dest", "image"),
    ];
    assert_eq!(browser.ask(Method::GET, "/log", &embedded, "").await.status, StatusCode::FORBIDDEN);
    let framed = [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-dest", "iframe"),
    ];
    assert_eq!(browser.ask(Method::GET, "/", &framed, "").await.status, StatusCode::FORBIDDEN);
    let followed = [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-dest", "document"),
    ];
    assert_eq!(browser.ask(Method::GET, "/", &followed, "").await.status, StatusCode::OK);
    // The link that a forged form tried to use is still good.
    assert_eq!(browser.enter(link.trim_start_matches("link=")).await.status, StatusCode::SEE_OTHER);
    running.stop().await;
}

#[tokio::test]
async fn sign_out_needs_the_form_of_the_session_and_ends_it_for_good() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let browser = Browser::signed_in(&realm, &running).await;
    let other = Browser::signed_in(&realm, &running).await;
    let (own, foreign) = (browser.form().await, other.form().await);
    assert_ne!(own, foreign);
    let origin = format!("https://{}", browser.authority);
    let leave = async |form: &str| {
        let body = format!("form={form}");
        browser.ask(Method::POST, "/logout", &[("origin", &origin)], &body).await
    };
    assert_eq!(leave("").await.status, StatusCode::FORBIDDEN);
    assert_eq!(leave(&foreign).await.status, StatusCode::FORBIDDEN);
    assert_eq!(browser.get("/").await.status, StatusCode::OK);
    let left = leave(&own).await;
    assert_eq!(left.status, StatusCode::SEE_OTHER);
    assert!(left.header("set-cookie").contains("Max-Age=0"));
    assert_eq!(browser.get("/").await.header("location"), "/login");
    assert_eq!(other.get("/").await.status, StatusCode::OK);
    running.stop().await;
}

/// What the log says of one kind of event, as JSON.
async fn recorded(running: &Running, kind: &str) -> Vec<serde_json::Value> {
    let filter = EventFilter { kind: Some(kind.to_owned()), ..EventFilter::default() };
    let found = running.admin.search(&filter, 100, None).await.unwrap();
    found.events.iter().map(|event| serde_json::to_value(event).unwrap()).collect()
}

#[tokio::test]
async fn sign_ins_are_on_record_and_their_secrets_are_not() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let mut browser = Browser::new(&realm, &running).await;
    let link = browser.link().await;
    let answer = browser.enter(&link).await;
    browser.keep(&answer);
    for _ in 0..3 {
        assert_eq!(browser.enter("nothing").await.status, StatusCode::FORBIDDEN);
    }
    let (origin, form) = (format!("https://{}", browser.authority), browser.form().await);
    browser.ask(Method::POST, "/logout", &[("origin", &origin)], &format!("form={form}")).await;
    let mut of = std::collections::BTreeMap::new();
    for kind in ["console-link-created", "session-began", "session-refused", "session-ended"] {
        let found = soon(async {
            loop {
                let found = recorded(&running, kind).await;
                if !found.is_empty() {
                    return found;
                }
                realm.clock.advance(Duration::from_millis(500));
            }
        })
        .await;
        of.insert(kind, found);
    }
    let (made, began) = (&of["console-link-created"][0], &of["session-began"][0]);
    assert_eq!(began["details"]["link"], made["subject"]);
    assert_eq!(began["details"]["from"], "127.0.0.1");
    assert!(began["actor"].as_str().unwrap().starts_with("operator:uid:"), "{began}");
    let ended = &of["session-ended"][0];
    assert_eq!((&ended["subject"], &ended["actor"]), (&began["subject"], &began["actor"]));
    assert_eq!(ended["details"]["how"], "signed-out");
    let refused: u64 =
        of["session-refused"].iter().map(|event| event["details"]["count"].as_u64().unwrap()).sum();
    assert!((1..=3).contains(&refused), "at most one event a minute: {refused}");
    let secret = browser.cookie.split_once('=').unwrap().1;
    let all = serde_json::to_string(&of).unwrap();
    assert!(!all.contains(&link) && !all.contains(secret), "{all}");
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn sessions_that_end_with_the_server_are_on_record() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let mut sessions = std::collections::BTreeSet::new();
    let browser = Browser::signed_in(&realm, &running).await;
    assert_eq!(browser.get("/").await.status, StatusCode::OK);
    Browser::signed_in(&realm, &running).await;
    for began in recorded(&running, "session-began").await {
        sessions.insert(began["subject"].to_string());
    }
    assert_eq!(sessions.len(), 2);
    assert!(recorded(&running, "session-ended").await.is_empty());
    running.stop().await;
    let running = serve(&realm).await;
    let ended = recorded(&running, "session-ended").await;
    let of: std::collections::BTreeSet<_> =
        ended.iter().map(|event| event["subject"].to_string()).collect();
    assert_eq!(of, sessions);
    assert!(ended.iter().all(|event| event["details"]["how"] == "stopped"), "{ended:?}");
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn crowd_at_the_door_keeps_out_nobody_who_has_a_session() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let browser = Browser::signed_in(&realm, &running).await;
    let at = running.ready.console.unwrap();
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(TcpStream::connect(at).await.unwrap());
    }
    assert_eq!(browser.get("/").await.status, StatusCode::OK);
    // Those who came first, and said nothing, had to go.
    let mut first = crowd.remove(0);
    let mut byte = [0];
    let ended = soon(tokio::io::AsyncReadExt::read(&mut first, &mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    // Nor does somebody who asks too often for the door keep others from the pages, and what they need.
    while browser.ask(Method::GET, "/login", &[("cookie", "")], "").await.status == StatusCode::OK {
    }
    assert_eq!(browser.get("/assets/console.css").await.status, StatusCode::OK);
    assert_eq!(browser.get("/").await.status, StatusCode::OK);
    running.stop().await;
}

#[tokio::test]
async fn session_that_was_planted_or_doubled_is_none() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let browser = Browser::signed_in(&realm, &running).await;
    let name = browser.cookie.split('=').next().unwrap();
    for cookie in [
        format!("{name}=planted"),
        format!("{name}=planted; {}", browser.cookie),
        format!("{}; {name}=planted", browser.cookie),
        browser.cookie.replace("__Host-", ""),
        format!("{name}="),
    ] {
        let answer = browser.ask(Method::GET, "/", &[("cookie", &cookie)], "").await;
        assert_eq!(answer.header("location"), "/login", "{cookie}");
    }
    // What was planted does not become a session by signing in either.
    let planted = format!("{name}=planted");
    let (origin, link) = (format!("https://{}", browser.authority), browser.link().await);
    let headers = [("origin", origin.as_str()), ("cookie", planted.as_str())];
    let answer = browser.ask(Method::POST, "/login", &headers, &format!("link={link}")).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    assert!(!answer.header("set-cookie").contains("planted"));
    realm.clock.advance(Duration::from_secs(1801));
    assert_eq!(browser.get("/").await.header("location"), "/login", "it was idle for half an hour");
    running.stop().await;
}

#[tokio::test]
async fn console_is_no_server_to_agents_and_is_told_so_when_there_is_none() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let browser = Browser::new(&realm, &running).await;
    drop(browser.dial().await);
    let contact = countersign_tls::FirstContact {
        pin: realm.trust,
        domain: None,
        alpn: vec![b"h2".to_vec()],
        timeout: Duration::from_secs(10),
    };
    let tcp = TcpStream::connect(running.ready.console.unwrap()).await.unwrap();
    let refused = countersign_tls::connect_pinned(&realm.time(), tcp, &contact).await.unwrap_err();
    assert_eq!(refused.code, Code::UnexpectedPeer);
    running.stop().await;
    let without = realm.serve().await;
    assert!(without.ready.console.is_none());
    let refused = without.admin.console_link().await.unwrap_err();
    assert_eq!(refused.code(), Code::NotReady);
    without.stop().await;
}

#[tokio::test]
async fn machines_are_shown_with_what_they_joined_by() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let browser = Browser::signed_in(&realm, &running).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let listed = browser.get("/nodes").await.body;
    assert!(listed.contains("<td data-label=\"Joined by\">join token</td>"), "{listed}");
    let page = browser.get(&format!("/nodes/{}", agent.node)).await.body;
    assert!(page.contains("<dt>Joined by</dt><dd>join token</dd><dt>Heard of</dt>"), "{page}");
    running.stop().await;
}

/// What others may choose: a node's host, an error's detail, a policy's text, a selector, a SPIFFE ID.
async fn fill_with_hostile_names(realm: &Realm, running: &Running) -> Agent {
    let long = "a".repeat(2000);
    let manifest = json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "Workload", "metadata": { "name": "web" },
        "spec": { "spiffeId": format!("spiffe://{DOMAIN}/{}", &long[..480]), "selectors": [format!("unix:path:/opt/{HOSTILE}")], "lifetime": "15m" },
    });
    let text = format!(
        "// {}\npermit (principal == Workload::\"web\", action == Action::\"connect\", resource == Service::\"orders\");",
        HOSTILE.replace('\u{202e}', "")
    );
    running
        .apply(vec![
            manifest,
            workload("orders", &[]),
            service("orders", &[]),
            policy("hostile", &text),
        ])
        .await;
    let agent = Agent::join_as(realm, running, &[], HOSTILE).await;
    let refused = v1::HandshakeFact {
        at_micros: realm.clock.now().micros(),
        point: HOSTILE.to_owned(),
        direction: v1::Direction::Inbound.into(),
        service: HOSTILE.to_owned(),
        peer_address: HOSTILE.to_owned(),
        version: HOSTILE.to_owned(),
        group: HOSTILE.to_owned(),
        suite: HOSTILE.to_owned(),
        code: "no-certificate".to_owned(),
        detail: HOSTILE.to_owned(),
        ..v1::HandshakeFact::default()
    };
    let report = v1::ReportRequest { handshakes: vec![refused], ..v1::ReportRequest::default() };
    agent.client(realm, running).await.node.report(report).await.unwrap();
    agent
}

#[tokio::test]
async fn first_page_tells_what_was_denied_lately_and_until_when_an_outage_would_last() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let browser = Browser::signed_in(&realm, &running).await;
    running.apply(vec![workload("web", &[]), workload("orders", &[])]).await;
    let first = browser.get("/").await.body;
    assert!(first.contains("Policies have denied nothing since this server started"), "{first}");
    let agent = Agent::join(&realm, &running, &[]).await;
    let now = realm.clock.now();
    let flow = |source: &str, allowed: bool, mode: &str| v1::Flow {
        source: format!("spiffe://{DOMAIN}/{source}"),
        service: "orders".to_owned(),
        method: "DELETE".to_owned(),
        allowed,
        mode: mode.to_owned(),
        first_micros: now.micros(),
        last_micros: now.micros(),
        count: 7,
        ..v1::Flow::default()
    };
    let credential = v1::CredentialStatus {
        workload: "web".to_owned(),
        spiffe_id: format!("spiffe://{DOMAIN}/web"),
        serial: vec![0x40; 16].into(),
        issued_micros: now.micros(),
        expires_micros: (now + Duration::from_secs(900)).micros(),
        renewal_micros: (now + Duration::from_secs(450)).micros(),
        trouble: String::new(),
    };
    let report = v1::ReportRequest {
        flows: vec![
            flow("thief", false, "enforce"),
            flow("curious", false, "observe"),
            flow("friend", true, "enforce"),
        ],
        credentials: vec![credential],
        ..v1::ReportRequest::default()
    };
    let mut client = agent.client(&realm, &running).await;
    let mut stream = open(&mut client, None).await.unwrap();
    stream.snapshot().await;
    client.node.report(report).await.unwrap();
    let first = browser.get("/").await.body;
    let denied = first.split("id=\"denials\"").nth(1).unwrap();
    let denied = denied.split("</section>").next().unwrap();
    assert!(denied.contains(&format!("spiffe://{DOMAIN}/thief")), "{denied}");
    assert!(denied.contains("let pass") && denied.contains("/curious"), "{denied}");
    assert!(denied.contains("DELETE") && denied.contains(">7<"), "{denied}");
    assert!(!denied.contains("/friend"), "what was allowed is not denied: {denied}");
    let budget = first.split("Outage budget").nth(1).unwrap().split("</article>").next().unwrap();
    assert!(budget.contains("15 min") && budget.contains("guaranteed"), "{budget}");
    running.stop().await;
}

#[tokio::test]
async fn last_hour_of_a_workload_shows_requests_handshakes_and_certificates_on_one_line() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let browser = Browser::signed_in(&realm, &running).await;
    running
        .apply(vec![workload("orders", &[]), service("orders", &[]), workload("web", &[])])
        .await;
    let empty = browser.get("/workloads/orders").await.body;
    assert!(empty.contains("0 answered, 0 of them 4xx, 0 failed"), "{empty}");
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    sign(&mut client, vec![item("orders", &key)]).await[0].as_ref().unwrap();
    let now = realm.clock.now();
    let served = |service: &str, class, within, count| v1::Served {
        service: service.to_owned(),
        class,
        within,
        count,
        at_micros: now.micros(),
        micros: 1000 * count,
    };
    let seen = |code: &str, count| v1::HandshakeFact {
        at_micros: now.micros(),
        point: "orders-proxy".to_owned(),
        direction: v1::Direction::Inbound.into(),
        service: "orders".to_owned(),
        local_id: format!("spiffe://{DOMAIN}/orders"),
        peer_id: format!("spiffe://{DOMAIN}/web"),
        code: code.to_owned(),
        count,
        ..v1::HandshakeFact::default()
    };
    let report = v1::ReportRequest {
        served: vec![
            served("orders", 2, 0, 97),
            served("orders", 4, 1, 2),
            served("orders", 5, 8, 1),
            served("others", 2, 0, 500),
        ],
        handshakes: vec![seen("", 8), seen("revoked", 3)],
        ..v1::ReportRequest::default()
    };
    client.node.report(report).await.unwrap();
    let shown = soon(async {
        loop {
            let page = browser.get("/workloads/orders").await.body;
            if page.contains("8 admitted, 3 refused") && page.contains("100 answered") {
                return page;
            }
            realm.clock.advance(Duration::from_millis(100));
            tokio::task::yield_now().await;
        }
    })
    .await;
    let hour = shown.split("id=\"hour\"").nth(1).unwrap().split("</section>").next().unwrap();
    assert!(hour.contains("100 answered, 2 of them 4xx, 1 failed"), "{hour}");
    assert!(hour.contains("half within 1000 µs, 99 of 100 within 2500 µs"), "{hour}");
    assert!(hour.contains("svid-issued") && hour.contains("class=\"mark\""), "{hour}");
    assert!(!hour.contains("looks through"), "{hour}");
    // An hour later it is not of the last hour any more.
    realm.clock.advance(Duration::from_secs(3700));
    let browser = Browser::signed_in(&realm, &running).await;
    let later = browser.get("/workloads/orders").await.body;
    assert!(later.contains("0 answered, 0 of them 4xx, 0 failed"), "{later}");
    assert!(later.contains("Nothing happened to its certificates in this time"), "{later}");
    running.stop().await;
}

#[tokio::test]
async fn hostile_names_are_shown_and_are_never_markup() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let browser = Browser::signed_in(&realm, &running).await;
    let agent = fill_with_hostile_names(&realm, &running).await;
    // Its detail, service, point, address, version and group.
    soon(async {
        while browser.get("/handshakes").await.body.matches(HARMLESS).count() != 6 {
            realm.clock.advance(Duration::from_millis(100));
            tokio::task::yield_now().await;
        }
    })
    .await;
    let machine = format!("/nodes/{}", agent.node);
    let by = ["version", "group", "suite"].map(|by| format!("/handshakes?by={by}"));
    for path in by.iter().map(String::as_str).chain(["/nodes", &machine]) {
        let page = browser.get(path).await.body;
        assert!(page.contains(HARMLESS), "{path}: {page}");
    }
    let more = ["/workloads/web", "/policies/hostile", &machine].into_iter();
    for path in PAGES.into_iter().chain(more).chain(by.iter().map(String::as_str)) {
        let answer = browser.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.body);
        assert!(!answer.body.contains("<script>alert"), "{path}");
        assert!(!answer.body.contains(['\u{202e}', '\u{200b}']), "{path}");
    }
    let workload = browser.get("/workloads/web").await.body;
    assert!(workload.contains(HARMLESS), "{workload}");
    assert!(browser.get("/policies/hostile").await.body.contains("&lt;script&gt;alert(1)"));
    let query = "%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E%E2%80%AE";
    for path in [
        format!("/workloads?q={query}"),
        format!("/nodes?q={query}"),
        format!("/log?subject={query}"),
        format!("/handshakes?from={query}&outcome={query}&group={query}"),
        format!("/handshakes?by=pair&at={query}&since={query}"),
        format!("/map?of={query}"),
        format!("/map?from={query}&to={query}"),
        format!("/policies?from={query}&to={query}&method={query}&path={query}"),
        format!("/log?kind={query}"),
        format!("/log?before={query}"),
        format!("/workloads/{query}"),
        format!("/nodes?page={query}&{query}={query}"),
    ] {
        let answer = browser.get(&path).await;
        assert!(
            answer.status.is_success() || answer.status.is_client_error(),
            "{path}: {}",
            answer.status
        );
        assert!(
            !answer.body.contains("<script>alert") && !answer.body.contains('\u{202e}'),
            "{path}: {}",
            answer.body
        );
        assert!(answer.body.ends_with("</html>"), "{path}: {}", answer.body);
    }
    running.stop().await;
}

#[tokio::test]
async fn page_of_an_event_carries_a_proof_that_verifies() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let browser = Browser::signed_in(&realm, &running).await;
    let page = browser.get("/log/1").await.body;
    assert!(page.contains("data-from=\"/log/1/proof\""), "{page}");
    let answer = soon(async {
        loop {
            let answer = browser.get("/log/1/proof").await;
            if answer.status == StatusCode::OK {
                return answer;
            }
            realm.clock.advance(Duration::from_millis(500));
        }
    })
    .await;
    let proof: ProofResponse = serde_json::from_str(&answer.body).unwrap();
    let key: NoteKey = proof.key.parse().unwrap();
    Bundle::parse(proof.bundle.as_bytes()).unwrap().verify(&[key]).unwrap();
    assert_eq!(browser.get("/log/999999").await.status, StatusCode::NOT_FOUND);
    assert_eq!(browser.get("/log/x").await.status, StatusCode::NOT_FOUND);
    running.stop().await;
}

#[tokio::test]
async fn open_page_is_told_of_a_change_and_of_the_end_of_its_session() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let browser = Browser::signed_in(&realm, &running).await;
    let mut stream = browser.send(Method::GET, "/live", &[], "").await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let mut next = async || {
        let frame = soon(stream.frame()).await.unwrap().unwrap();
        String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
    };
    assert!(next().await.starts_with("event: open"));
    running.apply(vec![workload("web", &[])]).await;
    let revision = running.admin.status().await.unwrap().revision.to_string();
    let told = soon(async {
        loop {
            let told = next().await;
            if told.contains(&revision) {
                return told;
            }
        }
    })
    .await;
    assert!(told.starts_with("event: changed"), "{told}");
    let (origin, body) = (format!("https://{}", browser.authority), browser.form().await);
    browser.ask(Method::POST, "/logout", &[("origin", &origin)], &format!("form={body}")).await;
    let told = soon(async {
        loop {
            let told = next().await;
            if told.starts_with("event: over") {
                return told;
            }
        }
    })
    .await;
    assert!(told.contains("the session is over"), "{told}");
    running.stop().await;
}

#[tokio::test]
async fn lists_of_ten_thousand_come_in_pages() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let browser = Browser::signed_in(&realm, &running).await;
    running
        .apply((0..10_000).map(|number| workload(&format!("w{number:05}"), &[])).collect())
        .await;
    for path in PAGES {
        let answer = browser.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert!(answer.body.len() < 200_000, "{path}: {} bytes", answer.body.len());
    }
    let last = browser.get("/workloads?page=200").await.body;
    assert!(last.contains("w09999") && !last.contains("w00000"), "{last}");
    let found = browser.get("/workloads?q=w0123").await.body;
    assert!(found.contains("w01239") && found.contains("10 in all"), "{found}");
    running.stop().await;
}
