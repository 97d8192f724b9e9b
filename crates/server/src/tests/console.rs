//! The console: who gets in, and what a forged request meets.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use countersign_api::admin::EventFilter;
use countersign_identity::Code;
use tokio::net::TcpStream;

use super::browser::{Browser, PAGES, serve};
use super::{Realm, Running, soon};

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
