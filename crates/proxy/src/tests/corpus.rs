//! Paths and messages that are meant to be decided on as one thing and taken for another, from `testdata/`, against a real door and
//! what is behind it.
//!
//! A line of `paths.tsv` is an expectation, why it is tried, and a method with a target; each goes over HTTP/1.1 and over HTTP/2.
//! Lines of `smuggling.tsv` (bytes of HTTP/1.1) and of `http2.tsv` (fields of a head) begin alike. Expected is `refused` (400, or the
//! end of the connection), `denied` (403), `broken` (no whole request reaches the program, at most its beginning), or what the program
//! gets, `METHOD TARGET BYTES`, several joined by ` + `.
//! `\r`, `\n`, `\t`, `\0`, `\\` and `\xHH` stand for bytes.

use std::sync::Arc;

use countersign_identity::{CanonicalPath, Verb};
use countersign_policy::{Operation, Operations, Policies, PolicySource};
use countersign_tls::{Expected, Outbound, Slice, Stream, dial};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::realm::Realm;
use super::recorder::Recorder;
use super::world::{PATIENCE, Proxy, WEB_TO_ORDERS, directory, eventually, inbound, name};
use crate::config::Protocol;

#[path = "../../../identity/tests/support/readings.rs"]
mod readings;

const PATHS: &str = include_str!("../../testdata/paths.tsv");
const SMUGGLING: &str = include_str!("../../testdata/smuggling.tsv");
const HTTP2: &str = include_str!("../../testdata/http2.tsv");

/// What `web` may do at `orders`. The rest is denied: `/admin`, `DELETE`, and what no operation declares.
const POLICIES: &str = r#"
permit (principal == Workload::"web", action == Action::"connect", resource == Service::"orders");
permit (principal == Workload::"web", action == Action::"GET", resource == Operation::"orders/public");
permit (principal == Workload::"web", action == Action::"GET", resource == Operation::"orders/read");
permit (principal == Workload::"web", action == Action::"POST", resource == Operation::"orders/place");
"#;

fn operations() -> Operations {
    let operation = |name_of: &str, verb, template: &str| Operation {
        name: name(name_of),
        verb,
        template: template.parse().unwrap(),
    };
    let of_orders = vec![
        operation("public", Verb::Get, "/public/{rest*}"),
        operation("read", Verb::Get, "/orders/{id}"),
        operation("mine", Verb::Get, "/orders/mine"),
        operation("place", Verb::Post, "/orders"),
        operation("remove", Verb::Delete, "/orders/{id}"),
        operation("admin", Verb::Get, "/admin/{rest*}"),
        operation("root", Verb::Get, "/"),
    ];
    Operations::new([(name("orders"), of_orders)])
}

/// `web`'s trust, the door of `orders`, and what is behind it.
struct Target {
    web: Proxy,
    orders: Proxy,
    program: Recorder,
    _directory: TempDir,
}

impl Target {
    async fn open() -> Self {
        let directory = directory();
        let realm = Realm::new("shop.example", 1).await;
        let program = Recorder::start(&directory.path().join("orders.sock"));
        let mut orders = Proxy::start(&realm, "orders", WEB_TO_ORDERS).await;
        let source = PolicySource::enforced(name("shop"), POLICIES);
        let policies = Policies::compile(&[source], None).unwrap().with_operations(operations());
        let before = orders.plane.trust.slice();
        let policies = Arc::new(policies);
        orders.plane.trust.apply(Slice { policies, ..Slice::clone(&before) });
        orders.listen(&[inbound(&program.target(), Protocol::Http)], &[]);
        let web = Proxy::start(&realm, "web", WEB_TO_ORDERS).await;
        Self { web, orders, program, _directory: directory }
    }

    async fn dial(&self, alpn: &[u8]) -> Stream {
        let expected = Expected::Id(self.web.realm.id("orders"));
        let mut outbound = Outbound::service(name("orders"), expected);
        outbound.alpn = vec![alpn.to_vec()];
        dial(&self.web.plane.trust, self.orders.door(), &outbound).await.unwrap().stream
    }

