//! What a certificate costs beside step-ca, which issues in the same run: the time of a processor that either server needs for
//! one, its durable record included.
//!
//! step-ca comes as Debian packages it, as libraries; the program is what its own `init` and `start` do with them. Both servers
//! are kept to one core, on which they have turns. Keys, requests and tokens are made before what counts.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use countersign_api::admin::{ApplyRequest, CreateTokenRequest};
use countersign_api::standing::{Calls, Standing};
use countersign_api::v1;
use countersign_identity::SystemClock;
use countersign_pki::{KeyKind, PrivateKey, make_csr};
use countersign_tls::Stream;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::figure::{Asked, Figure, Output, Verdict};
use crate::fleet::node::{Home, Node};
use crate::fleet::server::{Server, Usage};
use crate::peers::median;
use crate::peers::process::{Cores, end, pinned};

/// Where Debian puts them.
const GOPATH: &str = "/usr/share/gocode";
const LIBRARIES: &str = "src/github.com/smallstep/certificates/ca";
const ASKED_FOR: f64 = 6.0;
const ROUNDS: usize = 9;
/// Requests at once at step-ca, which takes one certificate each; it writes together what comes together.
const CALLERS: usize = 32;
/// Certificates in a turn of step-ca.
const OF_STEP_CA: usize = 512;
/// In one `Sign`, as the agent batches what is due.
const BATCH: usize = 256;
/// In a turn of ours, one after the other.
const BATCHES: usize = 8;
const DOMAIN: &str = "bench.example";
const LABEL: &str = "bench";
/// How long anything may take that is not measured.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
/// Of one read; answers are of a few KiB.
const READ_BYTES: usize = 16 * 1024;

pub(crate) fn run(output: Output) -> Result<Verdict> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let figure = runtime.block_on(compare())?;
    Ok(figure.print(output))
}

async fn compare() -> Result<Figure> {
    let program = program()?;
    let core = Cores::take()?.proxy;
    let mut theirs = StepCa::start(&program, core).await?;
    let ours = Ours::start(core).await?;
    theirs.turn().await.context("step-ca")?;
    ours.turn().await?;
    let (mut of_theirs, mut of_ours) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let (their, our) = (theirs.turn().await.context("step-ca")?, ours.turn().await?);
        eprintln!("  issue_beside_step_ca {round}: countersign {our:.1}, step-ca {their:.1}");
        of_theirs.push(their);
        of_ours.push(our);
    }
    let (their, our) = (median(of_theirs), median(of_ours));
    eprintln!(
        "  issue_beside_step_ca: countersign {our:.1}, step-ca {their:.1} µs CPU: {:.2} ×",
        their / our
    );
    Ok(Figure {
        name: "issue_beside_step_ca",
        value: our,
        unit: "µs CPU",
        limit: their / ASKED_FOR,
        limit_is: "µs a certificate: a sixth of step-ca's, 256 in each `Sign`",
        asked: Asked::AtMost(1.0),
    })
}

/// Microseconds of a processor for each of so many.
async fn measured(
    usage: Usage,
    count: usize,
    work: impl Future<Output = Result<()>>,
) -> Result<f64> {
    let before = usage.processor()?;
    work.await?;
    let took = usage.processor()? - before;
    #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
    let count = count as f64;
    Ok(took.as_secs_f64() * 1e6 / count)
}

/// Builds step-ca, beside this program; Go builds nothing twice.
fn program() -> Result<PathBuf> {
    const INSTALL: &str = "step-ca is measured beside ours and is not here: `apt-get install golang-go \
         golang-github-smallstep-certificates-dev`, or let `cargo xtask bench` do it as root";
    ensure!(Path::new(GOPATH).join(LIBRARIES).is_dir(), INSTALL);
    let folder = std::env::current_exe()?.with_file_name("step-ca");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("main.go"), PROGRAM)?;
    let mut build = Command::new("go");
    build.args(["build", "-o", "step-ca", "main.go"]).current_dir(&folder);
    build.env("GO111MODULE", "off").env("GOPATH", GOPATH).env("GOFLAGS", "");
    let built = build.output().context(INSTALL)?;
    ensure!(built.status.success(), "step-ca: {}", String::from_utf8_lossy(&built.stderr));
    Ok(folder.join("step-ca"))
}

/// step-ca that serves, with connections that stand.
struct StepCa {
    child: Child,
    callers: Vec<TlsStream<TcpStream>>,
    /// Whole requests, each of which it takes once.
    requests: VecDeque<Vec<u8>>,
    folder: tempfile::TempDir,
}

