//! `countersign explain`: what policies say about one question, and what would make them say yes.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use countersign_api::admin::{Answer, ExplainRequest, ExplainResponse};
use countersign_api::resource::{Resource, Spec};
use countersign_identity::{Clock, Code, SystemClock, Timestamp};
use countersign_server::Judge;

use crate::exit::{Exit, Failure};
use crate::find::Find;
use crate::manifest::{Manifests, Problems};
use crate::output::{self, Output, printable};

/// Say whether one may ask another for something: by which policy, and what would allow it
///
/// `countersign explain web payments POST /refunds` asks about a request, `countersign explain web orders` about a
/// connection. The path is read as the proxies read it. Exit status: 0 allowed, 1 denied.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Who asks: a workload, its service, or a SPIFFE ID
    #[arg(value_name = "FROM")]
    from: String,

    /// Who is asked: a service, its workload, or a SPIFFE ID
    #[arg(value_name = "TO")]
    to: String,

    /// What is to be done, such as `POST`; with a topic, `publish` or `subscribe`
    #[arg(value_name = "METHOD", requires = "path")]
    method: Option<String>,

    /// With what, such as `/charges/42`, or the topic's name
    #[arg(value_name = "PATH")]
    path: Option<String>,

    /// When it is asked for, such as `2026-12-24T18:00:00Z`; now, if nothing is said
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,

    /// The address that the caller comes from; not known, if nothing is said
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    address: Option<IpAddr>,

    /// Ask the manifests of this folder, and no server
    #[arg(long, value_name = "DIR")]
    offline: Option<PathBuf>,

    #[command(flatten)]
    find: Find,
}

fn address(text: &str) -> Result<IpAddr, String> {
    let example = |_bad| "expected an IP address, such as `10.0.0.7` or `2001:db8::7`".to_owned();
    text.parse().map_err(example)
}

pub(crate) async fn run(arguments: &Arguments, output: Output) -> Result<Exit> {
    let request = ExplainRequest {
        from: arguments.from.clone(),
        to: arguments.to.clone(),
        method: arguments.method.clone(),
        path: arguments.path.clone(),
        time: arguments.at,
        address: arguments.address,
    };
    let answer = match &arguments.offline {
        Some(folder) => offline(folder, &request)?,
        None => arguments.find.client()?.explain(&request).await?,
    };
    match output {
        Output::Json => output::json(&answer)?,
        Output::Human => output::write(describe(&answer).as_bytes())?,
    }
    Ok(match answer.decision {
        Answer::Allow => Exit::Done,
        Answer::Deny => Exit::No,
    })
}

fn offline(folder: &Path, request: &ExplainRequest) -> Result<ExplainResponse> {
    let manifests = Manifests::read(folder)?;
    let problems = manifests.problems_of_set(&[], None);
    if !problems.is_empty() {
        return Err(Problems::from(problems).into());
    }
    let domain = manifests.resources.iter().find_map(|resource: &Resource| match &resource.spec {
        Spec::TrustDomain(spec) => Some(spec.trust_domain.clone()),
        Spec::Authority(_)
        | Spec::Workload(_)
        | Spec::Service(_)
        | Spec::Policy(_)
        | Spec::Role(_)
        | Spec::TlsProfile(_) => None,
    });
    let domain = domain.ok_or_else(|| {
        Failure::not_understood("no manifest of kind `TrustDomain` says which trust domain this is")
    })?;
    let judge =
        Judge::of(&manifests.resources, &domain, SystemClock::new().now()).map_err(|problems| {
            let first = problems.first().map(ToString::to_string).unwrap_or_default();
            Failure::new(Code::InvalidPolicy, first)
        })?;
    let unclear = |why: countersign_server::Unclear| Failure::not_understood(why.to_string());
    Ok(judge.explain(request).map_err(unclear)?)
}

fn describe(answer: &ExplainResponse) -> String {
    let word = match answer.decision {
        Answer::Allow => "allow",
        Answer::Deny => "deny",
    };
    let at =
        answer.revision.map(|revision| format!(", at revision {revision}")).unwrap_or_default();
    let mut text = format!("{word} ({}{at})\n  {}\n", answer.mode, printable(&answer.why));
    if let Some(remedy) = &answer.remedy {
        text.push_str("what would allow it:\n");
        for line in remedy.lines() {
            text.push_str(&format!("  {}\n", printable(line)));
        }
    }
    if !answer.assumed.is_empty() {
        text.push_str("assumed, since policies read it:\n");
        for sentence in &answer.assumed {
            text.push_str(&format!("  {}\n", printable(sentence)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_told_what_one_looks_like() {
        assert_eq!(address("10.0.0.7"), Ok([10, 0, 0, 7].into()));
        for text in ["300.1.1.1", "10.0.0.7:443", "10.0.0.0/8", "localhost", ""] {
            assert!(address(text).unwrap_err().contains("such as `10.0.0.7`"), "{text}");
        }
    }
}
