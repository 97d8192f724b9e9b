//! How roots walk: prepared → published → active → retiring → retired, and from anywhere to tainted (design, section 6).
//!
//! Pure: what may come next follows from where the roots are and from what is known of the trust domain, never from a
//! counter, so that an order that was interrupted goes on wherever it was.

use std::time::Duration;

use countersign_api::admin::{Cause, RootKey, RootState};
use countersign_identity::{Code, KeyId, Revision, Timestamp};
use countersign_pki::{Bundle, Certificate};
use countersign_store::{Kind, Record};
use serde::{Deserialize, Serialize};

use crate::authority::Imported;
use crate::refusal::Refused;
use crate::rotate::order::Order;
use crate::rotate::root::{Request, Root, parse};

/// The one record of its kind.
const NAME: &str = "roots";
/// Roots that are kept, the retired ones among them until they end.
const ROOTS_MAX: usize = 16;
/// Issuers of one root outside that are remembered.
const ISSUERS_MAX: usize = 16;

/// Where all roots of the trust domain are, and what was ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Walk {
    /// The oldest first.
    pub(crate) roots: Vec<Root>,
    /// What is under way.
    pub(crate) order: Option<Order>,
    /// What was under way before.
    pub(crate) last: Option<Order>,
    /// What goes on once the recovery from an issuer's leaked key has come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) paused: Option<Order>,
    /// A key that waits for a certificate from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) request: Option<Request>,
}

impl Walk {
    /// The walk of a trust domain that begins: its first root is trusted from the first revision on.
    pub(crate) fn first(certificate: &Certificate, at: Timestamp) -> Self {
        let mut root = Root::prepared(certificate, None, at);
        root.state = RootState::Active;
        Self { roots: vec![root], order: None, last: None, paused: None, request: None }
    }

    /// As the state keeps it.
    pub(crate) fn record(&self) -> Record {
        let value = serde_json::to_vec(self).expect("a walk always has a JSON form");
        Record { kind: Kind::Walk, name: NAME.to_owned(), value }
    }

    /// The root that signs issuers now.
    ///
    /// # Errors
    /// When the record holds none, which is a defect.
    pub(crate) fn active(&self) -> Result<&Root, Refused> {
        let mut active = self.roots.iter().filter(|root| root.state == RootState::Active);
        match (active.next(), active.next()) {
            (Some(root), None) => Ok(root),
            _ => Err(Refused::new(Code::Internal, "there is not exactly one active root")),
        }
    }

    /// The root that comes next, if one was prepared.
    pub(crate) fn successor(&self) -> Option<&Root> {
        let next = |root: &&Root| {
            matches!(root.state, RootState::Prepared | RootState::Published)
                && root.tainted.is_none()
        };
        self.roots.iter().find(next)
    }

    /// The root of this key.
    pub(crate) fn root(&self, key: KeyId) -> Option<&Root> {
        self.roots.iter().find(|root| root.key == key)
    }

    /// Roots that are in the bundle and on their way out.
    pub(crate) fn retiring(&self) -> impl Iterator<Item = &Root> {
        self.roots.iter().filter(|root| root.state == RootState::Retiring)
    }

    /// Whether this key is a root's.
    pub(crate) fn is_root(&self, key: KeyId) -> bool {
        self.root(key).is_some()
    }

    /// Takes note of an issuer that a root outside has signed.
    ///
    /// # Errors
    /// When the root is not on record.
    pub(crate) fn take_in(&mut self, imported: &Imported) -> Result<(), Refused> {
        let begins = imported.issuer.certificate().validity().not_before;
        let root = self.root_mut(imported.root.key_id())?;
        root.held = RootKey::External;
        root.issuers.retain(|pem| parse(pem).is_ok_and(|one| begins < one.validity().not_after));
        root.issuers.push(imported.issuer.certificate().to_pem());
        let over = root.issuers.len().saturating_sub(ISSUERS_MAX);
        root.issuers.drain(..over);
        Ok(())
    }

