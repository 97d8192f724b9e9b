//! The steps of the walk: what each of them puts into its one commit.

use std::time::Duration;

use countersign_api::admin::{RootState, Step};
use countersign_api::resource::AuthoritySpec;
use countersign_audit::{Event, EventKind};
use countersign_identity::{Code, KeyId, Lifetime, Reason, Revision, Timestamp, backdate};
use countersign_pki::{Certificate, Issuer, KeyKind};
use countersign_store::{Batch, Change, Kind, Record};

use super::{Draft, Walker, next};
use crate::authority::{Ceremony, Signing, destroy, internal, issuer_name, keep, root_name};
use crate::refusal::Refused;
use crate::revoke::{Watched, condemned, trial_batch};
use crate::rotate::next_key::NextKey;
use crate::rotate::root::Root;
use crate::rotate::walk::Walk;
use crate::state::State;

impl Walker {
    /// Takes one step, whatever its gate says; `force` are the words of who wanted that.
    ///
    /// # Errors
    /// When the roots are not where the step begins; nothing is half-done.
    pub(crate) async fn take(
        &self,
        step: Step,
        actor: &str,
        force: Option<&str>,
    ) -> Result<Revision, Refused> {
        self.take_with(step, actor, force, None).await
    }

    /// The same; a root that is prepared gets this key, or the one that its order names.
    pub(super) async fn take_with(
        &self,
        step: Step,
        actor: &str,
        force: Option<&str>,
        root_key: Option<NextKey>,
    ) -> Result<Revision, Refused> {
        let now = self.control.desk.now().await?;
        let state = self.control.feed.current();
        let walk = Walk::clone(state.walk()?);
        let from = walk.order.as_ref().map(|order| order.from);
        let mut draft = match step {
            Step::Prepare => self.prepare(walk, root_key, force.is_some(), now).await?,
            Step::Publish => self.publish(&state, walk, now)?,
            Step::Activate => self.activate(&state, walk, now).await?,
            Step::Supersede => self.supersede(&state, walk, actor, now).await?,
            Step::Retire => self.retire(&state, walk, now)?,
            Step::Condemn => self.condemn(&state, walk, actor, now).await?,
            Step::Rollback => self.rollback(&state, walk, now).await?,
            // A recovery is tried out, by a rule of its own.
            Step::Confirm if walk.is_recovering() => {
                Draft { walk, batch: trial_batch(&state, actor, now), authorities: None }
            }
            Step::Reissue | Step::Confirm | Step::Prove => {
                Draft { walk, batch: Batch::default(), authorities: None }
            }
            Step::Taint => return Err(internal("a taint names its root")),
        };
        draft.walk.did(step, next(&state), now);
        let subject = subject(step, &draft.walk, from);
        let details = serde_json::json!({ "step": step, "force": force });
        let event = Event::new(EventKind::AuthorityWalked, now, actor, subject.clone());
        draft.batch.events.push(event.with_details(details));
        let narrows = draft.batch.narrows;
        let revision = next(&state);
        let begun = narrows.then(|| self.control.converging.begin(revision, now));
        let revision = self.commit(&state, draft, now).await?;
        if let Some(begun) = begun {
            begun.committed(self.control.clock.now(), Watched::default());
        }
        tracing::info!(%step, root = %subject, %revision, "an authority walked");
        Ok(revision)
    }

