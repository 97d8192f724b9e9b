//! The node on the disk: its registered key, a successor on its way, and its SVID.

use std::sync::Arc;

use countersign_identity::{NodeId, Timestamp};
use countersign_pki::{Bundle, Certificate, Chain, PrivateKey};

use super::{Disk, DiskFault, FORMAT, check_format};
use crate::core::Credential;

/// Who this node is: what it was registered as, and the SVID that shows it.
#[derive(Debug)]
pub(crate) struct Node {
    /// Its name.
    pub id: NodeId,
    /// Of the registered key.
    pub generation: u64,
    /// The registered key.
    pub key: Arc<PrivateKey>,
    /// Its SVID; possibly expired.
    pub chain: Chain,
    /// When the SVID was issued: its validity begins earlier, by the backdate.
    pub issued: Timestamp,
    /// The authorities of its trust domain.
    pub bundle: Bundle,
}

impl Node {
    /// Its SVID, without the key.
    pub(crate) fn credential(&self) -> Credential {
        let id = self.leaf().spiffe_id().unwrap_or_else(|_bad| self.bundle.domain.id());
        Credential::remembered(id, &self.chain, &self.bundle, self.issued)
    }

    /// The leaf of its SVID.
    pub(crate) fn leaf(&self) -> &Certificate {
        self.chain.leaf()
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NodeFile {
    format: u32,
    id: NodeId,
    generation: u64,
    issued: Timestamp,
    chain: String,
    trust_domain: countersign_identity::TrustDomain,
    bundle: String,
}

impl Disk {
    /// The node that was registered from here; `None` before the first attestation.
    ///
    /// # Errors
    /// When what is there is not understood.
    pub(crate) fn node(&self) -> Result<Option<Node>, DiskFault> {
        let path = self.path.join("node.json");
        let Some(text) = self.read("node.json")? else { return Ok(None) };
        let broken = |why: String| DiskFault::Broken { path: path.clone(), why };
        check_format(&path, &text)?;
        let file: NodeFile =
            serde_json::from_slice(&text).map_err(|why| broken(why.to_string()))?;
        let bundle = Bundle::parse_json(file.trust_domain, file.bundle.as_bytes())
            .map_err(|why| broken(why.to_string()))?;
        let chain = Chain::from_pem(&file.chain).map_err(|why| broken(why.to_string()))?;
        let key = self.key(file.generation)?.ok_or_else(|| {
            broken(format!("the key of generation {} is missing", file.generation))
        })?;
        if key.public().spki() != chain.leaf().spki() {
            return Err(broken("the certificate is for another key".to_owned()));
        }
        Ok(Some(Node {
            id: file.id,
            generation: file.generation,
            key: Arc::new(key),
            chain,
            issued: file.issued,
            bundle,
        }))
    }

    /// Writes the node down, and then removes keys of other generations.
    ///
    /// # Errors
    /// When the system says no. The node before stays then.
    pub(crate) fn keep_node(&self, node: &Node) -> Result<(), DiskFault> {
        // The key first: node.json never names a key that is not there.
        self.write(&key_name(node.generation), node.key.pkcs8())?;
        let file = NodeFile {
            format: FORMAT,
            id: node.id,
            generation: node.generation,
            issued: node.issued,
            chain: node.chain.pem(),
            trust_domain: node.bundle.domain.clone(),
            bundle: node.bundle.to_json(),
        };
        self.write("node.json", &serde_json::to_vec(&file).expect("texts and numbers are JSON"))?;
        let others = [node.generation.checked_sub(1), node.generation.checked_add(1)];
        for generation in others.into_iter().flatten() {
            self.remove(&key_name(generation))?;
        }
        Ok(())
    }

    /// The key of this generation, if there is one: the registered one, or a successor on its way.
    ///
    /// # Errors
    /// When it is there and not a key.
    pub(crate) fn key(&self, generation: u64) -> Result<Option<PrivateKey>, DiskFault> {
        let name = key_name(generation);
        let Some(bytes) = self.read(&name)? else { return Ok(None) };
        PrivateKey::from_pkcs8(&bytes)
            .map(Some)
            .map_err(|why| DiskFault::Broken { path: self.path.join(name), why: why.to_string() })
    }

    /// The key of this generation, made and written down when it is not there yet.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub(crate) fn key_or_new(
        &self,
        generation: u64,
        kind: countersign_pki::KeyKind,
    ) -> Result<PrivateKey, DiskFault> {
        if let Some(key) = self.key(generation)? {
            return Ok(key);
        }
        let key = PrivateKey::generate(kind)?;
        self.write(&key_name(generation), key.pkcs8())?;
        Ok(key)
    }

    /// Removes the key of this generation.
    ///
    /// # Errors
    /// When the system says no.
    pub(crate) fn forget_key(&self, generation: u64) -> Result<(), DiskFault> {
        self.remove(&key_name(generation))
    }
}

fn key_name(generation: u64) -> String {
    format!("node-{generation}.key")
}
