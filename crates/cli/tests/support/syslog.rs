//! A receiver of syslog over TLS, as an organisation runs one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// An authority, and a certificate of it for `127.0.0.1`.
pub(crate) struct Credentials {
    pub(crate) ca: PathBuf,
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

fn openssl(folder: &Path, arguments: &[&str]) {
    let made = Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

impl Credentials {
    pub(crate) fn make(folder: &Path, name: &str) -> Self {
        let at = |kind: &str| format!("{name}-{kind}.pem");
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let (ca, ca_key) = (at("ca"), at("ca-key"));
        let own =
            ["-x509", "-days", "2", "-subj", "/CN=authority", "-out", &ca, "-keyout", &ca_key];
        openssl(folder, &[&["req"][..], &curve, &own].concat());
        let (chain, key) = (at("chain"), at("key"));
        let signed =
            ["-x509", "-days", "2", "-subj", "/CN=receiver", "-out", &chain, "-keyout", &key];
        let by = ["-CA", &ca, "-CAkey", &ca_key, "-addext", "subjectAltName=IP:127.0.0.1"];
        let leaf = ["-addext", "basicConstraints=critical,CA:FALSE"];
        openssl(folder, &[&["req"][..], &curve, &signed, &by, &leaf].concat());
        let place = |name: &str| folder.join(name);
        Self { ca: place(&ca), chain: place(&chain), key: place(&key) }
    }

    fn config(&self) -> Arc<ServerConfig> {
        let chain = CertificateDer::pem_file_iter(&self.chain).unwrap();
        let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(&self.key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).unwrap())
    }
}

/// A receiver of syslog over TLS. It reads frames, and keeps the messages.
pub(crate) struct SyslogReceiver {
    pub(crate) address: SocketAddr,
    messages: Arc<Mutex<Vec<String>>>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SyslogReceiver {
    /// At a free address, or at one that was another receiver's.
    pub(crate) fn start(credentials: &Credentials, address: Option<SocketAddr>) -> Self {
        let listener = bind(address);
        let address = listener.local_addr().unwrap();
        let (config, messages) = (credentials.config(), Arc::<Mutex<Vec<String>>>::default());
        let stopped = Arc::new(AtomicBool::new(false));
        let (kept, ended) = (Arc::clone(&messages), Arc::clone(&stopped));
        let thread = std::thread::spawn(move || {
            for tcp in listener.incoming().map_while(Result::ok) {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (config, kept, ended) =
                    (Arc::clone(&config), Arc::clone(&kept), Arc::clone(&ended));
                std::thread::spawn(move || receive(tcp, config, &kept, &ended));
            }
        });
        Self { address, messages, stopped, thread: Some(thread) }
    }

    pub(crate) fn messages(&self) -> Vec<String> {
        self.messages.lock().unwrap().clone()
    }

    /// Breaks every line, and is away from then on.
    pub(crate) fn stop(mut self) -> Vec<String> {
        self.end();
        self.messages()
    }

    fn end(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // So that it looks whether it is stopped.
        let _woken = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for SyslogReceiver {
    fn drop(&mut self) {
        self.end();
    }
}

fn bind(address: Option<SocketAddr>) -> TcpListener {
    let wanted = address.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
    crate::support::until("the address is free", || TcpListener::bind(wanted).ok())
}

fn receive(
    tcp: TcpStream,
    config: Arc<ServerConfig>,
    kept: &Mutex<Vec<String>>,
    stopped: &AtomicBool,
) {
    tcp.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    let mut tls = StreamOwned::new(ServerConnection::new(config).unwrap(), tcp);
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    while !stopped.load(Ordering::Relaxed) {
        match tls.read(&mut buffer) {
            // The sender said that nothing more comes; it is told that this was read (RFC 5425, 4.4).
            Ok(0) => {
                tls.conn.send_close_notify();
                let _told = tls.flush();
                return;
            }
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        }
        while let Some((message, rest)) = frame(&bytes) {
            kept.lock().unwrap().push(message);
            bytes.drain(..rest);
        }
    }
}

/// The first frame of RFC 5425, and where the next begins.
fn frame(bytes: &[u8]) -> Option<(String, usize)> {
    let blank = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..blank]).unwrap().parse().unwrap();
    let message = bytes.get(blank + 1..blank + 1 + length)?;
    Some((String::from_utf8(message.to_vec()).unwrap(), blank + 1 + length))
}