impl StepCa {
    async fn start(program: &Path, core: u32) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp")?;
        // It was free a moment ago. Whoever takes it meanwhile makes the figure fail, not lie.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = folder.path().join("log");
        let mut serve = pinned(core, program);
        serve.arg("serve").arg(address.to_string()).env("STEPPATH", folder.path());
        serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&log)?);
        let (callers, requests) = (Vec::new(), VecDeque::new());
        let child = serve.spawn()?;
        let mut started = Self { child, callers, requests, folder };
        if let Err(why) = started.stand(program, address).await {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("step-ca {why:#}: {}", log.chars().take(2000).collect::<String>());
        }
        Ok(started)
    }

    async fn stand(&mut self, program: &Path, address: SocketAddr) -> Result<()> {
        let begin = Instant::now();
        while TcpStream::connect(address).await.is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("ended with {status}");
            }
            ensure!(begin.elapsed() < PATIENCE, "does not listen");
            tokio::time::sleep(LOOK).await;
        }
        let count = OF_STEP_CA * (ROUNDS + 1);
        let mut ask = Command::new(program);
        ask.arg("requests").arg(address.to_string()).arg(count.to_string());
        let made = ask.env("STEPPATH", self.folder.path()).output()?;
        ensure!(made.status.success(), "asks: {}", String::from_utf8_lossy(&made.stderr));
        let bodies = BufReader::new(made.stdout.as_slice()).lines();
        let request = |body: std::io::Result<String>| Ok(request(address, &body?));
        self.requests = bodies.map(request).collect::<Result<_>>()?;
        ensure!(self.requests.len() == count, "{} requests were made", self.requests.len());
        let root = self.folder.path().join("certs/root_ca.crt");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(root)?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        for _ in 0..CALLERS {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            self.callers.push(connector.connect(ServerName::from(address.ip()), tcp).await?);
        }
        Ok(())
    }

    /// Microseconds of a processor for one certificate.
    async fn turn(&mut self) -> Result<f64> {
        let usage = Usage::of(self.child.id());
        let mut asking = JoinSet::new();
        for mut caller in self.callers.drain(..) {
            let requests: Vec<_> = self.requests.drain(..OF_STEP_CA / CALLERS).collect();
            asking.spawn(async move {
                for request in requests {
                    caller.write_all(&request).await?;
                    certified(&mut caller).await?;
                }
                anyhow::Ok(caller)
            });
        }
        let callers = &mut self.callers;
        measured(usage, OF_STEP_CA, async {
            while let Some(caller) = asking.join_next().await {
                callers.push(caller??);
            }
            Ok(())
        })
        .await
    }
}

impl Drop for StepCa {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn request(address: SocketAddr, body: &str) -> Vec<u8> {
    let head = format!(
        "POST /1.0/sign HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// Reads an answer to its end.
async fn certified(caller: &mut TlsStream<TcpStream>) -> Result<()> {
    let mut answer = Vec::with_capacity(READ_BYTES);
    while !is_whole(&answer) {
        ensure!(0 < caller.read_buf(&mut answer).await?, "the connection has ended");
    }
    let text = String::from_utf8_lossy(&answer);
    ensure!(text.starts_with("HTTP/1.1 201 ") && text.contains("BEGIN CERT"), "it said: {text}");
    Ok(())
}

/// Whether an answer has come to its end, in either way in which Go's server says how long one is.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    match length.map(str::parse::<usize>) {
        Some(Ok(length)) => length <= body.len(),
        Some(Err(_)) | None => body.ends_with("\r\n0\r\n\r\n"),
    }
}

/// Our server, with an agent whose connection stands.
struct Ours {
    calls: Calls,
    request: v1::SignRequest,
    _moved: JoinSet<()>,
    server: Server,
}

impl Ours {
    async fn start(core: u32) -> Result<Self> {
        let server = Server::start(DOMAIN)?;
        alone(server.pid(), core)?;
        let names: Vec<_> = (0..BATCH).map(|number| format!("w{number}")).collect();
        let resources = names.iter().map(|name| workload(name)).collect();
        let apply = ApplyRequest { resources, base: None, prune: false, dry_run: false };
        server.admin.apply(&apply).await?;
        let (Standing { calls, .. }, moving) = Standing::over(joined(&server).await?);
        let mut moved = JoinSet::new();
        moved.spawn(moving);
        let item = |workload: String| -> Result<v1::SignItem> {
            let csr = make_csr(&PrivateKey::generate(KeyKind::P256)?)?.into();
            Ok(v1::SignItem { workload, csr, ..Default::default() })
        };
        let items = names.into_iter().map(item).collect::<Result<_>>()?;
        let request = v1::SignRequest { items, ..Default::default() };
        Ok(Self { calls, request, _moved: moved, server })
    }

