//! Keys from a seed. Only here: everywhere else keys come from the system's randomness.

use countersign_identity::{Entropy, SeededEntropy};
use countersign_pki::PrivateKey;

/// PKCS#8, version 1, of an Ed25519 key (RFC 8410, section 7), up to the 32 bytes of the seed.
const PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The next key of this sequence.
pub(crate) fn key(entropy: &SeededEntropy) -> PrivateKey {
    let mut seed = [0; 32];
    entropy.fill(&mut seed).expect("a seeded sequence does not end");
    PrivateKey::from_pkcs8(&[PREFIX.as_slice(), &seed].concat()).expect("any 32 bytes are a key")
}
