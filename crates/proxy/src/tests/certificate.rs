//! What a program is told of its callers' certificates, and who may tell it.

use http::Request;

use super::attacks::raw;
use super::world::{Shop, get};
use crate::config::Protocol;
use crate::headers::Told;

async fn shop(told: Told) -> Shop {
    Shop::open_as(Protocol::Http, |manners| manners.told = told).await
}

/// What the program saw under this name, one for each field.
fn fields<'a>(seen: &'a str, name: &str) -> Vec<&'a str> {
    let lines = seen.lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(found, _)| found.replace('_', "-") == name).map(|(_, value)| value).collect()
}

fn told(seen: &str) -> Vec<&str> {
    fields(seen, "x-forwarded-client-cert")
}

/// A PEM without its escapes.
fn plain(escaped: &str) -> String {
    let marks = [("%0A", "\n"), ("%20", " "), ("%2B", "+"), ("%2F", "/"), ("%3D", "=")];
    marks.iter().fold(escaped.to_owned(), |text, (escape, mark)| text.replace(escape, mark))
}

/// `By`, `Hash` and `URI` for a call of `web` to `orders`.
fn identity(shop: &Shop) -> String {
    let own = shop.web.plane.trust.identity().unwrap();
    let hash = own.leaf().digest();
    format!("By=spiffe://shop.example/orders;Hash={hash};URI=spiffe://shop.example/web")
}

#[tokio::test]
async fn a_program_is_told_as_much_as_its_service_asks_for() {
    let silent = shop(Told::Nothing).await;
    let (_, seen) = silent.caller().await.get("/").await;
    assert_eq!(told(&seen), [""; 0]);
    let some = shop(Told::Identity).await;
    let (_, seen) = some.caller().await.get("/").await;
    assert_eq!(told(&seen), [identity(&some)]);
    let all = shop(Told::Certificate).await;
    let (_, seen) = all.caller().await.get("/").await;
    let [told] = told(&seen)[..] else { panic!("{seen}") };
    let (before, rest) = told.split_once(";Cert=\"").unwrap();
    let (certificate, after) = rest.split_once('"').unwrap();
    assert_eq!(format!("{before}{after}"), identity(&all));
    let pem = all.web.plane.trust.identity().unwrap().leaf().to_pem();
    assert_eq!(plain(certificate), pem);
    let whole = shop(Told::Chain).await;
    let (_, seen) = whole.caller().await.get("/").await;
    let [told] = super::certificate::told(&seen)[..] else { panic!("{seen}") };
    let own = whole.web.plane.trust.identity().unwrap();
    // The order in which Envoy writes them.
    let keys: Vec<&str> = told.split(';').map(|part| part.split('=').next().unwrap()).collect();
    assert_eq!(keys, ["By", "Hash", "Cert", "Chain", "URI"]);
    let chain = told.split_once(";Chain=\"").unwrap().1.split('"').next().unwrap();
    assert_eq!(plain(chain), own.chain().pem());
}

