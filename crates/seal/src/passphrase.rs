//! Wrapping by a passphrase: Argon2id (RFC 9106) makes the key that encrypts the key-encryption key.

use std::fmt;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use countersign_identity::Entropy;
use zeroize::{Zeroize as _, Zeroizing};

use crate::kek::KEY_BYTES;
use crate::wrap::{KeyWrap, WrapMethod, WrapRefused, decrypt, encrypt};

/// What opening costs: RFC 9106's second recommendation, for machines that do other things besides.
const COST: Cost = Cost { kibibytes: 64 * 1024, passes: 3, lanes: 4 };
/// No file may ask for more: who can write it could otherwise fill the memory of who opens it.
const COST_MAX: Cost = Cost { kibibytes: 1024 * 1024, passes: 16, lanes: 16 };
const SALT_BYTES: usize = 16;
const NOTE_BYTES: usize = 12 + SALT_BYTES;

/// A passphrase. Wiped when dropped, never copied, never printed.
pub struct Passphrase(Zeroizing<String>); // INVARIANT: not empty

#[derive(Clone, Copy)]
struct Cost {
    kibibytes: u32,
    passes: u32,
    lanes: u32,
}

impl Passphrase {
    /// Takes a passphrase as it was given. The line's end of a file or a prompt is not part of it.
    ///
    /// # Errors
    /// When there is nothing in it.
    pub fn new(mut text: Zeroizing<String>) -> Result<Self, WrapRefused> {
        let length = text.trim_end_matches(['\r', '\n']).len();
        text.truncate(length);
        if text.is_empty() { Err(WrapRefused::EmptyPassphrase) } else { Ok(Self(text)) }
    }

    /// The key that it gives. The memory that this takes is wiped and given back.
    fn key(&self, note: &[u8]) -> Result<Zeroizing<[u8; KEY_BYTES]>, WrapRefused> {
        let (cost, salt) = read_note(note)?;
        let memory = || WrapRefused::Memory { mebibytes: cost.kibibytes / 1024 };
        let params = Params::new(cost.kibibytes, cost.passes, cost.lanes, Some(KEY_BYTES));
        let params = params.map_err(|_bad| WrapRefused::Note)?;
        let mut blocks = Vec::new();
        blocks.try_reserve_exact(params.block_count()).map_err(|_full| memory())?;
        blocks.resize(params.block_count(), Block::default());
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let made = argon2.hash_password_into_with_memory(
            self.0.as_bytes(),
            salt,
            key.as_mut_slice(),
            &mut blocks,
        );
        blocks.zeroize();
        made.map_err(|_bad| WrapRefused::Note)?;
        Ok(key)
    }
}

fn read_note(note: &[u8]) -> Result<(Cost, &[u8]), WrapRefused> {
    if note.len() != NOTE_BYTES {
        return Err(WrapRefused::Note);
    }
    let number = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&note[at..at + 4]);
        u32::from_be_bytes(bytes)
    };
    let cost = Cost { kibibytes: number(0), passes: number(4), lanes: number(8) };
    let fits = cost.kibibytes <= COST_MAX.kibibytes
        && cost.passes <= COST_MAX.passes
        && cost.lanes <= COST_MAX.lanes;
    if !fits {
        let Cost { kibibytes, passes, lanes } = cost;
        return Err(WrapRefused::Cost { mebibytes: kibibytes / 1024, passes, lanes });
    }
    Ok((cost, &note[12..]))
}

impl KeyWrap for Passphrase {
    fn method(&self) -> WrapMethod {
        WrapMethod::Passphrase
    }

    fn note(&self, entropy: &dyn Entropy) -> Result<Vec<u8>, WrapRefused> {
        let mut salt = [0; SALT_BYTES];
        entropy.fill(&mut salt)?;
        let Cost { kibibytes, passes, lanes } = COST;
        let numbers = [kibibytes, passes, lanes].map(u32::to_be_bytes).concat();
        Ok([numbers.as_slice(), &salt].concat())
    }

    fn wrap(
        &self,
        note: &[u8],
        context: &[u8],
        key: &[u8],
        entropy: &dyn Entropy,
    ) -> Result<Vec<u8>, WrapRefused> {
        Ok(encrypt(&*self.key(note)?, context, key, entropy)?)
    }

    fn unwrap(
        &self,
        note: &[u8],
        context: &[u8],
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, WrapRefused> {
        decrypt(&*self.key(note)?, context, wrapped).ok_or(WrapRefused::Passphrase)
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase")
    }
}
