//! What is still asked when a change denies it, over connections with nothing in between that would take what it does not.

use bytes::Bytes;
use countersign_tls::{Expected, Outbound, dial};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

use super::{echoes, operations, permit, shop, upgraded};
use crate::config::Protocol;
use crate::tests::flood::to_orders;
use crate::tests::program::{End, Taken};
use crate::tests::world::{PATIENCE, Shop, eventually, get, name, read};

/// `web` at the door of `orders` over HTTP/2, with nothing in between that would take what it does not.
async fn direct(shop: &Shop) -> h2::client::SendRequest<Bytes> {
    let mut outbound = Outbound::service(name("orders"), Expected::Id(shop.realm.id("orders")));
    outbound.alpn = vec![b"h2".to_vec()];
    let stream = dial(&shop.web.plane.trust, shop.orders.door(), &outbound).await.unwrap().stream;
    let mut rules = h2::client::Builder::new();
    // One stream that takes nothing does not keep the others from taking.
    rules.initial_window_size(WINDOW).initial_connection_window_size(16 * WINDOW);
    let (sender, connection) = rules.handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

const WINDOW: u32 = 65_535;

/// A request that is answered while its body is still on its way.
struct Upload {
    path: &'static str,
    body: h2::SendStream<Bytes>,
    answer: h2::RecvStream,
    sent: usize,
}

impl Upload {
    async fn begin(
        sender: &h2::client::SendRequest<Bytes>,
        path: &'static str,
        kind: &str,
    ) -> Result<Self, u16> {
        let request = Request::post(format!("https://orders{path}")).header("content-type", kind);
        let mut sender = sender.clone().ready().await.unwrap();
        let (response, body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        let response = response.await.unwrap();
        match response.status().as_u16() {
            200 => Ok(Self { path, body, answer: response.into_body(), sent: 0 }),
            status => Err(status),
        }
    }

    /// Sends some more, and waits until the program has it.
    async fn goes_on(&mut self, shop: &Shop) {
        self.body.send_data(Bytes::from_static(b"more"), false).unwrap();
        self.sent += 4;
        let all = Taken { bytes: self.sent, end: None };
        eventually(|| (shop.program.taken(self.path) == all).then_some(())).await;
    }

    /// Takes of the answer until it ends, or as much as there is room for, which is not given back.
    async fn take(&mut self) {
        let mut taken = 0;
        while taken < usize::try_from(WINDOW).unwrap() {
            match self.answer.data().await {
                Some(part) => taken += part.unwrap().len(),
                None => return,
            }
        }
    }

    /// Waits until the program sees a break, and the caller that its stream is reset.
    async fn is_broken_off(&mut self, shop: &Shop) {
        let broken = Taken { bytes: self.sent, end: Some(End::Broken) };
        eventually(|| (shop.program.taken(self.path) == broken).then_some(())).await;
        let reset = std::future::poll_fn(|cx| self.body.poll_reset(cx));
        tokio::time::timeout(PATIENCE, reset).await.unwrap().unwrap();
    }
}

/// The same over HTTP/1.1.
async fn direct_http1(shop: &Shop) -> countersign_tls::Stream {
    dial(&shop.web.plane.trust, shop.orders.door(), &to_orders()).await.unwrap().stream
}

#[tokio::test]
async fn a_change_closes_the_http1_connection_of_who_takes_nothing_of_what_it_denies_and_no_other()
{
    for kind in KINDS {
        let see = permit("", "GET", "see");
        let flood = permit("@concurrent(\"1\")", "POST", "flood") + &see;
        let shop = shop(&flood).await;
        let io = TokioIo::new(direct_http1(&shop).await);
        let (mut kept, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        assert_eq!(read(kept.send_request(get("/see/1")).await.unwrap()).await.0, 200);
        let mut deaf = direct_http1(&shop).await;
        let head = format!(
            "POST /flood HTTP/1.1\r\nHost: orders\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmore\r\n"
        );
        deaf.write_all(head.as_bytes()).await.unwrap();
        deaf.flush().await.unwrap();
        // Until there is no room for more on the way.
        shop.program.stands_still().await;
        assert_eq!(shop.program.taken("/flood"), Taken { bytes: 4, end: None });
        assert_eq!(shop.orders.connections(), 2);
        let sender = direct(&shop).await;
        // One that is told by its status in HTTP.
        let another = || Upload::begin(&sender, "/flood", "text/plain");
        assert_eq!(another().await.err(), Some(429));
        assert_eq!(shop.orders.enforce_calls(&see, operations(), None), 0, "it is not the peer");
        eventually(|| (shop.orders.connections() == 2).then_some(())).await;
        let broken = Taken { bytes: 4, end: Some(End::Broken) };
        eventually(|| (shop.program.taken("/flood") == broken).then_some(())).await;
        ready(&mut kept).await;
        assert_eq!(read(kept.send_request(get("/see/1")).await.unwrap()).await.0, 200);
        // What is done with does not end what goes on, over the connection that it came by.
        let none = permit("", "GET", "gate");
        shop.orders.enforce_calls(&none, operations(), None);
        ready(&mut kept).await;
        assert_eq!(read(kept.send_request(get("/see/1")).await.unwrap()).await.0, 403);
        // Its place is free as well.
        shop.orders.enforce_calls(&flood, operations(), None);
        let again = async {
            while another().await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, again).await.unwrap();
        drop(deaf);
    }
}

async fn ready(sender: &mut SendRequest<Full<Bytes>>) {
    tokio::time::timeout(PATIENCE, sender.ready()).await.unwrap().unwrap();
}

/// As HTTP/2 and as HTTP/1.1, as the program is asked.
const KINDS: [&str; 2] = ["application/grpc", "text/plain"];

#[tokio::test]
async fn a_change_breaks_off_what_is_still_asked_also_while_nobody_takes_the_answer() {
    for kind in KINDS {
        let keep = permit("", "POST", "keep");
        let shop = shop(&(permit("", "POST", "flood") + &keep)).await;
        let sender = direct(&shop).await;
        let mut kept = Upload::begin(&sender, "/keep", kind).await.unwrap();
        kept.goes_on(&shop).await;
        let mut denied = Upload::begin(&sender, "/flood", kind).await.unwrap();
        denied.take().await;
        denied.goes_on(&shop).await;
        let cut = shop.orders.enforce_calls(&keep, operations(), None);
        assert_eq!(cut, 0, "no connection");
        denied.is_broken_off(&shop).await;
        kept.goes_on(&shop).await;
    }
}

#[tokio::test]
async fn a_change_breaks_off_what_is_still_asked_after_its_answer_has_ended() {
    for kind in KINDS {
        let keep = permit("", "POST", "keep");
        let shop = shop(&(permit("", "POST", "early") + &keep)).await;
        let sender = direct(&shop).await;
        let mut kept = Upload::begin(&sender, "/keep", kind).await.unwrap();
        let mut denied = Upload::begin(&sender, "/early", kind).await.unwrap();
        for upload in [&mut kept, &mut denied] {
            upload.take().await;
            assert!(upload.answer.is_end_stream());
            upload.goes_on(&shop).await;
        }
        let cut = shop.orders.enforce_calls(&keep, operations(), None);
        assert_eq!(cut, 0, "no connection");
        denied.is_broken_off(&shop).await;
        kept.goes_on(&shop).await;
    }
}

#[tokio::test]
async fn what_is_still_asked_counts_after_its_answer_has_ended() {
    let shop = shop(&permit("@concurrent(\"1\")", "POST", "early")).await;
    let sender = direct(&shop).await;
    let mut first = Upload::begin(&sender, "/early", "text/plain").await.unwrap();
    first.take().await;
    first.goes_on(&shop).await;
    assert_eq!(Upload::begin(&sender, "/early", "text/plain").await.err(), Some(429));
    first.body.send_data(Bytes::new(), true).unwrap();
    eventually(|| shop.program.taken("/early").end).await;
    let again = async {
        while Upload::begin(&sender, "/early", "text/plain").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
}

#[tokio::test]
async fn what_began_before_a_service_declared_operations_is_decided_on_as_soon_as_it_does() {
    let shop = Shop::open(Protocol::Http).await;
    let mut callers = Vec::new();
    for _ in 0..4 {
        callers.push(shop.caller().await);
    }
    let mut denied = upgraded(&mut callers[0], "/upgrade").await;
    let mut kept = upgraded(&mut callers[1], "/upgrade-too").await;
    let mut streams = Vec::new();
    for (caller, path) in callers[2..].iter_mut().zip(["/endless", "//endless"]) {
        let mut stream = caller.send(get(path)).await.unwrap().into_body();
        assert_eq!(stream.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
        streams.push(stream);
    }
    let sender = direct(&shop).await;
    let mut flood = Upload::begin(&sender, "/flood", KINDS[0]).await.unwrap();
    let mut keep = Upload::begin(&sender, "/keep", KINDS[0]).await.unwrap();
    for upload in [&mut flood, &mut keep] {
        upload.goes_on(&shop).await;
    }
    let policy = permit("", "GET", "upgrade-too") + &permit("", "POST", "keep");
    assert_eq!(shop.orders.enforce_calls(&policy, operations(), None), 1, "the upgraded one");
    assert!(!echoes(&mut denied).await, "it was closed");
    assert!(echoes(&mut kept).await, "what is permitted goes on");
    flood.is_broken_off(&shop).await;
    keep.goes_on(&shop).await;
    for mut stream in streams {
        let rest = tokio::time::timeout(PATIENCE, stream.frame()).await.unwrap();
        assert!(rest.is_none_or(|frame| frame.is_err()), "it is broken off");
    }
}
