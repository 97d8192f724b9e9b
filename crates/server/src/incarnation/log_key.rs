//! The key with which the trust domain vouches for what it has said: rules that agents hand back after a loss, and the
//! revisions that they have seen.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use countersign_api::v1;
use countersign_audit::{NoteKey, NoteKeyKind};
use countersign_identity::{Code, Entropy, KeyId, Revision, TrustDomain};
use countersign_pki::{KeyKind, PrivateKey};
use countersign_seal::Kek;
use countersign_store::{Batch, Kind, Op, Store};

use crate::authority::internal;
use crate::refusal::Refused;

/// Where it is kept.
const LOG_KEY: &str = "authority/log";
/// Signatures that are remembered.
const SIGNED_MAX: usize = 65_536;

/// The log key. Its signatures are the same each time, and made once.
pub(crate) struct LogKey {
    key: PrivateKey,
    signed: Mutex<HashMap<(String, String), (Bytes, Bytes)>>,
    witnessed: Mutex<Option<(Revision, Bytes)>>,
}

impl LogKey {
    pub(crate) fn of(key: PrivateKey) -> Self {
        Self { key, signed: Mutex::default(), witnessed: Mutex::default() }
    }

    /// Opens the key that the store keeps, or makes one when there is none.
    ///
    /// # Errors
    /// When the store does not answer, or what it keeps does not open.
    pub(crate) async fn open_or_make(
        store: &dyn Store,
        kek: &Kek,
        entropy: &dyn Entropy,
    ) -> Result<Self, Refused> {
        if let Some(key) = Self::open(store, kek).await? {
            return Ok(key);
        }
        let key = PrivateKey::generate(KeyKind::Ed25519).map_err(internal)?;
        Self::put(store, kek, &key, entropy).await?;
        Ok(Self::of(key))
    }

    /// Makes this the key that the store keeps.
    ///
    /// # Errors
    /// When the store does not take it.
    pub(crate) async fn put(
        store: &dyn Store,
        kek: &Kek,
        key: &PrivateKey,
        entropy: &dyn Entropy,
    ) -> Result<(), Refused> {
        let sealed =
            countersign_seal::seal(kek, LOG_KEY, key.pkcs8(), entropy).map_err(internal)?;
        let ops = vec![Op::PutSecret { name: LOG_KEY.to_owned(), sealed }];
        store.commit(Batch { ops, ..Batch::default() }).await?;
        Ok(())
    }

    /// Opens the key that the store keeps.
    ///
    /// # Errors
    /// When the store does not answer, or what it keeps does not open.
    pub(crate) async fn open(store: &dyn Store, kek: &Kek) -> Result<Option<Self>, Refused> {
        let Some(sealed) = store.secret(LOG_KEY).await? else { return Ok(None) };
        let opened = countersign_seal::open(kek, LOG_KEY, &sealed)
            .map_err(|refused| Refused::new(Code::Sealed, refused.to_string()))?;
        Ok(Some(Self::of(PrivateKey::from_pkcs8(&opened).map_err(internal)?)))
    }

    /// Its public name.
    pub(crate) fn id(&self) -> KeyId {
        self.key.public().id()
    }

    /// Its public half under the name with which it signs the log of a trust domain.
    ///
    /// # Errors
    /// When it is of another kind than the one that is made here.
    pub(crate) fn note_key(&self, domain: &TrustDomain) -> Result<NoteKey, Refused> {
        // The last 32 bytes of the one encoding of an Ed25519 key (RFC 8410, 4).
        let key = self.key.public().spki().last_chunk::<32>();
        let key = key.filter(|_key| self.key.public().kind() == KeyKind::Ed25519);
        let key = key.ok_or_else(|| internal("the log key is not an Ed25519 key"))?;
        NoteKey::new(&format!("{domain}/log"), NoteKeyKind::Log, *key).map_err(internal)
    }

    /// Signs the text of a checkpoint. It has no zero byte, so it is never one of the other statements.
    ///
    /// # Errors
    /// When the library cannot.
    pub(crate) fn sign_note(&self, text: &str) -> Result<Vec<u8>, Refused> {
        self.key.sign(text.as_bytes()).map_err(internal)
    }

    /// The signatures of those of these records that take rights away.
    pub(crate) fn sign(&self, records: &[v1::Record]) -> Vec<v1::SignedRecord> {
        let kinds = [Kind::Revocation.as_str(), Kind::Suspension.as_str()];
        let rules = records.iter().filter(|record| kinds.contains(&record.kind.as_str()));
        rules.filter_map(|record| self.sign_one(record)).collect()
    }