    /// Microseconds of a processor for one certificate.
    async fn turn(&self) -> Result<f64> {
        measured(self.server.usage(), BATCHES * BATCH, async {
            for _ in 0..BATCHES {
                let answer = self.calls.sign(self.request.clone()).await?;
                ensure!(answer.results.len() == BATCH, "{} results", answer.results.len());
                for result in answer.results {
                    issued(&result)?;
                }
            }
            Ok(())
        })
        .await
    }
}

fn issued(result: &v1::SignResult) -> Result<()> {
    match &result.outcome {
        Some(v1::sign_result::Outcome::Issued(_)) => Ok(()),
        Some(v1::sign_result::Outcome::Refusal(why)) => bail!("refused: {}", why.message),
        None => bail!("no outcome"),
    }
}

fn workload(name: &str) -> serde_json::Value {
    json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "Workload", "metadata": { "name": name },
        "spec": { "selectors": [format!("launch:{name}")], "lifetime": "24h", "nodes": [LABEL] },
    })
}

/// Gives a process, and what it starts from now on, this core and no other.
fn alone(pid: u32, core: u32) -> Result<()> {
    let mut command = Command::new("taskset");
    command.args(["-a", "-c", "-p", &core.to_string(), &pid.to_string()]);
    let done = command.output().context("cannot run `taskset`")?;
    ensure!(done.status.success(), "`taskset`: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// Joins as an agent does, and opens its connection.
async fn joined(server: &Server) -> Result<Stream> {
    let request = CreateTokenRequest { ttl: "10m".parse()?, labels: vec![LABEL.parse()?] };
    let token = server.admin.create_token(&request).await?.token;
    let home = Home {
        address: server.address,
        pin: server.admin.authorities().await?.roots.first().context("a root")?.key,
        domain: DOMAIN.parse()?,
        clock: Arc::new(SystemClock::new()),
    };
    Node::join(home, 0, token).await?.connect().await
}

/// step-ca by its own libraries: what its program does, and what its client asks for.
const PROGRAM: &str = r#"package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"github.com/smallstep/certificates/authority/config"
	"github.com/smallstep/certificates/ca"
	"github.com/smallstep/certificates/cas/apiv1"
	"github.com/smallstep/certificates/pki"
)

var password = []byte("bench")

// initialise makes an authority as `step ca init` does, in the folder that STEPPATH names.
func initialise(address string) (*config.Config, error) {
	made, err := pki.New(apiv1.Options{Type: apiv1.SoftCAS, IsCreator: true},
		pki.WithAddress(address), pki.WithDNSNames([]string{"127.0.0.1"}), pki.WithProvisioner("bench"))
	if err != nil {
		return nil, err
	}
	root, err := made.GenerateRootCertificate("Bench", "Bench", "Bench", password)
	if err != nil {
		return nil, err
	}
	if err = made.GenerateIntermediateCertificate("Bench", "Bench", "Bench", root, password); err != nil {
		return nil, err
	}
	if err = made.WriteFiles(); err != nil {
		return nil, err
	}
	if err = made.GenerateKeyPairs(password); err != nil {
		return nil, err
	}
	return made.GenerateConfig()
}

func serve(address string) error {
	configuration, err := initialise(address)
	if err != nil {
		return err
	}
	if err = os.MkdirAll(configuration.DB.DataSource, 0700); err != nil {
		return err
	}
	authority, err := ca.New(configuration, ca.WithPassword(password))
	if err != nil {
		return err
	}
	return authority.Run()
}

// requests prints bodies of requests for a certificate, each with a key and a token of its own.
func requests(address, count string) error {
	wanted, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	provisioner, err := ca.NewProvisioner("bench", "", "https://"+address, password, ca.WithRootFile(pki.GetRootCAPath()))
	if err != nil {
		return err
	}
	for number := 0; number < wanted; number++ {
		token, err := provisioner.Token(fmt.Sprintf("w%d.bench.example", number))
		if err != nil {
			return err
		}
		request, _, err := ca.CreateSignRequest(token)
		if err != nil {
			return err
		}
		body, err := json.Marshal(request)
		if err != nil {
			return err
		}
		fmt.Println(string(body))
	}
	return nil
}

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serve(os.Args[2])
	case len(os.Args) == 4 && os.Args[1] == "requests":
		err = requests(os.Args[2], os.Args[3])
	default:
		err = fmt.Errorf("expected `serve ADDRESS` or `requests ADDRESS COUNT`")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
"#;