    async fn prepare(
        &self,
        mut walk: Walk,
        named: Option<NextKey>,
        forced: bool,
        now: Timestamp,
    ) -> Result<Draft, Refused> {
        if let Some(next) = walk.successor() {
            let why = format!("root `{}` is {} already: go on with it", next.key, next.state);
            return Err(Refused::new(Code::AlreadyExists, why));
        }
        let spec = self.control.feed.current().declared_authority();
        let key_type = spec.as_ref().map_or(KeyKind::P256, |spec| spec.key_type);
        let ceremony = self.ceremony(now);
        let authorities = self.rotation.authorities.load_full();
        // Nothing declared: as long as the one before.
        let lifetime = match spec {
            Some(spec) => spec.root_lifetime,
            // What others think right for their roots is no measure for ours.
            None if authorities.is_outside() => AuthoritySpec::default().root_lifetime,
            None => lifetime_of(&walk.active()?.certificate()?)?,
        };
        let domain = authorities.issuer.domain().clone();
        // Whoever vouches for it has to be there before anything is made.
        let older = self.voucher(&walk, forced).await?;
        let named = named.or_else(|| walk.order.as_ref()?.root_key.clone());
        let key = named.unwrap_or(NextKey::Here);
        let key = key.make(&walk, key_type, &self.rotation.vault).await?;
        let new = key.of();
        let root = ceremony.root(&domain, &*new.signer()?, lifetime).await?;
        let newer = Issuer::from_certificate(root.clone()).map_err(internal)?;
        let cross = match older {
            Some(Signing { issuer: older, signer, .. }) => {
                Some(ceremony.cross(&older, &*signer, &newer, lifetime).await?)
            }
            None => None,
        };
        let name = root_name(newer.key_id());
        let (kek, entropy) = (&self.rotation.kek, &*self.control.entropy);
        let ops = vec![keep(&name, &[&root], new.to_keep(), kek, entropy)?];
        walk.prepare(Root::prepared(&root, cross.as_ref(), now), self.steady())?;
        walk.hold(root.key_id(), new.held())?;
        Ok(Draft { walk, batch: Batch { ops, ..Batch::default() }, authorities: None })
    }

    /// Who vouches for the next root: the active one, unless it is held outside, or does not answer where that must not matter.
    async fn voucher(&self, walk: &Walk, forced: bool) -> Result<Option<Signing>, Refused> {
        let Ok(signing) = self.rotation.authorities.load().root_signing() else { return Ok(None) };
        match signing.signer.ready().await {
            Ok(()) => Ok(Some(signing)),
            // A token that is lost, or stolen, must not keep anybody from another root.
            Err(away) if forced || walk.is_recovering() => {
                tracing::warn!(why = %away, "the active root does not vouch for the next");
                Ok(None)
            }
            Err(away) => Err(away.into()),
        }
    }

    fn publish(&self, state: &State, mut walk: Walk, now: Timestamp) -> Result<Draft, Refused> {
        walk.publish(next(state), now)?;
        let changes = vec![self.bundle(state, &walk, Duration::ZERO)?];
        Ok(Draft { walk, batch: Batch { changes, ..Batch::default() }, authorities: None })
    }

    async fn activate(
        &self,
        state: &State,
        mut walk: Walk,
        now: Timestamp,
    ) -> Result<Draft, Refused> {
        walk.may_activate(!state.authority().approvers.is_empty())?;
        let (before, active) = walk.activate(now)?;
        self.enthrone(state, walk, before, active, now).await
    }

    async fn rollback(
        &self,
        state: &State,
        mut walk: Walk,
        now: Timestamp,
    ) -> Result<Draft, Refused> {
        let imported = walk.successor().and_then(Root::issuer);
        let (back, leaving, was) = walk.rollback(now)?;
        if let Some(back) = back {
            return self.enthrone(state, walk, leaving, back, now).await;
        }
        let changes = match was {
            RootState::Published => vec![self.bundle(state, &walk, Duration::ZERO)?],
            RootState::Prepared | RootState::Active | RootState::Retiring | RootState::Retired => {
                Vec::new()
            }
        };
        // It is trusted nowhere any more: a bundle that shrinks takes rights away.
        let narrows = was == RootState::Published;
        let keys = [root_name(leaving)].into_iter().chain(imported.map(issuer_name));
        let ops = keys.map(destroy).collect();
        let batch = Batch { changes, narrows, ops, ..Batch::default() };
        Ok(Draft { walk, batch, authorities: None })
    }

    async fn supersede(
        &self,
        state: &State,
        mut walk: Walk,
        actor: &str,
        now: Timestamp,
    ) -> Result<Draft, Refused> {
        let from = ordered(&walk)?;
        walk.supersede(from, next(state))?;
        let ledger = self.ledger(&walk).await?;
        let issuers: Vec<_> =
            ledger.issuers_of(from).map(|row| (row.key, row.validity.not_after)).collect();
        let batch = condemned(state, &issuers, Reason::Superseded, ledger.last_end(), actor, now)?;
        Ok(Draft { walk, batch, authorities: None })
    }

