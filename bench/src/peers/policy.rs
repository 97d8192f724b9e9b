//! What it costs that each request is decided on: the same proxy, to one service whose operations are spoken of by ten
//! policies, and to one where whoever may connect may ask for anything.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_api::workload::X509svid;
use countersign_pki::{Chain, PrivateKey, encode_private_key};
use serde_json::{Value, json};

use super::caller::{CREDENTIALS, Caller, Errand, OPERATIONS, Way};
use super::process::{Cores, pinned};
use super::proxies::Proxy;
use super::{WARM_UP, a_call, loaded, median};
use crate::child::{End, Peer};
use crate::figure::{Asked, Figure, Output, Verdict};
use crate::fleet::server::command;
use crate::machine::{Machine, PATIENCE};

const PAIRS: usize = 200;
/// The two of a pair are to find the machine alike.
const SPAN: Duration = Duration::from_millis(100);
const CONNECTIONS: usize = 50;
const PAUSE: Duration = Duration::from_millis(20);
/// The service whose requests are not told apart, and the one whose are.
const SERVICES: [&str; 2] = ["plain", "decided"];

pub(crate) fn run(output: Output) -> Result<Verdict> {
    let cores = Cores::take()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let machine = runtime.block_on(Machine::start("bench.example"))?;
    let program = Peer::start_on(cores.program, End::Program, machine.folder())?;
    let svid = runtime.block_on(declared(&machine, program.address))?;
    write(machine.folder(), &svid)?;

    let run_dir = machine.folder().join("run");
    let mut command = pinned(cores.proxy, Path::new(command()?.get_program()));
    command.args(["proxy", "--output", "json", "--agent"]);
    command.arg(format!("unix://{}", machine.socket().display()));
    command.arg("--run-dir").arg(&run_dir).stdin(Stdio::null());
    command.stderr(std::fs::File::create(machine.folder().join("proxy.log"))?);
    let (proxy, doors) = Proxy::with_doors(command, &SERVICES)?;
    let revision = runtime.block_on(machine.admin().convergence(None, PATIENCE))?;
    ensure!(revision.is_converged(), "the policies are not enforced");

    let errand = Errand { way: Way::Operations, connections: CONNECTIONS };
    let open = |door| Caller::start(cores.caller, machine.folder(), door, errand);
    let mut callers = [open(doors[0])?, open(doors[1])?];
    for caller in &mut callers {
        caller.load(WARM_UP)?;
    }
    let mut more = Vec::new();
    for pair in 1..=PAIRS {
        let mut costs = [0.0; 2];
        // Which comes first changes from pair to pair: the machine may become slower, or faster, meanwhile.
        for which in [pair % 2, (pair + 1) % 2] {
            let (micros, done) = loaded(&mut callers[which], proxy.family(), SPAN)?;
            costs[which] = a_call(micros, done);
        }
        let [plain, decided] = costs;
        eprintln!("  proxy_policy {pair:>3}: plain {plain:.2}, decided {decided:.2} µs CPU");
        more.push((decided / plain - 1.0) * 100.0);
    }
    let figure = Figure {
        name: "proxy_policy",
        value: median(more),
        unit: "% more CPU",
        limit: 5.0,
        limit_is: "than the same proxy needs where connections alone are decided on; ten policies, median of pairs of turns",
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
}

/// Declares who calls, whom, and what for; then waits for the SVID of this process.
async fn declared(machine: &Machine, program: std::net::SocketAddr) -> Result<X509svid> {
    let path = |program: &Path| -> Result<String> {
        Ok(format!("unix:path:{}", std::fs::canonicalize(program)?.display()))
    };
    let caller = path(&std::env::current_exe()?)?;
    let proxy = path(Path::new(command()?.get_program()))?;
    let mut resources = vec![
        resource("Workload", "caller", &json!({ "selectors": [caller], "lifetime": "1h" })),
        resource("Workload", "proxy", &json!({ "selectors": [proxy], "lifetime": "1h" })),
    ];
    for service in SERVICES {
        let mut spec = json!({
            "workload": "proxy", "protocol": "http", "listen": "127.0.0.1:0", "forward": program.to_string(),
        });
        if service == "decided" {
            spec["operations"] = (0..OPERATIONS).map(operation).collect();
        }
        resources.push(resource("Service", service, &spec));
        resources.push(permit(
            &format!("connect-{service}"),
            "connect",
            &format!(r#"Service::"{service}""#),
        ));
    }
    for number in 0..OPERATIONS {
        let operation = format!(r#"Operation::"decided/o{number}""#);
        resources.push(permit(&format!("call-o{number}"), "GET", &operation));
    }
    machine.apply(resources).await?;
    let (_call, svid) = machine.workloads().await?.wait(PAUSE).await?;
    Ok(svid)
}

fn resource(kind: &str, name: &str, spec: &Value) -> Value {
    let metadata = json!({ "name": name });
    json!({ "apiVersion": "countersign.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec })
}

fn operation(number: usize) -> Value {
    json!({ "name": format!("o{number}"), "method": "GET", "path": format!("/o{number}/{{id}}") })
}

fn permit(name: &str, action: &str, what: &str) -> Value {
    let cedar = format!(
        r#"permit (principal == Workload::"caller", action == Action::"{action}", resource == {what});"#
    );
    resource("Policy", name, &json!({ "cedar": cedar }))
}

/// Where the caller finds its credentials.
fn write(folder: &Path, svid: &X509svid) -> Result<()> {
    let chain = Chain::from_concatenated(&svid.x509_svid)?;
    let key = PrivateKey::from_pkcs8(&svid.x509_svid_key)?;
    let write = |end: &str, text: &str| {
        let path = folder.join(format!("{CREDENTIALS}.{end}"));
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("pem", &chain.pem())?;
    write("key", &encode_private_key(&key))
}