    fn sign_one(&self, record: &v1::Record) -> Option<v1::SignedRecord> {
        let v1::Record { kind, name, value } = record.clone();
        let key = (kind.clone(), name.clone());
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        let known = signed.get(&key).filter(|(of, _)| *of == value);
        let signature = match known {
            Some((_, signature)) => signature.clone(),
            None => {
                // Without a signature the rule is enforced all the same; it only cannot be handed back.
                let made = self.key.sign(&rule_statement(&kind, &name, &value)).ok()?;
                let made = Bytes::from(made);
                if SIGNED_MAX <= signed.len() {
                    signed.clear();
                }
                signed.insert(key, (value.clone(), made.clone()));
                made
            }
        };
        Some(v1::SignedRecord { kind, name, value, signature })
    }

    /// Whether this is a rule that this trust domain has made.
    pub(crate) fn made(&self, record: &v1::SignedRecord) -> bool {
        let v1::SignedRecord { kind, name, value, signature } = record;
        self.key.public().verify(&rule_statement(kind, name, value), signature).is_ok()
    }

    /// What proves to any server of this trust domain that this revision was reached.
    pub(crate) fn witness(&self, revision: Revision) -> Bytes {
        let mut witnessed = self.witnessed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, signature)) = &*witnessed
            && *of == revision
        {
            return signature.clone();
        }
        let signature = self.key.sign(&revision_statement(revision)).map(Bytes::from);
        let signature = signature.unwrap_or_default();
        *witnessed = Some((revision, signature.clone()));
        signature
    }

    /// Whether this revision was reached, in the word of a server of this trust domain.
    pub(crate) fn was_reached(&self, revision: Revision, witness: &[u8]) -> bool {
        self.key.public().verify(&revision_statement(revision), witness).is_ok()
    }
}

/// What is signed of a rule. Each part is preceded by its length, so that nothing can be moved from one to the next.
fn rule_statement(kind: &str, name: &str, value: &[u8]) -> Vec<u8> {
    let mut statement = b"countersign rule v1\0".to_vec();
    for part in [kind.as_bytes(), name.as_bytes(), value] {
        statement.extend_from_slice(&(part.len() as u64).to_be_bytes());
        statement.extend_from_slice(part);
    }
    statement
}

fn revision_statement(revision: Revision) -> Vec<u8> {
    let mut statement = b"countersign revision v1\0".to_vec();
    statement.extend_from_slice(&revision.incarnation.to_be_bytes());
    statement.extend_from_slice(&revision.number.to_be_bytes());
    statement
}

impl std::fmt::Debug for LogKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogKey({})", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> LogKey {
        LogKey::of(PrivateKey::generate(KeyKind::Ed25519).unwrap())
    }

    fn record(kind: Kind, name: &str, value: &'static [u8]) -> v1::Record {
        v1::Record {
            kind: kind.as_str().to_owned(),
            name: name.to_owned(),
            value: Bytes::from_static(value),
        }
    }

    #[test]
    fn only_rules_are_signed_and_no_part_of_one_can_be_changed_or_moved() {
        let key = key();
        let records =
            [record(Kind::Revocation, "1.2.0", b"{}"), record(Kind::Workload, "web", b"{}")];
        let signed = key.sign(&records);
        assert_eq!(signed.len(), 1);
        assert!(key.made(&signed[0]));
        let changed = |change: fn(&mut v1::SignedRecord)| {
            let mut record = signed[0].clone();
            change(&mut record);
            assert!(!key.made(&record), "{record:?}");
        };
        changed(|record| record.kind = "Suspension".to_owned());
        changed(|record| record.name = "1.2.1".to_owned());
        changed(|record| record.value = Bytes::from_static(b"{ }"));
        changed(|record| record.signature = Bytes::new());
        changed(|record| {
            record.name = "1.2".to_owned();
            record.value = Bytes::from_static(b".0{}");
        });
        assert!(!LogKey::of(PrivateKey::generate(KeyKind::Ed25519).unwrap()).made(&signed[0]));
    }

    #[test]
    fn a_witness_is_of_one_revision_and_of_this_key() {
        let (key, other) = (key(), key());
        let revision = Revision { incarnation: 1, number: 7 };
        let witness = key.witness(revision);
        assert!(key.was_reached(revision, &witness));
        assert!(!key.was_reached(Revision { number: 8, ..revision }, &witness));
        assert!(!other.was_reached(revision, &witness));
        assert!(!key.was_reached(revision, b""));
    }
}