    fn retire(&self, state: &State, mut walk: Walk, now: Timestamp) -> Result<Draft, Refused> {
        let from = ordered(&walk)?;
        walk.retire(from, next(state), now)?;
        let changes = vec![self.bundle(state, &walk, Duration::ZERO)?];
        // Nobody can use it again, we included.
        let ops = vec![destroy(root_name(from))];
        let batch = Batch { changes, ops, narrows: true, ..Batch::default() };
        Ok(Draft { walk, batch, authorities: None })
    }

    async fn condemn(
        &self,
        state: &State,
        mut walk: Walk,
        actor: &str,
        now: Timestamp,
    ) -> Result<Draft, Refused> {
        let from = ordered(&walk)?;
        if !walk.is_root(from) {
            return self.condemn_issuer(state, walk, from, actor, now).await;
        }
        let ends = walk.root(from).map(Root::certificate).transpose()?;
        let ends = ends.map_or(now, |certificate| certificate.validity().not_after);
        walk.condemn(from, next(state), now)?;
        let ledger = self.ledger(&walk).await?;
        let issuers = ledger.issuers_of(from).map(|row| (row.key, row.validity.not_after));
        // Who has the root's key makes issuers that no log holds.
        let keys: Vec<_> = issuers.chain([(from, ends)]).collect();
        let reason = Reason::AuthorityCompromise;
        let mut batch = condemned(state, &keys, reason, ledger.last_end(), actor, now)?;
        batch.changes.push(self.bundle(state, &walk, Duration::ZERO)?);
        batch.ops.push(destroy(root_name(from)));
        Ok(Draft { walk, batch, authorities: None })
    }

    /// An issuer has a successor first, so that everybody is issued anew at once.
    async fn condemn_issuer(
        &self,
        state: &State,
        walk: Walk,
        issuer: KeyId,
        actor: &str,
        now: Timestamp,
    ) -> Result<Draft, Refused> {
        self.rotation.replace(issuer).await?;
        let ledger = self.ledger(&walk).await?;
        let ends = ledger.issuer(issuer).map_or(now, |row| row.validity.not_after);
        let (keys, reason) = ([(issuer, ends)], Reason::AuthorityCompromise);
        let batch = condemned(state, &keys, reason, ledger.last_end(), actor, now)?;
        Ok(Draft { walk, batch, authorities: None })
    }

    pub(super) fn bundle(
        &self,
        state: &State,
        walk: &Walk,
        within: Duration,
    ) -> Result<Change, Refused> {
        let domain = &state.domain().trust_domain;
        let before = state.bundle(domain).ok_or_else(|| internal("the state holds no bundle"))?;
        let bundle = walk.bundle(before, within)?;
        let (name, value) = (domain.to_string(), bundle.to_json().into());
        Ok(Change::Put(Record { kind: Kind::Bundle, name, value }))
    }

    pub(super) fn ceremony(&self, now: Timestamp) -> Ceremony<'_> {
        Ceremony { store: &*self.control.store, entropy: &*self.control.entropy, now }
    }
}

fn ordered(walk: &Walk) -> Result<KeyId, Refused> {
    let order = walk.order.as_ref().ok_or_else(|| internal("no walk is ordered"))?;
    Ok(order.from)
}

/// The root that a step is about, as the log says it.
fn subject(step: Step, walk: &Walk, from: Option<KeyId>) -> String {
    let root = match step {
        Step::Prepare | Step::Publish => walk.successor().map(|root| root.key),
        Step::Activate | Step::Rollback => walk.active().ok().map(|root| root.key),
        Step::Supersede
        | Step::Retire
        | Step::Condemn
        | Step::Reissue
        | Step::Confirm
        | Step::Prove
        | Step::Taint => from,
    };
    root.map_or_else(|| "roots".to_owned(), |root| root.to_string())
}

/// How long a root was made to live.
fn lifetime_of(root: &Certificate) -> Result<Lifetime, Refused> {
    let validity = root.validity();
    let whole = validity.not_after.since(validity.not_before).as_secs();
    let backdated = backdate(Lifetime::from_secs(whole).map_err(internal)?);
    Lifetime::from_secs(whole.saturating_sub(backdated.as_secs())).map_err(internal)
}
