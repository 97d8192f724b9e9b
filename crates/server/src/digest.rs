//! SHA-256, as the server needs it: for tokens, tags and statements.

use aws_lc_rs::digest;
use countersign_identity::{NodeId, NodeTag, Sha256};

/// The digest of these bytes.
pub(crate) fn sha256(bytes: &[u8]) -> Sha256 {
    let digest = digest::digest(&digest::SHA256, bytes);
    Sha256::from_bytes(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

/// The opaque tag by which an SVID says through which node it was issued. Only who knows the node's 16
/// random bytes can tell which one that is.
pub(crate) fn node_tag(node: NodeId) -> NodeTag {
    let digest = sha256(&[b"countersign node tag v1\0".as_slice(), node.as_bytes()].concat());
    let tag = digest.as_bytes().first_chunk().expect("32 bytes begin with 8");
    NodeTag::from_bytes(*tag)
}
