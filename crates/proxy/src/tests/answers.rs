//! What programs answer that they should not, and what becomes of it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use countersign_identity::SystemClock;
use http::Request;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::attacks::raw;
use super::realm::Realm;
use super::world::{
    Caller, PATIENCE, Proxy, Shop, WEB_TO_ORDERS, directory, get, inbound, outbound, read,
};
use crate::config::Protocol;
use crate::dial::Target;

/// Answers all requests with the same bytes, and closes.
fn answering(path: &Path, answer: &[u8]) -> JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    let answer: Arc<[u8]> = answer.into();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut byte).await {
                        Ok(1..) => head.push(byte[0]),
                        Ok(0) | Err(_) => return,
                    }
                }
                // Nobody need read it to its end.
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            });
        }
    })
}

/// A program that answers so, behind two proxies.
struct Behind {
    web: Proxy,
    orders: Proxy,
    program: JoinHandle<()>,
    directory: TempDir,
}

impl Behind {
    async fn open(answer: &[u8]) -> Self {
        let directory = directory();
        let realm = Realm::on(Arc::new(SystemClock::new()), "shop.example", 1).await;
        let path = directory.path().join("orders.sock");
        let program = answering(&path, answer);
        let mut orders = Proxy::start(&realm, "orders", WEB_TO_ORDERS).await;
        orders.listen(&[inbound(&Target::Unix(path), Protocol::Http)], &[]);
        let local = directory.path().join("web.orders.sock");
        let mut web = Proxy::start(&realm, "web", WEB_TO_ORDERS).await;
        web.listen(&[], &[outbound(&realm, &local, &[orders.door()], Protocol::Http)]);
        Self { web, orders, program, directory }
    }

    /// What the program beside the first proxy gets.
    async fn ask(&self) -> http::Response<hyper::body::Incoming> {
        self.ask_for(get("/")).await
    }

    async fn ask_for(&self, asked: Request<Full<Bytes>>) -> http::Response<hyper::body::Incoming> {
        let mut caller = Caller::connect(&self.directory.path().join("web.orders.sock")).await;
        let answered = tokio::time::timeout(PATIENCE, caller.send(asked)).await;
        answered.expect("an answer comes").unwrap()
    }

    async fn close(self) {
        self.program.abort();
        self.web.end(PATIENCE).await;
        self.orders.end(PATIENCE).await;
    }
}

#[tokio::test]
async fn an_answer_with_an_encoding_and_a_length_arrives_as_a_whole() {
    for fields in [
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Content-Length: 3\r\nTransfer-Encoding: Chunked",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
        let behind = Behind::open(answer.as_bytes()).await;
        let response = behind.ask().await;
        assert_eq!(response.headers().get("content-length"), None, "{fields}");
        assert_eq!(read(response).await, (200, "hello".to_owned()), "{fields}");
        behind.close().await;
    }
}

#[tokio::test]
async fn an_answer_that_says_its_length_twice_arrives_with_one() {
    // HTTP/2 is spoken between the two proxies, and resets what says it twice.
    for fields in ["Content-Length: 5, 5", "Content-Length: 5\r\nContent-Length: 5"] {
        let answer = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nhello");
        let behind = Behind::open(answer.as_bytes()).await;
        let response = behind.ask().await;
        let told: Vec<_> = response.headers().get_all("content-length").iter().collect();
        assert_eq!(told, ["5"], "{fields}");
        assert_eq!(read(response).await, (200, "hello".to_owned()), "{fields}");
        behind.close().await;
    }
}

#[tokio::test]
async fn an_answer_that_is_refused_says_why() {
    let head = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\nhello");
    let long = head(&format!("X: {}", "a".repeat(200_000)));
    for (answer, why) in [
        (head("Transfer-Encoding: gzip"), "its body is encoded as `gzip`"),
        (head("Transfer-Encoding: gzip, chunked"), "`gzip, chunked`"),
        (head("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"), "`gzip, chunked`"),
        (head("Content-Length: 5\r\nContent-Length: 6"), "invalid content-length parsed"),
        (head("Content-Length: +5"), "invalid content-length parsed"),
        ("HTTP/1.1 099 No\r\n\r\n".to_owned(), "invalid HTTP status-code parsed"),
        ("<html>old</html>\r\n\r\n".to_owned(), "invalid HTTP version parsed"),
        (long, "message head is too large"),
        (
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n".into(),
            "it changes the protocol, which nobody had asked for",
        ),
    ] {
        let behind = Behind::open(answer.as_bytes()).await;
        let (status, body) = read(behind.ask().await).await;
        let shown: String = answer.chars().take(80).collect();
        assert_eq!(status, 502, "{shown:?}: {body}");
        assert!(body.contains("\"code\":\"bad-answer\""), "{shown:?}: {body}");
        assert!(body.contains(why), "{shown:?}: {body}");
        assert!(!body.contains("orders.sock"), "where the program lives: {body}");
        behind.close().await;
    }
}

#[tokio::test]
async fn a_change_to_no_protocol_or_to_http_2_in_clear_text_is_refused_and_says_why() {
    for fields in ["Upgrade: x", "Connection: upgrade", "Connection: upgrade\r\nUpgrade: h2c"] {
        let answer = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n\r\n");
        let behind = Behind::open(answer.as_bytes()).await;
        let mut asked = get("/");
        asked.headers_mut().insert("connection", "upgrade".parse().unwrap());
        asked.headers_mut().insert("upgrade", "x".parse().unwrap());
        let (status, body) = read(behind.ask_for(asked).await).await;
        assert_eq!(status, 502, "{fields}: {body}");
        assert!(body.contains("\"code\":\"bad-answer\""), "{fields}: {body}");
        assert!(body.contains("not to one that it names and that can be passed on"), "{body}");
        behind.close().await;
    }
}

#[tokio::test]
async fn a_program_that_says_nothing_is_not_said_to_break_rules() {
    let behind = Behind::open(b"").await;
    let (status, body) = read(behind.ask().await).await;
    assert_eq!(status, 502);
    assert!(body.contains("\"code\":\"peer-closed\""), "{body}");
    behind.close().await;
}

#[tokio::test]
async fn a_body_that_its_sender_broke_is_the_senders_fault() {
    let shop = Shop::open(Protocol::Http).await;
    let request = "POST /echo HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    // At the door itself, and at the way out of the caller's own side.
    let peer = raw(&shop, request.as_bytes()).await;
    let mut own = UnixStream::connect(&shop.local).await.unwrap();
    own.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, own.read_to_end(&mut answer)).await.unwrap().unwrap();
    for answer in [peer, String::from_utf8(answer).unwrap()] {
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("\"code\":\"not-understood\""), "{answer}");
        assert!(answer.contains("the body of the request did not come as a whole"), "{answer}");
    }
}

#[tokio::test]
async fn cookies_that_http_2_has_split_are_one_field_to_the_program() {
    let shop = Shop::open(Protocol::Http).await;
    let stream = UnixStream::connect(&shop.local).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut request = Request::get("http://orders/").body(Full::<Bytes>::default()).unwrap();
    for crumb in ["a=1", "b=2", "c=\"3, 4\""] {
        request.headers_mut().append("cookie", crumb.parse().unwrap());
    }
    let (status, told) = read(sender.send_request(request).await.unwrap()).await;
    assert_eq!(status, 200);
    assert!(told.contains("\ncookie: a=1; b=2; c=\"3, 4\"\n"), "{told}");
    assert_eq!(told.matches("cookie: ").count(), 1, "{told}");
}
