//! The form of sealed bytes, version 1.
//!
//! | bytes | what |
//! | --- | --- |
//! | 7 | `CSSEAL` and a zero byte |
//! | 1 | the version, 1 |
//! | 8 | the id of the key-encryption key |
//! | 12 | nonce of the data key's encryption |
//! | 48 | the data key, AES-256-GCM under the key-encryption key: 32 bytes and a tag of 16 |
//! | 12 | nonce of the payload's encryption |
//! | any | the payload, AES-256-GCM under the data key: as long as the plaintext and a tag of 16 |
//!
//! The additional data of both encryptions is all that precedes their ciphertext, then the context. So nothing
//! can be moved from one sealed value or one place to another, and no byte can be changed unseen. What precedes
//! has 28 bytes in the one case and 88 in the other, hence additional data of the one is never that of the other.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use countersign_identity::{Entropy, EntropyLost};
use zeroize::Zeroizing;

use crate::kek::KEY_BYTES;
use crate::{Kek, KekId};

/// How much can be sealed at once.
pub const PLAINTEXT_BYTES_MAX: usize = 16 << 20;

const MAGIC: &[u8; 7] = b"CSSEAL\0";
const VERSION: u8 = 1;
const TAG_BYTES: usize = 16;
const ID_AT: usize = MAGIC.len() + 1;
const WRAP_NONCE_AT: usize = ID_AT + 8;
const WRAPPED_AT: usize = WRAP_NONCE_AT + NONCE_LEN;
const NONCE_AT: usize = WRAPPED_AT + KEY_BYTES + TAG_BYTES;
const PAYLOAD_AT: usize = NONCE_AT + NONCE_LEN;

/// Why something was not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealRefused {
    /// Too much at once.
    #[error("{bytes} bytes are over the limit of {PLAINTEXT_BYTES_MAX} for one sealed value")]
    Long {
        /// How much it is.
        bytes: usize,
    },
    /// There is no randomness for a data key.
    #[error(transparent)]
    Entropy(#[from] EntropyLost),
}

/// Why sealed bytes were not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenRefused {
    /// Something else, or too short.
    #[error("these bytes are not a sealed value")]
    NotSealed,
    /// Sealed in another version of the form.
    #[error("the value is sealed in version {0} of the form, this program knows version {VERSION}")]
    OtherVersion(u8),
    /// Sealed under another key.
    #[error("the value is sealed under key `{sealed_under}`, the key at hand is `{given}`")]
    OtherKey {
        /// The key that would open it.
        sealed_under: KekId,
        /// The key that was tried.
        given: KekId,
    },
    /// Sealed under this key, but not these bytes or not for this context.
    #[error("the sealed value was changed, or was sealed for something else than `{context}`")]
    Damaged {
        /// What it was opened for.
        context: String,
    },
}

/// Seals a plaintext under a key, for a context (such as `secret/issuer-key`) that must be named again to open it.
///
/// # Errors
/// When the plaintext is too long, or the source of randomness fails.
pub fn seal(
    kek: &Kek,
    context: &str,
    plaintext: &[u8],
    entropy: &dyn Entropy,
) -> Result<Vec<u8>, SealRefused> {
    if PLAINTEXT_BYTES_MAX < plaintext.len() {
        return Err(SealRefused::Long { bytes: plaintext.len() });
    }
    let mut data_key = Zeroizing::new([0; KEY_BYTES]);
    entropy.fill(data_key.as_mut())?;
    let mut sealed = Vec::with_capacity(PAYLOAD_AT + plaintext.len() + TAG_BYTES);
    sealed.extend_from_slice(MAGIC);
    sealed.push(VERSION);
    sealed.extend_from_slice(kek.id().as_bytes());
    append(&mut sealed, kek.bytes(), context, data_key.as_slice(), entropy)?;
    append(&mut sealed, &data_key, context, plaintext, entropy)?;
    Ok(sealed)
}

/// Opens what [`seal`] made.
///
/// # Errors
/// When the bytes are not a sealed value, are sealed under another key or for another context, or were changed.
pub fn open(kek: &Kek, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenRefused> {
    if sealed.len() < ID_AT || !sealed.starts_with(MAGIC) {
        return Err(OpenRefused::NotSealed);
    }
    if sealed[MAGIC.len()] != VERSION {
        return Err(OpenRefused::OtherVersion(sealed[MAGIC.len()]));
    }
    if !(PAYLOAD_AT + TAG_BYTES..=PAYLOAD_AT + PLAINTEXT_BYTES_MAX + TAG_BYTES)
        .contains(&sealed.len())
    {
        return Err(OpenRefused::NotSealed);
    }
    let mut id = [0; 8];
    id.copy_from_slice(&sealed[ID_AT..WRAP_NONCE_AT]);
    let (sealed_under, given) = (KekId::from_bytes(id), kek.id());
    if sealed_under != given {
        return Err(OpenRefused::OtherKey { sealed_under, given });
    }
    let damaged = || OpenRefused::Damaged { context: context.to_owned() };
    let wrapped = decrypt(kek.bytes(), context, &sealed[..NONCE_AT], WRAP_NONCE_AT);
    let unwrapped = wrapped.ok_or_else(damaged)?;
    let mut data_key = Zeroizing::new([0; KEY_BYTES]);
    data_key.copy_from_slice(&unwrapped);
    decrypt(&data_key, context, sealed, NONCE_AT).ok_or_else(damaged)
}

fn cipher(key: &[u8; KEY_BYTES]) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, key).expect("the key has the cipher's length");
    LessSafeKey::new(key)
}

fn additional(preceding: &[u8], context: &str) -> Vec<u8> {
    [preceding, context.as_bytes()].concat()
}