    /// The certificates of active roots whose key is outside: what those sign is taken in at once.
    ///
    /// # Errors
    /// When the record does not hold them.
    pub(crate) fn outside(&self) -> Result<Vec<Certificate>, Refused> {
        let active = self.roots.iter().filter(|root| root.state == RootState::Active);
        active.filter(|root| root.held == RootKey::External).map(Root::certificate).collect()
    }

    /// Takes note of where the key of a root is.
    ///
    /// # Errors
    /// When it is not on record.
    pub(crate) fn hold(&mut self, root: KeyId, held: RootKey) -> Result<(), Refused> {
        self.root_mut(root)?.held = held;
        Ok(())
    }

    /// Takes note that somebody was told of an issuer's end.
    ///
    /// # Errors
    /// When its root is not on record.
    pub(crate) fn tell(&mut self, root: KeyId, issuer: KeyId) -> Result<(), Refused> {
        self.root_mut(root)?.told = Some(issuer);
        Ok(())
    }

    pub(super) fn root_mut(&mut self, key: KeyId) -> Result<&mut Root, Refused> {
        let found = self.roots.iter_mut().find(|root| root.key == key);
        found.ok_or_else(|| unknown(key))
    }

    /// Takes note of a new root.
    ///
    /// # Errors
    /// When there is a successor already, or too many roots are on record.
    pub(crate) fn prepare(&mut self, root: Root, steady: Timestamp) -> Result<(), Refused> {
        if let Some(next) = self.successor() {
            let why = format!("root `{}` is {} already: go on with it", next.key, next.state);
            return Err(Refused::new(Code::AlreadyExists, why));
        }
        // A root that is forgotten is not known to be retired, so none is by a clock that is ahead.
        let ended = |root: &Root| {
            let over = root.certificate().is_ok_and(|it| it.validity().not_after < steady);
            root.state == RootState::Retired && over
        };
        self.roots.retain(|root| !ended(root));
        if ROOTS_MAX <= self.roots.len() {
            let oldest = self.roots.iter().position(|root| root.state == RootState::Retired);
            let oldest = oldest.ok_or_else(|| {
                Refused::new(Code::TooLarge, format!("{ROOTS_MAX} roots are on record"))
            })?;
            self.roots.remove(oldest);
        }
        self.roots.push(root);
        Ok(())
    }

    /// The successor is in the bundle from this revision on.
    ///
    /// # Errors
    /// When none is prepared.
    pub(crate) fn publish(&mut self, revision: Revision, at: Timestamp) -> Result<KeyId, Refused> {
        let next = self.in_state(RootState::Prepared, "prepare")?;
        let root = self.root_mut(next)?;
        root.becomes(RootState::Published, at);
        root.published = Some(revision);
        Ok(next)
    }

    /// The successor signs from now on, and the root before it is on its way out.
    ///
    /// # Errors
    /// When none is published.
    pub(crate) fn activate(&mut self, at: Timestamp) -> Result<(KeyId, KeyId), Refused> {
        let next = self.in_state(RootState::Published, "publish")?;
        let before = self.active()?.key;
        self.root_mut(before)?.becomes(RootState::Retiring, at);
        self.root_mut(next)?.becomes(RootState::Active, at);
        Ok((before, next))
    }

    /// What the root vouches for is out of service from this revision on.
    ///
    /// # Errors
    /// When it signs still.
    pub(crate) fn supersede(&mut self, key: KeyId, revision: Revision) -> Result<(), Refused> {
        let root = self.root_mut(key)?;
        if root.state != RootState::Retiring {
            return Err(wrong_state(root, "retire", "retiring"));
        }
        root.superseded = Some(revision);
        Ok(())
    }

    /// The root is not in the bundle any more from this revision on.
    ///
    /// # Errors
    /// When it signs still, or what it vouches for is in service.
    pub(crate) fn retire(
        &mut self,
        key: KeyId,
        revision: Revision,
        at: Timestamp,
    ) -> Result<(), Refused> {
        let root = self.root_mut(key)?;
        if root.state != RootState::Retiring || root.superseded.is_none() {
            return Err(wrong_state(root, "retire", "retiring, with nothing under it in service"));
        }
        root.becomes(RootState::Retired, at);
        root.dropped = Some(revision);
        Ok(())
    }

