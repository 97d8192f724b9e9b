//! Seeds that are no messages: heads, tokens, places in traces, and key files.

use bytes::Bytes;
use countersign_identity::{Entropy, SeededEntropy};
use countersign_seal::{KekFile, KeyWrap, Passphrase, WrapMethod, WrapRefused};

use super::{Seed, TRACEPARENT};
use crate::server::World;

pub(super) fn texts(world: &World) -> Vec<Seed> {
    const HEADS: [(&str, &str); 6] = [
        ("get", "GET /books?by=title HTTP/1.1\r\nhost: shop.example\r\naccept: */*\r\n\r\n"),
        (
            "per_hop",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, x-hop, te\r\nx-hop: 1\r\nte: trailers\r\nkeep-alive: 5\r\n\r\n",
        ),
        (
            "reserved",
            "POST /charges HTTP/1.1\r\nhost: a\r\nx-countersign-peer: spiffe://shop.example/admin\r\nx_forwarded_client.cert: URI=a;\"b\r\ncontent-length: 2\r\n\r\nokGET / HTTP/1.0\r\n\r\n",
        ),
        (
            "upgrade",
            "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: a=1\r\n\r\n",
        ),
        (
            "trailers",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: x-countersign-peer\r\nte: trailers\r\n\r\n2\r\nok\r\n0\r\nx-countersign-peer: a\r\nx-http-method-override: PUT\r\nx-sum: 7\r\n\r\n",
        ),
        ("two_hosts", "GET http://a/ HTTP/1.1\r\nhost: b\r\n\r\n"),
    ];
    let mut seeds: Vec<Seed> =
        HEADS.iter().map(|(name, head)| ("http_head", *name, head.as_bytes().to_vec())).collect();
    seeds.push(("http_head", "http2", world.runtime.block_on(http2())));
    let token = &world.token;
    let last = token[..42].to_owned();
    seeds.extend([
        ("join_token", "token", token.clone().into_bytes()),
        ("join_token", "padded", format!("{token}=").into_bytes()),
        ("join_token", "other_bits_at_the_end", format!("{last}_").into_bytes()),
        ("join_token", "cut", token.as_bytes()[..42].to_vec()),
        ("join_token", "other_alphabet", format!("+/{}", &token[2..]).into_bytes()),
        ("join_token", "line_end", format!("{token}\n").into_bytes()),
        ("traceparent", "version_of_none", format!("ff{}", &TRACEPARENT[2..]).into_bytes()),
        ("traceparent", "capitals", TRACEPARENT.to_ascii_uppercase().into_bytes()),
        ("traceparent", "more_of_the_first_version", format!("{TRACEPARENT}-more").into_bytes()),
        ("traceparent", "other_flags", format!("{}fe", &TRACEPARENT[..53]).into_bytes()),
        ("traceparent", "sampled", TRACEPARENT.as_bytes().to_vec()),
        ("traceparent", "later_version", format!("cc{}-more", &TRACEPARENT[2..]).into_bytes()),
        (
            "traceparent",
            "zeros",
            format!("00-{}-{}-00", "0".repeat(32), "0".repeat(16)).into_bytes(),
        ),
    ]);
    seeds
}

/// What a client of HTTP/2 says before it has heard anything.
async fn http2() -> Vec<u8> {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::AsyncReadExt as _;
    let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
    let asking = async {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(ours))
                .await
                .unwrap();
        let request = http::Request::get("http://shop.example/books")
            .header("x-countersign-peer", "spiffe://shop.example/admin")
            .header("te", "trailers")
            .header("traceparent", TRACEPARENT)
            .body(http_body_util::Empty::<Bytes>::new())
            .unwrap();
        let answer = sender.send_request(request);
        let (_broken, _never) = tokio::join!(connection, answer);
    };
    let hearing = async {
        // What was written as a whole is read as a whole where there is room for it.
        let mut said = Vec::with_capacity(4096);
        while !said.windows(5).any(|frame| frame == [1, 5, 0, 0, 0] || frame == [1, 4, 0, 0, 0]) {
            theirs.read_buf(&mut said).await.unwrap();
        }
        said
    };
    tokio::select! {
        said = hearing => said,
        () = asking => panic!("the other end was there"),
    }
}

/// A passphrase that takes little: seeds are opened thousands of times.
#[derive(Debug)]
struct Cheap(Passphrase);

impl KeyWrap for Cheap {
    fn method(&self) -> WrapMethod {
        self.0.method()
    }

    fn note(&self, _entropy: &dyn Entropy) -> Result<Vec<u8>, WrapRefused> {
        Ok([[64_u32, 1, 1].map(u32::to_be_bytes).concat(), vec![7; 16]].concat())
    }

    fn wrap(
        &self,
        note: &[u8],
        context: &[u8],
        key: &[u8],
        entropy: &dyn Entropy,
    ) -> Result<Vec<u8>, WrapRefused> {
        self.0.wrap(note, context, key, entropy)
    }

    fn unwrap(
        &self,
        note: &[u8],
        context: &[u8],
        wrapped: &[u8],
    ) -> Result<zeroize::Zeroizing<Vec<u8>>, WrapRefused> {
        self.0.unwrap(note, context, wrapped)
    }
}

pub(super) fn key_files() -> Vec<Seed> {
    let folder = tempfile::tempdir().unwrap();
    let passphrase = || Passphrase::new("correct horse".to_owned().into()).unwrap();
    let of = |name: &str, by: Option<&dyn KeyWrap>| {
        let path = folder.path().join(name);
        KekFile::create_by(&path, by, &SeededEntropy::new(9)).unwrap();
        std::fs::read(path).unwrap()
    };
    let wrapped = of("wrapped", Some(&Cheap(passphrase())));
    let mut other_id = wrapped.clone();
    other_id[9] ^= 1;
    vec![
        ("key_file", "plain", of("plain", None)),
        ("key_file", "cut", wrapped[..40].to_vec()),
        ("key_file", "another_id", other_id),
        ("key_file", "as_it_is_made", of("dear", Some(&passphrase()))),
        ("key_file", "wrapped", wrapped),
    ]
}
