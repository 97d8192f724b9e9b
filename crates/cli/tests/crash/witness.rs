//! Who sees every certificate that anybody was given or showed, from the first round to the last, and keeps all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use countersign_api::admin::AdminClient;
use futures_util::StreamExt as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::Value;
use spiffe::WorkloadApiClient;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;

/// Where a certificate was seen first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The Workload API gave it to this process.
    Workload,
    /// A proxy showed it at its door.
    Door,
    /// The server showed it to who dialled it.
    Server,
    /// The agent keeps it as its own.
    Node,
}

/// All that was seen until now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Leaves, in DER.
    pub(crate) certificates: BTreeMap<Vec<u8>, Place>,
    /// Serials that the agent says to hold.
    pub(crate) serials: BTreeSet<String>,
}

/// Where it looks.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The Workload API, as a URL.
    pub(crate) agent: String,
    pub(crate) admin: PathBuf,
    /// The agent's own certificate.
    pub(crate) node: PathBuf,
    pub(crate) doors: Vec<(Place, String)>,
}

/// A thread that looks until it is dropped.
pub(crate) struct Witness {
    places: Places,
    seen: Arc<Mutex<Seen>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// How often it looks where it is not told.
const LOOK: Duration = Duration::from_millis(400);
/// How long one look may take: whoever is asked may be stopped in this moment.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// An address of its own, so that nothing that it does is held against the proxies.
const SOURCE: &str = "127.0.0.9:0";

impl Witness {
    pub(crate) fn begin(places: Places) -> Self {
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), CancellationToken::new());
        let (looks_at, keeps, stopped) = (places.clone(), Arc::clone(&seen), stop.clone());
        let thread = std::thread::spawn(move || {
            run(async {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = look(&looks_at, &keeps) => {}
                }
            });
        });
        Self { places, seen, stop, thread: Some(thread) }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// What is shown and given now: nothing, unless everybody answers.
    pub(crate) fn sight(&self) -> Option<BTreeSet<Vec<u8>>> {
        let now = Mutex::new(Seen::default());
        run(async {
            for (place, door) in &self.places.doors {
                note(&now, *place, knock(door, None).await.ok()?.shown);
            }
            let client = WorkloadApiClient::connect_to(&self.places.agent).await.ok()?;
            let given = tokio::time::timeout(LOOK_TIMEOUT, client.fetch_x509_context()).await;
            for svid in given.ok()?.ok()?.svids() {
                note(&now, Place::Workload, svid.cert_chain()[0].as_bytes().to_vec());
            }
            Some(())
        })?;
        let now = now.into_inner().unwrap().certificates;
        self.seen.lock().unwrap().certificates.extend(now.clone());
        Some(now.into_keys().collect())
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn note(seen: &Mutex<Seen>, place: Place, leaf: Vec<u8>) {
    seen.lock().unwrap().certificates.entry(leaf).or_insert(place);
}

async fn look(places: &Places, seen: &Mutex<Seen>) {
    let doors = places.doors.iter().map(|(place, door)| async move {
        loop {
            if let Ok(answer) = knock(door, None).await {
                note(seen, *place, answer.shown);
            }
            tokio::time::sleep(LOOK).await;
        }
    });
    let doors = futures_util::future::join_all(doors);
    let (given, kept) = (follow(&places.agent, seen), read(&places.node, seen));
    tokio::join!(doors, given, kept, ask(&places.admin, seen));
}

/// Everything that the Workload API gives, by an outside client.
async fn follow(agent: &str, seen: &Mutex<Seen>) {
    loop {
        if let Ok(client) = WorkloadApiClient::connect_to(agent).await
            && let Ok(mut updates) = client.stream_x509_contexts().await
        {
            while let Some(Ok(update)) = updates.next().await {
                for svid in update.svids() {
                    note(seen, Place::Workload, svid.cert_chain()[0].as_bytes().to_vec());
                }
            }
        }
        tokio::time::sleep(LOOK / 4).await;
    }
}

/// The agent's own certificate, wherever it has one.
async fn read(node: &Path, seen: &Mutex<Seen>) {
    loop {
        let file: Option<Value> =
            std::fs::read(node).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(chain) = file.as_ref().and_then(|file| file["chain"].as_str()) {
            let leaf = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
            note(seen, Place::Node, leaf.to_vec());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What the agent says to hold for everybody, as the server heard it.
async fn ask(admin: &Path, seen: &Mutex<Seen>) {
    let client = AdminClient::new(admin);
    loop {
        if let Ok(Ok(status)) = tokio::time::timeout(LOOK_TIMEOUT, client.status()).await {
            let held = status.nodes.iter().flat_map(|node| &node.credentials);
            let held: Vec<_> = held.map(|one| one.serial.to_string()).collect();
            seen.lock().unwrap().serials.extend(held);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What somebody shows who dials a door: files with a chain and its key.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

/// What a door did with who knocked.
pub(crate) struct Answer {
    /// The leaf that it showed.
    pub(crate) shown: Vec<u8>,
    /// How it ended for the caller: the alert, where there was one.
    pub(crate) end: String,
}

/// How a door answers this caller.
pub(crate) fn answer(door: &str, caller: &Shown) -> std::io::Result<Answer> {
    run(knock(door, Some(caller)))
}

async fn knock(door: &str, caller: Option<&Shown>) -> std::io::Result<Answer> {
    let taker = Arc::new(Taker::default());
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&taker) as _);
    let config = match caller {
        None => builder.with_no_client_auth(),
        Some(Shown { chain, key }) => {
            let chain = CertificateDer::pem_file_iter(chain).unwrap();
            let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
                .unwrap()
        }
    };
    let handshake = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SOURCE.parse().unwrap())?;
        let tcp = socket.connect(door.parse::<SocketAddr>().unwrap()).await?;
        let name = ServerName::try_from("door.example").unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut tls = connector.connect(name, tcp).await?;
        // In TLS 1.3 it is told only now what the door thinks of the caller.
        let end = match tls.read(&mut [0; 64]).await {
            Ok(_) => "closed".to_owned(),
            Err(error) => error.to_string(),
        };
        Ok::<_, std::io::Error>(end)
    };
    let end = match tokio::time::timeout(LOOK_TIMEOUT, handshake).await {
        Ok(end) => end?,
        Err(_elapsed) => "still open".to_owned(),
    };
    let shown = taker.0.lock().unwrap().take();
    Ok(Answer { shown: shown.ok_or(std::io::ErrorKind::TimedOut)?, end })
}

/// Takes whatever is shown.
#[derive(Debug, Default)]
struct Taker(Mutex<Option<Vec<u8>>>);

impl ServerCertVerifier for Taker {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap() = Some(leaf.to_vec());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let with = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, leaf, signed, &with)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let with = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signed, &with)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
