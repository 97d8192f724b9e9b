//! The console's pages: what they show, and what hostile names come to.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use countersign_api::admin::ProofResponse;
use countersign_api::v1;
use countersign_audit::{Bundle, NoteKey};
use countersign_identity::Clock as _;
use countersign_pki::{KeyKind, PrivateKey};
use http_body_util::BodyExt as _;
use serde_json::json;

use super::browser::{Browser, PAGES, serve};
use super::sign::{item, sign};
use super::sync::open;
use super::{Agent, DOMAIN, Realm, Running, policy, service, soon, workload};

/// A text that would be a script, would turn a line around, and would end what it stands in.
const HOSTILE: &str = "\"'><script>alert(1)</script>\u{202e}\u{200b}&lt;";

/// What stands on a page instead of it.
const HARMLESS: &str =
    "&quot;&#39;&gt;&lt;script&gt;alert(1)&lt;/script&gt;⟨U+202E⟩⟨U+200B⟩&amp;lt;";

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
