//! A program that speaks to the console as browsers do, and as they never would.

use std::sync::Arc;

use axum::http::{HeaderMap, Method, Request, StatusCode};
use countersign_pki::Bundles;
use countersign_tls::{Expected, Outbound, Present, Slice, Trust};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;

use super::{Agent, DOMAIN, Realm, Running, soon};
use crate::config::{Config, ConsoleConfig};

/// Every page, as somebody who is in may ask for it.
pub(super) const PAGES: [&str; 9] = [
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

pub(super) async fn serve(realm: &Realm) -> Running {
    let console = ConsoleConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        names: vec!["localhost".parse().unwrap()],
    };
    realm.start(Config { console: Some(console), ..realm.config() }).await.unwrap()
}

/// A program that speaks to the console as browsers do, and as they never would.
pub(super) struct Browser<'a> {
    realm: &'a Realm,
    running: &'a Running,
    bundles: Arc<Bundles>,
    pub(super) authority: String,
    pub(super) cookie: String,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl<'a> Browser<'a> {
    pub(super) async fn new(realm: &'a Realm, running: &'a Running) -> Self {
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
    pub(super) async fn signed_in(realm: &'a Realm, running: &'a Running) -> Self {
        let mut browser = Self::new(realm, running).await;
        let link = browser.link().await;
        let answer = browser.enter(&link).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.body);
        browser.keep(&answer);
        browser
    }

    pub(super) fn keep(&mut self, answer: &Answer) {
        let cookie = answer.header("set-cookie").split(';').next().unwrap();
        cookie.clone_into(&mut self.cookie);
    }

    /// What stands behind the `#` of a link.
    pub(super) async fn link(&self) -> String {
        let link = self.running.admin.console_link().await.unwrap();
        let (place, secret) = link.url.split_once('#').unwrap();
        assert_eq!(place, format!("https://{}/login", self.authority));
        secret.to_owned()
    }

    pub(super) async fn enter(&self, secret: &str) -> Answer {
        let origin = format!("https://{}", self.authority);
        self.ask(Method::POST, "/login", &[("origin", &origin)], &format!("link={secret}")).await
    }

    /// What the forms of its session carry.
    pub(super) async fn form(&self) -> String {
        let page = self.get("/").await.body;
        let (_, after) = page.split_once("name=\"form\" value=\"").unwrap();
        after.split('"').next().unwrap().to_owned()
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[], "").await
    }

    pub(super) async fn ask(
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

    pub(super) async fn send(
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
    pub(super) async fn dial(&self) -> countersign_tls::Stream {
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