/// Appends a nonce, the ciphertext and its tag.
fn append(
    sealed: &mut Vec<u8>,
    key: &[u8; KEY_BYTES],
    context: &str,
    plaintext: &[u8],
    entropy: &dyn Entropy,
) -> Result<(), SealRefused> {
    // A random nonce is safe for 2^32 encryptions under one key (NIST SP 800-38D, 8.3): a data key makes one, and
    // a key-encryption key one for each secret that is ever sealed.
    let mut nonce = [0; NONCE_LEN];
    entropy.fill(&mut nonce)?;
    sealed.extend_from_slice(&nonce);
    let start = sealed.len();
    let aad = additional(sealed, context);
    sealed.extend_from_slice(plaintext);
    let tag = cipher(key)
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(aad),
            &mut sealed[start..],
        )
        .expect("a plaintext within the bound is within the cipher's");
    sealed.extend_from_slice(tag.as_ref());
    Ok(())
}

/// Decrypts all that lies after the nonce at `nonce_at`; `None` when the tag does not fit.
fn decrypt(
    key: &[u8; KEY_BYTES],
    context: &str,
    sealed: &[u8],
    nonce_at: usize,
) -> Option<Zeroizing<Vec<u8>>> {
    let (preceding, ciphertext) = sealed.split_at(nonce_at + NONCE_LEN);
    let mut nonce = [0; NONCE_LEN];
    nonce.copy_from_slice(&preceding[nonce_at..]);
    let mut plaintext = Zeroizing::new(ciphertext.to_vec());
    let aad = Aad::from(additional(preceding, context));
    let nonce = Nonce::assume_unique_for_key(nonce);
    // Why it failed is not to be known (it is one and the same), hence no error is lost.
    let bytes = cipher(key).open_in_place(nonce, aad, &mut plaintext).ok()?.len();
    plaintext.truncate(bytes);
    Some(plaintext)
}

#[cfg(test)]
mod tests {
    use countersign_identity::{SeededEntropy, SystemEntropy};
    use proptest::prelude::*;

    use super::*;

    fn kek(seed: u64) -> Kek {
        Kek::draw(&SeededEntropy::new(seed)).unwrap()
    }

    fn sealed(plaintext: &[u8]) -> Vec<u8> {
        seal(&kek(1), "secret/a", plaintext, &SystemEntropy).unwrap()
    }

    #[test]
    fn a_wrong_key_is_told_from_damage() {
        let bytes = sealed(b"plain");
        let refused = open(&kek(2), "secret/a", &bytes).unwrap_err();
        assert_eq!(
            refused,
            OpenRefused::OtherKey { sealed_under: kek(1).id(), given: kek(2).id() }
        );
        let refused = open(&kek(1), "secret/b", &bytes).unwrap_err();
        assert_eq!(refused, OpenRefused::Damaged { context: "secret/b".to_owned() });
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let good = sealed(b"plain");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&kek(1), "secret/a", &bad).is_err(), "bit {bit}");
        }
        for length in 0..good.len() {
            assert!(open(&kek(1), "secret/a", &good[..length]).is_err(), "cut at {length}");
        }
        let mut longer = good;
        longer.push(0);
        assert!(open(&kek(1), "secret/a", &longer).is_err());
    }

    #[test]
    fn a_newer_form_says_so() {
        let mut bytes = sealed(b"plain");
        bytes[7] = 2;
        assert_eq!(open(&kek(1), "secret/a", &bytes), Err(OpenRefused::OtherVersion(2)));
        assert_eq!(open(&kek(1), "secret/a", b"-----BEGIN"), Err(OpenRefused::NotSealed));
    }

    #[test]
    fn the_payload_of_one_value_does_not_open_behind_the_data_key_of_another() {
        let (one, other) = (sealed(b"plain"), sealed(b"other"));
        let mixed = [&one[..NONCE_AT], &other[NONCE_AT..]].concat();
        assert!(matches!(open(&kek(1), "secret/a", &mixed), Err(OpenRefused::Damaged { .. })));
    }

    #[test]
    fn the_same_plaintext_is_never_sealed_to_the_same_bytes() {
        assert_ne!(sealed(b"plain")[WRAP_NONCE_AT..], sealed(b"plain")[WRAP_NONCE_AT..]);
    }

    #[test]
    fn too_much_at_once_is_refused() {
        let plaintext = vec![0; PLAINTEXT_BYTES_MAX + 1];
        let refused = seal(&kek(1), "x", &plaintext, &SystemEntropy);
        assert_eq!(refused, Err(SealRefused::Long { bytes: plaintext.len() }));
    }

    /// The form is fixed: what an earlier version sealed must open for ever.
    #[test]
    fn what_version_1_sealed_opens() {
        let bytes = seal(&kek(7), "secret/vector", b"countersign", &SeededEntropy::new(8)).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("../testdata/sealed_v1.hex").trim());
        assert_eq!(*open(&kek(7), "secret/vector", &bytes).unwrap(), b"countersign");
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_to_the_same(plaintext: Vec<u8>, context: String, seed: u64) {
            let entropy = SeededEntropy::new(seed);
            let bytes = seal(&kek(seed), &context, &plaintext, &entropy).unwrap();
            prop_assert_eq!(&*open(&kek(seed), &context, &bytes).unwrap(), &plaintext);
            prop_assert!(plaintext.len() < 8 || !bytes.windows(plaintext.len()).any(|part| part == plaintext));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let mut marked = b"CSSEAL\0\x01".to_vec();
            marked.extend_from_slice(&bytes);
            prop_assert!(open(&kek(1), "x", &marked).is_err());
        }
    }
}
