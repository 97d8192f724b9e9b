//! Keys, signers, certificates and their verification: bytes in, bytes out.
