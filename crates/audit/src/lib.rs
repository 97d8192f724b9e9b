//! The transparency log: leaves, Merkle tree and proofs; computes what to write, writes nothing.
