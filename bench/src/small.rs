//! The two decisions on every connection: is this chain good, and may this peer.

use std::time::Duration;

use anyhow::{Context, Result};
use countersign_identity::{CanonicalPath, Clock, SystemClock, Timestamp, Verb};
use countersign_pki::{Bundles, Role};
use countersign_policy::{
    CallRequest, Called, Context as PolicyContext, Operation, Operations, Policies, PolicySource,
    Principal,
};

use crate::credentials::Domain;
use crate::figure::{Asked, Figure, Output, Verdict, rate};

const SPAN: Duration = Duration::from_millis(700);
/// How many policies bear on the question.
const BEARING: usize = 10;

/// Verifying a chain of leaf and issuer, against the two signatures in it.
pub(crate) fn verify(output: Output) -> Result<Verdict> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let now = SystemClock::new().now();
    let domain = runtime.block_on(Domain::make(now))?;
    let credential = runtime.block_on(domain.issue("/web"))?;
    let bundles = Bundles::new(vec![domain.bundle])?;
    let ders = credential.chain.ders();

    let message = [7; 64];
    let signature = credential.key.sign(&message)?;
    let public = credential.key.public();
    let one = rate(SPAN, || public.verify(&message, &signature).expect("a good signature"));
    let value = rate(SPAN, || {
        countersign_pki::verify(&ders, &bundles, Role::Client, now).expect("a good chain");
    });
    let figure = Figure {
        name: "verify",
        value,
        unit: "chains/s",
        limit: one / 2.0,
        limit_is: "its two P-256 signatures alone",
        asked: Asked::More,
    };
    Ok(figure.print(output))
}

/// Deciding on a question that was decided on before, against the design's 1 µs.
pub(crate) fn decide_cached(output: Output) -> Result<Verdict> {
    let policies = operations_of_one(10)?;
    decided(&policies, "decide_cached", (1.0, "µs remembered, asked for by the design"), output)
}

/// Deciding without a cache where ten policies bear on the question, against the design's 15 µs.
pub(crate) fn decide_10(output: Output) -> Result<Verdict> {
    let limit = (15.0, "µs uncached with 10 policies, asked for by the design");
    decided(&operations_of_one(10)?.forgetful(), "decide_10", limit, output)
}

/// Deciding without a cache among ten thousand policies, of which ten bear on the question, against the design's 50 µs.
pub(crate) fn decide_10000(output: Output) -> Result<Verdict> {
    let limit = (50.0, "µs uncached with 10,000 policies, asked for by the design");
    decided(&operations_of_one(10_000)?.forgetful(), "decide_10000", limit, output)
}

/// So many policies, of which ten are for one workload and one service, as such workloads have them: each permits an operation.
fn operations_of_one(count: usize) -> Result<Policies> {
    let source = |number: usize| -> Result<PolicySource> {
        let (one, operation) = (number / BEARING, number % BEARING);
        let text = format!(
            "permit (principal == Workload::\"w{one}\", action == Action::\"GET\", resource == Operation::\"s{one}/o{operation}\");"
        );
        Ok(PolicySource::enforced(format!("p{number}").parse()?, text))
    };
    let sources = (0..count).map(source).collect::<Result<Vec<_>>>()?;
    let operation = |number: usize| -> Result<Operation> {
        let template = format!("/o{number}/{{id}}").parse()?;
        Ok(Operation { name: format!("o{number}").parse()?, verb: Verb::Get, template })
    };
    let operations = (0..BEARING).map(operation).collect::<Result<Vec<_>>>()?;
    let policies = Policies::compile(&sources, None);
    let policies = policies.map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    Ok(policies.with_operations(Operations::new([("s0".parse()?, operations)])))
}

fn decided(
    policies: &Policies,
    name: &'static str,
    (limit, limit_is): (f64, &'static str),
    output: Output,
) -> Result<Verdict> {
    let principal = Principal::Named("w0".parse().context("a name")?);
    let path = CanonicalPath::of("/o7/42")?;
    let context = PolicyContext {
        tls_version: "1.3".to_owned(),
        group: "X25519MLKEM768".to_owned(),
        peer_age_seconds: 60,
        ..PolicyContext::default()
    };
    let request = CallRequest {
        principal: &principal,
        service: "s0",
        verb: Some(Verb::Get),
        path: &path,
        context: &context,
        now: Timestamp::EPOCH,
    };
    let allowed = |called: Option<Called>| called.is_some_and(|it| it.decision.is_allowed());
    let per_second = rate(SPAN, || assert!(allowed(policies.decide_call(&request))));
    let figure = Figure {
        name,
        value: 1e6 / per_second,
        unit: "µs",
        limit,
        limit_is,
        asked: Asked::AtMost(1.0),
    };
    Ok(figure.print(output))
}
