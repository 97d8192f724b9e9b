//! Issuers that a root outside signs by ceremony: a request goes out, a chain comes in.
//!
//! The key is made here and never leaves; the root's key never comes. Under a root that is active already, what came in signs at
//! once, because the root is in every bundle. A root that is new here walks like any other, and its issuer waits for it.

use std::sync::Arc;

use countersign_api::admin::{
    CeremonyView, Goal, ImportResponse, RequestView, RootKey, RootState, Step,
};
use countersign_audit::{Event, EventKind};
use countersign_identity::{Code, Timestamp};
use countersign_pki::{PrivateKey, SoftwareSigner, encode_csr, make_authority_csr};
use countersign_store::Batch;

use crate::authority::{
    Authorities, Imported, KeyToKeep, Wanted, copy, destroy_request, imported_event, internal,
    issuer_name, keep, keep_outside, keep_request, open_request, read_chain, root_name,
};
use crate::refusal::Refused;
use crate::rotate::order::Order;
use crate::rotate::root::{Request, Root};
use crate::rotate::walk::Walk;
use crate::rotate::walker::{Draft, Walker, asking};
use crate::state::State;

/// Gives the request that an authority outside is to sign: the one that waits, or a new one under a new key.
///
/// Not to be torn: callers run it in a task of its own.
///
/// # Errors
/// When the store or the system refuses.
pub(crate) async fn request(
    walker: &Walker,
    anew: bool,
    actor: &str,
) -> Result<RequestView, Refused> {
    let (control, rotation) = (&walker.control, &walker.rotation);
    let state = control.feed.current();
    let mut walk = Walk::clone(state.walk()?);
    if let Some(waiting) = walk.request.as_ref().filter(|_waiting| !anew) {
        return Ok(view(waiting));
    }
    let now = control.desk.now().await?;
    let (key_type, _lifetime) = rotation.next_issuer();
    let key = PrivateKey::generate(key_type).map_err(internal)?;
    let csr = make_authority_csr(&key, &state.domain().trust_domain).map_err(internal)?;
    let (key_id, csr) = (key.public().id(), encode_csr(&csr));
    let request = Request { key: key_id, csr, actor: actor.to_owned(), at: now };
    let shown = view(&request);
    walk.request = Some(request);
    let ops = vec![keep_request(&key, &rotation.kek, &*control.entropy)?];
    let events = vec![Event::new(EventKind::AuthorityRequested, now, actor, key_id.to_string())];
    let batch = Batch { ops, events, ..Batch::default() };
    walker.commit(&state, Draft { walk, batch, authorities: None }, now).await?;
    Ok(shown)
}

/// Takes what an authority outside has signed.
///
/// Not to be torn: callers run it in a task of its own.
///
/// # Errors
/// When no request waits, or the chain breaks a rule; nothing has changed then.
pub(crate) async fn import(
    walker: &Walker,
    chain: &str,
    actor: &str,
) -> Result<ImportResponse, Refused> {
    let (control, rotation) = (&walker.control, &walker.rotation);
    let now = control.desk.now().await?;
    let state = control.feed.current();
    let walk = Walk::clone(state.walk()?);
    // 1. The key that waits.
    let waiting = walk.request.as_ref().ok_or_else(nothing_waits)?;
    let key = open_request(&*control.store, &rotation.kek).await?;
    let key = key.filter(|key| key.public().id() == waiting.key).ok_or_else(nothing_waits)?;
    // 2. The chain, judged by our own verifier, as if it were shown by a peer.
    let imported = read_chain(
        chain,
        Wanted {
            key: waiting.key,
            domain: &state.domain().trust_domain,
            known: walk.outside()?,
            svid_lifetime: state.domain().lifetime_max,
            declared: state.declared_authority().map(|spec| spec.issuer_lifetime),
            now,
        },
    )?;
    // 3. What follows from where its root is.
    let (issuer, root) = (imported.issuer.key_id(), imported.root.key_id());
    let expires = imported.issuer.certificate().validity().not_after;
    let known = walk.root(root).map(|root| (root.state, root.held));
    let (draft, walks) = match known {
        Some((RootState::Active, RootKey::External)) => {
            (succeed(walker, walk, &imported, &key)?, false)
        }
        None => {
            let reason = Some("a root that is held outside was brought".to_owned());
            let order = Order::new(Goal::Rotate, walk.active()?.key, actor, reason, now);
            (prepare(walker, &state, walk, &imported, &key, asking(&state, order))?, true)
        }
        Some((at, _)) => {
            let why = format!(
                "root `{root}` is {at} here: an issuer is taken in under the active root if that is held outside, or under one \
                 that is new here"
            );
            return Err(Refused::new(Code::Forbidden, why));
        }
    };
    let Draft { walk, mut batch, authorities } = draft;
    batch.ops.push(destroy_request());
    batch.events.push(imported_event(&imported, actor, now));
    let walk = Walk { request: None, ..walk };
    let revision = walker.commit(&state, Draft { walk, batch, authorities }, now).await?;
    tracing::info!(%issuer, %root, until = %expires, walks, "took in an issuer that a root outside has signed");
    Ok(ImportResponse { revision, issuer, expires, root, walks })
}