    /// Nothing under the root counts any more, and it is not in the bundle, from this revision on.
    ///
    /// # Errors
    /// When it signs still.
    pub(crate) fn condemn(
        &mut self,
        key: KeyId,
        revision: Revision,
        at: Timestamp,
    ) -> Result<(), Refused> {
        let root = self.root_mut(key)?;
        if root.state == RootState::Active {
            return Err(wrong_state(root, "condemn", "succeeded"));
        }
        root.becomes(RootState::Retired, at);
        root.tainted = Some(Cause::Compromised);
        (root.superseded, root.dropped) = (Some(revision), Some(revision));
        Ok(())
    }

    /// A root must not be trusted any more, for this cause.
    ///
    /// # Errors
    /// When there is no such root, or it is retired.
    pub(crate) fn taint(&mut self, key: KeyId, cause: Cause) -> Result<(), Refused> {
        let root = self.root_mut(key)?;
        if root.state == RootState::Retired {
            return Err(wrong_state(root, "taint", "in the bundle"));
        }
        root.tainted = Some(cause);
        Ok(())
    }

    /// Goes back by one rotation, as long as the older root is not retired: gives the root that signs after it, and the one
    /// that leaves.
    ///
    /// # Errors
    /// When nothing can be taken back.
    pub(crate) fn rollback(
        &mut self,
        at: Timestamp,
    ) -> Result<(Option<KeyId>, KeyId, RootState), Refused> {
        if let Some(next) = self.successor() {
            let (key, was) = (next.key, next.state);
            // Never in use: nothing depends on it.
            self.roots.retain(|root| root.key != key);
            self.call_off()?;
            return Ok((None, key, was));
        }
        if self.is_recovering() {
            let why = "a recovery is beyond recall once its new root signs: going back would leave a leaked key trusted";
            return Err(Refused::new(Code::Forbidden, why));
        }
        let back = self.retiring().filter(|root| root.tainted.is_none()).last();
        let Some(back) = back else {
            let why = "there is nothing to take back: no root is prepared, published or retiring";
            return Err(Refused::new(Code::NotFound, why));
        };
        if back.superseded.is_some() {
            let why = format!(
                "root `{}` is beyond recall: what it vouches for is out of service; rotate forward",
                back.key
            );
            return Err(Refused::new(Code::Forbidden, why));
        }
        let (back, leaving) = (back.key, self.active()?.key);
        self.root_mut(leaving)?.becomes(RootState::Retiring, at);
        self.root_mut(back)?.becomes(RootState::Active, at);
        self.call_off()?;
        Ok((Some(back), leaving, RootState::Active))
    }

    /// The bundle that follows from where the roots are.
    ///
    /// # Errors
    /// When the record does not hold the certificates.
    pub(crate) fn bundle(&self, before: &Bundle, within: Duration) -> Result<Bundle, Refused> {
        let authorities = self
            .roots
            .iter()
            .filter(|root| root.is_trusted())
            .map(Root::certificate)
            .collect::<Result<_, _>>()?;
        let retiring: Vec<_> = self.retiring().map(|root| root.key).collect();
        Ok(Bundle {
            authorities,
            sequence: before.sequence + 1,
            reissue_within: if retiring.is_empty() { Duration::ZERO } else { within },
            retiring,
            ..before.clone()
        })
    }

    fn in_state(&self, state: RootState, before: &str) -> Result<KeyId, Refused> {
        match self.successor() {
            Some(root) if root.state == state => Ok(root.key),
            Some(root) => Err(wrong_state(root, "go on", state.as_str())),
            None => {
                let why =
                    format!("no root is {state}: `countersign authority {before}` comes first");
                Err(Refused::new(Code::NotFound, why))
            }
        }
    }
}

pub(super) fn unknown(key: KeyId) -> Refused {
    let why =
        format!("no root with key `{key}` is on record; `countersign authority list` shows them");
    Refused::new(Code::NotFound, why)
}

pub(super) fn wrong_state(root: &Root, what: &str, expected: &str) -> Refused {
    let why =
        format!("cannot {what} root `{}`: it is {}, expected {expected}", root.key, root.state);
    Refused::new(Code::Forbidden, why)
}