    /// Sends these bytes and a request that ends the connection, and reads to the end.
    async fn over_http1(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.dial(b"http/1.1").await;
        // A door that has heard enough closes before it has read all.
        let _broken = stream.write_all(&[bytes, LAST].concat()).await;
        let _broken = stream.flush().await;
        let mut answer = Vec::new();
        let reading = stream.read_to_end(&mut answer);
        let _broken = tokio::time::timeout(PATIENCE, reading).await.expect("the end came");
        answer
    }

    /// Sends this head on the first stream and a plain request on the second, and reads until that is answered, or to the end.
    async fn over_http2(&self, fields: &[(Vec<u8>, Vec<u8>)]) {
        let mut stream = self.dial(b"h2").await;
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &[]));
        bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(fields)));
        let _broken = stream.write_all(&bytes).await;
        let _broken = stream.flush().await;
        let answered = tokio::time::timeout(PATIENCE, answered(&mut stream, 1)).await;
        if answered.expect("an answer or the end came") {
            let last = [
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "orders"),
                (":path", "/public/last"),
            ];
            let last = last.map(|(name, value)| (name.into(), value.into()));
            let last = frame(HEADERS, END_STREAM | END_HEADERS, 3, &block(&last));
            let _broken = stream.write_all(&last).await;
            let _broken = stream.flush().await;
            tokio::time::timeout(PATIENCE, self::answered(&mut stream, 3)).await.unwrap();
        }
    }

    /// What is not as expected once the program has got what it should, apart from the last request.
    async fn wrong(&self, case: &Case<'_>) -> Option<String> {
        let expected = case.lines();
        let but_last = || {
            let seen = self.program.seen();
            let whole = |line: &String| !line.starts_with("cut ") && line != "GET /public/last 0";
            seen.into_iter().filter(whole).collect::<Vec<_>>()
        };
        let enough = eventually(|| (expected.len() <= but_last().len()).then_some(()));
        let in_time = tokio::time::timeout(PATIENCE / 10, enough).await.is_ok();
        let (seen, all) = (but_last(), self.program.seen());
        self.program.forget();
        if !in_time || seen != expected {
            return Some(case.failure(&format!("the program got {seen:?}")));
        }
        all.iter().find_map(|line| read_otherwise(line)).map(|why| case.failure(&why))
    }
}

/// Why a target is not one that is permitted, whoever reads it.
fn read_otherwise(line: &str) -> Option<String> {
    let line = line.strip_prefix("cut ").unwrap_or(line);
    let (method, target) = line.split_once(' ')?;
    let path = target.split([' ', '?']).next()?;
    if !readings::unambiguous(path) {
        return Some(format!("{path} has several readings"));
    }
    if readings::form(path).as_deref() != Some(path) {
        return Some(format!("{path} is not in its one form"));
    }
    let canonical = CanonicalPath::of(path).ok()?;
    let operations = operations();
    let Some(operation) = operations.find("orders", method.parse().ok()?, &canonical) else {
        return Some(format!("nobody declares {method} {path}"));
    };
    let operation = operation.name.to_string();
    let permitted = ["public", "read", "place"].contains(&operation.as_str());
    (!permitted).then(|| format!("`{operation}` is not permitted"))
}

/// Ends the connection, if it is understood as a request.
const LAST: &[u8] = b"GET /public/last HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A head whose fields are all written out (RFC 7541, 6.2.2), so that nothing of them is checked on the way.
fn block(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            match text.len() {
                short @ 0..=126 => bytes.push(u8::try_from(short).unwrap()),
                long => {
                    bytes.push(127);
                    let mut rest = long - 127;
                    while 128 <= rest {
                        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
                        rest /= 128;
                    }
                    bytes.push(u8::try_from(rest).unwrap());
                }
            }
            bytes.extend_from_slice(text);
        }
    }
    bytes
}

/// Whether the stream was answered, or refused alone, before the connection ended.
async fn answered(stream: &mut Stream, number: u32) -> bool {
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return false;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        if stream.read_exact(&mut payload).await.is_err() || head[3] == GOAWAY {
            return false;
        }
        let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if of == number && matches!(head[3], HEADERS | RST_STREAM) {
            return true;
        }
    }
}

