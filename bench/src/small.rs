//! The two decisions on every connection: is this chain good, and may this peer.

use std::time::Duration;

use anyhow::{Context, Result};
use countersign_identity::{Clock, SystemClock};
use countersign_pki::{Bundles, Role};
use countersign_policy::{
    ConnectRequest, Context as PolicyContext, Policies, PolicySource, Principal,
};

use crate::credentials::Domain;
use crate::figure::{Better, Figure, Output, rate};

const SPAN: Duration = Duration::from_millis(700);
const POLICIES: usize = 10_000;

/// Verifying a chain of leaf and issuer, against the two signatures in it.
pub(crate) fn verify(output: Output) -> Result<()> {
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
    Figure {
        name: "verify",
        value,
        unit: "chains/s",
        limit: one / 2.0,
        limit_is: "its two P-256 signatures alone",
        better: Better::Higher,
    }
    .print(output);
    Ok(())
}

/// Deciding without a cache among ten thousand policies, against the design's 50 µs.
pub(crate) fn decide(output: Output) -> Result<()> {
    let source = |number: usize| -> Result<PolicySource> {
        Ok(PolicySource::enforced(
            format!("p{number}").parse()?,
            format!(
                "permit (principal == Workload::\"w{number}\", action == Action::\"connect\", resource == Service::\"s{number}\");"
            ),
        ))
    };
    let sources = (0..POLICIES).map(source).collect::<Result<Vec<_>>>()?;
    let policies = Policies::compile(&sources, None);
    let policies = policies.map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    let principal = Principal::Named("w777".parse().context("a name")?);
    let context = PolicyContext::default();
    let request = ConnectRequest { principal: &principal, service: "s777", context: &context };
    let per_second = rate(SPAN, || assert!(policies.decide(&request).is_allowed()));
    Figure {
        name: "decide",
        value: 1e6 / per_second,
        unit: "µs",
        limit: 50.0,
        limit_is: "µs uncached with 10,000 policies, asked for by the design",
        better: Better::Lower,
    }
    .print(output);
    Ok(())
}
