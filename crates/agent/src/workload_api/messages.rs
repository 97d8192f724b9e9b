//! The messages of the Workload API, and the digests by which a repeated one is known.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use countersign_api::workload::{X509BundlesResponse, X509svid, X509svidResponse};
use countersign_identity::Sha256;

use super::Made;
use crate::core::Workload;
use crate::view::{Svid, View};

/// All identities of a caller, the default one first.
pub(super) fn svids(view: &View, svids: &[(Arc<Workload>, Arc<Svid>)]) -> Made<X509svidResponse> {
    let mut context = Context::new(&SHA256);
    let wants = svids.iter().any(|(workload, _)| workload.spec.crl);
    let crl = match lists(view, wants, &mut context) {
        Ok(crl) => crl,
        Err(why) => return Made::Pending(why),
    };
    let mut message = X509svidResponse { crl, ..X509svidResponse::default() };
    for (workload, svid) in svids {
        let Some(bundle) = view.replica.bundles().get(svid.id.trust_domain()) else {
            return Made::Pending(format!(
                "no bundle of `{}` is there yet",
                svid.id.trust_domain()
            ));
        };
        let bundle = bundle.authorities_der_concat();
        let hint = workload.spec.hint.as_str();
        for part in [svid.term.digest.as_bytes().as_slice(), &bundle, hint.as_bytes()] {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        message.svids.push(X509svid {
            spiffe_id: svid.id.to_string(),
            x509_svid: svid.chain.concatenated(),
            x509_svid_key: svid.key.pkcs8().to_vec(),
            bundle,
            hint: hint.to_owned(),
        });
    }
    for (domain, bundle) in view.replica.bundles() {
        if Some(domain) == view.replica.domain() {
            continue;
        }
        let bundle = bundle.authorities_der_concat();
        context.update(domain.as_str().as_bytes());
        context.update(&bundle);
        message.federated_bundles.insert(domain.id().to_string(), bundle);
    }
    Made::Message(message, finish(context))
}

/// The revocation lists for a caller that wants them. It is given nothing without them: a program that was told to
/// check would take what it cannot check for bad, or for good.
fn lists(view: &View, wants: bool, context: &mut Context) -> Result<Vec<Vec<u8>>, String> {
    if !wants {
        return Ok(Vec::new());
    }
    let lists = view.lists.as_ref().ok_or("no revocation lists are there yet")?;
    context.update(lists.digest.as_bytes());
    Ok(lists.ders.iter().map(|der| der.to_vec()).collect())
}

/// The bundles of every trust domain that the caller may verify peers of.
pub(super) fn bundles(
    view: &View,
    svids: &[(Arc<Workload>, Arc<Svid>)],
) -> Made<X509BundlesResponse> {
    if view.replica.own_bundle().is_none() {
        return Made::Pending("no bundle is there yet".to_owned());
    }
    let mut context = Context::new(&SHA256);
    let wants = svids.iter().any(|(workload, _)| workload.spec.crl);
    let crl = match lists(view, wants, &mut context) {
        Ok(crl) => crl,
        Err(why) => return Made::Pending(why),
    };
    let mut bundles = HashMap::new();
    for (domain, bundle) in view.replica.bundles() {
        let bundle = bundle.authorities_der_concat();
        context.update(domain.as_str().as_bytes());
        context.update(&bundle);
        bundles.insert(domain.id().to_string(), bundle);
    }
    Made::Message(X509BundlesResponse { crl, bundles }, finish(context))
}

fn finish(context: Context) -> Sha256 {
    let digest = context.finish();
    Sha256::from_bytes(digest.as_ref().try_into().expect("a SHA-256 digest has 32 bytes"))
}