/// One line.
struct Case<'a> {
    number: usize,
    expected: &'a str,
    input: Vec<&'a str>,
    why: &'a str,
}

fn cases(text: &str) -> Vec<Case<'_>> {
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|(index, line)| {
            let mut columns = line.split('\t');
            let (expected, why) = (columns.next().unwrap(), columns.next().unwrap());
            let input: Vec<_> = columns.collect();
            assert!(!why.is_empty() && !input.is_empty(), "line {}: three columns", index + 1);
            Case { number: index + 1, expected, input, why }
        })
        .collect()
}

impl Case<'_> {
    /// What the program should get.
    fn lines(&self) -> Vec<String> {
        match self.expected {
            "refused" | "denied" | "broken" => Vec::new(),
            some => some.split(" + ").map(str::to_owned).collect(),
        }
    }

    fn answered(&self, answer: &[u8]) -> Option<String> {
        let answer = String::from_utf8_lossy(answer);
        let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let fits = match self.expected {
            "refused" => {
                answer.is_empty() || status.is_some_and(|it| it.starts_with('4') && it != "403")
            }
            "denied" => status == Some("403"),
            "broken" => status != Some("200"),
            _ => status.is_some(),
        };
        (!fits).then(|| self.failure(&format!("answered with {answer:?}")))
    }

    fn failure(&self, why: &str) -> String {
        format!("line {}: {}: expected {:?}, but {why}", self.number, self.why, self.expected)
    }
}

fn unescaped(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.chars());
    while let Some(c) = rest.next() {
        let byte = match c {
            '\\' => match rest.next().unwrap() {
                'r' => b'\r',
                'n' => b'\n',
                't' => b'\t',
                '0' => 0,
                '\\' => b'\\',
                'x' => {
                    let digits: String = rest.by_ref().take(2).collect();
                    u8::from_str_radix(&digits, 16).unwrap()
                }
                other => panic!("`\\{other}`"),
            },
            c => {
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
        };
        bytes.push(byte);
    }
    bytes
}

#[tokio::test]
async fn no_path_is_decided_on_in_one_form_and_sent_on_in_another() {
    let (target, mut wrong) = (Target::open().await, Vec::new());
    for case in cases(PATHS) {
        let (method, path) = case.input[0].split_once(' ').unwrap();
        let path = unescaped(path);
        let head = [method.as_bytes(), b" ", &path, b" HTTP/1.1\r\nHost: orders\r\n\r\n"].concat();
        wrong.extend(case.answered(&target.over_http1(&head).await));
        wrong.extend(target.wrong(&case).await);
        let field = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
        let fields = [
            field(":method", method.as_bytes()),
            field(":scheme", b"https"),
            field(":authority", b"orders"),
            field(":path", &path),
        ];
        target.over_http2(&fields).await;
        wrong.extend(target.wrong(&case).await.map(|why| format!("HTTP/2: {why}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn no_bytes_are_one_request_to_us_and_another_to_the_program() {
    let (target, mut wrong) = (Target::open().await, Vec::new());
    for case in cases(SMUGGLING) {
        wrong.extend(case.answered(&target.over_http1(&unescaped(case.input[0])).await));
        wrong.extend(target.wrong(&case).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn no_head_of_http_2_becomes_another_one_of_http_1() {
    let (target, mut wrong) = (Target::open().await, Vec::new());
    for case in cases(HTTP2) {
        let field = |text: &&str| {
            let (name, value) = text.split_once(" = ").unwrap();
            (unescaped(name), unescaped(value))
        };
        let fields: Vec<_> = case.input.iter().map(field).collect();
        target.over_http2(&fields).await;
        wrong.extend(target.wrong(&case).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn there_are_two_hundred_cases_and_no_two_are_the_same() {
    let mut inputs = Vec::new();
    for text in [PATHS, SMUGGLING, HTTP2] {
        inputs.extend(cases(text).into_iter().map(|case| case.input.join("\t")));
    }
    let count = inputs.len();
    inputs.sort();
    inputs.dedup();
    assert_eq!(inputs.len(), count);
    assert!(200 <= count, "{count}");
}