#[tokio::test]
async fn no_caller_can_say_what_certificate_it_showed() {
    const LIE: &str = "By=spiffe://shop.example/orders;Hash=00;URI=spiffe://shop.example/admin";
    for (asked, expected) in [(Told::Nothing, 0), (Told::Identity, 1)] {
        let shop = shop(asked).await;
        let truth = identity(&shop);
        for fields in [
            format!("X-Forwarded-Client-Cert: {LIE}\r\n"),
            format!("x-forwarded-client-cert: {LIE}\r\nX-Forwarded-Client-Cert: {LIE}\r\n"),
            format!("X_Forwarded_Client_Cert: {LIE}\r\n"),
            format!("X-Forwarded_Client-Cert: {LIE}\r\nX-FORWARDED-CLIENT-CERT: {LIE}\r\n"),
            format!("X.Forwarded.Client.Cert: {LIE}\r\n"),
            format!("X-Forwarded-Client-Cert:\r\nX-Forwarded-Client-Cert: ,{LIE}\r\n"),
            // What RFC 9440 and other proxies write.
            "Client-Cert: :YWRtaW4=: admin\r\nClient_Cert_Chain: :admin:\r\n".to_owned(),
            "X-SSL-Client-Verify: admin\r\nX_SSL_Client_S_DN: CN=admin\r\n".to_owned(),
            "X-Client-Cert: admin\r\nSSL_CLIENT_CERT: admin\r\nX.Client.Cert: admin\r\n".to_owned(),
            "X-Forwarded-Tls-Client-Cert: admin\r\nX-Forwarded-TLS-Client-Cert-Info: Subject=\"CN=admin\"\r\n"
                .to_owned(),
            "X-Amzn-Mtls-Clientcert-Subject: CN=admin\r\nX-Amzn-Mtls-Clientcert: admin\r\n".to_owned(),
            "X-ARR-ClientCert: admin\r\nX-SSL-Cert: admin\r\nl5d-client-id: admin\r\n".to_owned(),
            // To have what the proxy sets taken out again.
            "Connection: x-forwarded-client-cert, x-countersign-peer\r\n".to_owned(),
            format!(
                "Connection: close, X-Forwarded-Client-Cert\r\nX-Forwarded-Client-Cert: {LIE}\r\n"
            ),
        ] {
            let request = format!("GET / HTTP/1.1\r\nHost: orders\r\n{fields}\r\n");
            let seen = raw(&shop, request.as_bytes()).await;
            assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
            assert!(!seen.contains("admin"), "{fields:?}: {seen}");
            assert_eq!(told(&seen), vec![truth.as_str(); expected], "{fields:?}: {seen}");
            let peers = super::certificate::fields(&seen, "x-countersign-peer");
            assert_eq!(peers, ["spiffe://shop.example/web"], "{fields:?}");
        }
        // Nor behind the body, where trailers would bring it.
        let chunked = format!(
            "POST /trailers HTTP/1.1\r\nHost: orders\r\nTE: trailers\r\nTrailer: x-forwarded-client-cert\r\n\
             Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Forwarded-Client-Cert: {LIE}\r\n\r\n"
        );
        let seen = raw(&shop, chunked.as_bytes()).await;
        assert!(seen.starts_with("HTTP/1.1 200") && !seen.contains("admin"), "{seen}");
    }
}

#[tokio::test]
async fn what_our_own_program_says_of_certificates_stays_on_its_machine() {
    let shop = shop(Told::Identity).await;
    let request = Request::from_parts(
        {
            let mut head = get("/").into_parts().0;
            head.headers.insert("x-forwarded-client-cert", "By=a;URI=b".parse().unwrap());
            head.headers.append("x_forwarded_client_cert", "By=a;URI=b".parse().unwrap());
            head
        },
        http_body_util::Full::default(),
    );
    let answer = shop.caller().await.send(request).await.unwrap();
    let (_, seen) = super::world::read(answer).await;
    assert_eq!(told(&seen), [identity(&shop)]);
}

#[tokio::test]
async fn a_caller_of_http_2_says_no_more_than_one_of_http_1() {
    let shop = shop(Told::Identity).await;
    let mut outbound = super::flood::to_orders();
    outbound.alpn = vec![b"h2".to_vec()];
    let door = shop.orders.door();
    let stream =
        countersign_tls::dial(&shop.web.plane.trust, door, &outbound).await.unwrap().stream;
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let driving = tokio::spawn(connection);
    let mut request = http::Request::get("https://orders/").body(()).unwrap();
    for name in ["x-forwarded-client-cert", "x_forwarded_client_cert", "x-forwarded-client_cert"] {
        for _ in 0..2 {
            request.headers_mut().append(name, "URI=spiffe://shop.example/admin".parse().unwrap());
        }
    }
    let (response, _) = sender.send_request(request, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let mut seen = Vec::new();
    while let Some(data) = body.data().await {
        seen.extend_from_slice(&data.unwrap());
    }
    let seen = String::from_utf8(seen).unwrap();
    assert_eq!(told(&seen), [identity(&shop)], "{seen}");
    driving.abort();
}
