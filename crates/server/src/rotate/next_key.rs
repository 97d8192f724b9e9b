//! Where the key of the next root is to be.

use std::sync::Arc;

use countersign_api::admin::{Goal, RootKey};
use countersign_identity::{Code, KeyId};
use countersign_pki::{KeyKind, KeyVault, PrivateKey};
use serde::{Deserialize, Serialize};

use crate::authority::{NewRoot, internal};
use crate::refusal::Refused;
use crate::rotate::gate::Gate;
use crate::rotate::walk::Walk;

/// What somebody has said about where the next root's key is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum NextKey {
    /// Sealed in the store.
    Here,
    /// In a token, under this name.
    Token(String),
}

impl NextKey {
    /// Reads what an operator wrote.
    ///
    /// # Errors
    /// When it is neither `here` nor the name of a key that is reached from here.
    pub(crate) fn read(text: Option<&str>, vault: &dyn KeyVault) -> Result<Option<Self>, Refused> {
        match text {
            None => Ok(None),
            Some("here") => Ok(Some(Self::Here)),
            Some(uri) => {
                vault.check(uri).map_err(|why| Refused::new(Code::NotUnderstood, why))?;
                Ok(Some(Self::Token(uri.to_owned())))
            }
        }
    }

    /// The key itself: made, or found in its token.
    ///
    /// # Errors
    /// When the token is not reached, or the key is a root's already.
    pub(super) async fn make(
        self,
        walk: &Walk,
        kind: KeyKind,
        vault: &Arc<dyn KeyVault>,
    ) -> Result<MadeKey, Refused> {
        let Self::Token(uri) = self else {
            return Ok(MadeKey::Here(PrivateKey::generate(kind).map_err(internal)?));
        };
        let public = vault.find_or_make(&uri).await?;
        let key: KeyId = public.id();
        if walk.is_root(key) {
            let why = format!("key `{uri}` is a root's already: name another");
            return Err(Refused::new(Code::AlreadyExists, why));
        }
        let signer = vault.signer(&uri, public)?;
        Ok(MadeKey::Token(uri, signer))
    }
}

/// The key of a root that is to be made.
pub(super) enum MadeKey {
    Here(PrivateKey),
    Token(String, Arc<dyn countersign_pki::Signer>),
}

impl MadeKey {
    pub(super) fn of(&self) -> NewRoot<'_> {
        match self {
            Self::Here(key) => NewRoot::Here(key),
            Self::Token(uri, signer) => NewRoot::Token(uri, Arc::clone(signer)),
        }
    }
}

impl Walk {
    /// Whether the successor that an order asks for can be made without people.
    pub(crate) fn can_prepare(&self) -> Gate {
        let named = self.order.as_ref().is_some_and(|order| order.root_key.is_some());
        let held = self.active().map_or(RootKey::Here, |active| active.held);
        let why = match held {
            _ if named => return Gate::Open,
            RootKey::Here => return Gate::Open,
            RootKey::External => {
                "the root is held outside: have a request signed (`countersign authority prepare --root-key external`) and \
                 bring the chain (`countersign authority import`), or let the next root be made here (`countersign \
                 authority prepare`)"
            }
            RootKey::Token => {
                "the root's key is in a token: say where the next one's is to be (`countersign authority prepare --root-key \
                 pkcs11:…`, or `here`)"
            }
        };
        Gate::Waits { why: why.to_owned(), done: 0, of: 1, missing: Vec::new(), until: None }
    }

    /// Refuses an order that would only wait for somebody to say where the next key is to be.
    ///
    /// # Errors
    /// When the root that has to go is in a token, and nothing was said.
    pub(crate) fn needs_key(
        &self,
        goal: Goal,
        from: KeyId,
        said: Option<&NextKey>,
    ) -> Result<(), Refused> {
        let in_token = self.active().is_ok_and(|it| it.key == from && it.held == RootKey::Token);
        let makes = matches!(goal, Goal::Rotate | Goal::Recover) && self.successor().is_none();
        if in_token && makes && said.is_none() {
            let why = "the root's key is in a token: say where the next one's is to be, with `--root-key pkcs11:…` or `--root-key here`";
            return Err(Refused::new(Code::NotUnderstood, why));
        }
        Ok(())
    }
}