fn nothing_waits() -> Refused {
    let why = "no request waits for a certificate: `countersign authority prepare --root-key external` makes one";
    Refused::new(Code::NotFound, why)
}

/// Under the root that signs already.
fn succeed(
    walker: &Walker,
    mut walk: Walk,
    imported: &Imported,
    key: &PrivateKey,
) -> Result<Draft, Refused> {
    let (kek, entropy) = (&walker.rotation.kek, &*walker.control.entropy);
    walk.take_in(imported)?;
    let ops = keep_outside(imported, key, kek, entropy)?;
    let before = walker.rotation.authorities.load();
    let authorities = Authorities {
        root: before.root.clone(),
        root_signer: None,
        issuer: imported.issuer.clone(),
        above: imported.above.clone(),
        signer: Arc::new(SoftwareSigner::from(copy(key)?)),
    };
    let batch = Batch { ops, ..Batch::default() };
    Ok(Draft { walk, batch, authorities: Some(authorities) })
}

/// Under a root that is new here: it is prepared, and the walk begins.
fn prepare(
    walker: &Walker,
    state: &State,
    mut walk: Walk,
    imported: &Imported,
    key: &PrivateKey,
    order: Order,
) -> Result<Draft, Refused> {
    let (kek, entropy) = (&walker.rotation.kek, &*walker.control.entropy);
    let (root, issuer) = (&imported.root, imported.issuer.certificate());
    let (actor, now) = (order.actor.clone(), order.begun);
    walk.prepare(Root::prepared(root, None, now), walker.steady())?;
    walk.take_in(imported)?;
    // What was ordered already goes on with what was brought.
    if walk.order.is_none() {
        walk.begin(order)?;
    }
    walk.did(Step::Prepare, walker.next(state), now);
    let certificates: Vec<_> = [issuer].into_iter().chain(&imported.above).collect();
    let ops = vec![
        keep(&root_name(root.key_id()), &[root], KeyToKeep::Outside, kek, entropy)?,
        keep(&issuer_name(issuer.key_id()), &certificates, KeyToKeep::Here(key), kek, entropy)?,
    ];
    let details = serde_json::json!({ "step": Step::Prepare, "force": null });
    let event = Event::new(EventKind::AuthorityWalked, now, actor, root.key_id().to_string());
    let batch = Batch { ops, events: vec![event.with_details(details)], ..Batch::default() };
    Ok(Draft { walk, batch, authorities: None })
}

fn view(request: &Request) -> RequestView {
    let Request { key, csr, actor, at } = request.clone();
    RequestView { key, actor, at, csr }
}

/// What somebody outside has to sign, now or soon.
pub(crate) fn ceremony(
    authorities: &Authorities,
    walk: &Walk,
    now: Timestamp,
) -> Option<CeremonyView> {
    let request = walk.request.as_ref().map(view);
    if !authorities.is_outside() {
        return request.map(|request| CeremonyView {
            due: None,
            ends: None,
            request: Some(request),
        });
    }
    let due = authorities.succession();
    let ends = Some(authorities.issuer_validity().not_after);
    Some(CeremonyView { due: Some(due).filter(|due| *due <= now), ends, request })
}

impl Walker {
    /// Says, once, that an issuer whose root is held outside is past half of its life.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(super) async fn tell_of_ceremony(&self, state: &State, walk: &Walk) -> Result<(), Refused> {
        // By the clock as it is: who is told too early has time, who is told too late has none.
        let now = self.control.clock.now();
        let authorities = self.rotation.authorities.load_full();
        let (root, issuer) = (authorities.root.key_id(), authorities.issuer.key_id());
        let told = walk.root(root).is_none_or(|root| root.told == Some(issuer));
        if told || !authorities.is_outside() || now < authorities.succession() {
            return Ok(());
        }
        let mut walk = walk.clone();
        walk.tell(root, issuer)?;
        let ends = authorities.issuer_validity().not_after;
        tracing::warn!(%issuer, %ends, "a ceremony is due: the root outside has to sign a successor of the issuer");
        let details = serde_json::json!({ "root": root, "ends": ends });
        let event = Event::new(EventKind::CeremonyDue, now, "server", issuer.to_string());
        let batch = Batch { events: vec![event.with_details(details)], ..Batch::default() };
        self.commit(state, Draft { walk, batch, authorities: None }, now).await?;
        Ok(())
    }
}
