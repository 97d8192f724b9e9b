//! What a machine signs with the key of its own certificate to become a node.

use countersign_identity::Sha256;

/// What comes first, so that the signature can never be taken for one over anything else.
const CONTEXT: &[u8] = b"countersign attest x509 v1\0";

/// The statement: `node.proto` describes it. Every field has a fixed length, so no two statements have one text.
///
/// The exporter is that of [`EXPORTER_LABEL`](crate::renewal::EXPORTER_LABEL).
pub fn machine_statement(
    nonce: &[u8; 32],
    exporter: &[u8; 32],
    certificate: Sha256,
    csr: Sha256,
) -> Vec<u8> {
    [CONTEXT, nonce, exporter, certificate.as_bytes(), csr.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement_has_the_bytes_that_the_proto_describes() {
        let (certificate, csr) = (Sha256::from_bytes([3; 32]), Sha256::from_bytes([4; 32]));
        let statement = machine_statement(&[1; 32], &[2; 32], certificate, csr);
        let fields = [[1; 32], [2; 32], [3; 32], [4; 32]].concat();
        assert_eq!(statement, [b"countersign attest x509 v1\0".as_slice(), &fields].concat());
    }
}
