//! The log in a file, complete enough to be verified from it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use countersign_identity::Incarnation;
use serde_json::json;

use super::ship::{self, Credentials, Destination, Enterprise, Named, Shipment};
use super::source::{Heading, Source};
use crate::exit::Exit;
use crate::find::Find;
use crate::out::{New, Out};
use crate::output::{self, Output};

/// Write the log as JSON lines: what was signed of it, then every event as it is stored
///
/// `countersign log verify --export FILE` checks such a file with no server. With `--to`, events go to where an organisation keeps its
/// logs instead: as syslog (RFC 5424 over TLS) or as OTLP log records. Each is delivered at least once; with `--follow` and
/// `--cursor`, run it beside a server for as long as that runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    find: Find,
    /// The log of an earlier incarnation
    #[arg(long, value_name = "NUMBER")]
    incarnation: Option<Incarnation>,
    /// Where to write it, in place of what is there, as a whole [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Send events there: `syslog+tls://HOST:PORT`, `otlp+https://HOST:PORT` or `otlp+http://HOST:PORT`
    #[arg(long, value_name = "URL", conflicts_with = "out")]
    to: Option<Named>,
    /// Go on with events that come, until interrupted
    #[arg(long, requires = "to")]
    follow: bool,
    /// Where it is kept how far the receiver has the log, and gone on from
    #[arg(long, value_name = "FILE", requires = "to")]
    cursor: Option<PathBuf>,
    /// Serve Prometheus metrics there, such as 127.0.0.1:9105: when the receiver last had what there was, when not, and what it lacks
    #[arg(long, value_name = "ADDRESS", requires = "follow")]
    metrics: Option<SocketAddr>,
    /// Of syslog: the number that IANA has given your organisation, which the name of the structured data needs (RFC 5424, 7.2.2)
    /// [default: 32473, which is set aside for examples (RFC 5612)]
    #[arg(long, value_name = "NUMBER", requires = "to")]
    enterprise_number: Option<Enterprise>,
    /// Who vouches for a receiver over TLS: certificates in PEM
    #[arg(long, value_name = "FILE", requires = "to")]
    ca: Option<PathBuf>,
    /// The certificate that is shown to the receiver, and those above it, in PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Its private key, PKCS#8 in PEM
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
}

pub(crate) async fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    if let Some(named) = &arguments.to {
        return send(arguments, named, output).await;
    }
    let mut source = Source::Server(arguments.find.client()?);
    let Some(out) = &arguments.out else {
        export(&mut source, arguments.incarnation, &mut std::io::stdout().lock()).await?;
        return Ok(Exit::Done);
    };
    let mut file = Out::open(out, New::Private)?;
    let events = export(&mut source, arguments.incarnation, &mut file).await?;
    file.finish()?;
    match output {
        Output::Json => {
            output::json(&json!({ "event": "exported", "events": events, "out": out }))?;
        }
        Output::Human => output::line(&format!("{events} events in `{}`", out.display()))?,
    }
    Ok(Exit::Done)
}

async fn send(arguments: &Arguments, named: &Named, output: Output) -> Result<Exit> {
    let Arguments { find, incarnation, follow, cursor, ca, certificate, key, .. } = arguments;
    let by = Credentials { ca: ca.as_ref(), certificate: certificate.as_ref(), key: key.as_ref() };
    let to = Destination::new(named, arguments.enterprise_number, &by)?;
    let (cursor, incarnation, follow) = (cursor.as_ref(), *incarnation, *follow);
    let metrics = arguments.metrics;
    ship::run(Shipment { find, to: &to, cursor, incarnation, follow, metrics }, output).await
}

async fn export(
    source: &mut Source,
    incarnation: Option<Incarnation>,
    to: &mut impl std::io::Write,
) -> Result<u64> {
    let log = source.log(incarnation).await?;
    let (of, counted) = (log.incarnation, log.counted.unwrap_or(u64::MAX));
    let mut to = std::io::BufWriter::new(to);
    writeln!(to, "{}", serde_json::to_string(&Heading { log })?)?;
    let mut next = 0;
    while next < counted {
        let page = source.leaves(of, next).await?;
        if page.is_empty() {
            break;
        }
        for leaf in page.iter().filter(|leaf| leaf.index < counted) {
            writeln!(to, "{}", serde_json::to_string(leaf)?)?;
        }
        next = page.last().map_or(next, |leaf| leaf.index + 1);
    }
    to.flush()?;
    Ok(next.min(counted))
}
