//! What an agent signs to renew its SVID with its registered key.

use countersign_identity::{NodeId, Sha256};

/// The label of the TLS exporter value that ties the statement to its connection (RFC 8446, 7.5).
pub const EXPORTER_LABEL: &str = "EXPORTER-countersign-renew";

/// What comes first, so that the signature can never be taken for one over anything else.
const CONTEXT: &[u8] = b"countersign renew v1\0";

/// The statement: `node.proto` describes it. Every field has a fixed length, so no two statements have
/// one text. Without a successor, the digest is that of nothing.
pub fn renewal_statement(
    nonce: &[u8; 32],
    exporter: &[u8; 32],
    node: NodeId,
    generation: u64,
    successor_csr: Sha256,
) -> Vec<u8> {
    [CONTEXT, nonce, exporter, node.as_bytes(), &generation.to_be_bytes(), successor_csr.as_bytes()]
        .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement_has_the_bytes_that_the_proto_describes() {
        let statement = renewal_statement(
            &[1; 32],
            &[2; 32],
            NodeId::from_bytes([3; 16]),
            4,
            Sha256::from_bytes([5; 32]),
        );
        let mut expected = b"countersign renew v1\0".to_vec();
        expected.extend([1; 32]);
        expected.extend([2; 32]);
        expected.extend([3; 16]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 4]);
        expected.extend([5; 32]);
        assert_eq!(statement, expected);
    }
}
